"""Names what a file holds, by its first bytes, where it is not what proxhpc reads."""

import re

# What a file begins with, what it is then, and what to do.
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (rb"version https://git-lfs\.github\.com", "a Git LFS pointer, not the file: run git lfs pull"),
    (rb"\x1f\x8b", "gzip within a compressed file: decompress it once"),
    (rb"\x28\xb5\x2f\xfd", "zstd within a compressed file: decompress it once"),
    (rb"\xfd7zXZ\0|BZh[1-9]1AY|\x04\x22\x4d\x18", "compressed twice: decompress it once"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16 text: convert it with iconv -f UTF-16 -t UTF-8"),
    (rb"PAR1", "a parquet file: set corpus.format to parquet"),
    (rb"ARROW1|\xff\xff\xff\xff[\0-\xff]{2}\0\0", "an Arrow file: set corpus.format to arrow"),
    (rb"PK\x03\x04", "a zip archive: unpack it"),
    (rb"[\0-\xff]{257}ustar", "a tar archive: unpack it"),
    (rb"SQLite format 3", "an SQLite database"),
    (rb"WARC/", "a WARC file: set corpus.format to wet if it has WET records"),
    (rb"\s*<\?xml|\s*<Error>", "XML, perhaps the error page of a download"),
    (rb"\s*<(!doctype|html)", "HTML, perhaps the error page of a download"),
    (rb"\s*\[", "a JSON array: set corpus.format to json"),
    (rb"\s*\{\s*\n", "JSON over several lines: set corpus.format to json"),
)


def name_content(head: bytes) -> str:
    """Return what a file holds by its first bytes and what to do about it; "" if unknown."""
    head = head.removeprefix(b"\xef\xbb\xbf")
    for signature, name in _SIGNATURES:
        if re.match(signature, head, re.IGNORECASE | re.DOTALL):
            return name
    return ""

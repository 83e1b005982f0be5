"""Names what a file holds, by its first bytes, where it is not what proxhpc reads."""

import re

# What a file begins with, what it is then, and what to do.
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (rb"version https://git-lfs\.github\.com", "a Git LFS pointer, not the file: run git lfs pull"),
    (rb"[./git]*annex/objects/", "a git-annex pointer, not the file: run git annex get"),
    (rb"\0{64}", "zeros, perhaps of a download that did not end: download it again"),
    (rb"\x1f\x8b", "gzip within a compressed file: decompress it once"),
    (rb"\x28\xb5\x2f\xfd", "zstd within a compressed file: decompress it once"),
    (rb"\xfd7zXZ\0|BZh[1-9]1AY|\x04\x22\x4d\x18", "compressed twice: decompress it once"),
    (rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32 text: convert it with iconv -f UTF-32 -t UTF-8"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16 text: convert it with iconv -f UTF-16 -t UTF-8"),
    (rb"[\t -~]\0[\t -~]\0", "UTF-16 text: convert it with iconv -f UTF-16LE -t UTF-8"),
    (rb"\0[\t -~]\0[\t -~]", "UTF-16 text: convert it with iconv -f UTF-16BE -t UTF-8"),
    (rb"PAR1", "a parquet file: set corpus.format to parquet"),
    (rb"PARE", "an encrypted parquet file: decrypt it"),
    (rb"FEA1", "a Feather file of version 1: write it again with version 2"),
    (rb"\x02\x21\x4c\x18", "lz4 in its legacy format: compress it again without -l"),
    (rb"[\x22-\x28]\xb5\x2f\xfd", "zstd in a legacy format: compress it again"),
    (rb"\x1f[\x9d\xa0]", "a file that compress made: decompress it"),
    (rb"\xff\x06\0\0sNaPpY", "a file that snappy made: decompress it"),
    (rb"7z\xbc\xaf|Rar!\x1a", "an archive: unpack it"),
    (rb"%PDF-", "a PDF file"),
    (rb"\x93NUMPY|\x80[\x02-\x05][c}\]\x95(]", "objects of Python: write them as JSON lines"),
    (rb"Obj\x01", "an Avro file: convert it to parquet"),
    (rb"ORC", "an ORC file: convert it to parquet"),
    (rb"\x89HDF", "an HDF5 file: convert it to parquet"),
    (rb"ARROW1|\xff\xff\xff\xff[\0-\xff]{2}\0\0", "an Arrow file: set corpus.format to arrow"),
    (rb"PK\x03\x04", "a zip archive: unpack it"),
    (rb"[\0-\xff]{257}ustar", "a tar archive: unpack it"),
    (rb"SQLite format 3", "an SQLite database"),
    (rb"WARC/", "a WARC file: if it has WET records, set corpus.format to wet"),
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

"""Documents as fixed-width numbers, and the keys by which one may equal others.

Three files a group of documents: 56 bytes each in input order, the keys (`bands`), and, where
near-duplicates are looked for, the MinHash signatures.
"""

import struct
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from proxhpc.corpus.document import Document
from proxhpc.corpus.records import lookup
from proxhpc.dedup.arrays import save_array
from proxhpc.dedup.bands import damaged_file, file_digest, write_bands
from proxhpc.dedup.minhash import MinHasher, band_keys, compress_slots
from proxhpc.dedup.shingles import fold
from proxhpc.run.paths import RunDir
from proxhpc.spec.sections import Dedup

SKETCH_DTYPE = np.dtype(
    [
        ("high", "<u8"),  # XXH3-128 of the refined text, normalised
        ("low", "<u8"),
        ("id", "<u8"),  # XXH3-64 of the document's id
        ("rank", "<u8"),  # by the manifest's dedup.by; 0 for a document without a value
        ("place", "<u8"),  # in a shuffled corpus, else 0
        ("chars", "<u4"),  # of the refined text
        ("size", "<u4"),  # bytes of the row as it would be written
        ("shard", "<u4"),  # behind the run's come the pieces of the corpus to compare with
        ("number", "<u4"),  # of the record in its shard
    ]
)
# All that str.isspace holds for, within ASCII and beyond.
_SPACES = bytes.maketrans(b"\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f", b" " * 9)
_WIDE_SPACES = (
    "\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_PACK = struct.Struct("<QQQQQIIII")

Sketch = npt.NDArray[np.void]


class SketchDigests(NamedTuple):
    """Digests of what was written for a group; `signatures` is "" where there are none."""

    hashes: str
    bands: str
    signatures: str


class SketchWriter:
    """Takes the documents of a group in input order, and writes its files."""

    def __init__(self, dedup: Dedup) -> None:
        self._dedup = dedup
        self._packed = bytearray()
        self._signer = MinHasher(dedup.near) if dedup.near else None

    def __len__(self) -> int:
        return len(self._packed) // SKETCH_DTYPE.itemsize

    def add(
        self, document: Document, text: str, at: tuple[int, int], *, size: int = 0, place: int = 0
    ) -> None:
        """Take the next document, at (shard, number); `text` is what is to be compared."""
        folded = fold(text)
        content = xxhash.xxh3_128_intdigest(normalized_bytes(folded))
        self._packed += _PACK.pack(
            content >> 64,
            content & 0xFFFFFFFFFFFFFFFF,
            xxhash.xxh3_64_intdigest(document.id.encode()),
            survivor_rank(self._dedup, document.fields),
            place,
            len(text),
            size,
            *at,
        )
        if self._signer is not None:
            self._signer.add(folded)

    def write(self, run: RunDir, group: int) -> SketchDigests:
        """Write the group's files, each whole or not at all."""
        array = np.frombuffer(bytes(self._packed), SKETCH_DTYPE)
        save_array(run.sketch(group), array)
        numbers = np.arange(len(array), dtype=np.uint32)
        bands = [(array["high"], numbers), (array["id"], numbers)]
        signed = ""
        if self._signer is not None and self._dedup.near is not None:
            own, some = self._signer.finish()
            keys = band_keys(own[some], self._dedup.near.bands)
            bands += [(band, numbers[some]) for band in keys]
            signed = save_array(run.signatures(group), compress_slots(own))
        else:
            run.signatures(group).unlink(missing_ok=True)
        hashes = xxhash.xxh3_128_hexdigest(array.data)
        return SketchDigests(hashes, write_bands(run.bands(group), bands), signed)


def load_sketch(run: RunDir, group: int, files: SketchDigests) -> Sketch:
    """The 56 bytes of each document of a group, proved to be those that were written."""
    path = run.sketch(group)
    try:
        array = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise damaged_file(path) from error
    if array.dtype != SKETCH_DTYPE or xxhash.xxh3_128_hexdigest(array.data) != files.hashes:
        raise damaged_file(path)
    return array  # type: ignore[no-any-return]


def check_files(run: RunDir, group: int, files: SketchDigests) -> None:
    """Raise StopError unless the files of a group are those that were written."""
    load_sketch(run, group, files)
    for path, known in ((run.bands(group), files.bands), (run.signatures(group), files.signatures)):
        if known and file_digest(path) != known:
            raise damaged_file(path)


def normalized_bytes(folded: str) -> bytes:
    """What the exact hash sees of a folded text: UTF-8, with all white space as single blanks."""
    if not folded.isascii():
        for char in _WIDE_SPACES:
            if char in folded:
                folded = folded.replace(char, " ")
    plain = folded.encode().translate(_SPACES).strip(b" ")
    if b"  " not in plain:
        return plain
    data = np.frombuffer(plain, np.uint8)
    stays = np.ones(len(data), np.bool_)
    blank = data == ord(" ")
    np.logical_and(blank[1:], blank[:-1], out=stays[1:])
    np.logical_not(stays[1:], out=stays[1:])
    return data[stays].tobytes()


def survivor_rank(dedup: Dedup, fields: dict[str, Any]) -> int:
    """Where a document stands among its duplicates by the field of the manifest, 64 bits.

    The highest stays. 0 where no field is asked for, or the document has no number or date there.
    """
    if dedup.by is None:
        return 0
    value = _number(lookup(fields, dedup.by))
    if value is None:
        return 0
    bits: int = struct.unpack(">Q", struct.pack(">d", value + 0.0))[0]  # -0.0 is 0.0
    # IEEE 754 doubles, as integers, are in order once the negative ones are turned round.
    ordered = (1 << 64) - 1 - bits if bits >> 63 else bits | 1 << 63
    return ordered if dedup.keep == "highest" else (1 << 64) - 1 - ordered


def _number(value: Any) -> float | None:
    """A number, or a date as seconds since 1970, of what a field holds; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        try:
            date = datetime.fromisoformat(str(value).strip())
        except ValueError:
            return None
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    return None if number != number else number

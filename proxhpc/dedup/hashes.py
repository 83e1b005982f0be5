"""Documents as fixed-width numbers, and the keys by which duplicates are found.

A group of documents has three files: 56 bytes of each document in input order, the band keys
(see `bands`), and the MinHash signatures if near-duplicates are removed.
"""

import re
import struct
from calendar import isleap
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from proxhpc.corpus.document import Document
from proxhpc.corpus.records import get_field
from proxhpc.dedup.arrays import check_file, load_array, save_array
from proxhpc.dedup.bands import write_bands
from proxhpc.dedup.minhash import MinHasher, band_keys, compress_slots
from proxhpc.dedup.shingles import fold
from proxhpc.run.paths import RunDir
from proxhpc.spec.sections import Dedup

SKETCH_DTYPE = np.dtype(
    [
        ("high", "<u8"),  # XXH3-128 of the refined text, folded
        ("low", "<u8"),
        ("id", "<u8"),  # XXH3-64 of the document's id
        ("rank", "<u8"),  # by the manifest's dedup.by; 0 for a document without a value
        ("sort_key", "<u8"),  # in a shuffled corpus, else 0
        ("chars", "<u4"),  # of the refined text, folded
        ("row_bytes", "<u4"),  # of the document's row in the corpus
        ("shard", "<u4"),  # pieces of the external corpus are numbered after the shards
        ("record", "<u4"),  # number of the record in its shard
    ]
)
_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])", re.ASCII)
_RFC_2822 = re.compile(r"([A-Z][a-z]{2}, )?\d{1,2} [A-Z][a-z]{2} \d{4} ", re.ASCII)
_PACK = struct.Struct("<QQQQQIIII")

RecordKey = tuple[int, int]  # shard, record
Sketch = npt.NDArray[np.void]  # documents of one group, of SKETCH_DTYPE


class SketchDigests(NamedTuple):
    """Digests of a group's files; `signatures` is "" if it has none."""

    hashes: str
    bands: str
    signatures: str


NO_FILES = SketchDigests("", "", "")


class SketchWriter:
    """Hashes the documents of a group, added in input order, and writes the group's files."""

    def __init__(self, dedup: Dedup) -> None:
        self._dedup = dedup
        self._packed = bytearray()
        self._hasher = MinHasher(dedup.near) if dedup.near else None

    def __len__(self) -> int:
        return len(self._packed) // SKETCH_DTYPE.itemsize

    def add(
        self, document: Document, text: str, key: RecordKey, row_bytes: int = 0, sort_key: int = 0
    ) -> None:
        """Add the next document; `text` is what is compared."""
        folded = fold(text)
        content = xxhash.xxh3_128_intdigest(folded.data)
        self._packed += _PACK.pack(
            content >> 64,
            content & 0xFFFFFFFFFFFFFFFF,
            xxhash.xxh3_64_intdigest(document.id.encode()),
            survivor_rank(self._dedup, document.fields),
            sort_key,
            len(folded),
            row_bytes,
            *key,
        )
        if self._hasher is not None:
            self._hasher.add(folded)

    def write(self, run: RunDir, group: int) -> SketchDigests:
        """Write each of the group's files atomically."""
        array = np.frombuffer(self._packed, SKETCH_DTYPE)
        numbers = np.arange(len(array), dtype=np.uint32)
        bands = [(array["high"], numbers), (array["id"], numbers)]
        signatures_digest = ""
        if self._dedup.near and self._hasher:
            slots, has_shingles = self._hasher.finish()
            keys = band_keys(slots[has_shingles], self._dedup.near.bands)
            bands += [(band, numbers[has_shingles]) for band in keys]
            signatures_digest = save_array(run.signatures(group), compress_slots(slots))
        else:
            run.signatures(group).unlink(missing_ok=True)
        hashes_digest = save_array(run.sketch(group), array)
        return SketchDigests(hashes_digest, write_bands(run.bands(group), bands), signatures_digest)


def load_sketch(run: RunDir, group: int, digests: SketchDigests) -> Sketch:
    """The documents of a group. StopError if they are not what was written."""
    return load_array(run.sketch(group), digests.hashes)


def check_files(run: RunDir, group: int, digests: SketchDigests) -> None:
    """Raise StopError unless a group's files are what was written."""
    check_file(run.sketch(group), digests.hashes)
    check_file(run.bands(group), digests.bands)
    if digests.signatures:
        check_file(run.signatures(group), digests.signatures)


def survivor_rank(dedup: Dedup, fields: dict[str, Any]) -> int:
    """A document's rank by the field `dedup.by`, 64 bits: of duplicates the highest survives.

    0 if the manifest names no field, or the document has no number or date there.
    """
    if dedup.by is None:
        return 0
    value = _number(get_field(fields, dedup.by))
    if value is None:
        return 0
    bits: int = struct.unpack(">Q", struct.pack(">d", value + 0.0))[0]  # -0.0 becomes 0.0
    # As integers, IEEE 754 doubles are in order once the bits of negative ones are inverted.
    ordered = (1 << 64) - 1 - bits if bits >> 63 else bits | 1 << 63
    return ordered if dedup.keep == "highest" else (1 << 64) - 1 - ordered


def within_key(dedup: Dedup, fields: dict[str, Any]) -> int:
    """A hash of the value of `dedup.within`, 64 bits; 0 without one.

    Values are equal as ids are: the number 1 and the text "1" are. Lists, objects and null count
    as no value.
    """
    value = get_field(fields, dedup.within) if dedup.within else None
    if not isinstance(value, str | int | float):
        return 0
    return xxhash.xxh3_64_intdigest(str(value).encode("utf-8", "surrogatepass"))


def _number(value: Any) -> float | None:
    """A field's number, or its date in years, such as 2024.5; None for anything else.

    So a year alone, text or number, is in order with dates.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        value = value.strip()
        if (date := _date(value)) is not None:
            return date
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if number != number else number


def _date(text: str) -> float | None:
    """Return an ISO 8601 date in years, also one of digits alone, a month, or one of RFC 2822."""
    text = text[:40]
    if text.isdecimal():
        if len(text) not in (8, 14):
            return None
        text = text if len(text) == 8 else f"{text[:8]}T{text[8:]}"
    elif _MONTH.fullmatch(text):
        text += "-01"
    try:
        is_mail_date = _RFC_2822.match(text)
        parse = parsedate_to_datetime if is_mail_date else datetime.fromisoformat
        date = parse(text.removesuffix(" UTC"))
        date = date.astimezone(UTC) if date.tzinfo else date.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    start = datetime(date.year, 1, 1, tzinfo=UTC)
    return date.year + (date - start) / timedelta(days=365 + isleap(date.year))

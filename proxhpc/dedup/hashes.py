"""Documents as fixed-width numbers, and the keys by which duplicates are found.

A group of documents has 64 bytes of each document in input order, the hashes of texts or URLs for
the units that look for equal ones, the MinHash signatures if near-duplicates are removed, and the
hashes of its lines if repeated lines are.
"""

import re
import struct
from calendar import isleap
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import xxhash

from proxhpc.corpus.document import Document
from proxhpc.corpus.hosts import canonical_url
from proxhpc.corpus.records import get_field
from proxhpc.dedup.arrays import ArrayWriter
from proxhpc.dedup.exchange import ExchangeWriter, partition_of
from proxhpc.dedup.lines import LineWriter
from proxhpc.dedup.minhash import MinHasher, compress_slots
from proxhpc.dedup.shingles import fold, mix_bits
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
        ("shingles", "<u4"),  # 1 if it has a signature: a text without words has none
        ("external", "<u4"),  # 1 for a document of the external corpus
    ]
)
_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])", re.ASCII)
_RFC_2822 = re.compile(r"([A-Z][a-z]{2}, )?\d{1,2} [A-Z][a-z]{2} \d{4} ", re.ASCII)
_PACK = struct.Struct("<QQQQQIIIIII")

INDEX_BITS = 32  # of a document's number; the higher ones are its group
EXTERNAL = -(1 << 63)  # less than any other priority
_NOTHING = fold("")
_SIGN = np.uint64(1 << 63)  # flipped, unsigned numbers are in order as signed ones
_FLUSHED = 1 << 12  # documents

RecordKey = tuple[int, int]  # shard, record
Sketch = npt.NDArray[np.void]  # documents of one group, of SKETCH_DTYPE


class SketchDigests(NamedTuple):
    """Digests of a group's arrays; "" for one that it does not have."""

    documents: str
    signatures: str
    lines: str = ""


NO_FILES = SketchDigests("", "")


class RowNumbers(NamedTuple):
    """Of a document's row in the corpus: its size, its sort key, and the tokens of its text."""

    size: int = 0
    sort_key: int = 0
    tokens: int = 0


class SketchWriter:
    """Hashes the documents of a group, added in input order, and writes the group's files.

    `hashes` gets a row of each document, with the hash of its URL if the manifest has `dedup.url`,
    else of its text; see `Exchange`. Documents without a URL have no row of one.
    """

    def __init__(
        self, run: RunDir, group: int, dedup: Dedup, hashes: ExchangeWriter, *, external: bool
    ) -> None:
        self._dedup, self._group, self._hashes, self._external = dedup, group, hashes, external
        self.ranked = self.with_url = 0  # documents with a value of dedup.by, of dedup.url
        self._packed = bytearray()
        self._within: list[int] = []  # of these documents, if the manifest has dedup.within
        self._urls: list[tuple[int, int]] = []  # the same for dedup.url
        self._hasher = MinHasher(dedup.near) if dedup.near else None
        self._stack = ExitStack()
        self._rows = ArrayWriter(run.sketch(group), SKETCH_DTYPE)
        self._signatures: ArrayWriter | None = None
        run.signatures(group).unlink(missing_ok=True)
        if near := dedup.near:
            self._signatures = ArrayWriter(run.signatures(group), "<u2", near.bands * near.rows)
        self._lines: LineWriter | None = None
        run.sketch_lines(group).unlink(missing_ok=True)
        if dedup.lines and not external:
            self._lines = LineWriter(run.sketch_lines(group), dedup.lines.min_chars)

    def __enter__(self) -> Self:
        for writer in (self._rows, self._signatures, self._lines):
            if writer:
                self._stack.enter_context(writer)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._flush(last=True)
            if self._lines:
                self._lines.flush()
        self._hashes.finish()

    @property
    def documents(self) -> int:
        """How many documents were added."""
        return self._rows.rows + len(self._packed) // SKETCH_DTYPE.itemsize

    @property
    def digests(self) -> SketchDigests:
        """Digests of the written files."""
        arrays = (self._rows, self._signatures, self._lines)
        return SketchDigests(*(array.digest if array else "" for array in arrays))

    def add(self, document: Document, text: str, key: RecordKey, row: RowNumbers) -> None:
        """Add the next document; `text` is what is compared."""
        dedup = self._dedup
        compared = dedup.compares_texts or dedup.lines or dedup.url  # by URL, the longest survives
        folded = fold(text) if compared else _NOTHING
        content, within = xxhash.xxh3_128_intdigest(folded.data), 0
        rank = survivor_rank(self._dedup, document.fields)
        self.ranked += rank != 0
        if self._dedup.within:
            within = within_key(self._dedup, document.fields)
            if self._hasher is not None:
                self._within.append(within)
        if self._dedup.url:
            url = url_key(self._dedup, document.fields)
            self.with_url += url != 0
            self._urls.append((url >> 64 ^ within if url else 0, url & 0xFFFFFFFFFFFFFFFF))
        if self._lines is not None:
            self._lines.add(self.documents, text, row.tokens, within)
        self._packed += _PACK.pack(
            content >> 64 ^ within,
            content & 0xFFFFFFFFFFFFFFFF,
            xxhash.xxh3_64_intdigest(document.id.encode()),
            rank,
            row.sort_key,
            len(folded),
            row.size,
            *key,
            0,
            self._external,
        )
        if self._hasher is not None:
            self._hasher.add(folded)
        if self.documents % _FLUSHED == 0:
            self._flush()

    def _flush(self, *, last: bool = False) -> None:
        """Write the documents whose signatures are known, at the end all."""
        rows = np.frombuffer(bytes(self._packed), SKETCH_DTYPE).copy()
        if self._hasher and self._signatures:
            slots, has_shingles = self._hasher.take(last=last)
            rows = rows[: len(slots)]
            rows["shingles"] = has_shingles
            signatures = compress_slots(slots)
            if self._dedup.within:  # signatures of other values then agree in no slot
                values = np.array(self._within[: len(slots)], np.uint64)[:, None]
                hashes = mix_bits(values + np.arange(slots.shape[1], dtype=np.uint64))
                signatures ^= (hashes >> np.uint64(48)).astype(np.uint16)
                del self._within[: len(slots)]
            self._signatures.write(signatures)
        del self._packed[: rows.nbytes]
        numbers = document_numbers(self._group, self._rows.rows, len(rows))
        self._rows.write(rows)
        columns = [rows["high"].view(np.int64), rows["low"].view(np.int64)]
        if self._dedup.url:
            urls, self._urls = self._urls[: len(rows)], self._urls[len(rows) :]
            columns = [*np.array(urls, np.uint64).reshape(-1, 2).T.view(np.int64)]
        hashed = np.column_stack([*columns, priorities(rows, self._dedup), numbers])
        if self._dedup.url:
            hashed = hashed[(hashed[:, 0] != 0) | (hashed[:, 1] != 0)]
        self._hashes.add(partition_of(hashed[:, 0], self._hashes.units), hashed)


def document_numbers(group: int, first: int, count: int) -> npt.NDArray[np.int64]:
    """The numbers in the run of a group's documents from its document `first` on."""
    return np.arange(first, first + count, dtype=np.int64) + (group << INDEX_BITS)


def priorities(documents: Sketch, dedup: Dedup) -> npt.NDArray[np.int64]:
    """Two columns: of duplicates, the document with the smallest ones survives.

    Ties go to the first in the input. External documents precede all others.
    """
    columns = np.empty((len(documents), 2), np.int64)
    columns[:, 0] = (~documents["rank"] ^ _SIGN).view(np.int64)
    columns[:, 1] = 0 if dedup.keep == "first" else -documents["chars"].astype(np.int64)
    columns[documents["external"] == 1] = EXTERNAL
    return columns


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


def url_key(dedup: Dedup, fields: dict[str, Any]) -> int:
    """A hash of the canonical URL in the field `dedup.url`, 128 bits; 0 without one."""
    value = get_field(fields, dedup.url) if dedup.url else None
    if not isinstance(value, str) or not (url := canonical_url(value)):
        return 0
    return xxhash.xxh3_128_intdigest(url.encode("utf-8", "surrogatepass"))


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

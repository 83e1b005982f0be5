"""Finds the field with the text of records, and checks before planning that they have one."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from proxhpc.corpus.blocks import MAX_WINDOW, DamageError
from proxhpc.corpus.document import BadRecord, Document, Span
from proxhpc.corpus.inputs import InputInfo, read_head, reading_threads
from proxhpc.corpus.parquet import first_rows, has_column
from proxhpc.corpus.readers import SPLIT, read_span
from proxhpc.corpus.records import Fields
from proxhpc.corpus.signatures import name_content
from proxhpc.corpus.streams import read_chunks

# The reasons of bad records if the name of the text field or the format is wrong.
_MISREAD = {"missing_text", "null_text", "text_not_string", "not_an_object"}

_PARQUET_FILES = 64  # of which rows are read; of the others only the schema
_RECORDS = 200  # per file
_BYTES = 256 << 10  # per file without rows, decompressed
_SHOWN = 40  # bytes of the head of a file of unknown content
_MANY = 0.1  # share of a file's first records that is worth a note if they are no documents

# Names of the field with the text, the most likely first, and how long such a text is on average.
_TEXT_NAMES = ("text", "content", "raw_content", "page_content", "body", "document", "article")
_TEXT_CHARS = 40
_GUESS_RECORDS, _MAX_DEPTH = 50, 5
_FIELD = re.compile(r"[^.\s]+")


@dataclass(frozen=True, slots=True)
class Probe:
    """The first records of a file: documents, others by reason, and the most telling of these.

    `head` has the file's first bytes, decompressed, if its very first record is no document.
    """

    info: InputInfo
    documents: int
    bad: Counter[str]
    example: BadRecord | None
    head: bytes

    @property
    def misread(self) -> BadRecord | None:
        """The first record without a text, if no record has one; None otherwise."""
        found = self.example if not self.documents else None
        return found if found and found.reason in _MISREAD else None

    @property
    def note(self) -> str:
        """What is wrong with the file, if anything."""
        bad, content = self.bad.total(), name_content(self.head)
        if content.endswith(f"corpus.format to {self.info.format}"):
            content = ""  # as it is
        if not content and bad <= _MANY * (bad + self.documents):
            return ""
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in self.bad.most_common(3))
        text = f"{bad:,} of its first {bad + self.documents:,} records are no documents ({reasons})"
        if self.info.format == "text":
            content = content.replace(" within a compressed file", "")
            text = f"not a text ({self.example.reason if self.example else ''})"
        if content:
            return f"{text}: it looks like {content}"
        if self.documents or not self.example:
            return text
        text = f"{text}: {self.example.detail}"
        if self.misread or not self.head or self.head.lstrip().startswith(b"{"):
            return text
        return f"{text}; it begins with {self.head[:_SHOWN]!r}"


def probe_inputs(
    inputs: Sequence[InputInfo], fields: Fields, max_record_bytes: int, max_window: int = MAX_WINDOW
) -> Iterator[Probe]:
    """Yield a probe of each file that is not empty; of many parquet files, most are left out.

    Raises UserError or RetryError if a file cannot be read.
    """
    files = [info for info in inputs if info.size]
    step = -(-len(files) // _PARQUET_FILES)

    def probe(number: int, info: InputInfo) -> Probe | None:
        only_schema = info.format == "parquet" and number % step and not info.note
        if only_schema and has_column(info.path, fields.text):
            return None
        return _probe(info, fields, max_record_bytes, max_window)

    with reading_threads(max_window) as threads:
        yield from filter(None, threads.map(probe, count(), files))


def find_misread(
    inputs: Sequence[InputInfo], fields: Fields, max_record_bytes: int
) -> Iterator[tuple[InputInfo, BadRecord]]:
    """Yield each file of whose first records none has a text, and the first of them.

    A file whose first records are all bad for other reasons is left out: they will be quarantined.
    """
    for probe in probe_inputs(inputs, fields, max_record_bytes):
        if bad := probe.misread:
            yield probe.info, bad


def _head(info: InputInfo) -> bytes:
    """Return the first bytes as they are read: those of a text file are never decompressed."""
    if info.format != "text":
        return read_head(info.path)
    with info.path.open("rb") as file:
        return file.read(_SHOWN)


def _probe(info: InputInfo, fields: Fields, max_record_bytes: int, max_window: int) -> Probe:
    documents, bad, example, head = 0, Counter[str](), None, b""
    span = Span(0, stop=_BYTES)
    items = read_span(info, info.format, span, fields, max_record_bytes, max_window=max_window)
    for item in islice(items, _RECORDS):
        if isinstance(item, Document):
            documents += 1
        elif isinstance(item, BadRecord):
            if not (documents or bad):
                head = _head(info)
            bad[item.reason] += 1
            if example is None or (item.reason in _MISREAD and example.reason not in _MISREAD):
                example = item
    return Probe(info, documents, bad, example, head)


@dataclass(frozen=True, slots=True)
class GuessedFields:
    """The fields of a file's first records: the one with the text, "" if there is none, and all."""

    text: str
    names: frozenset[str]


def guess_fields(info: InputInfo, max_record_bytes: int) -> GuessedFields:
    """Guess the field with the text: by its name, or else the longest one."""
    chars: Counter[str] = Counter()
    records = Counter[str]()
    for record in islice(_first_records(info, max_record_bytes), _GUESS_RECORDS):
        for name, value in _flat(record):
            records[name] += 1
            chars[name] += len(value) if isinstance(value, str) else 0
    likely = [
        (_TEXT_NAMES.index(leaf), name.count("."), name)
        for name in chars
        if (leaf := name.rpartition(".")[2]) in _TEXT_NAMES
        and chars[name] >= _TEXT_CHARS * records[name]
    ]
    longest = max(chars, key=lambda name: chars[name], default="")
    if info.format == "json" and max(records.values(), default=0) <= 1:
        longest = ""  # one JSON object is more often a setting than a document
    text = min(likely)[2] if likely else longest if longest and chars[longest] else ""
    return GuessedFields(text, frozenset(records))


def _first_records(info: InputInfo, max_record_bytes: int) -> Iterator[dict[str, Any]]:
    try:
        if info.format in ("parquet", "arrow"):
            yield from first_rows(info.path, info.format)
            return
        chunks = read_chunks(info.path, info.compression)
        split, parse = SPLIT[info.format]
        for line in split(chunks, 0, max_record_bytes):
            record = parse(line.data)
            if isinstance(record, dict):
                yield record
    except DamageError:
        return


def _flat(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted names and values of a record's fields that a manifest can name."""
    for name, value in record.items():
        if _FIELD.fullmatch(name):
            yield prefix + name, value
            if isinstance(value, dict) and prefix.count(".") < _MAX_DEPTH:
                yield from _flat(value, f"{prefix}{name}.")

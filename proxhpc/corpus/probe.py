"""Finds the field with the text of records, and checks before planning that they have one."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson

from proxhpc.corpus.blocks import DamageError
from proxhpc.corpus.document import BadRecord, Document, Span
from proxhpc.corpus.inputs import InputInfo
from proxhpc.corpus.jsonl import split_lines
from proxhpc.corpus.parquet import first_rows, has_column
from proxhpc.corpus.readers import read_span
from proxhpc.corpus.records import Fields
from proxhpc.corpus.streams import read_chunks

# The reasons of bad records if the name of the text field or the format is wrong.
_MISREAD = ("missing_text", "null_text", "text_not_string", "not_an_object")

_PARQUET_FILES = 64  # of which rows are read; of the others only the schema
_RECORDS = 1000  # per file
_BYTES = 1 << 20  # per JSON lines file, decompressed

# Names of the field with the text, the most likely first, and how long such a text is on average.
_TEXT_NAMES = ("text", "content", "raw_content", "page_content", "body", "document", "article")
_TEXT_CHARS = 40
_GUESS_RECORDS, _MAX_DEPTH = 50, 5
_FIELD = re.compile(r"[^.\s]+")


def find_misread(
    inputs: Sequence[InputInfo], fields: Fields, max_record_bytes: int
) -> Iterator[tuple[InputInfo, BadRecord]]:
    """Yield each file of whose first records none has a text, and the first of them.

    A file whose first records are all bad for other reasons is left out: they will be quarantined.
    Raises UserError or RetryError if a file cannot be read.
    """
    files = [info for info in inputs if info.size]
    step = -(-len(files) // _PARQUET_FILES)
    for number, info in enumerate(files):
        only_schema = info.format == "parquet" and number % step
        if not (only_schema and has_column(info.path, fields.text)):
            bad = _first_misread(info, fields, max_record_bytes)
            if bad is not None:
                yield info, bad


def _first_misread(info: InputInfo, fields: Fields, max_record_bytes: int) -> BadRecord | None:
    """Return the first misread record of a file's start; None if any record has a text."""
    first = None
    items = read_span(info, info.format, Span(0, stop=_BYTES), fields, max_record_bytes)
    for item in islice(items, _RECORDS):
        if isinstance(item, Document):
            return None
        if first is None and isinstance(item, BadRecord) and item.reason in _MISREAD:
            first = item
    return first


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
    text = min(likely)[2] if likely else longest if chars[longest] else ""
    return GuessedFields(text, frozenset(records))


def _first_records(info: InputInfo, max_record_bytes: int) -> Iterator[dict[str, Any]]:
    try:
        if info.format == "parquet":
            yield from first_rows(info.path)
            return
        for line in split_lines(read_chunks(info.path, info.compression), 0, max_record_bytes):
            try:
                record = orjson.loads(line.data)
            except orjson.JSONDecodeError:
                continue
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

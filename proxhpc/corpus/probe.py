"""Checks before planning that records have their text in the field that the manifest names."""

from collections.abc import Iterator, Sequence
from itertools import islice

from proxhpc.corpus.document import BadRecord, Document, Span
from proxhpc.corpus.inputs import InputInfo
from proxhpc.corpus.parquet import has_column
from proxhpc.corpus.readers import read_span
from proxhpc.corpus.records import Fields

# The reasons of bad records if the name of the text field or the format is wrong.
_MISREAD = ("missing_text", "null_text", "text_not_string", "not_an_object")

_PARQUET_FILES = 64  # of which rows are read; of the others only the schema
_RECORDS = 1000  # per file
_BYTES = 1 << 20  # per JSON lines file, decompressed


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

"""Checks before planning that records have their text in the field that the manifest names."""

from collections.abc import Iterator, Sequence
from itertools import islice

from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.inputs import InputInfo, read_error
from proxhpc.corpus.jsonl import read_jsonl, split_lines
from proxhpc.corpus.parquet import read_parquet
from proxhpc.corpus.records import Fields
from proxhpc.corpus.streams import read_chunks

# The reasons of bad records if the name of the text field or the format is wrong.
_MISREAD = ("missing_text", "null_text", "text_not_string", "not_an_object")

_FILES = 64
_RECORDS = 1000  # per file
_BYTES = 1 << 20  # per JSON lines file, decompressed


def find_misread(
    inputs: Sequence[InputInfo], fields: Fields, max_record_bytes: int
) -> tuple[InputInfo, BadRecord] | None:
    """Return the first record without a text, and its file, if none of the records has a text.

    Reads the start of up to 64 evenly spaced files. Returns None if any record is a document, or if
    all are bad for other reasons; those will be quarantined. Raises UserError or RetryError if a
    file cannot be read.
    """
    first: tuple[InputInfo, BadRecord] | None = None
    for info in _evenly_spaced([info for info in inputs if info.size]):
        for item in islice(_first_records(info, fields, max_record_bytes), _RECORDS):
            if isinstance(item, Document):
                return None
            if first is None and isinstance(item, BadRecord) and item.reason in _MISREAD:
                first = info, item
    return first


def _evenly_spaced(inputs: Sequence[InputInfo]) -> Iterator[InputInfo]:
    count = min(len(inputs), _FILES)
    return (inputs[number * len(inputs) // count] for number in range(count))


def _first_records(
    info: InputInfo, fields: Fields, max_record_bytes: int
) -> Iterator[Document | BadRecord | SpanEnd]:
    """Yield the records of a file's first MiB; a last one that is truncated is invalid JSON."""
    try:
        if info.format == "parquet":
            yield from read_parquet(info.path, Span(0), fields, info.name, max_record_bytes)
            return
        lines = split_lines(_bounded(read_chunks(info.path, info.compression)), 0, max_record_bytes)
        yield from read_jsonl(lines, Span(0), fields, info.name, max_record_bytes)
    except OSError as error:
        raise read_error(info.path, error) from error


def _bounded(stream: Iterator[bytes]) -> Iterator[bytes]:
    remaining = _BYTES
    for chunk in stream:
        yield chunk[:remaining]
        remaining -= len(chunk)
        if remaining <= 0:
            return

"""Checks before planning that records have their text in the field that the manifest names."""

from collections.abc import Sequence
from itertools import islice

from proxhpc.corpus.document import BadRecord, Document, Span
from proxhpc.corpus.inputs import InputInfo
from proxhpc.corpus.readers import read_span
from proxhpc.corpus.records import Fields

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
    files = [info for info in inputs if info.size]
    count = min(len(files), _FILES)
    first: tuple[InputInfo, BadRecord] | None = None
    for info in (files[number * len(files) // count] for number in range(count)):
        items = read_span(info, info.format, Span(0, stop=_BYTES), fields, max_record_bytes)
        for item in islice(items, _RECORDS):
            if isinstance(item, Document):
                return None
            if first is None and isinstance(item, BadRecord) and item.reason in _MISREAD:
                first = info, item
    return first

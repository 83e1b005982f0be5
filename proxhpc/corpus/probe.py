"""A look into a corpus before it is planned: whether its text is where the manifest says."""

from collections.abc import Iterator, Sequence
from itertools import islice

from proxhpc.corpus.document import Bad, Document, End, Span
from proxhpc.corpus.inputs import InputInfo, unreadable
from proxhpc.corpus.jsonl import read_jsonl, split_lines
from proxhpc.corpus.parquet import read_parquet
from proxhpc.corpus.records import Fields
from proxhpc.corpus.streams import chunks

# What a wrong name of the text field, or a wrong format, makes of every record.
MISREAD = ("missing_text", "null_text", "text_not_string", "not_an_object")

_FILES = 64
_RECORDS = 1000  # of one file
_BYTES = 1 << 20  # of one file of JSON lines, decompressed


def misread(
    inputs: Sequence[InputInfo], fields: Fields, max_record_bytes: int
) -> tuple[InputInfo, Bad] | None:
    """Return the first record without a text, with its file, if no record looked at has one.

    None as soon as one record is a document, and where records are bad for other reasons only:
    those are set aside when they are read. Looks at the beginning of 64 files at most, evenly
    chosen. Raises UserError or RetryError naming the file where it cannot be read.
    """
    first: tuple[InputInfo, Bad] | None = None
    for info in _chosen([info for info in inputs if info.size]):
        for item in islice(_beginning(info, fields, max_record_bytes), _RECORDS):
            if isinstance(item, Document):
                return None
            if first is None and isinstance(item, Bad) and item.reason in MISREAD:
                first = info, item
    return first


def _chosen(inputs: Sequence[InputInfo]) -> Iterator[InputInfo]:
    count = min(len(inputs), _FILES)
    return (inputs[place * len(inputs) // count] for place in range(count))


def _beginning(
    info: InputInfo, fields: Fields, max_record_bytes: int
) -> Iterator[Document | Bad | End]:
    """Yield the records of a file's first MiB; the one that is cut there is no JSON any more."""
    try:
        if info.format == "parquet":
            yield from read_parquet(info.path, Span(0), fields, info.name, max_record_bytes)
            return
        lines = split_lines(_bounded(chunks(info.path, info.compression)), 0, max_record_bytes)
        yield from read_jsonl(lines, Span(0), fields, info.name, max_record_bytes)
    except OSError as error:
        raise unreadable(info.path, error) from error


def _bounded(stream: Iterator[bytes]) -> Iterator[bytes]:
    left = _BYTES
    for chunk in stream:
        yield chunk[:left]
        left -= len(chunk)
        if left <= 0:
            return

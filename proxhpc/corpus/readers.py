"""The one door to corpus files: the documents of a span, whatever the file's format."""

from collections.abc import Iterator
from pathlib import Path

from proxhpc.corpus.document import Bad, Document, End, Span
from proxhpc.corpus.inputs import Format, InputInfo, resolve, unreadable
from proxhpc.corpus.jsonl import first_byte, read_jsonl, split_lines
from proxhpc.corpus.parquet import read_parquet
from proxhpc.corpus.records import Fields
from proxhpc.corpus.streams import chunks, sniff

__all__ = ["Fields", "read_span"]


def read_span(
    source: InputInfo | Path,
    format: Format,  # noqa: A002
    span: Span,
    fields: Fields,
    max_record_bytes: int,
) -> Iterator[Document | Bad | End]:
    """Yield the records whose position lies in `span`, in order, and exactly one End, last.

    Spans that tile a file give every record once, whatever the tiling. What is no document is a
    Bad, never missing; where a file is cut or damaged, its last record is a Bad with the reason
    truncated_input, corrupt_input or zstd_window_too_large. Raises UserError or RetryError
    naming the file where it cannot be opened or read.
    """
    path, name = (source, source.name) if isinstance(source, Path) else (source.path, source.name)
    try:
        if resolve(path, format) == "parquet":
            yield from read_parquet(path, span, fields, name, max_record_bytes)
            return
        start = first_byte(span)
        stream = chunks(path, sniff(path), start)
        lines = split_lines(stream, start, max_record_bytes)
        yield from read_jsonl(lines, span, fields, name, max_record_bytes)
    except OSError as error:
        raise unreadable(path, error) from error

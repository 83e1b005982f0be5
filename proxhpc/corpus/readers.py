"""Reads the documents of a span of a corpus file in any format."""

from collections.abc import Iterator
from pathlib import Path

from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.inputs import Format, InputInfo, detect_format, read_error
from proxhpc.corpus.jsonl import first_byte, read_jsonl, split_lines
from proxhpc.corpus.parquet import read_parquet
from proxhpc.corpus.records import Fields
from proxhpc.corpus.streams import detect_compression, read_chunks
from proxhpc.corpus.text import read_text

__all__ = ["Fields", "read_span"]


def read_span(
    source: InputInfo | Path,
    format: Format,  # noqa: A002
    span: Span,
    fields: Fields,
    max_record_bytes: int,
    *,
    name: str = "",
) -> Iterator[Document | BadRecord | SpanEnd]:
    """Yield the records whose position is in `span`, in order, and then one SpanEnd.

    `name` is for ids; by default it is the source's.

    However a file is split into spans, each record is in exactly one. A record that is not a
    document is a BadRecord. If a file is truncated or damaged, its last record is a BadRecord with
    the reason truncated_input, corrupt_input or zstd_window_too_large. Raises UserError or
    RetryError if the file cannot be opened or read.
    """
    path, name = source if isinstance(source, Path) else source.path, name or source.name
    try:
        kind = detect_format(path, format)
        if kind == "parquet":
            yield from read_parquet(path, span, fields, name, max_record_bytes)
            return
        if kind == "text":
            yield from read_text(read_chunks(path, "none"), span, name, max_record_bytes)
            return
        start = first_byte(span)
        stream = read_chunks(path, detect_compression(path), start)
        lines = split_lines(stream, start, max_record_bytes)
        yield from read_jsonl(lines, span, fields, name, max_record_bytes)
    except OSError as error:
        raise read_error(path, error) from error

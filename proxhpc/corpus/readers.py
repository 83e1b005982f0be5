"""Reads the documents of a span of a corpus file in any format."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxhpc.corpus.blocks import MAX_WINDOW
from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.inputs import Format, InputInfo, detect_format, read_error
from proxhpc.corpus.jsonl import (
    LineStream,
    RawLine,
    first_byte,
    parse_json,
    read_jsonl,
    split_lines,
)
from proxhpc.corpus.parquet import read_table
from proxhpc.corpus.records import Fields
from proxhpc.corpus.restarts import GAP, RestartLog
from proxhpc.corpus.streams import Compression, detect_compression, read_ahead, read_chunks
from proxhpc.corpus.text import read_text
from proxhpc.corpus.values import split_values
from proxhpc.corpus.wet import parse_wet, split_wet

__all__ = ["Fields", "read_span"]

_Split = Callable[[Iterator[bytes], int, int], Iterator[RawLine]]
# How to find a format's records in a stream, and how to parse one.
SPLIT: dict[str, tuple[_Split, Callable[[bytes], Any]]] = {
    "jsonl": (split_lines, parse_json),
    "json": (split_values, parse_json),
    "wet": (split_wet, parse_wet),
}
_MAX_OPEN = 2  # streams that stay open between spans: each needs memory for its window


def read_span(
    source: InputInfo | Path,
    format: Format,  # noqa: A002
    span: Span,
    fields: Fields,
    max_record_bytes: int,
    *,
    name: str = "",
    max_window: int = MAX_WINDOW,
    restarts: RestartLog | None = None,
    wanted: Callable[[int], bool] | None = None,
) -> Iterator[Document | BadRecord | SpanEnd]:
    """Yield the records whose position is in `span`, in order, and then one SpanEnd.

    `name` is for ids; by default it is the source's. zstd files need memory of up to `max_window`.
    A compressed file is decompressed from a point of `restarts`.

    With `wanted`, records at positions for which it is false are neither parsed nor yielded.
    However a file is split into spans, each record is in exactly one. A record that is not a
    document is a BadRecord. If a file is truncated or damaged, its last record is a BadRecord with
    the reason truncated_input, corrupt_input or zstd_window_too_large. Raises UserError or
    RetryError if the file cannot be opened or read.
    """
    path, name = source if isinstance(source, Path) else source.path, name or source.name
    try:
        kind = detect_format(path, format)
        if kind in ("parquet", "arrow"):
            yield from read_table(path, kind, span, fields, name, max_record_bytes, wanted)
            return
        if kind == "text":
            yield from read_text(read_chunks(path, "none"), span, name, max_record_bytes)
            return
        parse, limits = SPLIT[kind][1], (max_record_bytes, max_window)
        with _open_stream(path, kind, span, limits, restarts) as lines:
            yield from read_jsonl(lines, span, fields, name, max_record_bytes, parse, wanted)
    except OSError as error:
        raise read_error(path, error) from error


def read_lines(
    source: InputInfo,
    span: Span,
    max_record_bytes: int,
    *,
    max_window: int = MAX_WINDOW,
    restarts: RestartLog | None = None,
) -> Iterator[RawLine]:
    """Yield the records whose position is in `span` in bytes, as `read_span` would parse them.

    Only of formats in SPLIT; errors as in `read_span`.
    """
    try:
        kind, limits = detect_format(source.path, source.format), (max_record_bytes, max_window)
        with _open_stream(source.path, kind, span, limits, restarts) as lines:
            lines.skip_to(span.start)
            yield from lines.take(span.stop)
    except OSError as error:
        raise read_error(source.path, error) from error


@contextmanager
def _open_stream(
    path: Path, kind: str, span: Span, limits: tuple[int, int], restarts: RestartLog | None
) -> Iterator[LineStream]:
    """Yield a stream for a span, and keep it for the next one."""
    stream = _OpenStream.take(path, kind, span, limits, restarts)
    try:
        yield stream.lines
    except GeneratorExit:  # the caller needs no more of this span
        stream.keep(stream.lines.position)
        raise
    stream.keep(span.stop)


@dataclass(slots=True)
class _OpenStream:
    """A compressed file that stays open between spans, so that it is decompressed only once.

    `key` identifies the process, too: processes that were forked share a file's position.
    """

    key: tuple[object, ...]
    lines: LineStream
    compression: Compression
    by_lines: bool
    after: int = 0  # it serves spans that start here or later

    @classmethod
    def take(
        cls, path: Path, kind: str, span: Span, limits: tuple[int, int], restarts: RestartLog | None
    ) -> "_OpenStream":
        """Return the stream that an earlier span left open, or a new one.

        A new one is only better if it can begin much nearer to the span.
        """
        status = path.stat()
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        key = (os.getpid(), path, kind, *limits, *identity, restarts)
        by_lines = kind == "jsonl"
        begin = first_byte(span) if by_lines else 0
        with _lock:
            earlier = _open.pop(key, None)
        compression = earlier.compression if earlier else detect_compression(path)
        restarts = restarts if by_lines and compression != "none" else None
        if restarts:
            restarts.aim(begin if span.stop is None else span.stop - 1)
        if earlier is not None and earlier.after <= span.start:
            near = earlier.lines.position + GAP
            if restarts is None or begin <= near or restarts.enter(begin).position <= near:
                return earlier
        chunks = read_chunks(path, compression, begin, limits[1], restarts)
        if restarts:
            chunks = read_ahead(chunks, begin, restarts)
        lines = LineStream(SPLIT[kind][0](chunks, begin, limits[0]))
        return cls(key, lines, compression, by_lines)

    def keep(self, stop: int | None) -> None:
        """Keep the stream for the next span."""
        entered = self.by_lines and self.compression == "none"  # at any line, for nothing
        if not entered and stop is not None:
            self.after = stop
            with _lock:
                _open[self.key] = self
                while len(_open) > _MAX_OPEN:
                    del _open[next(iter(_open))]


_open: dict[tuple[object, ...], _OpenStream] = {}
_lock = threading.Lock()

"""Documents of a JSON lines stream; each line belongs to exactly one span."""

from collections.abc import Iterator
from typing import NamedTuple

import orjson

from proxhpc.corpus.blocks import DamageError
from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.records import (
    BAD_RECORD_BYTES,
    Fields,
    RecordProblem,
    RecordSource,
    to_document,
)

_BOM = b"\xef\xbb\xbf"


class RawLine(NamedTuple):
    """One line without its newline; `data` is only its head if it is longer than the limit.

    `damage` is set on the line where the stream ended early.
    """

    position: int
    next: int
    size: int
    data: bytes
    damage: DamageError | None = None


def read_jsonl(
    lines: Iterator[RawLine], span: Span, fields: Fields, name: str, max_record_bytes: int
) -> Iterator[Document | BadRecord | SpanEnd]:
    """Yield the span's records in order and then one SpanEnd.

    `lines` must start at `first_byte(span)`. A line belongs to the span in which it starts,
    wherever it ends.
    """
    source = RecordSource(span.file, name)
    position, blank = span.start, 0
    if span.start:
        line = next(lines, None)
        if line is None or line.damage or line.next == line.position + line.size:
            yield SpanEnd(span.file, position, at_eof=True)  # the last line is in an earlier span
            return
        position = line.next
    for line in lines:
        if span.stop is not None and line.position >= span.stop:
            yield SpanEnd(span.file, line.position, at_eof=False, blank=blank)
            return
        position = line.next
        item = _item(line, fields, source, max_record_bytes)
        if item is None:
            blank += 1
        else:
            yield item
    yield SpanEnd(span.file, position, at_eof=True, blank=blank)


def first_byte(span: Span) -> int:
    """Return where to start reading: one byte early, to see a newline there."""
    return max(span.start - 1, 0)


def split_lines(chunks: Iterator[bytes], position: int, max_record_bytes: int) -> Iterator[RawLine]:
    r"""Yield the lines of a stream that starts at `position`; only b"\n" ends a line.

    Memory is bounded by `max_record_bytes` and two chunks, however long a line is.
    """
    tail = _LineBuffer(max_record_bytes)
    damage = None
    try:
        for chunk in chunks:
            *whole, rest = chunk.split(b"\n")
            for piece in whole:
                tail.add(piece)
                size, data = tail.take()
                yield RawLine(position, position + size + 1, size, data)
                position += size + 1
            tail.add(rest)
    except DamageError as error:
        damage = error
    size, data = tail.take()
    if size or damage:
        yield RawLine(position, position + size, size, data, damage)


class _LineBuffer:
    """Collects a line from chunks; only the head of a line above the limit is kept."""

    def __init__(self, limit: int) -> None:
        self._limit = max(limit, BAD_RECORD_BYTES)
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, piece: bytes) -> None:
        if not piece:
            return
        fits = self._size <= self._limit
        self._size += len(piece)
        if self._size <= self._limit:
            self._pieces.append(piece)
        elif fits:
            self._pieces = [b"".join([*self._pieces, piece[:BAD_RECORD_BYTES]])[:BAD_RECORD_BYTES]]

    def take(self) -> tuple[int, bytes]:
        size, pieces = self._size, self._pieces
        self._size, self._pieces = 0, []
        return size, pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _item(
    line: RawLine, fields: Fields, source: RecordSource, limit: int
) -> Document | BadRecord | None:
    """Return the line as a document or a bad record, or None if it is blank."""
    if line.damage:
        return _bad(line, source, RecordProblem(line.damage.reason, line.damage.detail))
    if line.size > limit:
        detail = f"longer than the limit of {limit} bytes"
        return _bad(line, source, RecordProblem("record_too_long", detail))
    data = line.data if line.position else line.data.removeprefix(_BOM)
    if not data or data.isspace():
        return None
    try:
        record = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return _bad(line, source, _json_problem(data, error))
    item = to_document(record, line.position, fields, source, data)
    return _bad(line, source, item) if isinstance(item, RecordProblem) else item


def _bad(line: RawLine, source: RecordSource, problem: RecordProblem) -> BadRecord:
    head = line.data[:BAD_RECORD_BYTES]
    return BadRecord(problem.reason, source.file, line.position, line.size, head, problem.detail)


def _json_problem(data: bytes, error: orjson.JSONDecodeError) -> RecordProblem:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as decode:
        return RecordProblem("invalid_utf8", f"{decode.reason} at byte {decode.start} of the line")
    return RecordProblem("invalid_json", str(error))

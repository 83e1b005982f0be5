"""Documents of a JSON lines stream; each line belongs to exactly one span."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple

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
_MIN_INTEGER, _MAX_INTEGER = -(2.0**63), 2.0**64  # orjson reads integers beyond as floats


class RawLine(NamedTuple):
    """One line without its newline; `data` may be only its head if it is longer than the limit.

    `damage` is set on the line where the stream ended early.
    """

    position: int
    next: int
    size: int
    data: bytes
    damage: DamageError | None = None

    @property
    def end_if_complete(self) -> int:
        """Where the next line begins; 0 if the stream ended within this line."""
        return 0 if self.damage or self.next == self.position + self.size else self.next


def parse_json(data: bytes) -> Any:
    """Return the record of a line, a RecordProblem, or None for one with only a BOM.

    NaN and infinities, which JSON lacks but `json.dumps` writes, become null, as in parquet, and
    integers of more than 64 bits text. A BOM may begin any line: files with one may be joined.
    """
    try:
        record = orjson.loads(data)
        exact = not (isinstance(record, dict) and _may_be_inexact(record.values()))
        return record if exact else _parse_exactly(data)
    except RecursionError:  # it is nested very deeply
        return record
    except orjson.JSONDecodeError as error:
        if data.startswith(_BOM):
            rest = data.removeprefix(_BOM)
            return parse_json(rest) if rest.strip() else None
        try:
            data.decode()
        except UnicodeDecodeError as decode:
            where = f"{decode.reason} at byte {decode.start} of the line"
            return RecordProblem("invalid_utf8", where)
        if b"NaN" in data or b"Infinity" in data:
            with suppress(ValueError, TypeError, RecursionError):  # then it has other faults
                return orjson.loads(orjson.dumps(_parse_exactly(data)))
        return RecordProblem("invalid_json", str(error))


def _may_be_inexact(values: Iterable[Any]) -> bool:
    """Return whether a value within these may be an integer that became a float."""
    for value in values:
        kind = type(value)
        if kind is str or kind is int:
            continue
        if kind is float:
            inexact = not _MIN_INTEGER < value < _MAX_INTEGER
        else:
            inner = value if kind is list else value.values() if kind is dict else ()
            inexact = _may_be_inexact(inner)
        if inexact:
            return True
    return False


def _parse_exactly(data: bytes) -> Any:
    return json.loads(data.decode("utf-8-sig"), parse_int=_integer, parse_constant=lambda _: None)


def _integer(digits: str) -> int | str:
    """Return a number, or text for one that neither orjson nor most readers know as an integer."""
    known = len(digits) <= 20 and _MIN_INTEGER <= int(digits) < _MAX_INTEGER
    return int(digits) if known else digits


class LineStream:
    """Lines, or other records in bytes, of one file in order, read by one span after another."""

    def __init__(self, lines: Iterator[RawLine]) -> None:
        self._lines = lines
        self._held: RawLine | None = None  # the first line of a later span
        self._last: RawLine | None = None

    def skip_to(self, start: int) -> int:
        """Drop lines before `start`; return where the file ends if no line is left."""
        for line in self.take() if start else ():
            if line.position >= start:
                self._held = line
                break
        return max(start, self._last.end_if_complete if self._last else 0)

    def take(self, stop: int | None = None) -> Iterator[RawLine]:
        """Yield the lines before `stop`."""
        held, self._held = self._held, None
        for line in self._lines if held is None else chain([held], self._lines):
            if stop is not None and line.position >= stop:
                self._held = line
                return
            self._last = line
            yield line

    @property
    def position(self) -> int:
        """Where a span must start at the least to be read from here."""
        return self._last.position + 1 if self._last else 0

    @property
    def next_position(self) -> int | None:
        """The position of the line that ended `take`; None at the end of the file."""
        return None if self._held is None else self._held.position


def read_jsonl(
    stream: LineStream,
    span: Span,
    fields: Fields,
    name: str,
    max_record_bytes: int,
    parse: Callable[[bytes], Any] = parse_json,
    wanted: Callable[[int], bool] | None = None,
) -> Iterator[Document | BadRecord | SpanEnd]:
    """Yield the span's records in order and then one SpanEnd.

    `stream` must start at `first_byte(span)` or an earlier line. A line belongs to the span in
    which it starts, wherever it ends. `parse` returns a line's record, or None if it has none.
    Lines at positions that are not `wanted` are passed over.
    """
    source = RecordSource(span.file, name)
    position, blank = stream.skip_to(span.start), 0
    for line in stream.take(span.stop):
        position = line.next
        if wanted is not None and not wanted(line.position):
            continue
        item = _item(line, fields, source, max_record_bytes, parse)
        if item is None:
            blank += 1
        else:
            yield item
    after = stream.next_position
    end = position if after is None else after
    yield SpanEnd(span.file, end, at_eof=after is None, blank=blank)


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
            for data in whole:
                size = len(data)
                if tail.size:  # the line begins in an earlier chunk
                    tail.add(data)
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
        self.size = 0
        self._limit = max(limit, BAD_RECORD_BYTES)
        self._pieces: list[bytes] = []

    def add(self, piece: bytes) -> None:
        if not piece:
            return
        fits = self.size <= self._limit
        self.size += len(piece)
        if self.size <= self._limit:
            self._pieces.append(piece)
        elif fits:
            self._pieces = [b"".join([*self._pieces, piece[:BAD_RECORD_BYTES]])[:BAD_RECORD_BYTES]]

    def take(self) -> tuple[int, bytes]:
        size, pieces = self.size, self._pieces
        self.size, self._pieces = 0, []
        return size, pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _item(
    line: RawLine, fields: Fields, source: RecordSource, limit: int, parse: Callable[[bytes], Any]
) -> Document | BadRecord | None:
    """Return the line as a document or a bad record, or None if it has no record."""
    if line.damage:
        return _bad(line, source, RecordProblem(line.damage.reason, line.damage.detail))
    if line.size > limit:
        detail = f"longer than the limit of {limit} bytes"
        return _bad(line, source, RecordProblem("record_too_long", detail))
    data = line.data
    if not data or data.isspace():
        return None
    record = parse(data)
    if record is None and data != b"null":
        return None
    if isinstance(record, RecordProblem):
        return _bad(line, source, record)
    item = to_document(record, line.position, fields, source, line.data)
    return _bad(line, source, item) if isinstance(item, RecordProblem) else item


def _bad(line: RawLine, source: RecordSource, problem: RecordProblem) -> BadRecord:
    raw = line.damage.raw if line.damage else b""
    head = line.data[:BAD_RECORD_BYTES] or raw
    return BadRecord(problem.reason, source.file, line.position, line.size, head, problem.detail)

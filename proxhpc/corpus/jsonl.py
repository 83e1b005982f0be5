"""The documents of a JSON-lines stream, each line read by exactly one of the spans that tile it."""

from collections.abc import Iterator
from typing import NamedTuple

import orjson

from proxhpc.corpus.blocks import DamageError
from proxhpc.corpus.document import Bad, Document, End, Span
from proxhpc.corpus.records import BAD_RECORD_BYTES, Fields, RecordSource, Refusal, to_document

_BOM = b"\xef\xbb\xbf"


class RawLine(NamedTuple):
    """One line without its newline; `data` is its head alone where it is longer than the limit.

    `damage` marks the line in which the stream broke off.
    """

    position: int
    next: int
    size: int
    data: bytes
    damage: DamageError | None = None


def read_jsonl(
    lines: Iterator[RawLine], span: Span, fields: Fields, name: str, max_record_bytes: int
) -> Iterator[Document | Bad | End]:
    """Yield the span's records in order and one End, last.

    `lines` begin at `first_byte(span)`. A line that begins before the span is not ours, a line
    that begins in it is, wherever it ends; both ends of a span use this one rule.
    """
    source = RecordSource(span.file, name)
    position, blank = span.start, 0
    if span.start:
        line = next(lines, None)
        if line is None or line.damage or line.next == line.position + line.size:
            yield End(span.file, position, at_eof=True)  # the stream ends in an earlier span
            return
        position = line.next
    for line in lines:
        if span.stop is not None and line.position >= span.stop:
            yield End(span.file, line.position, at_eof=False, blank=blank)
            return
        position = line.next
        item = _item(line, fields, source, max_record_bytes)
        if item is None:
            blank += 1
        else:
            yield item
    yield End(span.file, position, at_eof=True, blank=blank)


def first_byte(span: Span) -> int:
    """Return where to begin reading: one byte early, so that a newline there is seen."""
    return max(span.start - 1, 0)


def split_lines(chunks: Iterator[bytes], position: int, max_record_bytes: int) -> Iterator[RawLine]:
    r"""Yield the lines of a stream which begins at `position`; only b"\n" ends a line.

    Holds at most `max_record_bytes` and two chunks at a time, however long a line is.
    """
    tail = _Tail(max_record_bytes)
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


class _Tail:
    """The line being gathered from chunks; beyond the limit its head alone."""

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


def _item(line: RawLine, fields: Fields, source: RecordSource, limit: int) -> Document | Bad | None:
    """Return what a line holds: a document, a bad record, or None where it is blank."""
    if line.damage:
        return _bad(line, source, Refusal(line.damage.reason, line.damage.detail))
    if line.size > limit:
        detail = f"longer than the limit of {limit} bytes"
        return _bad(line, source, Refusal("record_too_long", detail))
    data = line.data if line.position else line.data.removeprefix(_BOM)
    if not data or data.isspace():
        return None
    try:
        record = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return _bad(line, source, _refusal(data, error))
    item = to_document(record, line.position, fields, source, data)
    return _bad(line, source, item) if isinstance(item, Refusal) else item


def _bad(line: RawLine, source: RecordSource, why: Refusal) -> Bad:
    head = line.data[:BAD_RECORD_BYTES]
    return Bad(why.reason, source.file, line.position, line.size, head, why.detail)


def _refusal(data: bytes, error: orjson.JSONDecodeError) -> Refusal:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as decode:
        return Refusal("invalid_utf8", f"{decode.reason} at byte {decode.start} of the line")
    return Refusal("invalid_json", str(error))

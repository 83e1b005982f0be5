"""Records of a JSON array, or of JSON objects that are written over several lines."""

import re
from collections.abc import Iterator

import orjson

from proxhpc.corpus.blocks import DamageError
from proxhpc.corpus.jsonl import RawLine
from proxhpc.corpus.records import BAD_RECORD_BYTES

_NEXT = re.compile(rb"[ \t\r]*(,|\{)")  # what follows an object that does not end its line
_BETWEEN = re.compile(rb"(?:[ \t\r\n,]|\xef\xbb\xbf)*+")
_STRING = re.compile(rb'[^"\\\n]*+(?:\\.[^"\\\n]*+)*+', re.DOTALL)  # up to its end
_STRUCTURE = re.compile(rb'["{}\[\]]')
_SCALAR_END = re.compile(rb"[,\[\]{}\n]")


def holds_values(head: bytes) -> bool:
    """Return whether a file that begins so holds other JSON than an object in each line.

    It is an array, an object over several lines, or objects with nothing or a comma between.
    """
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"["):
        return True
    if not head.startswith(b"{"):
        return False
    first = next(split_values(iter([head]), 0, len(head))).data
    try:
        orjson.loads(first)
    except orjson.JSONDecodeError:
        return False
    return b"\n" in first or _NEXT.match(head, len(first)) is not None


def split_values(
    chunks: Iterator[bytes], position: int, max_record_bytes: int
) -> Iterator[RawLine]:
    """Yield the values of a stream and the elements of its outermost arrays.

    Memory is bounded as in `split_lines`. A string with a line end in it is damage: from there on,
    what is within a record cannot be told from what is not.
    """
    scanner = _Scanner(position, max_record_bytes)
    damage = None
    try:
        for chunk in chunks:
            yield from scanner.feed(chunk)
            if scanner.broken:
                scanner.discard(sum(map(len, chunks)))
                detail = (
                    f"a string is not closed at byte {scanner.broken}; nothing after it is read"
                )
                damage = DamageError("invalid_json", detail)
    except DamageError as error:
        damage = error
    yield from scanner.finish(damage)


class _Scanner:
    """Finds where values begin and end; `broken` is the position of an unfinished string."""

    def __init__(self, position: int, limit: int) -> None:
        self.broken = 0
        self._limit = max(limit, BAD_RECORD_BYTES)
        self._buffer = bytearray()
        self._offset = position  # of the buffer in the stream
        self._at = 0  # scanned so far, in the buffer
        self._start = -1  # of the value in the stream, -1 between values
        self._head = b""  # of a value that is too long to be kept
        self._depth = 0
        self._in_array = self._in_string = False

    def feed(self, chunk: bytes) -> Iterator[RawLine]:
        self._buffer += chunk
        before = None
        while self._at < len(self._buffer) and not self.broken:
            if before == (before := (self._at, self._start)):
                break  # a backslash whose next byte is in the next chunk
            if self._start < 0:
                self._begin()
            elif self._step():
                yield self._value()
        self._trim()

    def discard(self, size: int) -> None:
        """Count bytes of the current value that are not scanned."""
        self._trim()
        self._head = self._head or bytes(self._buffer[:BAD_RECORD_BYTES])
        self._offset += len(self._buffer) + size
        self._buffer.clear()
        self._at = 0

    def finish(self, damage: DamageError | None) -> Iterator[RawLine]:
        self._at = len(self._buffer)
        if damage and self._start < 0:
            self._start = self._offset + self._at
        if self._start >= 0:
            yield self._value()._replace(damage=damage)

    def _begin(self) -> None:
        between = _BETWEEN.match(self._buffer, self._at)
        self._at = between.end() if between else self._at
        first = bytes(self._buffer[self._at : self._at + 1])
        if first and first == (b"]" if self._in_array else b"["):
            self._in_array = not self._in_array
            self._at += 1
        elif first:
            self._start, self._depth = self._offset + self._at, 0

    def _step(self) -> bool:
        """Scan the next part of a value; return whether the value ends there."""
        if self._in_string:
            return self._skip_string()
        scalar = not self._depth and self._buffer[self._at] not in b'"{['
        found = (_SCALAR_END if scalar else _STRUCTURE).search(self._buffer, self._at)
        if found is None:
            self._at = len(self._buffer)
            return False
        if scalar:  # of one byte at least: a stray bracket
            self._at = max(found.start(), self._at + (self._start == self._offset + self._at))
            return True
        self._at = found.end()
        self._in_string = found[0] == b'"'
        self._depth += (found[0] in b"{[") - (found[0] in b"}]")
        return not (self._in_string or self._depth)

    def _skip_string(self) -> bool:
        found = _STRING.match(self._buffer, self._at)
        self._at = found.end() if found else self._at
        end = bytes(self._buffer[self._at : self._at + 1])
        if end == b"\n":
            self.broken = self._offset + self._at
        elif end == b'"':
            self._at += 1
            self._in_string = False
            return not self._depth
        return False

    def _value(self) -> RawLine:
        end = self._offset + self._at
        data = self._head or bytes(self._buffer[self._start - self._offset : self._at])
        value = RawLine(self._start, end + 1, end - self._start, data)
        self._start, self._head = -1, b""
        return value

    def _trim(self) -> None:
        """Forget what is before the current value, and all but the head of a long one."""
        start = self._at if self._start < 0 else max(self._start - self._offset, 0)
        if self._start >= 0 and (self._head or self._at - start > self._limit):
            self._head = self._head or bytes(self._buffer[start : start + BAD_RECORD_BYTES])
            start = self._at
        del self._buffer[:start]
        self._offset += start
        self._at -= start

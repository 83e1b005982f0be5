"""Records of Common Crawl's WET files: WARC records of type `conversion`, which are plain text."""

import re
from collections.abc import Iterator
from typing import Any

from proxhpc.corpus.blocks import DamageError
from proxhpc.corpus.jsonl import RawLine
from proxhpc.corpus.records import BAD_RECORD_BYTES, RecordProblem

WARC_MAGIC = b"WARC/"
_END = b"\r\n\r\n"  # of a header, and of a record
_MAX_HEADER = 64 << 10
_LENGTH = re.compile(rb"\r\nContent-Length:[ \t]*(\d{1,18})[ \t]*\r\n", re.IGNORECASE)


def split_wet(chunks: Iterator[bytes], position: int, max_record_bytes: int) -> Iterator[RawLine]:
    """Yield the records of a stream, each with its header; `position` must be a record's start."""
    reader = _Reader(chunks)
    keep = max_record_bytes + _MAX_HEADER
    try:
        while reader.fill(1):
            size = _record_size(reader, position)
            data = reader.take(size, keep)
            if reader.take(len(_END), keep) != _END:
                raise DamageError("corrupt_input", f"no WARC record ends at byte {position + size}")
            body = size - data.index(_END) - len(_END)
            yield RawLine(position, position + size + len(_END), max(body, 0), data)
            position += size + len(_END)
            reader.taken = 0
    except DamageError as error:
        later = reader.drain()
        size = reader.taken
        yield RawLine(position, position + size, size, reader.head, later or error)


def parse_wet(data: bytes) -> Any:
    """Return a record's headers and text, a RecordProblem, or None for one of another type."""
    header, _, body = data.partition(_END)
    try:
        lines = [line.partition(":") for line in header.decode().split("\r\n")[1:]]
        record = {name.strip(): value.strip() for name, _, value in lines}
        if record.get("WARC-Type") != "conversion":
            return None
        return {"text": body.decode(), **record}
    except UnicodeDecodeError as error:
        return RecordProblem("invalid_utf8", f"{error.reason} at byte {error.start}")


def _record_size(reader: "_Reader", position: int) -> int:
    """Return the size of the next record with its header."""
    end = reader.find(_END, _MAX_HEADER)
    header = bytes(reader.buffer[: end + len(_END)])
    length = _LENGTH.search(header)
    if end < 0 or not header.startswith(WARC_MAGIC) or length is None:
        raise DamageError("corrupt_input", f"no WARC record begins at byte {position}")
    return end + len(_END) + int(length[1])


class _Reader:
    """Takes pieces of a stream; `taken` bytes of the current record, of which `head` is kept."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.buffer = bytearray()
        self.taken = 0
        self.head = b""

    def fill(self, size: int) -> bool:
        """Return whether there are `size` bytes."""
        while len(self.buffer) < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self.buffer += chunk
        return True

    def find(self, end: bytes, limit: int) -> int:
        size = 1
        while (at := self.buffer.find(end)) < 0 and size < limit:
            size = len(self.buffer) + 1
            if not self.fill(size):
                return -1
        return at

    def take(self, size: int, keep: int) -> bytes:
        """Return up to `keep` of the next `size` bytes. DamageError if there are fewer."""
        taken = bytearray()
        while size:
            if not self.fill(1):
                raise DamageError("truncated_input", "the file ends inside a WARC record")
            piece = self.buffer[:size]
            del self.buffer[:size]
            size -= len(piece)
            if not self.taken:
                self.head = bytes(piece[:BAD_RECORD_BYTES])
            self.taken += len(piece)
            if len(taken) < keep:
                taken += piece
        return bytes(taken)

    def drain(self) -> DamageError | None:
        """Count what is left as part of the current record; return damage that lies in it."""
        try:
            for piece in (bytes(self.buffer), *self._chunks):
                self.head = self.head or piece[:BAD_RECORD_BYTES]
                self.taken += len(piece)
        except DamageError as error:
            return error
        return None

"""Part files of a corpus: complete under their name or absent, whatever their format."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import orjson
import zstandard

from proxhpc.corpus.disk import sync_directory, temporary, write_all, writing
from proxhpc.errors import ShardError

_BATCH = 1 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part file: `bytes_raw` as JSON lines, `bytes` and `sha256` as on disk."""

    name: str
    documents: int
    bytes_raw: int
    bytes: int
    sha256: str


class Encoder(Protocol):
    """Turns rows into the bytes of a file; the same rows give the same bytes."""

    def add(self, row: Mapping[str, Any], line: bytes) -> bytes:
        """Take a row, which is `line` as JSON, and return what can be written by now."""

    def end(self) -> bytes:
        """Return the rest of the file."""


class JsonLines:
    """JSON lines in one zstd frame: one thread, no time stamps."""

    def __init__(self, level: int = 3) -> None:
        self._rows: list[bytes] = []
        self._held = 0
        compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, threads=0)
        self._frame = compressor.compressobj()

    def add(self, row: Mapping[str, Any], line: bytes) -> bytes:
        """Take a line; compressed are many at a time."""
        self._rows.append(line)
        self._held += len(line)
        return self._compressed() if self._held >= _BATCH else b""

    def end(self) -> bytes:
        """Return the frame's rest."""
        return self._compressed() + self._frame.flush()

    def _compressed(self) -> bytes:
        rows, self._rows, self._held = self._rows, [], 0
        return self._frame.compress(b"".join(rows))


class PartWriter:
    """Writes one part under a temporary name beside it, renamed by `close`.

    As a context manager it closes the part, or on an exception removes it.
    """

    def __init__(self, path: Path, encoder: Encoder | None = None) -> None:
        self.path = path
        self.documents = 0
        self.bytes_raw = 0
        self._encoder = encoder or JsonLines()
        self._end = 0
        self._hash = hashlib.sha256()
        self._tmp = temporary(path)
        with writing(path):
            self._fd = os.open(self._tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one row. Raises RetryError when the disk is full, naming its directory."""
        try:
            line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        except orjson.JSONEncodeError as error:
            raise ShardError(f"{self.path.name}: a row is not JSON: {error}") from error
        self.documents += 1
        self.bytes_raw += len(line)
        self._put(self._encoder.add(row, line))

    def close(self) -> Part:
        """Make the part durable, give it its name, and return what it holds."""
        self._put(self._encoder.end())
        with writing(self.path):
            os.fsync(self._fd)
            os.replace(self._tmp, self.path)
            os.close(self._fd)
            self._fd = -1
            sync_directory(self.path.parent)
        digest = self._hash.hexdigest()
        return Part(self.path.name, self.documents, self.bytes_raw, self._end, digest)

    def abandon(self) -> None:
        """Remove what was written of an unfinished part."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._tmp.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._fd >= 0:
                self.close()
        finally:
            self.abandon()

    def _put(self, data: bytes) -> None:
        if not data:
            return
        with writing(self.path):
            write_all(self._fd, data, self._end)
        self._end += len(data)
        self._hash.update(data)

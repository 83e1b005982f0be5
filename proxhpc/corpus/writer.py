"""Part files of a corpus, which appear under their name only when they are complete."""

import hashlib
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import orjson
import zstandard

from proxhpc.corpus.disk import replacing, writing
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
    """Encodes rows as the bytes of a file, deterministically."""

    def add(self, line: bytes) -> bytes:
        """Add a row as a line of JSON, and return bytes that are ready to be written."""

    def end(self) -> bytes:
        """Return the remaining bytes of the file."""


Convert = Callable[[bytes], bytes]


class JsonLines:
    """JSON lines: plain, or in one zstd frame or gzip member that does not depend on the machine.

    `convert` makes the line that is written from the one that is added.
    """

    def __init__(
        self, level: int = 3, suffix: str = "jsonl.zst", convert: Convert | None = None
    ) -> None:
        self._rows: list[bytes] = []
        self._size = 0
        self._convert = convert
        self._frame: Any = None
        if suffix == "jsonl.zst":
            compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, threads=0)
            self._frame = compressor.compressobj()
        elif suffix == "jsonl.gz":
            self._frame = zlib.compressobj(min(level, 9), wbits=31)

    def add(self, line: bytes) -> bytes:
        """Add a line; lines are compressed in batches."""
        if self._convert:
            line = self._convert(line)
        self._rows.append(line)
        self._size += len(line)
        return self._compress() if self._size >= _BATCH else b""

    def end(self) -> bytes:
        """Return the rest of the file."""
        rest = self._compress()
        return rest + self._frame.flush() if self._frame else rest

    def _compress(self) -> bytes:
        data, self._rows, self._size = b"".join(self._rows), [], 0
        compressed: bytes = self._frame.compress(data) if self._frame else data
        return compressed


class PartWriter:
    """Writes one part to a draft file that `close` renames.

    As a context manager it closes the part, or removes the draft if the block raises.
    """

    def __init__(self, path: Path, encoder: Encoder | None = None) -> None:
        self.path = path
        self.documents = 0
        self.bytes_raw = 0
        self._encoder = encoder or JsonLines()
        self._size = 0
        self._hash = hashlib.sha256()
        self._part: Part | None = None
        self._draft = ExitStack()
        self._file = self._draft.enter_context(replacing(path))

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one row. RetryError if the disk is full; ShardError if the row is not JSON."""
        try:
            line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        except orjson.JSONEncodeError as error:
            raise ShardError(f"{self.path.name}: a row is not JSON: {error}") from error
        self.write_line(line)

    def write_line(self, line: bytes) -> None:
        """Add one row as a line of JSON. RetryError as `write`."""
        self.documents += 1
        self.bytes_raw += len(line)
        self._put(self._encoder.add(line))

    def close(self) -> Part:
        """Publish the part under its name, durably, and return its sizes and checksum."""
        if self._part is None:
            with self._draft:
                self._put(self._encoder.end())
            digest = self._hash.hexdigest()
            self._part = Part(self.path.name, self.documents, self.bytes_raw, self._size, digest)
        return self._part

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            # Not `error`: `replacing` would report an OSError of the block as one of this file.
            self._draft.__exit__(GeneratorExit, GeneratorExit(), None)

    def _put(self, data: bytes) -> None:
        if not data:
            return
        with writing(self.path):
            self._file.write(data)
        self._size += len(data)
        self._hash.update(data)

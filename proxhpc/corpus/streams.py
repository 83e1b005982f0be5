"""The decompressed bytes of a file in bounded chunks, whatever it is compressed with."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from proxhpc.corpus.blocks import MAGIC, DamageError, FrameReader
from proxhpc.errors import ShardError

Compression = Literal["none", "gzip", "zstd"]

_READ = 1 << 20
_INFLATE = 256 << 10  # gzip: at most this much out of one call, whatever the ratio
_GZIP_MAGIC = b"\x1f\x8b"
_SUFFIXES: dict[str, Compression] = {".zst": "zstd", ".zstd": "zstd", ".gz": "gzip"}


def sniff(path: Path) -> Compression:
    """Return how a file is compressed, by its first bytes; by its name where they do not tell.

    A file that is called `.zst` and begins like plain JSON is read as plain text.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(MAGIC) or (head[:1] and head[0] & 0xF0 == 0x50 and head[1:4] == b"*M\x18"):
        return "zstd"
    if head.startswith(_GZIP_MAGIC):
        return "gzip"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return "none"
    return _SUFFIXES.get(path.suffix.lower(), "none")


def chunks(path: Path, compression: Compression, start: int = 0) -> Iterator[bytes]:
    """Yield the decompressed bytes from offset `start` on, at most 1 MiB at a time.

    Concatenated frames or members are one stream. Raises DamageError where the file is cut,
    damaged or needs more memory than allowed, behind everything that could be read before that.
    """
    with path.open("rb", buffering=_READ) as file:
        if compression == "none":
            file.seek(start)
            yield from plain(file)
            return
        zstd = compression == "zstd"
        stream = unzstd(FrameReader(file)) if zstd else GzipReader(file).chunks()
        position = 0
        for chunk in stream:
            position += len(chunk)
            if position > start:
                fresh = position - start
                yield chunk if fresh >= len(chunk) else chunk[-fresh:]


def plain(file: BinaryIO) -> Iterator[bytes]:
    """Yield a file's bytes as they are."""
    while chunk := file.read(_READ):
        yield chunk


def unzstd(frames: FrameReader) -> Iterator[bytes]:
    """Yield the content of all frames, one block of at most 128 KiB at a time."""
    while header := frames.header():
        yield from frames.blocks(header)


class GzipReader:
    """The members of a gzip file as one stream; `offset` counts the compressed bytes consumed."""

    def __init__(self, file: BinaryIO) -> None:
        self.offset = 0
        self._file = file
        self._pending = b""

    def chunks(self) -> Iterator[bytes]:
        """Yield the content, at most 256 KiB at a time; zero padding is allowed, as gzip does."""
        self._read()
        while self._pending:
            yield from self._member(zlib.decompressobj(wbits=31))
            while self._pending and not self._pending.strip(b"\0"):
                self._read()
            self._pending = self._pending.lstrip(b"\0")

    def _member(self, member: "zlib._Decompress") -> Iterator[bytes]:
        while not member.eof:
            try:
                data = member.decompress(self._pending, _INFLATE)
            except zlib.error as error:
                raise DamageError(
                    "corrupt_input", f"gzip, near {self._where()}: {error}"
                ) from error
            self._pending = member.unused_data if member.eof else member.unconsumed_tail
            self.offset = self._file.tell() - len(self._pending)
            if data:
                yield data
            if not self._pending:
                self._read()
                if not (self._pending or data or member.eof):
                    where = f"the file ends inside a gzip member, at {self._where()}"
                    raise DamageError("truncated_input", where)

    def _read(self) -> None:
        self._pending = self._file.read(_INFLATE)

    def _where(self) -> str:
        return f"byte {self._file.tell() - len(self._pending)}"


def count_lines(path: Path) -> int:
    """Line ends in a file, decompressed by its suffix. ShardError where it is damaged."""
    try:
        return sum(chunk.count(b"\n") for chunk in chunks(path, sniff(path)))
    except DamageError as error:
        raise ShardError(f"{path} is damaged: {error.detail}") from error

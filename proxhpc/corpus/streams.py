"""Decompressed bytes of plain, gzip and zstd files, in bounded chunks."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from proxhpc.corpus.blocks import MAGIC, DamageError, FrameReader
from proxhpc.errors import ShardError

Compression = Literal["none", "gzip", "zstd"]

_READ = 1 << 20
_INFLATE = 256 << 10  # gzip: the most bytes that one call returns
_GZIP_MAGIC = b"\x1f\x8b"
_SUFFIXES: dict[str, Compression] = {".zst": "zstd", ".zstd": "zstd", ".gz": "gzip"}


def detect_compression(path: Path) -> Compression:
    """Return how a file is compressed, from its first bytes, or else from its name.

    A file that is named `.zst` but starts like JSON is plain text.
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


def read_chunks(path: Path, compression: Compression, start: int = 0) -> Iterator[bytes]:
    """Yield the decompressed bytes from offset `start` on, at most 1 MiB at a time.

    Concatenated frames or members are one stream. If the file is truncated, damaged or needs more
    memory than allowed, raises DamageError after yielding everything before that point.
    """
    with path.open("rb", buffering=_READ) as file:
        if compression == "none":
            file.seek(start)
            yield from plain_chunks(file)
            return
        zstd = compression == "zstd"
        stream = zstd_chunks(FrameReader(file)) if zstd else GzipReader(file).chunks()
        position = 0
        for chunk in stream:
            position += len(chunk)
            if position > start:
                size = position - start
                yield chunk if size >= len(chunk) else chunk[-size:]


def plain_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Yield a file's bytes in chunks."""
    while chunk := file.read(_READ):
        yield chunk


def zstd_chunks(frames: FrameReader) -> Iterator[bytes]:
    """Yield the content of all frames in blocks of at most 128 KiB."""
    while header := frames.header():
        yield from frames.blocks(header)


class GzipReader:
    """Reads the members of a gzip file as one stream."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pending = b""

    @property
    def offset(self) -> int:
        """The compressed bytes consumed."""
        return self._file.tell() - len(self._pending)

    def chunks(self) -> Iterator[bytes]:
        """Yield the content, at most 256 KiB at a time. Zero padding is skipped, as by gzip."""
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
                detail = f"gzip, near byte {self.offset}: {error}"
                raise DamageError("corrupt_input", detail) from error
            self._pending = member.unused_data if member.eof else member.unconsumed_tail
            if data:
                yield data
            if not self._pending:
                self._read()
                if not (self._pending or data or member.eof):
                    detail = f"the file ends inside a gzip member, at byte {self.offset}"
                    raise DamageError("truncated_input", detail)

    def _read(self) -> None:
        self._pending = self._file.read(_INFLATE)


def count_lines(path: Path) -> int:
    """Return the number of line ends in a file, decompressed. ShardError if it is damaged."""
    try:
        return sum(chunk.count(b"\n") for chunk in read_chunks(path, detect_compression(path)))
    except DamageError as error:
        raise ShardError(f"{path} is damaged: {error.detail}") from error

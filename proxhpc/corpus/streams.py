"""Decompressed bytes of plain and compressed files, in bounded chunks."""

import bz2
import lzma
import re
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from proxhpc.corpus.blocks import MAGIC, MAX_WINDOW, DamageError, FrameReader
from proxhpc.corpus.deflate import SCANNED, WINDOW, ResumedMember, find_block
from proxhpc.corpus.restarts import FILE_START, Restart, RestartLog
from proxhpc.errors import ShardError
from proxhpc.extras import require_package

Compression = Literal["none", "gzip", "zstd", "xz", "bzip2", "lz4"]

_READ = 1 << 20
_STEP = 256 << 10  # the most bytes that one call of a decompressor takes and returns
_MAX_AHEAD = 256 << 20  # decompressed bytes that are held until they are read
_FAST = 8 << 20  # bytes of content a second for which no model has worked
_RAW_BYTES = 1024  # of the file, where it is damaged
_MAGICS: dict[Compression, bytes] = {
    "zstd": re.escape(MAGIC),
    "gzip": rb"\x1f\x8b",
    "xz": rb"\xfd7zXZ\0",
    "bzip2": rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)",
    "lz4": rb"\x04\x22\x4d\x18",
}
_SKIPPABLE = rb"[\x50-\x5f]\x2a\x4d\x18"
_SUFFIXES: dict[str, Compression] = {
    ".zst": "zstd",
    ".zstd": "zstd",
    ".gz": "gzip",
    ".xz": "xz",
    ".bz2": "bzip2",
    ".lz4": "lz4",
}
COMPRESSED = tuple(_SUFFIXES)


def detect_compression(path: Path) -> Compression:
    """Return how a file is compressed, from its first bytes, or else from its name.

    A file that is named `.zst` but starts like JSON is plain text.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if compression := name_compression(head):
        return compression
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"{", b"[", b"WARC/")):
        return "none"
    return _SUFFIXES.get(path.suffix.lower(), "none")


def name_compression(head: bytes) -> Compression | None:
    """Return how a file is compressed that begins so; None if it is not, as far as known.

    zstd and lz4 files may begin with skippable frames.
    """
    start = 0
    while re.match(_SKIPPABLE, head[start:]) and len(head) >= start + 8:
        start += 8 + int.from_bytes(head[start + 4 : start + 8], "little")
    if start >= len(head) > 0:
        return "zstd"
    return next((name for name, magic in _MAGICS.items() if re.match(magic, head[start:])), None)


def read_chunks(
    path: Path,
    compression: Compression,
    start: int = 0,
    max_window: int = MAX_WINDOW,
    restarts: RestartLog | None = None,
) -> Iterator[bytes]:
    """Yield the decompressed bytes from offset `start` on, at most 1 MiB at a time.

    Concatenated frames or members are one stream. If the file is truncated, damaged or needs more
    memory than allowed, raises DamageError after yielding everything before that point. `restarts`
    saves decompressing what is before `start`.
    """
    with path.open("rb", buffering=_READ) as file:
        if compression == "none":
            file.seek(start)
            yield from PlainReader(file).chunks()
            return
        point = restarts.enter(start) if restarts else FILE_START
        stream = _open_compressed(file, compression, max_window)
        position = point.position
        try:
            for chunk in stream.chunks(point, restarts):
                position += len(chunk)
                if restarts:
                    restarts.passed(position)
                if position > start:
                    size = position - start
                    yield chunk if size >= len(chunk) else chunk[-size:]
            if restarts:
                restarts.finish()
        except DamageError as error:
            if restarts:
                restarts.finish()
            if error.reason == "truncated_input":
                raise
            file.seek(max(stream.offset - _RAW_BYTES // 2, 0))
            raise DamageError(error.reason, error.detail, file.read(_RAW_BYTES)) from error


def read_ahead(chunks: Iterator[bytes], position: int, restarts: RestartLog) -> Iterator[bytes]:
    """Yield the same chunks, from `position` on, each after all those that lie `ahead`.

    Records are read slowly, while models work; other processes need the points before that. If they
    turn out to be read fast, nothing is read ahead: memory for it takes a third of a pass.
    """
    held: deque[bytes] = deque()
    damage: DamageError | None = None
    start = given = position
    more, seconds = True, 0.0
    while more or held:
        last = given if restarts.is_read_fast else min(restarts.ahead, given + _MAX_AHEAD)
        while more and (not held or position < last):
            try:
                held.append(next(chunks))
                position += len(held[-1])
            except StopIteration:
                more = False
            except DamageError as error:
                more, damage = False, error
        if held:
            given += len(held[0])
            before = time.monotonic()
            yield held.popleft()
            seconds += time.monotonic() - before
            restarts.is_read_fast = given - start > seconds * _FAST
    if damage:
        raise damage


def open_stream(file: BinaryIO, compression: Compression, max_window: int = MAX_WINDOW) -> "Stream":
    """Return the content of an open file."""
    if compression == "none":
        return PlainReader(file)
    return _open_compressed(file, compression, max_window)


def _open_compressed(
    file: BinaryIO, compression: Compression, max_window: int
) -> "FrameReader | MemberReader":
    if compression == "zstd":
        return FrameReader(file, max_window=max_window)
    return MemberReader(file, compression)


class PlainReader:
    """Reads a file that is not compressed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    @property
    def offset(self) -> int:
        """The bytes read."""
        return self._file.tell()

    def chunks(self) -> Iterator[bytes]:
        """Yield the file's bytes."""
        while chunk := self._file.read(_READ):
            yield chunk


def _decompressor(compression: Compression) -> Callable[[], Any]:
    if compression == "gzip":
        return lambda: zlib.decompressobj(wbits=31)
    if compression == "xz":
        return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_WINDOW)
    if compression == "bzip2":
        return bz2.BZ2Decompressor
    require_lz4("reading .lz4 files")
    from lz4.frame import LZ4FrameDecompressor

    factory: Callable[[], Any] = LZ4FrameDecompressor
    return factory


def require_lz4(purpose: str) -> None:
    """Raise UserError unless lz4, which `purpose` needs, is installed."""
    require_package("lz4", "lz4", purpose)


class MemberReader:
    """Reads the members of a gzip, xz, bzip2 or lz4 file as one stream."""

    def __init__(self, file: BinaryIO, compression: Compression) -> None:
        self._file = file
        self._compression = compression
        self._make = _decompressor(compression)
        self._pending = b""
        self.members = 0  # that have been read to their end

    @property
    def offset(self) -> int:
        """The compressed bytes consumed."""
        return self._file.tell() - len(self._pending)

    @property
    def is_first_gzip_member(self) -> bool:
        """Whether this is a gzip file of which no member has been read to its end."""
        return self._compression == "gzip" and not self.members

    def chunks(
        self, point: Restart = FILE_START, restarts: RestartLog | None = None
    ) -> Iterator[bytes]:
        """Yield the content from a point on, at most 256 KiB at a time; note points in `restarts`.

        Zero padding is skipped, as by gzip.
        """
        self._file.seek(point.offset)
        self._read()
        while self._pending:
            member = ResumedMember(point) if point.window else self._make()
            if restarts and restarts.wants(point.position):
                restarts.add(point)
            try:
                for data in self._member(member):
                    point = self._advance(point, data, restarts is not None)
                    if restarts and point.window and restarts.wants(point.position, window=True):
                        found = find_block(self._pending[:SCANNED], member, point)
                        if found:
                            restarts.add(found)
                    yield data
            except DamageError as error:
                raise error.unverified(point.member, point.position) from error
            self.members += 1
            while self._pending and not self._pending.strip(b"\0"):
                self._read()
            self._pending = self._pending.lstrip(b"\0")
            point = Restart(point.position, self.offset, member=point.position)

    def _advance(self, point: Restart, data: bytes, follow: bool) -> Restart:
        position = point.position + len(data)
        if not (follow and self._compression == "gzip"):
            return replace(point, position=position)
        window, crc = (point.window + data)[-WINDOW:], zlib.crc32(data, point.crc)
        return Restart(position, self.offset, 0, window, crc, point.member)

    def _member(self, member: Any) -> Iterator[bytes]:
        gzip = self._compression == "gzip"
        while not member.eof:
            before = member.copy() if gzip else None
            try:
                data = member.decompress(self._pending, _STEP)
            except (
                zlib.error,
                lzma.LZMAError,
                OSError,
                EOFError,
                RuntimeError,
                ValueError,
            ) as error:
                if before is not None:
                    yield from self._salvage(before)
                detail = f"{self._compression}, near byte {self.offset}: {error}"
                raise DamageError("corrupt_input", detail) from error
            if member.eof:
                self._pending = member.unused_data or b""
            else:
                self._pending = member.unconsumed_tail if gzip else b""
            if data:
                yield data
            if not self._pending and (member.eof or gzip or member.needs_input):
                self._read()
                if not (self._pending or data or member.eof):
                    detail = f"the file ends inside a {self._compression} member, at byte "
                    raise DamageError("truncated_input", f"{detail}{self.offset}")

    def _salvage(self, member: Any) -> Iterator[bytes]:
        """Yield what can be decoded before an error; zlib loses the output of a call that fails."""
        step = len(self._pending)  # of input: the check at its end would fail with the last output
        while step:
            trial, piece = member.copy(), self._pending[:step]
            try:
                data = trial.decompress(piece, _STEP)
            except zlib.error:
                step //= 2
                continue
            used = len(piece) - len(trial.unconsumed_tail)
            if not (data or used):
                return
            member, self._pending = trial, self._pending[used:]
            yield data

    def _read(self) -> None:
        self._pending = self._file.read(_STEP)


Stream = PlainReader | FrameReader | MemberReader


def count_lines(path: Path) -> int:
    """Return the number of line ends in a file, decompressed. ShardError if it is damaged."""
    try:
        return sum(chunk.count(b"\n") for chunk in read_chunks(path, detect_compression(path)))
    except DamageError as error:
        raise ShardError(f"{path} is damaged: {error.detail}") from error

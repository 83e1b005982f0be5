"""Append-only files of zstd frames: each frame is one commit with a checksum.

A file truncated exactly between two frames looks intact. Where completeness matters, the last
frame is a summary, which the file's reader requires.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import zstandard

from proxhpc.corpus.blocks import DamageError, FrameReader
from proxhpc.corpus.disk import sync_directory, write_all, writing
from proxhpc.errors import RetryError, ShardError
from proxhpc.faults import fault_point

MAX_PAYLOAD = 256 << 20
_READ = 1 << 20


@dataclass(frozen=True, slots=True)
class Frame:
    """One verified frame: its end in the file and its content."""

    end: int
    payload: bytes


class FrameWriter:
    """Appends frames to a new file; each is durable when `append` returns.

    FileExistsError if the file exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0
        self._fd = -1
        self._broken = False
        with writing(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                sync_directory(path.parent)
            except BaseException:
                self.close()
                raise

    def append(self, payload: bytes) -> int:
        """Append one frame and return the file's new length in bytes.

        Raises RetryError if the frame could not be made durable. The writer then tries to truncate
        the file to the last good frame, and accepts no further frames.
        """
        if len(payload) > MAX_PAYLOAD:
            raise ShardError(f"{self.path}: a commit of {len(payload)} bytes is too large")
        self._write(zstandard.ZstdCompressor(write_checksum=True).compress(payload))
        return self.end

    def copy(self, source: Path, end: int) -> None:
        """Append the first `end` bytes of another frame file, which must be verified frames."""
        with source.open("rb") as file:
            while end:
                data = file.read(min(end, _READ))
                if not data:
                    raise ShardError(f"{source} shrank while it was being copied")
                end -= len(data)
                self._write(data, sync=not end)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, data: bytes, *, sync: bool = True) -> None:
        if self._broken or self._fd < 0:
            raise RetryError(f"{self.path}: closed, or an earlier write failed")
        with writing(self.path):
            try:
                write_all(self._fd, data, self.end)
                fault_point("commit written")
                if sync:
                    os.fsync(self._fd)
            except OSError:
                # After a failed write or fsync the bytes after `end` are unknown.
                self._broken = True
                with suppress(OSError):  # report the first error
                    os.ftruncate(self._fd, self.end)
                raise
        self.end += len(data)


def read_frames(path: Path, *, strict: bool = True) -> Iterator[Frame]:
    """Yield the verified frames in order.

    At damage, `strict` raises ShardError; otherwise the frames end there.
    """
    try:
        yield from _frames(path)
    except DamageError as error:
        if strict:
            raise ShardError(
                f"{path} is damaged: {error.detail}",
                hint="remove the file and run `proxhpc launch` again, which redoes its work",
            ) from error


def _frames(path: Path) -> Iterator[Frame]:
    with path.open("rb", buffering=_READ) as file:
        frames = FrameReader(file, skippable=False)
        while header := frames.header():
            if header.content_size is None or not header.has_checksum:
                detail = f"no frame with size and checksum at byte {header.start}"
                raise DamageError("corrupt_input", detail)
            if header.content_size > MAX_PAYLOAD:
                raise DamageError(
                    "corrupt_input",
                    f"the frame at byte {header.start} holds more than {MAX_PAYLOAD} bytes",
                )
            payload = b"".join(_bounded(frames.blocks(header), header.content_size))
            yield Frame(frames.offset, payload)


def _bounded(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    # The decoder checks the size only at the frame's end, which is too late to bound memory.
    for block in blocks:
        size -= len(block)
        if size < 0:
            raise DamageError("corrupt_input", "a frame is larger than its header declares")
        yield block

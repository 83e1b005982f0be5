"""The append-only frame file: one zstd frame is one commit, verified whole or not there.

A cut exactly between two frames cannot be seen here: what must be complete ends with a summary
frame that its reader insists on.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import zstandard

from proxhpc.corpus.blocks import DamageError, FrameReader
from proxhpc.corpus.disk import (
    append_line,
    publish,
    sync_directory,
    write_all,
    write_atomic,
    writing,
)
from proxhpc.errors import RetryError, ShardError

__all__ = [
    "MAX_PAYLOAD",
    "Frame",
    "FrameWriter",
    "Scan",
    "append_line",
    "copy_whole_frames",
    "publish",
    "read_frames",
    "scan",
    "write_atomic",
]

MAX_PAYLOAD = 256 << 20
_READ = 1 << 20


@dataclass(frozen=True, slots=True)
class Frame:
    """One verified frame: where it lies in the file, and what was appended."""

    start: int
    end: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Scan:
    """How far a frame file is good: `frames` whole ones up to byte `end`, then `torn_bytes`.

    `reason` says what is wrong behind `end`; it is empty where nothing is.
    """

    end: int
    frames: int
    torn_bytes: int = 0
    reason: str = ""


class FrameWriter:
    """Append frames to one file, each durable when `append` returns.

    Creates the file exclusively (FileExistsError where it exists), or, with `resume_at`, cuts an
    existing one back to that offset, which `scan` gave, and goes on there.
    """

    def __init__(self, path: Path, *, level: int = 3, resume_at: int | None = None) -> None:
        self.path = path
        self._fd = -1
        self._broken = False
        self._level = level
        with writing(path):
            new = resume_at is None
            self._fd = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if new else 0), 0o666)
            self.end = resume_at or 0
            try:
                self._cut_back()
                sync_directory(path.parent)
            except BaseException:
                self.close()
                raise

    def append(self, payload: bytes) -> int:
        """Append one frame and return the file's length behind it, in bytes.

        Raises RetryError when it could not be made durable. The file then ends at the last good
        frame, as far as the file system still allows that, and takes no further frame.
        """
        if len(payload) > MAX_PAYLOAD:
            raise ShardError(f"{self.path}: a commit of {len(payload)} bytes is too large")
        compressor = zstandard.ZstdCompressor(
            level=self._level, write_checksum=True, write_content_size=True
        )
        self._write(compressor.compress(payload))
        return self.end

    def append_frames(self, data: bytes, *, last: bool) -> None:
        """Append a piece of already verified frames; made durable with the last piece."""
        self._write(data, sync=last)

    def close(self) -> None:
        """Close the file; what was appended stays."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, data: bytes, *, sync: bool = True) -> None:
        if self._broken or self._fd < 0:
            raise RetryError(f"{self.path}: not open any more, an earlier write failed")
        with writing(self.path):
            try:
                write_all(self._fd, data, self.end)
                if sync:
                    os.fsync(self._fd)
            except OSError:
                # After a failed write or fsync nobody knows what the disk holds behind `end`.
                self._broken = True
                with suppress(OSError):  # the first error is the one to tell
                    self._cut_back()
                raise
        self.end += len(data)

    def _cut_back(self) -> None:
        size = os.fstat(self._fd).st_size
        if size < self.end:
            raise ShardError(f"{self.path}: {size} bytes long, shorter than its {self.end} good")
        os.ftruncate(self._fd, self.end)


def read_frames(
    path: Path, *, strict: bool = True, max_payload: int = MAX_PAYLOAD
) -> Iterator[Frame]:
    """Yield the whole, verified frames in order.

    At any damage `strict` raises ShardError; otherwise the frames end there, and `scan` tells
    where and why.
    """
    try:
        yield from _frames(path, max_payload)
    except DamageError as error:
        if strict:
            raise ShardError(
                f"{path} is damaged: {error.detail}",
                hint="remove the file and launch again: what it held is made anew",
            ) from error


def scan(path: Path, *, max_payload: int = MAX_PAYLOAD) -> Scan:
    """Return how much of a frame file is whole, and what is wrong behind that."""
    end = count = 0
    reason = ""
    try:
        for frame in _frames(path, max_payload):
            end, count = frame.end, count + 1
    except DamageError as error:
        reason = error.detail
    return Scan(end, count, path.stat().st_size - end if reason else 0, reason)


def copy_whole_frames(source: Path, target: FrameWriter) -> Scan:
    """Copy the good frames of another attempt's file; return what `scan` says of it."""
    found = scan(source)
    left = found.end
    with source.open("rb") as file:
        while left:
            data = file.read(min(left, _READ))
            if not data:
                raise ShardError(f"{source} became shorter while it was being copied")
            left -= len(data)
            target.append_frames(data, last=not left)
    return found


def _frames(path: Path, max_payload: int) -> Iterator[Frame]:
    # zstd allows the window of a small frame to be huge; what we wrote needs no more than this.
    window = max(max_payload, 1 << 20)
    with path.open("rb", buffering=_READ) as file:
        frames = FrameReader(file, max_window=window, skippable=False)
        while header := frames.header():
            if header.content_size is None or not header.has_checksum:
                raise DamageError("corrupt_input", f"no frame of ours at byte {header.start}")
            if header.content_size > max_payload:
                raise DamageError(
                    "corrupt_input",
                    f"the frame at byte {header.start} holds more than {max_payload} bytes",
                )
            payload = b"".join(_bounded(frames.blocks(header), header.content_size))
            yield Frame(header.start, frames.offset, payload)


def _bounded(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    # The decoder compares the size at the frame's end; memory must not wait for that.
    for block in blocks:
        size -= len(block)
        if size < 0:
            raise DamageError("corrupt_input", "a frame holds more than its header says")
        yield block

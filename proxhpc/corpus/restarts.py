"""Restart points: places in a compressed file from which it can be decompressed.

The process that decompresses a file first notes them in the run directory, so that no other one
needs to begin at the file's start. Everything before a point could be decompressed.
"""

import hashlib
import os
import struct
import time
import zlib
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from pathlib import Path

GAP = 1 << 20  # between two points; one within a gzip member is at most this far before a span
_FAR = 64 << 20  # between points in content that is skipped, and between writes
_STALLED = 20.0  # seconds without a new point after which another process counts as dead
_IDLE = 2.0  # the same if none says that it is at work
_POLL = 0.2
_REACHED = 255  # instead of bits: no point, but the content up to here was decompressed
_END = 1 << 62  # the position of what is behind the end
_MAGIC = b"\x89prx"
_HEAD = struct.Struct("<4sII")  # magic, length and CRC-32 of the body
_BODY = struct.Struct("<16sQQBIQ")


@dataclass(frozen=True, slots=True)
class Restart:
    """A place in a compressed file: `position` is in its content, `offset` in the file.

    Within a gzip member it has the number of bits before it in the byte at `offset`, the 32 KiB of
    content before it, the CRC-32 of the member's content before it, and where the member starts.
    """

    position: int = 0
    offset: int = 0
    bits: int = 0
    window: bytes = b""
    crc: int = 0
    member: int = 0


FILE_START = Restart()


class RestartLog:
    """The restart points of a file, in an append-only log that several processes write.

    Each record has a checksum and the file's fingerprint; torn and stale records are ignored. Only
    a `writable` log grows. `goal` is where the next span starts, which needs a point before it, and
    `ahead` the goal if nothing was decompressed up to it. `is_read_fast`: so fast that others need
    not wait for points.
    """

    def __init__(self, path: Path, fingerprint: str, *, writable: bool) -> None:
        self.goal = self.ahead = 0
        self.is_read_fast = False
        self._path = path
        self._busy = path.with_suffix(".busy")  # a process is decompressing content without points
        self._key = hashlib.blake2b(fingerprint.encode(), digest_size=16).digest()
        self._writable = writable
        self._points: dict[int, Restart] = {}
        self._positions: list[int] = []  # of the points, ascending
        self._size = 0  # of the log, as far as it was read
        self._waiting: list[Restart] = []  # to be written
        self._reached = 0  # the position up to which some process has decompressed
        self._written = 0  # the same by this process, when it wrote last
        self._claimed = False

    def aim(self, goal: int) -> None:
        """Set the goal."""
        self._load()
        self.goal = goal
        self.ahead = goal if self._writable and self._reached < goal else 0

    def before(self, position: int) -> Restart:
        """Return the last known point at or before a position."""
        self._load()
        at = bisect_right(self._positions, position)
        return self._points[self._positions[at - 1]] if at else FILE_START

    def wants(self, position: int, *, window: bool = False) -> bool:
        """Return whether a point here is worth its record, which is large if it has a window."""
        if not self._writable:
            return False
        at = bisect_left(self._positions, position)
        nearest = self._positions[max(at - 1, 0) : at + 1]
        distance = min((abs(position - other) for other in nearest), default=position)
        sparse = window and not self.goal - GAP <= position < self.goal
        return distance >= (_FAR if sparse else GAP)

    def add(self, point: Restart) -> None:
        """Note a point."""
        self._keep(point)
        self._waiting.append(point)

    def passed(self, position: int) -> None:
        """Write the points now and then; `position` is reached."""
        at_goal = self._written < self.goal <= position
        if at_goal or position - self._written >= _FAR:
            self._waiting.append(Restart(position, bits=_REACHED))
            self._written = position
            self._write()
        if at_goal:
            self._release()

    def finish(self) -> None:
        """Write the points: the file ends here, or nothing more can be decompressed."""
        self.passed(_END)
        self._release()

    def _release(self) -> None:
        if self._claimed:
            self._claimed = False
            self._busy.unlink(missing_ok=True)

    def enter(self, position: int) -> Restart:
        """Return where to begin reading at `position`.

        Waits while another process decompresses what is before it; if none does, this one will, and
        others wait.
        """
        self._wait(position)
        point = self.before(position)
        self._written = point.position
        return point

    def _wait(self, position: int) -> None:
        size, since = -1, time.monotonic()
        while self._writable and not self._claimed:
            self._load()
            near = self._reached >= position - GAP
            if near and not self.ahead:
                return
            if size != self._size:
                size, since = self._size, time.monotonic()
            idle = time.monotonic() - since
            if idle > _STALLED:
                self._busy.unlink(missing_ok=True)
            if near or idle > _IDLE:
                self._claim()
                if near or self._claimed:
                    return
            time.sleep(_POLL)

    def _claim(self) -> None:
        try:
            self._busy.parent.mkdir(exist_ok=True)
            os.close(os.open(self._busy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            self._claimed = True
        except FileExistsError:
            pass
        except OSError:
            self._writable = False  # several processes may decompress the same

    def _write(self) -> None:
        data = b"".join(map(self._pack, self._waiting))
        self._waiting.clear()
        if not (data and self._writable):
            return
        try:
            self._path.parent.mkdir(exist_ok=True)
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)
        except OSError:
            self._writable = False  # points only save time

    def _pack(self, point: Restart) -> bytes:
        numbers = (point.position, point.offset, point.bits, point.crc, point.member)
        body = _BODY.pack(self._key, *numbers) + zlib.compress(point.window)
        return _HEAD.pack(_MAGIC, len(body), zlib.crc32(body)) + body

    def _load(self) -> None:
        """Read what was appended since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._size)
                data = file.read()
        except OSError:
            return
        at = end = 0
        while (at := data.find(_MAGIC, at)) >= 0 and at + _HEAD.size <= len(data):
            _, length, crc = _HEAD.unpack_from(data, at)
            body = data[at + _HEAD.size : at + _HEAD.size + length]
            if len(body) < max(length, _BODY.size) or zlib.crc32(body) != crc:
                at += 1  # torn, or not yet complete
                continue
            at = end = at + _HEAD.size + length
            key, position, offset, bits, crc, member = _BODY.unpack_from(body)
            if key == self._key:
                window = zlib.decompress(body[_BODY.size :])
                self._keep(Restart(position, offset, bits, window, crc, member))
        self._size += end

    def _keep(self, point: Restart) -> None:
        self._reached = max(self._reached, point.position)
        if point.bits == _REACHED:
            return
        if point.position not in self._points:
            self._positions.insert(bisect_left(self._positions, point.position), point.position)
        self._points[point.position] = point

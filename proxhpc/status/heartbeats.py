"""The newest lines of workers' progress files, by bounded reads from the end of each file."""

import os
from pathlib import Path

from proxhpc.run.paths import RunDir
from proxhpc.run.progress import Heartbeat

CHUNK_BYTES = 16 * 1024  # of one read; a line takes one to two KiB
_MAX_LINE_BYTES = 1024 * 1024  # how far back to look for one whole line


def read_last_heartbeat(path: Path) -> Heartbeat | None:
    """Return a worker's newest heartbeat; None if its file holds no whole line yet.

    A torn last line, which its writer may be about to complete, is ignored.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        size, length = os.fstat(fd).st_size, CHUNK_BYTES
        while True:
            lines = reversed(_read_lines(fd, size - length, length))
            last = next(filter(None, map(Heartbeat.parse, lines)), None)
            if last or length >= min(size, _MAX_LINE_BYTES):
                return last
            length *= 4
    finally:
        os.close(fd)


def sample_heartbeats(path: Path, points: int) -> list[Heartbeat]:
    """Return about `points` heartbeats of a worker, at even distances in its file."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return []
    try:
        size = os.fstat(fd).st_size
        if size <= points * CHUNK_BYTES:
            lines = _read_lines(fd, 0, size)
        else:
            offsets = [(size - CHUNK_BYTES) * n // (points - 1) for n in range(points)]
            chunks = [_read_lines(fd, offset, CHUNK_BYTES) for offset in offsets]
            lines = [chunk[0] for chunk in chunks if chunk] + chunks[-1][-1:]
    finally:
        os.close(fd)
    heartbeats = [*filter(None, map(Heartbeat.parse, lines))]
    return heartbeats[: -1 : max(1, len(heartbeats) // points)] + heartbeats[-1:]


def latest_heartbeats(run: RunDir) -> list[Heartbeat]:
    """Return the newest heartbeat of every worker, in the order of their names."""
    if not run.workers.is_dir():
        return []
    names = sorted(entry.name for entry in os.scandir(run.workers) if entry.name[0] != ".")
    paths = (run.workers / name for name in names if name.endswith(".jsonl"))
    return [*filter(None, map(read_last_heartbeat, paths))]


def _read_lines(fd: int, offset: int, length: int) -> list[bytes]:
    """Return the whole lines in a part of a file."""
    lines = os.pread(fd, length, max(0, offset)).split(b"\n")
    return lines[1 if offset > 0 else 0 : -1]

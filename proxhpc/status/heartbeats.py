"""The newest lines of workers' progress files, by bounded reads from the end of each file."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from proxhpc.account.counts import Counts
from proxhpc.account.flops import Usage
from proxhpc.run.lease import LeaseOwner
from proxhpc.run.paths import RunDir
from proxhpc.run.progress import Work

CHUNK_BYTES = 16 * 1024  # of one read; a line takes one to two KiB
_MAX_LINE_BYTES = 1024 * 1024  # how far back to look for one whole line
# How far back to look for the earlier line.
_LOOK_BACK_BYTES = (8 * CHUNK_BYTES, 64 * CHUNK_BYTES, 512 * CHUNK_BYTES)
SPEED_SPAN_SECONDS = 120.0  # wanted between the two lines from which speed is computed


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One line of a progress file. `time` is the worker's own clock."""

    time: float
    state: str
    role: str
    owner: LeaseOwner
    shard: int | None
    shards: int
    counts: Counts
    busy_seconds: float
    boot_seconds: float
    up_seconds: float  # since it started
    deaths: int  # of other workers and of engines that it has noted in ledgers
    error: str
    message: str
    device: str | None  # of its GPUs
    devices: int
    usage: dict[str, Usage]  # of its engines by level, committed or not
    work: Work

    @classmethod
    def parse(cls, line: bytes) -> "Heartbeat | None":
        """Read one line; None if it is torn or not a heartbeat."""
        try:
            data: dict[str, Any] = orjson.loads(line)
            shard = data.get("shard")
            return cls(
                time=float(data["t"]),
                state=str(data["state"]),
                role=str(data["role"]),
                owner=LeaseOwner(**data["owner"]),
                shard=shard if isinstance(shard, int) else None,
                shards=int(data["shards"]),
                counts=Counts.from_dict(data["counts"]),
                busy_seconds=float(data["busy_s"]),
                boot_seconds=float(data["boot_s"]),
                up_seconds=float(data.get("up_s", 0.0)),
                deaths=int(data["deaths"]),
                error=str(data.get("error", "")),
                message=str(data.get("message", "")),
                device=data.get("device"),
                devices=int(data.get("devices", 0)),
                usage={k: Usage(**v) for k, v in data.get("usage", {}).items()},
                work=Work(**data.get("work", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None


@dataclass(frozen=True, slots=True)
class RecentHeartbeats:
    """A worker's newest heartbeat, and an earlier one from which to compute its speed."""

    last: Heartbeat
    earlier: Heartbeat | None

    @property
    def seconds(self) -> float:
        """Seconds between the two; 0 without an earlier one."""
        return self.last.time - self.earlier.time if self.earlier else 0.0


def read_recent_heartbeats(path: Path) -> RecentHeartbeats | None:
    """Return a worker's recent heartbeats; None if its file holds no whole line yet.

    A torn last line, which its writer may be about to complete, is ignored.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        size = os.fstat(fd).st_size
        length, lines = CHUNK_BYTES, _read_lines(fd, size - CHUNK_BYTES, CHUNK_BYTES)
        while (last := _first(reversed(lines))) is None and length < min(size, _MAX_LINE_BYTES):
            length *= 4
            lines = _read_lines(fd, size - length, length)
        if last is None:
            return None
        earlier = _first(lines, "working")
        for back in _LOOK_BACK_BYTES:
            if size <= length or (earlier and last.time - earlier.time >= SPEED_SPAN_SECONDS):
                break
            earlier = _first(_read_lines(fd, size - back, CHUNK_BYTES), "working") or earlier
            length = back
    finally:
        os.close(fd)
    return RecentHeartbeats(last, earlier if earlier and earlier.time < last.time else None)


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
    heartbeats = [beat for line in lines if (beat := Heartbeat.parse(line))]
    return heartbeats[: -1 : max(1, len(heartbeats) // points)] + heartbeats[-1:]


def recent_heartbeats(run: RunDir) -> list[RecentHeartbeats]:
    """Return the recent heartbeats of every worker, in the order of their names."""
    if not run.workers.is_dir():
        return []
    names = sorted(entry.name for entry in os.scandir(run.workers) if entry.name[0] != ".")
    by_worker = (
        read_recent_heartbeats(run.workers / name) for name in names if name.endswith(".jsonl")
    )
    return [recent for recent in by_worker if recent]


def latest_heartbeats(run: RunDir) -> list[Heartbeat]:
    """Return the newest heartbeat of every worker, in the order of their names."""
    return [recent.last for recent in recent_heartbeats(run)]


def _read_lines(fd: int, offset: int, length: int) -> list[bytes]:
    """Return the whole lines in a part of a file."""
    lines = os.pread(fd, length, max(0, offset)).split(b"\n")
    return lines[1 if offset > 0 else 0 : -1]


def _first(lines: Iterable[bytes], state: str = "") -> Heartbeat | None:
    """Return the first heartbeat, of this state if one is given.

    Speed is computed from the state `working` on, so that loading a model does not count.
    """
    heartbeats = (beat for line in lines if (beat := Heartbeat.parse(line)))
    return next((beat for beat in heartbeats if state in ("", beat.state)), None)

"""The last line of a worker's progress file and an earlier one, however long the file is."""

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

CHUNK = 16 * 1024  # bytes of one read; a line takes one to two KiB
_MAX_LINE_BYTES = 1024 * 1024  # bytes to look back for one whole line
_LOOK_BACK = (8 * CHUNK, 64 * CHUNK, 512 * CHUNK)  # how far back to look for the earlier line
SPAN = 120.0  # seconds that the two lines should lie apart


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
    up_seconds: float  # since the worker began
    deaths: int  # of other workers or engines, as it has noted them in ledgers
    error: str
    message: str
    device: str | None  # of its GPUs
    devices: int
    asked: dict[str, Usage]  # of engines, committed or not, by level

    @classmethod
    def parse(cls, line: bytes) -> "Heartbeat | None":
        """From one line; None when it is torn or not one of ours."""
        try:
            data: dict[str, Any] = orjson.loads(line)
            return cls(
                time=float(data["t"]),
                state=str(data["state"]),
                role=str(data["role"]),
                owner=LeaseOwner(**data["owner"]),
                shard=data.get("shard"),
                shards=int(data["shards"]),
                counts=Counts.from_dict(data["counts"]),
                busy_seconds=float(data["busy_s"]),
                boot_seconds=float(data["boot_s"]),
                up_seconds=float(data["up_s"]),
                deaths=int(data["deaths"]),
                error=str(data.get("error", "")),
                message=str(data.get("message", "")),
                device=data.get("device"),
                devices=int(data.get("devices", 0)),
                asked={k: Usage.from_dict(v) for k, v in data.get("asked", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None


@dataclass(frozen=True, slots=True)
class Recent:
    """A worker's state now, and an earlier one to measure speed against."""

    last: Heartbeat
    earlier: Heartbeat | None

    @property
    def seconds(self) -> float:
        """Time between the two; 0 when there is nothing to compare."""
        return self.last.time - self.earlier.time if self.earlier else 0.0


def read_recent(path: Path) -> Recent | None:
    """The state of one worker from a few bounded reads; None while it has written nothing.

    A torn last line, which its writer may be about to finish, counts as not there.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        size = os.fstat(fd).st_size
        length, lines = CHUNK, _lines(fd, size - CHUNK, CHUNK)
        while (last := _first(reversed(lines))) is None and length < min(size, _MAX_LINE_BYTES):
            length *= 4
            lines = _lines(fd, size - length, length)
        if last is None:
            return None
        earlier = _first(lines, "working")
        for back in _LOOK_BACK:
            if size <= length or (earlier and last.time - earlier.time >= SPAN):
                break
            # What lies further back is looked at only until the two lines are far enough apart.
            earlier = _first(_lines(fd, size - back, CHUNK), "working") or earlier
            length = back
    finally:
        os.close(fd)
    return Recent(last, earlier if earlier and earlier.time < last.time else None)


def history(path: Path, points: int) -> list[Heartbeat]:
    """Some `points` lines of a worker from first to last, evenly far apart in the file."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return []
    try:
        size = os.fstat(fd).st_size
        if size <= points * CHUNK:
            lines = _lines(fd, 0, size)
        else:
            places = [(size - CHUNK) * n // (points - 1) for n in range(points)]
            pieces = [_lines(fd, place, CHUNK) for place in places]
            lines = [piece[0] for piece in pieces if piece] + pieces[-1][-1:]
    finally:
        os.close(fd)
    beats = [beat for line in lines if (beat := Heartbeat.parse(line))]
    rest = beats[-1:]
    return beats[: -1 : max(1, len(beats) // points)] + rest


def recent_heartbeats(run: RunDir) -> list[Recent]:
    """The state of every worker that has written a line, in the order of their names."""
    if not run.workers.is_dir():
        return []
    names = sorted(entry.name for entry in os.scandir(run.workers) if entry.name[0] != ".")
    found = (read_recent(run.workers / name) for name in names if name.endswith(".jsonl"))
    return [recent for recent in found if recent]


def latest(run: RunDir) -> list[Heartbeat]:
    """The last line of every worker that has written one, in the order of their names."""
    return [recent.last for recent in recent_heartbeats(run)]


def _lines(fd: int, offset: int, length: int) -> list[bytes]:
    """The whole lines in a piece of a file."""
    lines = os.pread(fd, length, max(0, offset)).split(b"\n")
    return lines[1 if offset > 0 else 0 : -1]


def _first(lines: Iterable[bytes], state: str = "") -> Heartbeat | None:
    """The first line that can be read and, if asked, is of that state.

    Speed is measured from `working` on: loading the engine is none of it.
    """
    beats = (beat for line in lines if (beat := Heartbeat.parse(line)))
    return next((beat for beat in beats if state in ("", beat.state)), None)

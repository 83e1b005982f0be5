"""A worker's progress file: one line per commit and heartbeat; the last line is its state."""

import time
from dataclasses import dataclass, field
from typing import Any

import orjson

from proxhpc.account.counts import Counts
from proxhpc.account.flops import Usage
from proxhpc.corpus.disk import append_line
from proxhpc.run.lease import HEARTBEAT_SECONDS, LeaseOwner
from proxhpc.run.paths import RunDir

EARLY = 8  # at first, a line is written when this part of the time since the first one has passed
MIN_SECONDS = 0.5  # between two heartbeats


@dataclass(slots=True)
class Work:
    """What a worker has done and has in hand, committed or not.

    Tokens are those of prompts; the rules, which have none, count bytes / 4. Bytes are of records,
    in the unit of the plan's estimates.
    """

    answered: int = 0  # tokens of answered requests
    pending: int = 0  # tokens of requests that the engines have not answered yet
    speed: float = 0.0  # tokens answered per second
    refined: int = 0  # bytes that this worker has refined
    asked: int = 0  # bytes of documents in flight whose last requests are pending or answered
    shards: dict[str, int] = field(default_factory=dict)  # refined bytes of shards under lease


@dataclass(slots=True)
class ProgressLog:
    """Appends a worker's progress. Only this worker writes the file; `status` reads it."""

    run: RunDir
    owner: LeaseOwner
    role: str
    shards: int = 0
    counts: Counts = field(default_factory=Counts)
    deaths: int = 0  # of workers and engines that this worker has recorded in ledgers
    busy_seconds: float = 0.0
    boot_seconds: float = 0.0
    device: str | None = None  # name of its GPUs; None on a CPU
    devices: int = 0
    usage: dict[str, Usage] = field(default_factory=dict)  # by level, committed or not
    work: Work = field(default_factory=Work)
    _started: float = field(default_factory=time.monotonic)
    _first_heartbeat: float | None = None
    _written: float = 0.0

    def write(self, state: str, **more: Any) -> None:
        """Append a line. States: starting, working, done, stopped, failed."""
        line = {"t": round(time.time(), 3), "state": state, "role": self.role}
        line |= {"owner": self.owner, "shards": self.shards}
        line |= {"counts": self.counts.to_dict(), "busy_s": round(self.busy_seconds, 3)}
        line |= {"boot_s": round(self.boot_seconds, 3), "deaths": self.deaths}
        line |= {"device": self.device, "devices": self.devices}
        line |= {"usage": self.usage, "work": self.work}
        line |= {"up_s": round(time.monotonic() - self._started, 3)} | more
        append_line(self.run.worker(self.owner.worker), orjson.dumps(line))
        self._written = time.monotonic()

    def heartbeat(self) -> None:
        """Append a line unless one was written lately."""
        now = time.monotonic()
        if self._first_heartbeat is None:
            self._first_heartbeat = now
        pause = min(HEARTBEAT_SECONDS, (now - self._first_heartbeat) / EARLY)
        if now - self._written >= max(MIN_SECONDS, pause):
            self.write("working")

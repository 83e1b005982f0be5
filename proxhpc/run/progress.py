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
    _started: float = field(default_factory=time.monotonic)
    _written: float = 0.0

    def write(self, state: str, **more: Any) -> None:
        """Append a line. States: starting, working, done, stopped, failed."""
        line = {"t": round(time.time(), 3), "state": state, "role": self.role}
        line |= {"owner": self.owner, "shards": self.shards}
        line |= {"counts": self.counts.to_dict(), "busy_s": round(self.busy_seconds, 3)}
        line |= {"boot_s": round(self.boot_seconds, 3), "deaths": self.deaths}
        line |= {"device": self.device, "devices": self.devices}
        line |= {"usage": self.usage}
        line |= {"up_s": round(time.monotonic() - self._started, 3)} | more
        append_line(self.run.worker(self.owner.worker), orjson.dumps(line))
        self._written = time.monotonic()

    def heartbeat(self) -> None:
        """Append a line unless one was written lately."""
        if time.monotonic() - self._written >= HEARTBEAT_SECONDS:
            self.write("working")

"""A worker's progress file: one line per commit and heartbeat; the last line is its state."""

import time
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from proxhpc.account.counts import Counts
from proxhpc.account.flops import Usage
from proxhpc.corpus.disk import append_line
from proxhpc.run.lease import HEARTBEAT_SECONDS, LeaseOwner
from proxhpc.run.paths import RunDir

EARLY = 8  # at first, a line is written when this part of the time since the first one has passed
MIN_SECONDS = 0.5  # between two heartbeats
MAX_MESSAGE = 2000  # characters


@dataclass(slots=True)
class Work:
    """What a worker has done and has in hand, committed or not.

    Tokens are those of prompts; the rules, which have none, count bytes / 4. Bytes are of records,
    in the unit of the plan's estimates.
    """

    answered: int = 0  # tokens of answered requests
    pending: int = 0  # tokens of requests that the engines have not answered yet
    speed: float = 0.0  # tokens answered per second
    documents: float = 0.0  # documents refined per second
    refined: int = 0  # bytes that this worker has refined
    asked: int = 0  # bytes of documents in flight whose last requests are pending or answered
    shards: dict[str, int] = field(default_factory=dict)  # refined bytes of shards under lease


@dataclass
class Heartbeat:
    """One line of a progress file: what a worker has done, in all."""

    owner: LeaseOwner
    role: str  # refine, merge, train or control
    time: float = 0.0  # when it was written, by the worker's own clock
    state: str = "starting"  # starting, working, retrying, done, stopped, failed
    error: str = ""  # the kind of an error
    message: str = ""
    shard: int | None = None
    shards: int = 0
    counts: Counts = field(default_factory=Counts)
    deaths: int = 0  # of workers and engines that this worker has recorded in ledgers
    up_seconds: float = 0.0  # since it started
    busy_seconds: float = 0.0
    boot_seconds: float = 0.0
    device: str | None = None  # name of its GPUs; None on a CPU
    devices: int = 0
    usage: dict[str, Usage] = field(default_factory=dict)  # by level, committed or not
    work: Work = field(default_factory=Work)

    @classmethod
    def parse(cls, line: bytes) -> "Heartbeat | None":
        """Read one line; None if it is torn or not a heartbeat."""
        try:
            return _HEARTBEAT.validate_json(line)
        except ValidationError:
            return None


_HEARTBEAT = TypeAdapter(Heartbeat)


@dataclass(init=False)
class ProgressLog(Heartbeat):
    """Appends a worker's progress. Only this worker writes the file; `status` reads it."""

    def __init__(self, run: RunDir, owner: LeaseOwner, role: str, **done: Any) -> None:
        super().__init__(owner, role, **done)
        self._path = run.worker(owner.worker)
        self._started = time.monotonic()
        self._first_heartbeat: float | None = None
        self._written = 0.0

    def write(
        self, state: str, error: BaseException | None = None, *, shard: int | None = None
    ) -> None:
        """Append a line."""
        self.time = round(time.time(), 3)
        self.up_seconds = round(time.monotonic() - self._started, 3)
        self.state, self.shard = state, shard
        self.error = type(error).__name__ if error else ""
        self.message = str(error)[:MAX_MESSAGE] if error else ""
        append_line(self._path, orjson.dumps(self))
        self._written = time.monotonic()

    def heartbeat(self) -> None:
        """Append a line unless one was written lately."""
        now = time.monotonic()
        if self._first_heartbeat is None:
            self._first_heartbeat = now
        pause = min(HEARTBEAT_SECONDS, (now - self._first_heartbeat) / EARLY)
        if now - self._written >= max(MIN_SECONDS, pause):
            self.write("working")

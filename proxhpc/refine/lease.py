"""Leases: who works on what, with nothing but exclusive creation on a shared file system.

The lease of attempt K on a name is the file `<name>.aK`, made by link, which fails if the name is
taken (open(2): O_EXCL is broken on old NFS, link is not). Its holder is the highest K. Stealing
is taking K+1 and then removing K, so of many thieves one wins; whose file is gone has lost.
"""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from proxhpc.corpus.frames import publish
from proxhpc.refine.process import start_time
from proxhpc.rundir import RunDir

STALE_AFTER = 120.0  # seconds without a heartbeat, on the observer's own monotonic clock

JobAlive = Callable[[str], bool | None]
"""Is this Slurm job in the queue? None when the queue cannot be asked."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lease: enough for another process to find out whether it still lives."""

    worker: str
    host: str
    pid: int
    started: str  # the process's start time in clock ticks, so that a reused pid is not it
    job: str = ""  # Slurm job or array element, as squeue prints it

    @classmethod
    def me(cls, role: str = "worker") -> "Owner":
        """The owner that this process is."""
        env = os.environ
        host, pid = socket.gethostname(), os.getpid()
        started = start_time(pid) or ""
        job = slurm_element()
        if job:
            name = f"{job}.{env.get('SLURM_PROCID', '0')}-r{env.get('SLURM_RESTART_COUNT', '0')}"
        else:
            name = f"{host[:60]}-{pid}-{started}"
        return cls(worker=f"{role}-{name}", host=host, pid=pid, started=started, job=job)


def slurm_element() -> str:
    """The id of the enclosing job as squeue prints it (`123_4` within an array), or ""."""
    env = os.environ
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env.get('SLURM_ARRAY_TASK_ID', '0')}"
    return env.get("SLURM_JOB_ID", "")


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease held by this process."""

    run: RunDir
    name: str
    attempt: int
    owner: Owner

    def lost(self) -> bool:
        """Whether somebody has taken the next attempt, and this file with it."""
        return not self.run.lease(self.name, self.attempt).exists()

    def beat(self) -> None:
        """Show that the holder lives, where it has no progress file: the lease grows a blank."""
        with self.run.lease(self.name, self.attempt).open("ab") as file:
            file.write(b" ")

    def release(self) -> None:
        """Give it back; harmless when it is already gone."""
        self.run.lease(self.name, self.attempt).unlink(missing_ok=True)


class Leases:
    """Takes leases for one owner and judges those of others."""

    def __init__(self, run: RunDir, owner: Owner, job_alive: JobAlive) -> None:
        self.run, self.owner, self.job_alive = run, owner, job_alive
        self._seen: dict[Path, tuple[int, float]] = {}  # size, and since when it stands

    def take(self, name: str, attempt: int) -> Lease | None:
        """The lease of exactly this attempt, or None if it is taken."""
        path = self.run.lease(name, attempt)
        draft = self.run.leases / f".{self.owner.worker}"
        draft.write_bytes(orjson.dumps(asdict(self.owner)))
        try:
            won = publish(draft, path)
        finally:
            draft.unlink(missing_ok=True)
        return Lease(self.run, name, attempt, self.owner) if won else None

    def steal(self, name: str, attempt: int) -> Lease | None:
        """The lease behind `attempt`, whose owner is dead; None if another thief was first."""
        lease = self.take(name, attempt + 1)
        if lease:
            self.run.lease(name, attempt).unlink(missing_ok=True)
        return lease

    def held(self) -> dict[str, int]:
        """Every name under lease, with its highest attempt."""
        out: dict[str, int] = {}
        for entry in os.scandir(self.run.leases):
            name, _, attempt = entry.name.rpartition(".a")
            if name and not name.startswith(".") and attempt.isdigit():
                out[name] = max(out.get(name, 0), int(attempt))
        return out

    def holder(self, name: str, attempt: int) -> Owner | None:
        """Who holds it; None when it was released meanwhile."""
        try:
            data = self.run.lease(name, attempt).read_bytes()
        except FileNotFoundError:
            return None
        return Owner(**orjson.loads(data))

    def alive(self, owner: Owner, beats: Path | None = None) -> bool | None:
        """Whether the owner still works. None: too early to tell, ask again later.

        `beats` is the file that grows while it does; a worker's is its progress file.
        """
        if owner.job:
            in_queue = self.job_alive(owner.job)
            if in_queue is not None:
                return in_queue
        if owner.host == self.owner.host and owner.started:
            return start_time(owner.pid) == owner.started
        return self._growing(beats or self.run.worker(owner.worker))

    def _growing(self, path: Path) -> bool | None:
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            size = -1
        now = time.monotonic()
        before, since = self._seen.setdefault(path, (size, now))
        if before != size:
            self._seen[path] = (size, now)
            return True
        return False if now - since >= STALE_AFTER else None

"""Leases: who works on what, with nothing but exclusive creation on a shared file system.

The lease of attempt K on a name is the file `<name>.aK`, made by link, which fails if the name is
taken (open(2): O_EXCL is broken on old NFS, link is not). Its holder is the highest K. Stealing
is taking K+1 and then removing K, so of many thieves one wins; whose file is gone has lost.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from proxhpc.corpus.disk import create
from proxhpc.errors import RetryError
from proxhpc.faults import fault_point
from proxhpc.run.paths import RunDir
from proxhpc.run.process import pid_space, start_time

HEARTBEAT_SECONDS = 15.0  # seconds between two signs of life
_POLL_SECONDS = 5.0  # seconds between two looks at a holder that may be dead
STALE_AFTER = 120.0  # seconds without a heartbeat, on the observer's own monotonic clock

JobAlive = Callable[[str], bool | None]
"""Is this Slurm job in the queue? None when the queue cannot be asked."""


@dataclass(frozen=True, slots=True)
class LeaseOwner:
    """Who holds a lease: enough for another process to find out whether it still lives."""

    worker: str
    host: str
    pid: int
    started: str  # the process's start time in clock ticks, so that a reused pid is not it
    job: str = ""  # Slurm job or array element, as squeue prints it
    space: str = ""  # where the pid counts: a boot of a machine and a pid namespace
    user: int = -1
    cluster: str = ""
    node: str = ""  # Slurm's name of the node, which need not be the host's

    @classmethod
    def current(cls, role: str = "worker") -> "LeaseOwner":
        """The owner that this process is."""
        host, pid = socket.gethostname(), os.getpid()
        started = start_time(pid) or ""
        job = slurm_job_id()
        # Processes of one job may be many: only the process tells them apart.
        name = "-".join(filter(None, [role, job, host[:40], str(pid), started]))
        return cls(
            worker=name,
            host=host,
            pid=pid,
            started=started,
            job=job,
            space=pid_space(),
            user=os.getuid(),
            cluster=os.environ.get("SLURM_CLUSTER_NAME", ""),
            node=os.environ.get("SLURMD_NODENAME", ""),
        )

    def is_running(self) -> bool | None:
        """Whether its process runs; None where its pid means nothing here."""
        if not self.started or not self.space or self.space != pid_space():
            return None
        return start_time(self.pid) == self.started


UNREADABLE_OWNER = LeaseOwner("unreadable", "?", 0, "")
"""Stands for the holder of a lease whose content was lost with its writer's machine."""


def slurm_job_id() -> str:
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
    owner: LeaseOwner

    def is_lost(self) -> bool:
        """Whether somebody has taken the next attempt, and this file with it."""
        return not self.run.lease(self.name, self.attempt).exists()

    def heartbeat(self) -> None:
        """Show that the holder lives, where it has no progress file: the lease grows a blank."""
        try:
            fd = os.open(self.run.lease(self.name, self.attempt), os.O_WRONLY | os.O_APPEND)
        except FileNotFoundError:
            return  # lost; whoever holds it says so to `lost`
        try:
            os.write(fd, b" ")
        finally:
            os.close(fd)

    def release(self) -> None:
        """Give it back; harmless when it is already gone."""
        self.run.lease(self.name, self.attempt).unlink(missing_ok=True)


class Leases:
    """Takes leases for one owner and judges those of others."""

    def __init__(
        self, run: RunDir, owner: LeaseOwner, job_alive: JobAlive, stale_after: float = STALE_AFTER
    ) -> None:
        self.run, self.owner, self.job_alive = run, owner, job_alive
        self.stale_after = stale_after
        self._seen: dict[Path, tuple[int, float]] = {}  # size, and since when it stands

    def take(self, name: str, attempt: int) -> Lease | None:
        """The lease of exactly this attempt, or None if it is taken."""
        if not create(self.run.lease(name, attempt), orjson.dumps(asdict(self.owner))):
            return None
        fault_point("advance held" if name == "advance" else "lease taken")
        return Lease(self.run, name, attempt, self.owner)

    def take_over(self, name: str, attempt: int) -> Lease | None:
        """The lease behind `attempt`, whose owner is dead; None if another thief was first."""
        lease = self.take(name, attempt + 1)
        if lease:
            fault_point("lease stolen")
            self.run.lease(name, attempt).unlink(missing_ok=True)
        return lease

    def highest_attempts(self) -> dict[str, int]:
        """Every name under lease, with its highest attempt."""
        out: dict[str, int] = {}
        for entry in os.scandir(self.run.leases):
            name, _, attempt = entry.name.rpartition(".a")
            if name and not name.startswith(".") and attempt.isdigit():
                out[name] = max(out.get(name, 0), int(attempt))
        return out

    def current(self, name: str) -> tuple[int, LeaseOwner] | None:
        """The highest attempt on `name` and who holds it; None where nobody does."""
        while attempt := self.highest_attempts().get(name, 0):
            if owner := self.holder(name, attempt):
                return attempt, owner
            # released between the two looks
        return None

    def holder(self, name: str, attempt: int) -> LeaseOwner | None:
        """Who holds it; None when it was released meanwhile."""
        try:
            data = self.run.lease(name, attempt).read_bytes()
        except FileNotFoundError:
            return None
        try:
            return LeaseOwner(**orjson.loads(data))
        except (orjson.JSONDecodeError, TypeError):
            return UNREADABLE_OWNER

    def is_alive(self, owner: LeaseOwner, beats: Path | None = None) -> bool | None:
        """Whether the owner still works. None: too early to tell, ask again later.

        `beats` is the file that grows while it does; a worker's is its progress file.
        """
        me = self.owner
        if (runs := owner.is_running()) is not None:
            return runs
        # A job in the queue may be a later life of itself, or have lost one of its processes;
        # a job that is not there is dead for certain, if it is this queue that it was in.
        foreign = owner.user != me.user or {owner.cluster, me.cluster, ""} - {"", me.cluster}
        if owner.job and owner.job != me.job and not foreign and self.job_alive(owner.job) is False:
            return False
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
        return False if now - since >= self.stale_after else None


@contextmanager
def hold_lease(
    run: RunDir, name: str, job_alive: JobAlive, stale_after: float = STALE_AFTER
) -> Iterator[Lease]:
    """Hold the lease on a step of the whole run. RetryError while somebody else does.

    Where it cannot be told at once whether the holder lives, it takes `stale_after` seconds.
    """
    lease = _acquire(Leases(run, LeaseOwner.current(name), job_alive, stale_after), name)
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(lease, done), daemon=True)
    beating.start()
    try:
        yield lease
    finally:
        done.set()
        beating.join()
        lease.release()


def _acquire(leases: Leases, name: str) -> Lease:
    while held := leases.current(name):
        attempt, owner = held
        alive = leases.is_alive(owner, leases.run.lease(name, attempt))
        if alive:
            what = "launch" if name == "advance" else name
            raise RetryError(
                f"another {what} is at work on this run ({owner.host}, process {owner.pid})",
                hint="proxhpc status shows what it does; launch again when it has ended",
            )
        if alive is False and (lease := leases.take_over(name, attempt)):
            return lease
        time.sleep(_POLL_SECONDS)
    if lease := leases.take(name, 1):
        return lease
    raise RetryError(f"another {name} was faster; nothing is lost, it does the same")


def _beat(lease: Lease, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):  # a full disk must not end the beating for good
            lease.heartbeat()

"""Leases: exclusive claims on shards and steps, made by link on a shared file system.

The lease of attempt K on a name is the file `<name>.aK`. It is created by link, which fails if the
file exists, on old NFS too (where O_EXCL does not: open(2)). The holder is the owner of the highest
K. To take over a dead owner's lease, a process creates K+1 and then removes K, so only one process
succeeds. A holder whose file is gone has lost its lease.
"""

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

from proxhpc.corpus.disk import create
from proxhpc.errors import RetryError
from proxhpc.faults import fault_point
from proxhpc.run.paths import RunDir
from proxhpc.run.process import exists, pid_space, start_time

HEARTBEAT_SECONDS = 15.0
STALE_AFTER = 120.0  # seconds without a heartbeat, on the observer's monotonic clock
_REMOVED = (errno.ENOENT, errno.ESTALE)  # ESTALE: removed on another node, on NFS
_COMMANDS = {"advance": "launch", "stage": "plan --stage"}  # that hold a lease of another name
_POLL_SECONDS = 5.0  # between two checks of a holder that may be dead

JobAlive = Callable[[str], bool | None]
"""Returns whether a Slurm job is in the queue; None if the queue does not answer."""


@dataclass(frozen=True, slots=True)
class LeaseOwner:
    """The process that holds a lease, described so that others can check whether it runs."""

    worker: str
    host: str
    pid: int
    started: str  # start time of the process in clock ticks: pids are reused
    job: str = ""  # Slurm job or array element, as squeue prints it
    space: str = ""  # where the pid is valid: a boot of a machine and a pid namespace
    user: int = -1
    cluster: str = ""
    node: str = ""  # Slurm's name of the node, which may differ from the host's

    @classmethod
    def current(cls, role: str = "worker") -> "LeaseOwner":
        """Return this process as an owner."""
        host, pid = socket.gethostname(), os.getpid()
        started = start_time(pid) or ""
        job = slurm_job_id()
        # A job may have several processes, so the name includes the process.
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
        """Return whether the process runs; None if its pid is not valid on this machine."""
        if not self.started or not self.space or self.space != pid_space():
            return None
        if (started := start_time(self.pid)) is None and exists(self.pid):
            return None  # /proc hides the processes of other users (hidepid)
        return started == self.started


UNREADABLE_OWNER = LeaseOwner("unreadable", "?", 0, "")
"""The owner of a lease whose content was lost when its machine crashed."""


def slurm_job_id() -> str:
    """Return the id of the enclosing job as squeue prints it (`123_4` within an array), or ""."""
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
        """Return True if another process has taken over this lease.

        Attempts begin again at 1 once nobody holds a lease, so a file with this name may be of a
        later holder.
        """
        try:
            content = self.run.lease(self.name, self.attempt).read_bytes()
        except OSError as error:
            if error.errno not in _REMOVED:
                raise
            return True
        return not content.startswith(orjson.dumps(self.owner))

    def heartbeat(self) -> None:
        """Show that the holder is alive, by a blank appended to the lease."""
        if self.is_lost():
            return
        try:
            fd = os.open(self.run.lease(self.name, self.attempt), os.O_WRONLY | os.O_APPEND)
            try:
                os.write(fd, b" ")
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno not in _REMOVED:  # else the lease is lost, as `is_lost` shows
                raise

    def release(self) -> None:
        """Give the lease back; does nothing if it is lost."""
        if not self.is_lost():
            self.run.lease(self.name, self.attempt).unlink(missing_ok=True)


class Leases:
    """Takes leases for one owner and checks whether other owners are alive."""

    def __init__(
        self, run: RunDir, owner: LeaseOwner, job_alive: JobAlive, stale_after: float = STALE_AFTER
    ) -> None:
        self.run, self.owner, self.job_alive = run, owner, job_alive
        self.stale_after = stale_after
        self._last_growth: dict[Path, tuple[int, float]] = {}  # a file's size, and when it changed

    def take(self, name: str, attempt: int) -> Lease | None:
        """Take the lease of exactly this attempt; None if it is taken."""
        if not create(self.run.lease(name, attempt), orjson.dumps(self.owner)):
            return None
        fault_point("advance held" if name == "advance" else "lease taken")
        return Lease(self.run, name, attempt, self.owner)

    def take_over(self, name: str, attempt: int, dead: LeaseOwner) -> Lease | None:
        """Take the lease after `attempt`, which `dead` held; None if the lease has changed hands.

        Finding out that `dead` is dead may take minutes. Meanwhile others may have taken over and
        released the lease, and a live process may have begun again with the same attempt number.
        So the owner is read again after our lease is visible and before theirs is removed. A
        process that begins again checks in the same order (`_acquire`): it creates its lease, then
        looks for a higher one. So at least one of the two sees the other and gives way. If a file
        system shows changes late and hides both, the process whose file is removed stops at its
        next check of `is_lost`.
        """
        lease = self.take(name, attempt + 1)
        if lease is None:
            return None
        if self.holder(name, attempt) != dead:
            lease.release()
            return None
        fault_point("lease stolen")
        self.run.lease(name, attempt).unlink(missing_ok=True)
        return lease

    def highest_attempts(self) -> dict[str, int]:
        """Return every name under lease with its highest attempt."""
        out: dict[str, int] = {}
        for entry in os.scandir(self.run.leases):
            name, _, attempt = entry.name.rpartition(".a")
            if name and not name.startswith(".") and attempt.isdigit():
                out[name] = max(out.get(name, 0), int(attempt))
        return out

    def current(self, name: str) -> tuple[int, LeaseOwner] | None:
        """Return the highest attempt on `name` and its owner; None if nobody holds it."""
        while attempt := self.highest_attempts().get(name, 0):
            if owner := self.holder(name, attempt):
                return attempt, owner
            # It was released between the two calls.
        return None

    def holder(self, name: str, attempt: int) -> LeaseOwner | None:
        """Return the owner of a lease; None if it does not exist."""
        try:
            data = self.run.lease(name, attempt).read_bytes()
        except FileNotFoundError:
            return None
        try:
            return LeaseOwner(**orjson.loads(data))
        except (orjson.JSONDecodeError, TypeError):
            return UNREADABLE_OWNER

    def is_alive(self, owner: LeaseOwner, heartbeats: Path | None = None) -> bool | None:
        """Return whether the owner still works; None if it is too early to say.

        `heartbeats` is a file that grows while the owner lives; by default its progress file.
        """
        if (running := owner.is_running()) is not None:
            return running
        # A job in the queue may have been requeued, or have lost this process. A job that is not
        # in the queue is dead, provided that it was submitted to this queue.
        me = self.owner
        foreign = owner.user != me.user or {owner.cluster, me.cluster, ""} - {"", me.cluster}
        if owner.job and owner.job != me.job and not foreign and self.job_alive(owner.job) is False:
            return False
        return self._is_growing(heartbeats or self.run.worker(owner.worker))

    def _is_growing(self, path: Path) -> bool | None:
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            size = -1
        now = time.monotonic()
        last_size, since = self._last_growth.setdefault(path, (size, now))
        if last_size != size:
            self._last_growth[path] = (size, now)
            return True
        return False if now - since >= self.stale_after else None


@contextmanager
def hold_lease(
    run: RunDir, name: str, job_alive: JobAlive, stale_after: float = STALE_AFTER
) -> Iterator[Lease]:
    """Hold the lease on a step of the whole run; RetryError if another process holds it.

    If it is unclear whether the holder lives, this takes up to `stale_after` seconds.
    """
    lease = _acquire(Leases(run, LeaseOwner.current(name), job_alive, stale_after), name)
    done = threading.Event()
    heartbeats = threading.Thread(target=_send_heartbeats, args=(lease, done), daemon=True)
    heartbeats.start()
    try:
        yield lease
    finally:
        done.set()
        heartbeats.join()
        lease.release()


def _acquire(leases: Leases, name: str) -> Lease:
    while True:
        held = leases.current(name)
        if held is None:
            if (lease := leases.take(name, 1)) is None:
                raise RetryError(
                    f"another {name} started first and does the same work; nothing is lost"
                )
            if leases.highest_attempts().get(name) == 1:
                return lease
            lease.release()  # another process is taking over an older lease: see `take_over`
            continue
        attempt, owner = held
        alive = leases.is_alive(owner, leases.run.lease(name, attempt))
        if alive:
            command = _COMMANDS.get(name, name)
            raise RetryError(
                f"another {command} is already running in {leases.run.root} on {owner.host} "
                f"(process {owner.pid})",
                hint=f"run `proxhpc {command}` again when it has ended",
            )
        if alive is False and (lease := leases.take_over(name, attempt, owner)):
            return lease
        time.sleep(_POLL_SECONDS)


def _send_heartbeats(lease: Lease, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):  # the disk may be full now and not later
            lease.heartbeat()

"""Slurm's commands: one place that runs them, reads what they print and judges how they failed."""

import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from proxhpc.errors import RetryError, UserError

TIMEOUT = 60.0  # seconds; a busy slurmctld answers late, a dead one never
SNAPSHOT_AGE = 10.0  # seconds that one look at the queue is good for
DEFAULT_MAX_ARRAY_SIZE = 1001  # slurm.conf(5)
# Still listed, but its processes are being ended; it will work no more.
ENDING = ("COMPLETING", "COMPLETED", "CANCELLED", "STAGE_OUT")
_DEFAULTS = ("SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_", "SLURM_CLUSTERS")
_INHERITED = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_")


def available() -> bool:
    """Whether this machine can submit to Slurm."""
    return shutil.which("sbatch") is not None


def run_command(*command: str) -> str:
    """Standard output of a Slurm command. RetryError when it fails or does not answer."""
    done = _call(*command)
    if done.returncode:
        raise RetryError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _call(*command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run a Slurm command, with `given` on its input. RetryError when it does not answer."""
    try:
        return subprocess.run(
            command,
            input=given,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
            # A user's defaults (SQUEUE_PARTITION and the like) would hide jobs from us.
            env={k: v for k, v in os.environ.items() if not k.startswith(_DEFAULTS)},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RetryError(f"{command[0]} did not answer: {error}") from error


@contextmanager
def clean_environment() -> Iterator[None]:
    """Hide what an enclosing job left in the environment: sbatch would hand it on to new jobs."""
    hidden = {k: v for k, v in os.environ.items() if k.startswith(_INHERITED) and k != "SLURM_CONF"}
    for key in hidden:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(hidden)


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """One job or array element in the queue."""

    id: str  # `123`, or `123_4` for an array element
    state: str  # PENDING, RUNNING, COMPLETING, …
    comment: str
    reason: str

    @property
    def phase(self) -> str:
        """The phase of a run that it was submitted for, as its comment says; "" if none."""
        return [*self.comment.split(":"), "", "", ""][2]

    @property
    def array(self) -> str:
        """Id of the whole array, or of the job itself."""
        return self.id.partition("_")[0]


class Queue:
    """The user's own jobs as squeue sees them; asked at most every few seconds."""

    def __init__(self) -> None:
        self._jobs: list[QueuedJob] = []
        self._at = -SNAPSHOT_AGE

    def all(self) -> list[QueuedJob]:
        """Every job of this user that is waiting or running. RetryError without an answer."""
        if time.monotonic() - self._at >= SNAPSHOT_AGE:
            self._jobs = [*self._ask()]
            self._at = time.monotonic()
        return self._jobs

    def jobs(self, run_id: str) -> list[QueuedJob]:
        """Those that carry the tag of this run."""
        prefix = f"{tag(run_id)}:"
        return [job for job in self.all() if job.comment.startswith(prefix)]

    def alive(self, element: str) -> bool | None:
        """Whether a job or array element is in the queue; None when nobody can say."""
        if shutil.which("squeue") is None:
            return None
        try:
            found = self._find(element)
            if found is None and time.monotonic() - self._at > 1.0:
                # What an older look does not show may have been submitted since.
                self.forget()
                found = self._find(element)
        except RetryError:
            return None
        if found and found.state in ENDING:
            return None
        return found is not None

    def _find(self, element: str) -> QueuedJob | None:
        return next((job for job in self.all() if job.id == element), None)

    def forget(self) -> None:
        """Ask anew next time: something was just submitted or cancelled."""
        self._at = -SNAPSHOT_AGE

    def _ask(self) -> Iterator[QueuedJob]:
        # -a: jobs in partitions that are hidden from this user, too.
        command = ("squeue", "-a", "-h", "-r", "-u", str(os.getuid()))
        lines = run_command(*command, "-o", "%i\x1f%T\x1f%k\x1f%r").splitlines()
        for line in lines:
            fields = line.strip().split("\x1f")
            if len(fields) == 4:
                yield QueuedJob(*fields)


def tag(run_id: str) -> str:
    """What every job of a run carries in its comment."""
    return f"proxhpc:{run_id}"


def max_array_size() -> int:
    """MaxArraySize of this cluster: array indices stay below it (slurm.conf(5))."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", run_command("scontrol", "show", "config"), re.M)
    return int(found.group(1)) if found else DEFAULT_MAX_ARRAY_SIZE


def submit_limit(account: str | None, qos: str | None) -> int | None:
    """How many jobs this user may have in the queue; None where accounting sets or tells none.

    An array counts as its elements (slurm.conf(5), sacctmgr(1): MaxSubmitJobs).
    """
    if shutil.which("sacctmgr") is None:
        return None
    show = ("sacctmgr", "-n", "-P", "show")
    try:
        own = run_command(
            *show, "assoc", f"user={user()}", "format=Account,MaxSubmitJobs,DefaultQOS"
        )
        limits = run_command(*show, "qos", "format=Name,MaxSubmitJobsPerUser")
    except RetryError:
        return None
    rows = [row.split("|") for row in own.splitlines() if row.count("|") == 2]
    rows = [row for row in rows if account in (None, row[0])]
    names = {qos} if qos else {row[2] for row in rows if row[2]}
    found = [row[1] for row in rows]
    found += [
        row.partition("|")[2] for row in limits.splitlines() if row.partition("|")[0] in names
    ]
    return min((int(limit) for limit in found if limit.isdigit()), default=None)


def test_only(script: str) -> str:
    """What sbatch says when it would run a script, or why it would not."""
    try:
        with clean_environment():
            done = _call("sbatch", "--test-only", given=script)
    except RetryError as error:
        return error.message
    return (done.stderr or done.stdout).strip()


@dataclass(frozen=True, slots=True)
class EndedElement:
    """A job or array element that has ended: where, how, and after how long."""

    id: str
    state: str
    node: str
    seconds: float
    end: str  # Slurm's time, for an order

    @property
    def failed(self) -> bool:
        """Whether it ended badly by itself or its node's doing, not by a person's or a limit's."""
        return self.state in ("FAILED", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY")


def ended_elements(arrays: Sequence[str]) -> list[EndedElement]:
    """The ended elements of these arrays, in the order of their ends, as far as Slurm knows them.

    squeue knows a job for MinJobAge seconds after its end, sacct for ever, where it exists.
    """
    if not arrays:
        return []
    ids = ",".join(arrays)
    shape = "%i\x1f%T\x1f%N\x1f%M\x1f%e"
    found: dict[str, EndedElement] = {}
    for command in (
        ("sacct", "-X", "-n", "-P", "-j", ids, "-o", "JobID,State,NodeList,Elapsed,End"),
        ("squeue", "-a", "-h", "-r", "-t", "all", "-j", ids, "-o", shape),
    ):
        try:
            lines = run_command(*command).splitlines()
        except RetryError:
            continue  # no accounting, or none of them is known any more
        for line in lines:
            fields = line.strip().split("\x1f" if command[0] == "squeue" else "|")
            if len(fields) == 5 and fields[1].split()[:1] and fields[2]:
                state = fields[1].split()[0]
                seconds = parse_duration(fields[3]) or 0.0
                found[fields[0]] = EndedElement(fields[0], state, fields[2], seconds, fields[4])
    done = (job for job in found.values() if job.state not in ("PENDING", "RUNNING"))
    return sorted(done, key=lambda job: job.end)


def user() -> str:
    """The name of the user that this process runs as, whatever the environment claims.

    The number where a directory service does not answer; Slurm takes it for most purposes.
    """
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def seconds_left() -> float | None:
    """Time until this job's limit; None outside Slurm or without a limit."""
    env = os.environ
    if "SLURM_JOB_END_TIME" in env:
        return float(env["SLURM_JOB_END_TIME"]) - time.time()
    if "SLURM_JOB_ID" not in env or shutil.which("squeue") is None:
        return None
    try:
        left = run_command("squeue", "-a", "-h", "-j", env["SLURM_JOB_ID"], "-o", "%L").strip()
    except RetryError:
        return None
    return parse_duration(left)


def parse_duration(text: str) -> float | None:
    """Seconds of Slurm's `D-HH:MM:SS`, `HH:MM:SS` or `MM:SS`; None for UNLIMITED and the like."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def refusal(error: Exception) -> RetryError | UserError:
    """What it means that sbatch failed: something in the site is wrong, or it may pass."""
    said = " ".join(str(error).split())[-500:]
    if re.search(r"submit limit|job violates accounting", said, re.I):
        return RetryError(
            f"sbatch failed: {said}",
            hint="launch again when fewer jobs wait; max_submit_jobs in the site sets a limit",
        )
    wrong = r"invalid|not permitted|unrecognized|configuration is not available"
    if re.search(wrong, said, re.I) and not re.search(r"authentication|credential", said, re.I):
        return UserError(f"sbatch refuses the job: {said}", hint="mend the site and launch again")
    return RetryError(f"sbatch failed: {said}", hint="launch again; nothing was left running")

"""Runs Slurm's commands, parses what they print and interprets their errors."""

import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from proxhpc.errors import RetryError, UserError
from proxhpc.spec.slurm_notation import parse_duration

TIMEOUT = 60.0  # seconds; a busy slurmctld answers late, a dead one never
SNAPSHOT_AGE = 10.0  # seconds for which one answer of squeue is used
DEFAULT_MAX_ARRAY_SIZE = 1001  # slurm.conf(5)
# squeue still lists such a job, but it does no more work.
ENDED_STATES = ("COMPLETING", "COMPLETED", "CANCELLED", "STAGE_OUT")
_DEFAULTS = ("SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_", "SLURM_CLUSTERS")
_INHERITED = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_")


def is_available() -> bool:
    """Return True if this machine can submit to Slurm."""
    return shutil.which("sbatch") is not None


def run_command(*command: str) -> str:
    """Return the output of a Slurm command. RetryError if it fails or does not answer."""
    done = _run(*command)
    if done.returncode:
        raise RetryError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _run(*command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
            # A user's defaults, such as SQUEUE_PARTITION, would hide jobs.
            env={k: v for k, v in os.environ.items() if not k.startswith(_DEFAULTS)},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RetryError(f"{command[0]} did not answer: {error}") from error


@contextmanager
def clean_environment() -> Iterator[None]:
    """Hide the variables of an enclosing job: sbatch would pass them on to new jobs."""
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
        """The phase in the job's comment; "" if there is none."""
        return [*self.comment.split(":"), "", "", ""][2]

    @property
    def array(self) -> str:
        """Id of the whole array, or of the job itself."""
        return self.id.partition("_")[0]


class Queue:
    """The user's jobs, as squeue lists them; it is asked at most every ten seconds."""

    def __init__(self) -> None:
        self._jobs: list[QueuedJob] = []
        self._read_at = -SNAPSHOT_AGE

    def all_jobs(self) -> list[QueuedJob]:
        """Return every pending or running job of this user. RetryError without an answer."""
        if time.monotonic() - self._read_at >= SNAPSHOT_AGE:
            self._jobs = [*self._read()]
            self._read_at = time.monotonic()
        return self._jobs

    def jobs(self, run_id: str) -> list[QueuedJob]:
        """Return the jobs of this run."""
        prefix = f"{run_tag(run_id)}:"
        return [job for job in self.all_jobs() if job.comment.startswith(prefix)]

    def is_queued(self, element: str) -> bool | None:
        """Return whether a job or array element is in the queue; None if that is unknown."""
        if shutil.which("squeue") is None:
            return None
        try:
            job = self._find(element)
            if job is None and time.monotonic() - self._read_at > 1.0:
                # It may have been submitted since the snapshot was taken.
                self.invalidate()
                job = self._find(element)
        except RetryError:
            return None
        if job and job.state in ENDED_STATES:
            return None
        return job is not None

    def _find(self, element: str) -> QueuedJob | None:
        return next((job for job in self.all_jobs() if job.id == element), None)

    def invalidate(self) -> None:
        """Make the next call ask squeue, because jobs were submitted or cancelled."""
        self._read_at = -SNAPSHOT_AGE

    def _read(self) -> Iterator[QueuedJob]:
        # -a: also jobs in partitions that are hidden from this user.
        command = ("squeue", "-a", "-h", "-r", "-u", str(os.getuid()))
        lines = run_command(*command, "-o", "%i\x1f%T\x1f%k\x1f%r").splitlines()
        for line in lines:
            fields = line.strip().split("\x1f")
            if len(fields) == 4:
                yield QueuedJob(*fields)


def run_tag(run_id: str) -> str:
    """Return what the comment of every job of a run begins with."""
    return f"proxhpc:{run_id}"


def read_config() -> dict[str, str]:
    """Return the cluster's configuration (slurm.conf). RetryError without an answer."""
    pairs = (line.partition("=") for line in run_command("scontrol", "show", "config").splitlines())
    return {name.strip(): value.strip() for name, separator, value in pairs if separator}


def max_array_size(config: dict[str, str]) -> int:
    """Return MaxArraySize: array indices stay below it; 0 turns arrays off (slurm.conf(5))."""
    size = config.get("MaxArraySize", "")
    return int(size) if size.isdigit() else DEFAULT_MAX_ARRAY_SIZE


@dataclass(frozen=True, slots=True)
class NodeKind:
    """Nodes of a partition with the same hardware; `gpus` is a number for each type, maybe ""."""

    nodes: int
    cpus: int
    memory_mb: int
    gpus: tuple[tuple[str, int], ...]

    @property
    def gpu_count(self) -> int:
        """GPUs of a node, of all types."""
        return sum(number for _, number in self.gpus)


@dataclass(frozen=True, slots=True)
class Partition:
    """What `scontrol show partition` and sinfo say of a partition; times as Slurm writes them."""

    name: str
    state: str
    nodes: int
    max_time: str  # UNLIMITED, or a time
    default_time: str  # of jobs that do not ask for a time
    is_default: bool
    whole_nodes: bool  # jobs get all of their nodes
    memory_rule: tuple[str, ...]  # such as DefMemPerCPU=3000, in megabytes
    kinds: tuple[NodeKind, ...]


_MEMORY_KEYS = ("DefMemPerCPU", "DefMemPerNode", "MaxMemPerCPU", "MaxMemPerNode")


def memory_rule(config: Mapping[str, str]) -> tuple[str, ...]:
    """Return defaults and limits of memory in a configuration, of the cluster or of a partition."""
    rule = [f"{key}={config[key]}" for key in _MEMORY_KEYS if config.get(key, "").isdigit()]
    return (*rule, *re.findall(r"DefMemPerGPU=\d+", config.get("JobDefaults", "")))


def read_partitions() -> list[Partition]:
    """Return every partition, also hidden ones. RetryError without an answer."""
    kinds: dict[str, list[NodeKind]] = {}
    for line in run_command("sinfo", "-a", "-h", "-o", "%R|%D|%c|%m|%G").splitlines():
        name, *numbers, gres = line.split("|")
        nodes, cpus, memory = (int(re.sub(r"\D.*", "", number) or 0) for number in numbers)
        gpus = re.findall(r"gpu:(?:([^:,()]+):)?(\d+)", gres)
        gpus_by_type = tuple((kind, int(number)) for kind, number in gpus)
        kinds.setdefault(name, []).append(NodeKind(nodes, cpus, memory, gpus_by_type))
    partitions = []
    for line in run_command("scontrol", "show", "partition", "-a", "-o").splitlines():
        keys = dict(word.partition("=")[::2] for word in line.split())
        if name := keys.get("PartitionName", ""):
            longest, usual = keys.get("MaxTime", "?"), keys.get("DefaultTime", "NONE")
            partitions.append(
                Partition(
                    name=name,
                    state=keys.get("State", "?"),
                    nodes=int(keys.get("TotalNodes", "0")),
                    max_time=longest,
                    default_time=longest if usual == "NONE" else usual,
                    is_default=keys.get("Default") == "YES",
                    whole_nodes=keys.get("OverSubscribe", "").startswith("EXCLUSIVE"),
                    memory_rule=memory_rule(keys),
                    kinds=tuple(kinds.get(name, ())),
                )
            )
    return partitions


def read_accounts() -> list[str]:
    """Return the accounts that this user may charge, the default one first. RetryError."""
    if shutil.which("sacctmgr") is None:
        raise RetryError("there is no sacctmgr on this machine")
    show, user = ("sacctmgr", "-n", "-P", "show"), f"user={user_name()}"
    cluster = f"cluster={read_config().get('ClusterName', '')}"
    accounts = run_command(*show, "assoc", user, cluster, "format=Account").split()
    default = run_command(*show, "user", user_name(), "format=DefaultAccount").split()
    return [*dict.fromkeys((*(name for name in default if name in accounts), *accounts))]


def submit_limit(account: str | None, qos: str | None) -> int | None:
    """Return how many jobs this user may have in the queue; None if there is no known limit.

    It is the limit of `account`, by default the user's default account on this cluster, and of the
    QOS. An array counts as its elements (slurm.conf(5), sacctmgr(1): MaxSubmitJobs).
    """
    if shutil.which("sacctmgr") is None:
        return None
    show = ("sacctmgr", "-n", "-P", "show")
    which = f"account={account}" if account else "onlydefaults"
    try:
        cluster = read_config().get("ClusterName", "")
        where = (f"user={user_name()}", f"cluster={cluster}", which)
        associations = run_command(*show, "assoc", *where, "format=MaxSubmitJobs,DefaultQOS")
        qos_limits = run_command(*show, "qos", "format=Name,MaxSubmitJobsPerUser")
    except RetryError:
        return None
    rows = [line.partition("|") for line in associations.splitlines()]
    qos_names = {qos} if qos else {default for _, _, default in rows if default}
    limits = [limit for limit, _, _ in rows]
    for line in qos_limits.splitlines():
        name, _, limit = line.partition("|")
        if name in qos_names:
            limits.append(limit)
    return min((int(limit) for limit in limits if limit.isdigit()), default=None)


def check_script(script: str) -> str:
    """Return the answer of `sbatch --test-only`: when the script would start, or an error."""
    try:
        with clean_environment():
            done = _run("sbatch", "--test-only", stdin=script)
    except RetryError as error:
        return error.message
    return (done.stderr or done.stdout).strip()


@dataclass(frozen=True, slots=True)
class EndedElement:
    """A job or array element that has ended: where, in which state, and after how long."""

    id: str
    state: str
    node: str
    seconds: int
    end: str  # Slurm's time, for sorting

    @property
    def has_failed(self) -> bool:
        """Return True if the program or its node failed; not for a cancellation or a time limit."""
        return self.state in ("FAILED", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY")


def ended_elements(arrays: Sequence[str]) -> list[EndedElement]:
    """Return the ended elements of these arrays that Slurm knows, in the order of their ends.

    squeue lists a job for MinJobAge seconds after its end; sacct, where it exists, for much longer.
    """
    if not arrays:
        return []
    ids = ",".join(arrays)
    squeue_format = "%i\x1f%T\x1f%N\x1f%M\x1f%e"
    elements: dict[str, EndedElement] = {}
    for command in (
        ("sacct", "-X", "-n", "-P", "-j", ids, "-o", "JobID,State,NodeList,Elapsed,End"),
        ("squeue", "-a", "-h", "-r", "-t", "all", "-j", ids, "-o", squeue_format),
    ):
        try:
            lines = run_command(*command).splitlines()
        except RetryError:
            continue  # there is no accounting, or squeue has forgotten all of them
        for line in lines:
            fields = line.strip().split("\x1f" if command[0] == "squeue" else "|")
            if len(fields) == 5 and fields[1].split()[:1] and fields[2]:
                state = fields[1].split()[0]
                seconds = parse_duration(fields[3]) or 0
                elements[fields[0]] = EndedElement(fields[0], state, fields[2], seconds, fields[4])
    ended = (job for job in elements.values() if job.state not in ("PENDING", "RUNNING"))
    return sorted(ended, key=lambda job: job.end)


def user_name() -> str:
    """Return the name of this process's user, whatever the environment says.

    The number if a directory service does not answer; most of Slurm's commands accept it.
    """
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def seconds_left() -> float | None:
    """Return the time until this job's limit; None outside Slurm or without a limit."""
    env = os.environ
    if "SLURM_JOB_END_TIME" in env:
        return float(env["SLURM_JOB_END_TIME"]) - time.time()
    if "SLURM_JOB_ID" not in env or shutil.which("squeue") is None:
        return None
    try:
        remaining = run_command("squeue", "-a", "-h", "-j", env["SLURM_JOB_ID"], "-o", "%L")
    except RetryError:
        return None
    return parse_duration(remaining)


def submission_error(error: Exception) -> RetryError | UserError:
    """Return the error for a failed sbatch: UserError if the site is wrong, else RetryError."""
    message = " ".join(str(error).split())[-500:]
    if re.search(r"submit limit|job violates accounting", message, re.I):
        return RetryError(
            f"sbatch failed: {message}",
            hint="run the command again when fewer of your jobs are in the queue, or set"
            " max_submit_jobs in the site",
        )
    wrong = r"invalid|not permitted|unrecognized|configuration is not available"
    if re.search(wrong, message, re.I) and not re.search(
        "authentication|credential", message, re.I
    ):
        return UserError(
            f"sbatch refuses the job: {message}", hint="fix the site, then run the command again"
        )
    return RetryError(
        f"sbatch failed: {message}", hint="run the command again; no job was left running"
    )

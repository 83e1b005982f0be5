"""Runs Slurm's commands, parses what they print and interprets their errors."""

import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

from proxhpc.errors import ProxError, RetryError, StopError, UserError
from proxhpc.spec.slurm_notation import parse_duration

TIMEOUT = 60.0  # seconds; a busy slurmctld answers late, a dead one never
DEFAULT_MAX_ARRAY_SIZE = 1001  # slurm.conf(5)
_DEFAULTS = ("SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_")
_NO_NODE = "None assigned"  # sacct's word for a job that never started
_NOT_FROM_JOBS = (
    r"(not (allowed|permitted|possible)|cannot|can't|disabled|only).*\b(from|on|within|inside)\b"
    r".*(host|node|job)"
)
SUBMIT_BY_HAND = (
    "set submit_from_jobs: false in the site; then run `proxhpc launch` after each array"
)
_PAIR = re.compile(r"(?:^| )([\w/:]+)=(.*?)(?= [\w/:]+=| *$)")  # paths may hold blanks
_INHERITED = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_")


def is_available() -> bool:
    """Return True if this machine can submit to Slurm."""
    return not why_unavailable()


def why_unavailable() -> str:
    """Return why this machine cannot submit to Slurm, or "".

    A cluster that is configured here counts even if slurmctld does not answer: it may restart.
    """
    if shutil.which("sbatch") is None:
        return "no sbatch on PATH"
    with suppress(RetryError):
        if re.search("configuration (source|file)", _run("scontrol", "ping").stderr):
            return "sbatch is installed, but no cluster is configured"
    return ""


def run_command(*command: str, timeout: float = TIMEOUT) -> str:
    """Return the output of a Slurm command. RetryError if it fails or does not answer."""
    done = _run(*command, timeout=timeout)
    if done.returncode:
        raise RetryError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _run(
    *command: str, stdin: str = "", timeout: float = TIMEOUT
) -> subprocess.CompletedProcess[str]:
    # A user's defaults, such as SQUEUE_PARTITION, would hide jobs. Jobs are on their own cluster.
    hidden = (*_DEFAULTS, "SLURM_CLUSTERS") if "SLURM_JOB_ID" in os.environ else _DEFAULTS
    try:
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            env={k: v for k, v in os.environ.items() if not k.startswith(hidden)},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        took = f"in {timeout:.0f} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)
        raise RetryError(f"{command[0]} did not answer {took}") from error


@contextmanager
def clean_environment() -> Iterator[None]:
    """Hide the variables of an enclosing job: sbatch would pass them on to new jobs."""
    kept = {"SLURM_CONF"} if "SLURM_JOB_ID" in os.environ else {"SLURM_CONF", "SLURM_CLUSTERS"}
    hidden = {k: v for k, v in os.environ.items() if k.startswith(_INHERITED) and k not in kept}
    for key in hidden:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def submitting() -> Iterator[None]:
    """Submit in a clean environment; what submitit raises becomes `submission_error`."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with clean_environment():
            yield
    except (FailedJobError, FailedSubmissionError) as error:
        raise submission_error(error) from error


def show_job(job_id: str, timeout: float = TIMEOUT) -> list[dict[str, str]]:
    """Return what scontrol shows of a job, or of each part of its array; [] if it is unknown.

    A job is unknown some minutes after its end (MinJobAge). RetryError without an answer.
    """
    done = _run("scontrol", "show", "job", "-o", job_id, timeout=timeout)
    if done.returncode and "Invalid job id" in done.stderr + done.stdout:
        return []
    parts = [dict(_PAIR.findall(line)) for line in done.stdout.splitlines() if "JobState=" in line]
    if done.returncode or not parts:
        answer = " ".join((done.stderr or done.stdout).split())[:200]
        raise RetryError(f"scontrol shows nothing of job {job_id}: {answer}")
    return parts


def read_job_id(output: str | bytes) -> str:
    """Return the id of the job that sbatch submitted. FailedSubmissionError if it prints none.

    Wrappers of sites print banners before it, the bare id, or the cluster after it.
    """
    from submitit.core.utils import FailedSubmissionError

    text = output if isinstance(output, str) else output.decode(errors="replace")
    for pattern in (r"Submitted batch job (\d+)", r"^\s*(\d+)(?:;\S*)?\s*$", r"\bjob (\d+)"):
        if found := re.findall(pattern, text, re.M):
            return str(found[-1])
    raise FailedSubmissionError(f"sbatch printed no job id, but: {text.strip()}")


def site_words(output: str) -> list[str]:
    """Return what a site prints when sbatch succeeds, such as a balance: some lines, bounded."""
    ours = r"Submitted batch job .*|\d+(;\S*)?|\W*"
    lines = (line.strip().removeprefix("sbatch: ")[:300] for line in output.splitlines())
    return [line for line in lines if not re.fullmatch(ours, line)][:20]


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


def check_script(script: str) -> str:
    """Return the answer of `sbatch --test-only`: when the script would start, or an error."""
    try:
        with clean_environment():
            done = _run("sbatch", "--test-only", stdin=script)
    except RetryError as error:
        return error.message
    return (done.stderr or done.stdout).strip()


def expected_start(answer: str) -> float | None:
    """Return the start that `sbatch --test-only` answers, in seconds since 1970, if it does."""
    match = re.search(r" to start at (\S+)", answer)
    try:
        return datetime.fromisoformat(match[1]).timestamp() if match else None
    except ValueError:
        return None


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
            if len(fields) == 5 and fields[1].split()[:1] and fields[2] not in ("", _NO_NODE):
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


def submission_error(error: Exception) -> ProxError:
    """Return the error for a failed sbatch: UserError if the site is wrong, else RetryError.

    StopError in a job that may not submit: it would be refused again and again.
    """
    # A site's own checks (job_submit) may explain a refusal in many lines.
    message = str(error).strip()[-4000:]
    if "SLURM_JOB_ID" in os.environ and re.search(_NOT_FROM_JOBS, message, re.I):
        return StopError(f"jobs may not submit jobs here: {message}", hint=SUBMIT_BY_HAND)
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

"""The phase of a run, why it stopped, and the command to run next."""

import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from proxhpc.account.quantity import quantity
from proxhpc.cluster.queue import QueuedJob
from proxhpc.cluster.silent import SilentElements, out_of_memory
from proxhpc.run.paths import RunDir
from proxhpc.status.model import Failure, RunPhase, WorkerStatus

ACTIVE_STATES = ("starting", "working")
# Reasons of Slurm for which a pending job does not start by itself, or not soon.
_BLOCKED = {
    r"Partition(Down|Inactive)": "the partition is closed",
    r"(Assoc|QOS)\w*Minutes": "the budget of the account is used up",
    r"(Assoc|QOS)\w*(PerJob|PerNode|WallDuration)|Partition(Time|Node)Limit|BadConstraints": (
        "such a job may not run there"
    ),
    r"Invalid(Account|QOS)|(Account|QOS)NotAllowed": "you may not use that account or QOS",
    r"[Mm]aintenance": "a maintenance comes first; a shorter `time` in the site may fit before it",
}
LOST_STATES = {
    "gone": "died without an error message: killed, out of memory, preempted, or its node failed",
    "silent": "has sent no heartbeat for a while",
}
_RECOVERY = {
    "refine": "other workers continue with its shards",
    "merge": "the next merge resumes where it stopped",
    "control": "the next launch takes its step",
}
FATAL_ERRORS = ("StopError", "UserError")  # a person has to act before another launch helps


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an assessment is based on. `jobs` is None if the queue cannot be read."""

    run: RunDir
    workers: Sequence[WorkerStatus]
    jobs: Sequence[QueuedJob] | None
    is_local: bool
    submissions: int
    pending_shards: int
    is_advancing: bool
    silent: SilentElements | None = None

    @property
    def is_busy(self) -> bool:
        """Return True if a worker is active, a job is queued, or a step is being taken."""
        return bool(self.jobs) or self.is_working

    @property
    def is_working(self) -> bool:
        """Return True if a worker is active or a step is being taken."""
        return self.is_advancing or any(worker.state in ACTIVE_STATES for worker in self.workers)


def assess(evidence: Evidence) -> tuple[RunPhase, str, str]:
    """Return the phase, the reason if it needs one, and the next command, "" for none."""
    run, jobs = evidence.run, evidence.jobs
    launch = f"proxhpc launch {shlex.quote(str(run.root))}"
    if run.report_json.exists():
        return _finished(run, launch)
    phase = _phase(evidence)
    if jobs and all(job.is_held for job in jobs) and not evidence.is_working:
        reason = "all of its jobs are held: a launch was interrupted, or somebody held them"
        return "stopped", reason, launch
    if jobs and not evidence.is_working and (pauses := [j for j in jobs if j.is_paused]):
        until = pauses[0].start.replace("T", " ")
        return phase, f"paused until {until}, since the last round made no progress", launch
    if jobs and not evidence.is_working and (why := _why_blocked(jobs)):
        return phase, why, f"proxhpc cancel {shlex.quote(str(run.root))}"
    if evidence.is_busy:
        return phase, "", ""
    if not evidence.submissions and not evidence.workers:
        return "planned", "nothing was submitted yet", launch
    if jobs is None and not evidence.is_local:
        return phase, "no worker has sent a heartbeat lately, and the queue cannot be read", ""
    return "stopped", _stop_reason(evidence), launch


def _why_blocked(jobs: Sequence[QueuedJob]) -> str:
    """Return why the pending jobs do not start, if no job runs and Slurm's reasons say so."""
    reasons = {job.reason for job in jobs if job.state == "PENDING"}
    if any(job.state != "PENDING" for job in jobs):
        return ""
    for reason in sorted(reasons):
        for pattern, meaning in _BLOCKED.items():
            if re.search(pattern, reason):
                return (
                    f"no job starts ({reason}): {meaning}; to use another site, cancel and launch"
                    " with it"
                )
    return ""


def _finished(run: RunDir, launch: str) -> tuple[RunPhase, str, str]:
    from proxhpc.assemble.merge import describe_missing_files  # numpy: not while a run is refined

    if missing := describe_missing_files(run):
        return "finished", f"but {run.corpus} lacks {missing}; a launch merges again", launch
    return "finished", f"the corpus is in {run.corpus}, the report in {run.report}", ""


def group_failures(evidence: Evidence) -> tuple[Failure, ...]:
    """Return the problems of workers, the most frequent first; equal messages are one problem."""
    groups: dict[tuple[str, str], list[WorkerStatus]] = defaultdict(list)
    for worker in evidence.workers:
        if worker.state == "failed":
            message = f"{worker.error}: {_one_line(worker.message)}"
            groups[message, _hint(evidence.run, worker)].append(worker)
        elif worker.state == "retrying":
            message = f"could not take the next step and retries: {_one_line(worker.message)}"
            groups[message, f"its log is in {evidence.run.logs}"].append(worker)
        elif worker.state in LOST_STATES:
            killed = out_of_memory(evidence.run, worker.job)
            hint = "set a higher `mem` in the site" if killed else _hint(evidence.run, worker)
            groups[killed or LOST_STATES[worker.state], hint].append(worker)
    failures = [
        Failure(message=message, workers=len(workers), example=workers[0].worker, hint=hint)
        for (message, hint), workers in groups.items()
    ]
    if silent := evidence.silent:
        hint = f"its log is {silent.log}"
        number, example = len(silent.ids), silent.ids[0]
        failures.append(Failure(message=str(silent), workers=number, example=example, hint=hint))
    return tuple(sorted(failures, key=lambda failure: -failure.workers))


def _phase(evidence: Evidence) -> RunPhase:
    if evidence.pending_shards:
        return "refining"
    return "reporting" if evidence.run.merge_summary.exists() else "merging"


def _stop_reason(evidence: Evidence) -> str:
    failed = [worker for worker in evidence.workers if worker.state == "failed"]
    fatal = [worker for worker in failed if worker.error in FATAL_ERRORS]
    if failed:
        latest = min(fatal or failed, key=lambda worker: worker.age_s)
        return latest.message.partition("\n")[0]
    if evidence.silent:
        return f"{quantity(len(evidence.silent.ids), 'job')} {evidence.silent}"
    pending = evidence.pending_shards
    progress = "every shard is refined"
    if evidence.run.merge_summary.exists():
        progress = "the corpus is written, the report is not"
    elif pending:
        progress = f"{quantity(pending, 'shard is', 'shards are')} not refined"
    lost = sum(1 for worker in evidence.workers if worker.state in LOST_STATES)
    if lost:
        total = quantity(len(evidence.workers), "worker")
        return f"{progress}, but {lost} of {total} died without an error message"
    return f"{progress}, but no worker is running and no job is pending"


def _hint(run: RunDir, worker: WorkerStatus) -> str:
    if worker.state == "failed" and worker.error in FATAL_ERRORS:
        return "fix the problem, then run `proxhpc launch` again to resume"
    recovery = _RECOVERY.get(worker.role, _RECOVERY["refine"])
    return f"{recovery}; its log is in {run.logs}"


def _one_line(message: str) -> str:
    return "; ".join(line.strip() for line in message.splitlines() if line.strip())

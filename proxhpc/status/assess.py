"""Where a run stands, why it does not go on, and what to type next."""

import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from proxhpc.cluster.slurm import QueuedJob
from proxhpc.run.paths import RunDir
from proxhpc.status.model import Failure, RunPhase, WorkerStatus

ALIVE = ("starting", "working")
FATAL = ("StopError", "UserError")  # launching again does not help before a person has acted


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the judgement rests on. `jobs` is None where the queue cannot be seen."""

    run: RunDir
    workers: Sequence[WorkerStatus]
    jobs: Sequence[QueuedJob] | None
    local: bool
    submissions: int
    left: int
    stepping: bool

    @property
    def busy(self) -> bool:
        """Whether somebody works, waits in the queue or takes the next step."""
        return bool(self.jobs) or self.working

    @property
    def working(self) -> bool:
        """Whether somebody works or takes the next step."""
        return self.stepping or any(worker.state in ALIVE for worker in self.workers)


def assess(signs: Evidence) -> tuple[RunPhase, str, str]:
    """Phase, the reason where one is needed, and the next command to type, "" for none."""
    run = signs.run
    again = f"proxhpc launch {_quoted(run.root)}"
    if run.report_json.exists():
        return _finished(run, again)
    phase = _phase(signs)
    if signs.jobs and all("held" in job.reason.lower() for job in signs.jobs) and not signs.working:
        return "stopped", "all of its jobs are held: a launch was cut short, or somebody did", again
    if signs.busy:
        return phase, "", ""
    if not signs.submissions and not signs.workers:
        return "planned", "nothing was submitted yet", again
    if signs.jobs is None and not signs.local:
        return phase, "no worker reports, and the queue cannot be seen from here", ""
    return "stopped", _why(signs), again


def _finished(run: RunDir, again: str) -> tuple[RunPhase, str, str]:
    from proxhpc.assemble.merge import what_is_lost  # numpy: not before a run is finished

    lost = what_is_lost(run)
    if lost:
        return "finished", f"but {run.corpus} lacks {lost} now; launch makes it again", again
    return "finished", f"the corpus is in {run.corpus}, the report in {run.report}", ""


def failures(signs: Evidence) -> tuple[Failure, ...]:
    """What went wrong, the most frequent first; the same message of many workers is one."""
    groups: dict[tuple[str, str], list[WorkerStatus]] = defaultdict(list)
    for worker in signs.workers:
        if worker.state == "failed":
            message = f"{worker.error}: {_one_line(worker.message)}"
            groups[message, _hint(signs.run, worker)].append(worker)
        elif worker.state in ("gone", "silent"):
            groups[_LOST[worker.state], _hint(signs.run, worker)].append(worker)
    found = [
        Failure(message, len(workers), workers[0].worker, hint)
        for (message, hint), workers in groups.items()
    ]
    return tuple(sorted(found, key=lambda failure: -failure.workers))


_LOST = {
    "gone": "ended without a word: killed, out of memory, preempted, or its node failed",
    "silent": "has not been heard of for a while",
}


def _phase(signs: Evidence) -> RunPhase:
    if signs.left:
        return "refining"
    return "reporting" if signs.run.merge_summary.exists() else "merging"


def _why(signs: Evidence) -> str:
    failed = [worker for worker in signs.workers if worker.state == "failed"]
    fatal = [worker for worker in failed if worker.error in FATAL]
    if fatal or failed:
        return (fatal or failed)[-1].message.partition("\n")[0]
    what = f"{signs.left} shards are left" if signs.left else "every shard is refined"
    lost = sum(1 for worker in signs.workers if worker.state in ("gone", "silent"))
    if lost:
        return f"{what}, but {lost} of {len(signs.workers)} workers ended without a word"
    return f"{what}, but no worker is at work and no job waits"


def _hint(run: RunDir, worker: WorkerStatus) -> str:
    if worker.state == "failed" and worker.error in FATAL:
        return "mend it, then launch again: the run goes on where it stopped"
    what = (
        "the next merge goes on where it stopped"
        if worker.role == "merge"
        else "its shards go to other workers"
    )
    if worker.state == "failed":
        return f"its log is in {run.logs}; {what}"
    return f"{what}; {run.logs} may say why"


def _one_line(message: str) -> str:
    """An error and its hint, which have a line each, on one."""
    return "; ".join(line.strip() for line in message.splitlines() if line.strip())


def _quoted(path: object) -> str:
    return shlex.quote(str(path))

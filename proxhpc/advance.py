"""The one step function: look at the run directory and the queue, do the next thing.

`launch` is plan and advance. On Slurm a small job calls `advance` whenever an array has ended, so
a run carries itself through time limits and dead nodes; where jobs may not submit, launching
again does the same. Any of it may die at any point and be run again.
"""

import signal
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from proxhpc.cluster import tasks
from proxhpc.cluster.journal import Journal
from proxhpc.cluster.slurm import Queue
from proxhpc.cluster.submit import make_backend
from proxhpc.cluster.tasks import interrupt
from proxhpc.cluster.work import Backend, Work, recorded_site, stale_after
from proxhpc.errors import RetryError, StopError
from proxhpc.plan import Plan
from proxhpc.refine.lease import Lease, hold
from proxhpc.refine.leaser import missing, sweep
from proxhpc.report import write_report
from proxhpc.rundir import RunDir
from proxhpc.status.beats import latest
from proxhpc.status.judge import FATAL

ROUNDS_WITHOUT_PROGRESS = 3
CONTROL_PAUSES = (10, 30, 60, 120, 240, 240)  # seconds; within the control job's half hour


@dataclass(frozen=True, slots=True)
class Step:
    """What one call of `advance` did, or why it did nothing."""

    phase: Literal["refine", "merge", "report", "finished"]
    did: Literal["submitted", "waiting", "wrote", "nothing"]
    message: str


def alone(run: RunDir) -> AbstractContextManager[Lease]:
    """Hold the lease on stepping this run forward. RetryError while somebody else does."""
    return hold(run, "advance", Queue().alive, stale_after(run))


def advance(lease: Lease, plan: Plan, backend: Backend, *, by_hand: bool = False) -> Step:
    """Take the next step of the run whose `advance` lease the caller holds (`alone`).

    StopError when going on by itself makes no sense: a task met an error that only a person can
    mend, or several rounds in a row brought nothing. `by_hand` says that a person has looked.
    """
    run = lease.run
    if run.report_json.exists():
        return Step("finished", "nothing", f"finished: the corpus is in {run.corpus}")
    if lease.lost():
        raise RetryError("another launch has taken this run over; it does what is next")
    notes = backend.reconcile()
    left = 0 if run.merge_summary.exists() else sum(1 for _ in missing(run, plan))
    if left:
        step = _refine(run, backend, Round(run, plan, left, by_hand))
    elif not run.merge_summary.exists():
        step = _merge(run, plan, backend, Round(run, plan, left, by_hand))
    else:
        write_report(run)
        step = Step("report", "wrote", f"finished: the corpus is in {run.corpus}")
    return Step(step.phase, step.did, "\n".join([*notes, step.message]))


def advance_job(root: str) -> str:
    """Be the control job of a run: one step, submissions included; what it did.

    The chain of jobs hangs on it, so what may pass (a busy slurmctld, a launch at work) is tried
    again, and each try is a process of its own, which may be killed, as for want of memory. It
    settles first what the one before left.
    """
    signal.signal(signal.SIGTERM, interrupt)  # a try that was told to end is not tried again
    for pause in (*CONTROL_PAUSES, None):
        try:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                return pool.submit(_step, root).result()
        except (RetryError, BrokenProcessPool):
            if pause is None:
                raise
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _step(root: str) -> str:
    run = RunDir(Path(root))
    plan = Plan.load(run)
    with alone(run) as lease:
        return advance(lease, plan, make_backend(run, plan, recorded_site(run))).message


class Round:
    """One more try at a phase: what is known before it, and whether it makes sense."""

    def __init__(self, run: RunDir, plan: Plan, left: int, by_hand: bool) -> None:
        self.run = run
        self.left = left
        last = latest(run)
        self.fatal = [beat for beat in last if beat.error in FATAL]
        self.failed = [beat for beat in last if beat.state == "failed"]
        self.worked = {beat.owner.job for beat in last if beat.counts.documents}
        self.about = {
            "published": len(plan.shards) - left,
            "committed": sum(beat.counts.documents for beat in last),
            "deaths": sum(beat.deaths for beat in last),
            "merged": sum(1 for _ in run.merge.rglob("*.json")),
            "fatal": len(self.fatal),
            "by_hand": int(by_hand),
        }

    def check(self, phase: str) -> None:
        """Raise StopError if another round would bring nothing."""
        if self.about["by_hand"]:
            return
        rounds = [entry for entry in Journal(self.run).read() if not entry.abandoned]
        by_hand = [i for i, entry in enumerate(rounds) if entry.about["by_hand"]]
        rounds = rounds[by_hand[-1] :] if by_hand else rounds
        if rounds and self.about["fatal"] > rounds[0].about["fatal"]:
            raise StopError(
                f"the {phase} stopped: {self.fatal[-1].message}",
                hint="mend it, then launch again: the run goes on where it stopped",
            )
        keys = ("published", "committed", "deaths", "merged")
        now = [self.about[key] for key in keys]
        recent = [entry for entry in rounds if entry.phase == phase][-ROUNDS_WITHOUT_PROGRESS:]
        if len(recent) == ROUNDS_WITHOUT_PROGRESS and all(
            [entry.about[key] for key in keys] == now for entry in recent
        ):
            why = f"; the last error: {self.failed[-1].message}" if self.failed else ""
            raise StopError(
                f"{len(recent)} rounds of {phase} in a row brought nothing{why}",
                hint=f"look into {self.run.logs}, mend it and launch again",
            )


def _refine(run: RunDir, backend: Backend, around: Round) -> Step:
    if active := backend.active("refine"):
        return Step(
            "refine",
            "waiting",
            f"{_counted(active, 'worker')} at it or waiting, {_counted(around.left, 'shard')} left",
        )
    around.check("refine")
    resources = recorded_site(run).resources("refine")
    per_node = resources.tasks_per_node
    elements = min(backend.elements(resources), -(-around.left // per_node))
    of = elements * per_node
    arguments = [(str(run.root), element, per_node, of) for element in range(elements)]
    failing = backend.failing(around.worked)
    work = Work("refine", tasks.refine_element, arguments, around.about, tuple(sorted(failing)))
    ids = backend.submit(work, _control(run))
    said = [f"{_counted(of, 'worker')} for {_counted(around.left, 'shard')}: {_named(ids)}"]
    said += [
        f"node {node} is left out: the last {count} workers there ended at once"
        for node, count in sorted(failing.items())
    ]
    return Step("refine", "submitted", "\n".join(said))


def _merge(run: RunDir, plan: Plan, backend: Backend, around: Round) -> Step:
    if backend.active("merge"):
        return Step("merge", "waiting", "the merge waits or runs")
    around.check("merge")
    sweep(run, plan)
    cpus = recorded_site(run).resources("merge").cpus
    work = Work("merge", tasks.merge, [(str(run.root), cpus)], around.about)
    ids = backend.submit(work, _control(run))
    return Step("merge", "submitted", f"every shard is refined; merging: {_named(ids)}")


def _control(run: RunDir) -> Work:
    return Work("control", advance_job, [(str(run.root),)], {})


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _named(ids: list[str]) -> str:
    shown = ", ".join(ids[:4]) + (" …" if len(ids) > 4 else "")
    return f"{'job' if len(ids) == 1 else 'jobs'} {shown}"

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
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from proxhpc.assemble.phases import pending_units
from proxhpc.cluster import tasks
from proxhpc.cluster.backend import Backend, Work, recorded_site, stale_after
from proxhpc.cluster.journal import Journal
from proxhpc.cluster.slurm import Queue
from proxhpc.cluster.submit import make_backend
from proxhpc.cluster.tasks import interrupt
from proxhpc.errors import ProxError, RetryError, StopError
from proxhpc.report import write_report
from proxhpc.run.lease import Lease, LeaseOwner, Leases, hold_lease
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.progress import ProgressLog
from proxhpc.run.shards import missing_shards
from proxhpc.spec.site import Resources
from proxhpc.status.assess import FATAL
from proxhpc.status.heartbeats import latest
from proxhpc.worker.leaser import sweep

ROUNDS_WITHOUT_PROGRESS = 5
# Seconds before a round, after so many that brought nothing: what hinders them (a file system, a
# licence server, preemption while models load) may need most of an hour to pass.
PAUSES = (0, 60, 300, 900, 1800)
CONTROL_PAUSES = (10, 30, 60, 120, 240, 240)  # seconds; within the control job's half hour


@dataclass(frozen=True, slots=True)
class Step:
    """What one call of `advance` did, or why it did nothing."""

    phase: Literal["refine", "merge", "report", "finished"]
    did: Literal["submitted", "waiting", "wrote", "nothing"]
    message: str


def advance_lock(run: RunDir) -> AbstractContextManager[Lease]:
    """Hold the lease on stepping this run forward. RetryError while somebody else does."""
    return hold_lease(run, "advance", Queue().alive, stale_after(run))


def advance(lease: Lease, plan: Plan, backend: Backend, *, by_hand: bool = False) -> Step:
    """Take the next step of the run whose `advance` lease the caller holds (`alone`).

    StopError when going on by itself makes no sense: a task met an error that only a person can
    mend, or several rounds in a row brought nothing. `by_hand` says that a person has looked.
    """
    run = lease.run
    if run.report_json.exists():
        return Step("finished", "nothing", f"finished: the corpus is in {run.corpus}")
    if lease.is_lost():
        raise RetryError("another launch has taken this run over; it does what is next")
    notes = backend.reconcile()
    shards = 0 if run.merge_summary.exists() else sum(1 for _ in missing_shards(run, plan))
    if shards:
        step = _refine(run, backend, Round(run, plan, shards, by_hand))
    elif not run.merge_summary.exists():
        step = _merge(run, plan, backend, Round(run, plan, shards, by_hand))
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
    log = ProgressLog(RunDir(Path(root)), LeaseOwner.current("control"), "control")
    for pause in (*CONTROL_PAUSES, None):
        try:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                return pool.submit(_step, root).result()
        except StopError as error:
            # The end of this job, and no failure of its node: it must not be run again.
            log.write("failed", error=type(error).__name__, message=str(error)[:2000])
            return f"stopped: {error}"
        except (ProxError, OSError, BrokenProcessPool) as error:
            if pause is None:
                log.write("failed", error=type(error).__name__, message=str(error)[:2000])
                raise
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _step(root: str) -> str:
    run = RunDir(Path(root))
    plan = Plan.load(run)
    site = recorded_site(run)
    if site.kind == "local":
        return "the run goes on without Slurm, where it was launched"
    with advance_lock(run) as lease:
        return advance(lease, plan, make_backend(run, plan, site)).message


class Round:
    """One more try at a phase: what is known before it, and whether it makes sense."""

    def __init__(self, run: RunDir, plan: Plan, left: int, by_hand: bool) -> None:
        self.run = run
        self.left = left
        last = latest(run)
        self.fatal = [beat for beat in last if beat.error in FATAL and left]
        self.hosts = {beat.owner.host for beat in last if beat.role == "refine"}
        self.failed = [beat for beat in last if beat.state == "failed"]
        self.worked = {beat.owner.job for beat in last if beat.counts.documents}
        self.about = {
            "published": len(plan.shards) - left,
            "committed": sum(beat.counts.documents for beat in last),
            "deaths": sum(beat.deaths for beat in last),
            "merged": sum(1 for own in ("*.json", "*.rows") for _ in run.merge.rglob(own)),
            "fatal": self._fatal_hosts(),
            "by_hand": int(by_hand),
        }

    def _fatal_hosts(self) -> int:
        """Hosts with an error that only a person can mend; 0 where it may be one host's alone."""
        met = len({beat.owner.host for beat in self.fatal})
        return met if met >= min(2, len(self.hosts)) else 0

    def check(self, phase: str) -> None:
        """Raise StopError if another round would bring nothing."""
        if self.about["by_hand"]:
            return
        rounds = Journal(self.run).since_by_hand()
        if rounds and self.about["fatal"] > rounds[0].about["fatal"]:
            raise StopError(
                f"the {phase} stopped: {self.fatal[-1].message}",
                hint="mend it, then launch again: the run goes on where it stopped",
            )
        if (empty := self.empty(phase)) >= ROUNDS_WITHOUT_PROGRESS:
            why = f"; the last error: {self.failed[-1].message}" if self.failed else ""
            raise StopError(
                f"{empty} rounds of {phase} in a row brought nothing{why}",
                hint=f"look into {self.run.logs}, mend it and launch again",
            )

    def pause(self, phase: str) -> int:
        """Seconds until another round should begin: what hinders it may need time to pass."""
        return PAUSES[min(self.empty(phase), len(PAUSES) - 1)]

    def empty(self, phase: str) -> int:
        """Rounds in a row, up to now, that brought nothing."""
        rounds = [e for e in Journal(self.run).since_by_hand() if e.phase == phase]
        keys = ("published", "committed", "deaths", "merged")
        now = [self.about[key] for key in keys]
        same = [[entry.about[key] for key in keys] == now for entry in reversed(rounds)]
        return same.index(False) if False in same else len(same)


def _refine(run: RunDir, backend: Backend, around: Round) -> Step:
    if active := backend.active("refine"):
        left = _counted(around.left, "shard")
        said = f"{_counted(active, 'worker')} at it or waiting, {left} left"
        return _waiting(run, backend, around, "refine", said)
    around.check("refine")
    run.match.unlink(missing_ok=True)  # what was decided without these shards
    resources = recorded_site(run).resources("refine")
    work = refine_work(run, resources, backend.elements(resources), around.left)
    of = len(work.arguments) * resources.tasks_per_node
    said = f"{_counted(of, 'worker')} for {_counted(around.left, 'shard')}"
    return _submitted(run, backend, around, work, said)


def _merge(run: RunDir, plan: Plan, backend: Backend, around: Round) -> Step:
    if backend.active("merge"):
        return _waiting(run, backend, around, "merge", "the merge waits or runs")
    leases = Leases(run, LeaseOwner.current("look"), Queue().alive)
    if held := leases.current("merge"):
        attempt, owner = held
        if leases.is_alive(owner, run.lease("merge", attempt)) is not False:
            raise RetryError(
                f"a merge of this run is at work, or was ({owner.host}, process {owner.pid})",
                hint="launch again when it has ended",
            )
    around.check("merge")
    sweep(run, plan)
    resources = recorded_site(run).resources("merge")
    if around.empty("merge"):
        # Arrays trust names. One job finds out what else there is to make again.
        resources = replace(resources, workers=1)
    most = backend.elements(resources) if resources.workers > 1 else 1
    work = merge_work(run, plan, resources, most)
    said = "every shard is refined; merging"
    if work.function is tasks.merge_share:
        said += f" ({work.arguments[0][1]}) in {_counted(len(work.arguments), 'element')}"
    return _submitted(run, backend, around, work, said)


def refine_work(run: RunDir, resources: Resources, most: int, left: int) -> Work:
    """Workers for the shards that are left, in `most` array elements or fewer."""
    per_node = resources.tasks_per_node
    elements = min(most, -(-left // per_node))
    of = elements * per_node
    arguments = [(str(run.root), element, per_node, of) for element in range(elements)]
    return Work("refine", tasks.refine_element, arguments, {})


def merge_work(run: RunDir, plan: Plan, resources: Resources, most: int) -> Work:
    """The next of the merge: all that is left in one job, or of one phase in an array.

    An array has `most` elements or fewer, one for each share in which something is left. A run
    with fewer groups of shards than workers is merged by one job.
    """
    root, cpus, phases = str(run.root), resources.cpus, pending_units(run, plan)
    todo = next((phase for phase in phases if phase.units), None)
    if todo is None or not 1 < resources.workers <= phases[0].total:
        return Work("merge", tasks.merge_task, [(root, cpus)], {})
    of = min(resources.workers, todo.total)
    shares = sorted({unit % of for unit in todo.units})[:most]
    arguments = [(root, todo.phase, share, of, cpus) for share in shares]
    return Work("merge", tasks.merge_share, arguments, {})


def control_work(run: RunDir) -> Work:
    """The job that takes the next step."""
    return Work("control", advance_job, [(str(run.root),)], {})


def _submitted(run: RunDir, backend: Backend, around: Round, work: Work, said: str) -> Step:
    failing = backend.failing(around.worked)
    exclude = tuple(sorted(failing))
    phase = work.phase
    work = replace(work, about=around.about, exclude=exclude, delay=around.pause(phase))
    ids = backend.submit(work, replace(control_work(run), exclude=exclude))
    told = [f"{said}: {_named(ids)}"]
    told += [
        f"node {node} is left out: the last {count} jobs there ended at once"
        for node, count in sorted(failing.items())
    ]
    return Step("refine" if phase == "refine" else "merge", "submitted", "\n".join(told))


def _waiting(
    run: RunDir, backend: Backend, around: Round, phase: Literal["refine", "merge"], said: str
) -> Step:
    """Nothing but to wait; should what is at work have no control job behind it, it gets one."""
    if backend.follow(replace(control_work(run), about=around.about)):
        said += "\nits control job was gone: another one follows"
    return Step(phase, "waiting", said)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _named(ids: list[str]) -> str:
    shown = ", ".join(ids[:4]) + (" …" if len(ids) > 4 else "")
    return f"{'job' if len(ids) == 1 else 'jobs'} {shown}"

"""One step of a run: read the run directory and the queue, then do what comes next.

`launch` plans a run and takes the first step. On Slurm, a control job takes the next step whenever
an array has ended, so a run survives time limits and dead nodes. On sites where jobs may not
submit, a person runs `launch` again. A step may be killed at any moment and repeated.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from proxhpc.account.quantity import quantity
from proxhpc.assemble.phases import merge_progress, pending_units
from proxhpc.cluster import tasks
from proxhpc.cluster.backend import Backend, TaskBatch, recorded_site, stale_after
from proxhpc.cluster.journal import Journal
from proxhpc.cluster.queue import Queue
from proxhpc.cluster.submit import make_backend
from proxhpc.errors import RetryError, StopError
from proxhpc.launch.control_job import run_control, step_name
from proxhpc.report import write_report
from proxhpc.run.lease import Lease, hold_lease
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.shards import missing_shards
from proxhpc.spec.site import PhaseName, Resources
from proxhpc.status.assess import FATAL_ERRORS
from proxhpc.status.heartbeats import latest_heartbeats
from proxhpc.worker.leaser import sweep

MAX_ROUNDS_WITHOUT_PROGRESS = 5
# Seconds before a round, by the number of rounds without progress before it. The cause (a file
# system, a license server, preemption while models load) may take most of an hour to pass.
ROUND_DELAYS = (0, 60, 300, 900, 1800)


@dataclass(frozen=True, slots=True)
class StepResult:
    """The phase in which a run is after one call of `advance`, and what to print."""

    phase: Literal["refine", "merge", "report", "finished"]
    message: str


def advance_lock(run: RunDir) -> AbstractContextManager[Lease]:
    """Hold the lease on advancing this run. RetryError while another process holds it."""
    return hold_lease(run, "advance", Queue().is_queued, stale_after(run))


def advance(lease: Lease, plan: Plan, backend: Backend, *, manual: bool = False) -> StepResult:
    """Take the next step of the run whose `advance` lease the caller holds.

    StopError if another automatic step makes no sense: workers met an error that only a person can
    fix, or several rounds in a row made no progress. `manual` says that a person launched.
    """
    run = lease.run
    if run.report_json.exists():
        return StepResult("finished", "finished")
    if lease.is_lost():
        raise RetryError("another launch has taken over this run and takes the next step")
    messages = backend.reconcile()
    if manual and (jobs := backend.set_aside_paused()):
        messages.append(f"cancelled {_job_names(jobs)}, which waited for the end of a pause")
    if manual and (jobs := backend.release_held()):
        messages.append(f"released {_job_names(jobs)}, which were held")
    pending = 0 if run.merge_summary.exists() else sum(1 for _ in missing_shards(run, plan))
    if pending:
        step = _refine(backend, Round(run, plan, pending, manual))
    elif not run.merge_summary.exists():
        step = _merge(plan, backend, Round(run, plan, pending, manual))
    else:
        write_report(run)
        step = StepResult("report", "finished")
    backend.drop_paused()
    messages += [f"Slurm: {line}" for line in dict.fromkeys(backend.site_words)]
    return StepResult(step.phase, "\n".join([*messages, step.message]))


def take_step(root: str) -> str:
    """Take one step of a run in its control job; return what it did."""
    run = RunDir(Path(root))
    plan = Plan.load(run)
    site = recorded_site(run)
    if site.kind == "local":
        return "the run continues without Slurm, in a local launch"
    with advance_lock(run) as lease:
        return advance(lease, plan, make_backend(run, plan, site, lease)).message


class Round:
    """One submission for a phase: the state of the run before it, and whether to submit it."""

    def __init__(self, run: RunDir, plan: Plan, pending_shards: int, manual: bool) -> None:
        self.run = run
        self.pending_shards = pending_shards
        heartbeats = latest_heartbeats(run)
        self.failed = [beat for beat in heartbeats if beat.state == "failed"]
        self.fatal = [b for b in self.failed if b.error in FATAL_ERRORS and pending_shards]
        self.hosts = {beat.owner.host for beat in heartbeats if beat.role == "refine"}
        self.spoke = {beat.owner.job for beat in heartbeats}
        self.productive_jobs = {beat.owner.job for beat in heartbeats if beat.counts.documents}
        self.state = {
            "published": len(plan.shards) - pending_shards,
            "committed": sum(beat.counts.documents for beat in heartbeats),
            "deaths": sum(beat.deaths for beat in heartbeats),
            "merge_files": sum(done for _, done, _ in merge_progress(run, plan)),
            "fatal_workers": self._fatal_workers(),
            "manual": int(manual),
        }

    def _fatal_workers(self) -> int:
        """Count the workers with a fatal error; 0 if the cause may be the only such host itself."""
        hosts = len({beat.owner.host for beat in self.fatal})
        return len(self.fatal) if hosts >= min(2, len(self.hosts)) else 0

    def check(self, phase: PhaseName, backend: Backend) -> None:
        """Raise StopError if another automatic round makes no sense."""
        if self.state["manual"]:
            return
        problem, nodes = backend.silent_round(phase, self.spoke)
        if problem and (nodes > 1 or self.rounds_without_progress(phase) > 1):
            raise StopError(
                problem,
                hint=f"the logs are in {self.run.logs}; fix the site, then run `proxhpc launch`"
                " again",
            )
        rounds = Journal(self.run).since_manual_launch()
        if rounds and self.state["fatal_workers"] > rounds[0].run_state["fatal_workers"]:
            message = max(self.fatal, key=lambda beat: beat.time).message
            own_hint = "\n" in message
            raise StopError(
                f"the {phase} stopped: {message}",
                hint=""
                if own_hint
                else "fix the problem, then run `proxhpc launch` again to resume",
            )
        if (idle := self.rounds_without_progress(phase)) >= MAX_ROUNDS_WITHOUT_PROGRESS:
            cause = f"; the last error: {self.failed[-1].message}" if self.failed else ""
            raise StopError(
                f"{idle} rounds of {phase} in a row made no progress{cause}",
                hint=f"read the logs in {self.run.logs}, fix the problem, then run"
                " `proxhpc launch` again",
            )

    def delay_seconds(self, phase: str) -> int:
        """Return how long the round should wait for the cause of idle rounds to pass.

        A person who launches has waited, or has fixed the cause.
        """
        if self.state["manual"]:
            return 0
        return ROUND_DELAYS[min(self.rounds_without_progress(phase), len(ROUND_DELAYS) - 1)]

    def rounds_without_progress(self, phase: str) -> int:
        """Count the latest rounds of a phase in a row that made no progress."""
        rounds = [
            entry for entry in Journal(self.run).since_manual_launch() if entry.phase == phase
        ]
        keys = ("published", "committed", "deaths", "merge_files")
        now = [self.state[key] for key in keys]
        same = [[entry.run_state[key] for key in keys] == now for entry in reversed(rounds)]
        return same.index(False) if False in same else len(same)


def _refine(backend: Backend, this_round: Round) -> StepResult:
    run, pending = this_round.run, this_round.pending_shards
    if active := backend.active_elements("refine"):
        message = (
            f"{quantity(active, 'worker')} running or pending, {quantity(pending, 'shard')} left"
        )
        return _wait(backend, this_round, "refine", message)
    this_round.check("refine", backend)
    run.match.unlink(missing_ok=True)  # a match made without these shards is out of date
    resources = recorded_site(run).resources("refine")
    batch = refine_batch(run, resources, backend.free_elements(resources), pending)
    workers = len(batch.arguments) * resources.tasks_per_node
    message = f"{quantity(workers, 'worker')} for {quantity(pending, 'shard')}"
    return _submit(backend, this_round, batch, message)


def _merge(plan: Plan, backend: Backend, this_round: Round) -> StepResult:
    run = this_round.run
    if backend.active_elements("merge"):
        return _wait(backend, this_round, "merge", "the merge is running or pending")
    # A merge whose job is not in the queue may still run, or have died: this finds out.
    with hold_lease(run, "merge", Queue().is_queued, stale_after(run)):
        pass
    this_round.check("merge", backend)
    sweep(run, plan)
    resources = recorded_site(run).resources("merge")
    if this_round.rounds_without_progress("merge"):
        # Arrays trust file names. One job also finds and replaces damaged files.
        resources = replace(resources, workers=1)
    max_elements = backend.free_elements(resources) if resources.workers > 1 else 1
    batch = merge_batch(run, plan, resources, max_elements)
    message = "every shard is refined; merging"
    if batch.function is tasks.merge_phase_task:
        message += f" ({batch.arguments[0][1]}) in {quantity(len(batch.arguments), 'element')}"
    return _submit(backend, this_round, batch, message)


def refine_batch(
    run: RunDir, resources: Resources, max_elements: int, pending_shards: int
) -> TaskBatch:
    """Return the workers for the shards that are missing, in at most `max_elements` elements."""
    per_node = resources.tasks_per_node
    elements = min(max_elements, -(-pending_shards // per_node))
    workers = elements * per_node
    sharing = resources.workers_per_gpu
    arguments = [
        (str(run.root), element, per_node, workers, sharing) for element in range(elements)
    ]
    return TaskBatch("refine", tasks.refine_element_task, arguments, {})


def merge_batch(run: RunDir, plan: Plan, resources: Resources, max_elements: int) -> TaskBatch:
    """Return the next part of the merge: all of it in one job, or one phase in an array.

    An array has at most `max_elements` elements, one for each share with a missing unit. A run with
    fewer groups of shards than workers is merged by one job.
    """
    root, cpus, phases = str(run.root), resources.cpus, pending_units(run, plan)
    next_phase = next((phase for phase in phases if phase.units), None)
    if next_phase is None or not 1 < resources.workers <= phases[0].total:
        return TaskBatch("merge", tasks.merge_task, [(root, cpus)], {})
    elements = min(resources.workers, next_phase.total)
    shares = sorted({unit % elements for unit in next_phase.units})[:max_elements]
    arguments = [(root, next_phase.phase, share, elements, cpus) for share in shares]
    return TaskBatch("merge", tasks.merge_phase_task, arguments, {})


def control_batch(run: RunDir, step: Callable[[str], str] = take_step) -> TaskBatch:
    """Return the job that takes the next step."""
    return TaskBatch("control", run_control, [(str(run.root), step_name(step))], {})


def _submit(backend: Backend, this_round: Round, batch: TaskBatch, message: str) -> StepResult:
    failing = backend.failing_nodes(this_round.productive_jobs)
    excluded = tuple(sorted(failing))
    batch = replace(
        batch,
        run_state=this_round.state,
        excluded_nodes=excluded,
        delay_seconds=this_round.delay_seconds(batch.phase),
    )
    control = replace(control_batch(this_round.run), excluded_nodes=excluded)
    lines = [f"{message}: {_job_names(backend.submit(batch, control))}"]
    lines += [
        f"node {node} is excluded: the last {quantity(count, 'job')} there failed within minutes"
        for node, count in sorted(failing.items())
    ]
    return StepResult("refine" if batch.phase == "refine" else "merge", "\n".join(lines))


def _wait(
    backend: Backend, this_round: Round, phase: Literal["refine", "merge"], message: str
) -> StepResult:
    """Submit nothing but a control job, if the active jobs have no dependent one."""
    control = replace(control_batch(this_round.run), run_state=this_round.state)
    if backend.ensure_follow_up(control):
        message += "\nits control job was missing: submitted another one"
    return StepResult(phase, message)


def _job_names(ids: list[str]) -> str:
    names = ", ".join(ids[:4]) + (" …" if len(ids) > 4 else "")
    return f"{'job' if len(ids) == 1 else 'jobs'} {names}"

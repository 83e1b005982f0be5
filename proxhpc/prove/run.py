"""Advances a prove directory: corpora and tokens, trainings, verdict."""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from proxhpc.account.quantity import quantity
from proxhpc.cluster import tasks
from proxhpc.cluster.backend import Backend, TaskBatch, recorded_site, stale_after
from proxhpc.cluster.job_step import step_task
from proxhpc.cluster.journal import Journal
from proxhpc.cluster.local import LocalBackend
from proxhpc.cluster.queue import Queue
from proxhpc.cluster.submit import make_backend
from proxhpc.errors import RetryError, StopError
from proxhpc.launch.launch import POLL_SECONDS, interruptible, record_site
from proxhpc.launch.step import MAX_ROUNDS_WITHOUT_PROGRESS, advance_lock, control_batch
from proxhpc.prove.arms import make_variant
from proxhpc.prove.layout import ProveDir
from proxhpc.prove.plan import ProvePlan
from proxhpc.prove.tokens import prepare_held_out, prepare_tokenizer, prepare_tokens
from proxhpc.prove.train import train_arm
from proxhpc.prove.verdict import write_verdict
from proxhpc.run.lease import Lease, hold_lease
from proxhpc.spec.site import PhaseName, Site
from proxhpc.status.assess import FATAL_ERRORS
from proxhpc.status.heartbeats import latest_heartbeats

WAIT_SECONDS = 2.0  # between two tries to take a lease


@dataclass(frozen=True, slots=True)
class ProveStep:
    """Where a prove directory is after a step, and what to print."""

    phase: Literal["prepare", "train", "finished"]
    message: str


def prove(folder: ProveDir, plan: ProvePlan, site: Site, log: Callable[[str], None]) -> ProveStep:
    """Advance as far as this process can: to the verdict on this machine, by one step on Slurm.

    On Ctrl-C or SIGTERM, trainings write a checkpoint, and another call resumes them. StopError if
    jobs fail for a reason that only a person can remove.
    """
    with advance_lock(folder) as lease:
        record_site(folder, site)
        backend = make_backend(folder, plan.job_plan(), site, lease)
        printed = _finished(folder, plan)
        with interruptible(backend):
            step = prove_step(lease, plan, backend, manual=True)
            while isinstance(backend, LocalBackend) and step.phase != "finished":
                log(step.message)
                while backend.active_elements("merge") or backend.active_elements("train"):
                    time.sleep(POLL_SECONDS)
                    printed = _print_finished(folder, plan, printed, log)
                step = prove_step(lease, plan, backend)
    return step


def cancel_prove(folder: ProveDir) -> list[str]:
    """End every job of a prove directory and return their ids or names. Checkpoints are kept."""
    job_plan = ProvePlan.load(folder).job_plan()
    return make_backend(folder, job_plan, recorded_site(folder)).cancel()


def _finished(folder: ProveDir, plan: ProvePlan) -> set[tuple[str, int]]:
    return {each for each in plan.trainings if folder.training_receipt(*each).exists()}


def _print_finished(
    folder: ProveDir, plan: ProvePlan, printed: set[tuple[str, int]], log: Callable[[str], None]
) -> set[tuple[str, int]]:
    finished = _finished(folder, plan)
    for arm, seed in sorted(finished - printed):
        log(f"trained {arm}, seed {seed}; {len(finished)} of {len(plan.trainings)}")
    return finished


def prove_step(
    lease: Lease, plan: ProvePlan, backend: Backend, *, manual: bool = False
) -> ProveStep:
    """Take the next step of the prove directory whose `advance` lease the caller holds."""
    folder = ProveDir(lease.run.root)
    messages = backend.reconcile()
    if manual and (jobs := backend.release_held()):
        messages.append(f"released held {quantity(len(jobs), 'job')}")
    missing = [arm.name for arm in plan.arms if not folder.arm_receipt(arm.name).exists()]
    pending = [
        number
        for number, each in enumerate(plan.trainings)
        if not folder.training_receipt(*each).exists()
    ]
    if missing:
        cpus = recorded_site(folder).resources("merge").cpus
        batch = TaskBatch("merge", prepare_task, [(str(folder.root), cpus)], {})
        step = _submit(folder, backend, batch, manual)
    elif pending:
        resources = recorded_site(folder).resources("train")
        is_local = isinstance(backend, LocalBackend)
        of = min(resources.workers, len(pending)) if is_local else len(plan.trainings)
        numbers = range(of) if is_local else pending[: backend.free_elements(resources)]
        batch = TaskBatch("train", train_task, [(str(folder.root), n, of) for n in numbers], {})
        step = _submit(folder, backend, batch, manual, f"{quantity(len(pending), 'training')} left")
    else:
        write_verdict(folder, plan)
        step = ProveStep("finished", "finished")
    messages += [f"Slurm: {line}" for line in dict.fromkeys(backend.site_words)]
    return ProveStep(step.phase, "\n".join([*messages, step.message]))


def _submit(
    folder: ProveDir, backend: Backend, batch: TaskBatch, manual: bool, left: str = ""
) -> ProveStep:
    """Submit a batch and the job that takes the next step, unless the phase's jobs are active."""
    phase: Literal["prepare", "train"] = "prepare" if batch.phase == "merge" else "train"
    what = "preparing corpora and tokens" if phase == "prepare" else f"training: {left}"
    control = control_batch(folder, take_prove_step)
    if backend.active_elements(batch.phase):
        backend.ensure_follow_up(control)
        return ProveStep(phase, f"{what}; jobs are running or pending")
    state = {"manual": int(manual), "progress": _progress(folder)}
    _check_progress(folder, batch.phase, state)
    backend.submit(replace(batch, run_state=state), replace(control, run_state=state))
    return ProveStep(phase, what)


def _progress(folder: ProveDir) -> int:
    """Return a number that changes when jobs achieve something that lasts."""
    kept = [*folder.tokens.glob("*.json"), *folder.heldout.glob("*.json")]
    kept += [*folder.trainings.glob("*/*.json"), *folder.evaluations.glob("*.npy")]
    checkpoints = [path.stat().st_mtime_ns for path in folder.trainings.glob("*/state.pt")]
    return len(kept) + sum(checkpoints) // 1_000_000


def _check_progress(folder: ProveDir, phase: PhaseName, state: dict[str, int]) -> None:
    """Raise StopError if submitting again makes no sense."""
    rounds = [each for each in Journal(folder).since_manual_launch() if each.phase == phase]
    if state["manual"] or not rounds:
        return
    failed = [beat for beat in latest_heartbeats(folder) if beat.state == "failed"]
    last = max(failed, key=lambda beat: beat.time, default=None)
    idle = [each for each in rounds if each.run_state["progress"] == state["progress"]]
    is_fatal = last is not None and last.error in FATAL_ERRORS
    if idle and (is_fatal or len(idle) >= MAX_ROUNDS_WITHOUT_PROGRESS):
        raise StopError(
            f"{phase} jobs fail: {last.message if last else 'they died without an error message'}",
            hint=f"fix the problem (the logs are in {folder.logs}), then run `proxhpc prove` again",
        )


def take_prove_step(root: str) -> str:
    """Take one step of a prove directory in its control job; return what it did."""
    folder = ProveDir(Path(root))
    plan, site = ProvePlan.load(folder), recorded_site(folder)
    if site.kind == "local":
        return "`proxhpc prove` continues without Slurm"
    with advance_lock(folder) as lease:
        backend = make_backend(folder, plan.job_plan(), site, lease)
        return prove_step(lease, plan, backend).message


def prepare_task(root: str, processes: int) -> str:
    """Write what trainings read: corpora, held-out sets, tokenizer, tokens."""
    folder = ProveDir(Path(root))
    plan = ProvePlan.load(folder)

    def prepare() -> None:
        for arm in plan.arms:
            make_variant(folder, plan, arm, processes)
        for held_out in plan.section.held_out:
            prepare_held_out(folder, plan, held_out)
        prepare_tokenizer(folder, plan)
        for arm in plan.arms:
            prepare_tokens(folder, plan, arm)

    with tasks.job_progress(folder, "merge"):
        _under_lease(folder, "merge", prepare)
    return "done"


def train_task(root: str, number: int, of: int) -> str:
    """Train every `of`-th model that is missing, from `number` on."""
    folder = ProveDir(Path(root))
    plan = ProvePlan.load(folder)
    task = step_task()
    arms = {arm.name: arm for arm in plan.arms}
    for arm, seed in plan.trainings[number::of]:
        train = partial(train_arm, folder, plan, arms[arm], seed, _log)
        if task and task.rank:  # the first process of the step holds the lease
            train()
        else:
            with tasks.job_progress(folder, "train"):
                _under_lease(folder, f"{arm}-{seed}", train)
    return "done"


def _under_lease(folder: ProveDir, name: str, work: Callable[[], None]) -> None:
    """Do work that does nothing if it is done. Wait while another process does it."""
    while True:
        with ExitStack() as stack:
            lease = hold_lease(folder, name, Queue().is_queued, stale_after(folder))
            try:
                stack.enter_context(lease)
            except RetryError:  # perhaps a job of a launcher that was killed
                time.sleep(WAIT_SECONDS)
                continue
            return work()


def _log(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()

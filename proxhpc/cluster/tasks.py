"""The functions that jobs run. Their arguments are the run directory and numbers, never objects."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from proxhpc.cluster.backend import stale_after
from proxhpc.cluster.queue import Queue
from proxhpc.cluster.slurm import seconds_left
from proxhpc.run.lease import Lease, LeaseOwner, hold_lease
from proxhpc.run.merge_phases import MergePhaseName
from proxhpc.run.paths import RunDir
from proxhpc.run.pool import ReportProgress
from proxhpc.run.progress import ProgressLog

T = TypeVar("T")


def refine_task(root: str, number: int, workers: int) -> str:
    """Run worker `number` of `workers`; return its final state."""
    from proxhpc.worker.worker import Assignment, run_worker

    run = RunDir(Path(root))
    remaining = seconds_left()
    seconds = None if remaining is None else max(0.0, remaining - stop_margin(remaining))
    return run_worker(
        run, Assignment(number, workers, seconds, stale_after(run)), Queue().is_queued
    )


def refine_element_task(
    root: str, element: int, tasks_per_node: int, workers: int, workers_per_gpu: int = 1
) -> str:
    """Run this task's worker of an array element; the element's tasks split the node's GPUs."""
    from proxhpc.engines.device import WORKERS_PER_GPU

    os.environ[WORKERS_PER_GPU] = str(workers_per_gpu)
    local_id = int(os.environ.get("SLURM_LOCALID", "0"))
    if tasks_per_node > 1:
        narrow_gpus(local_id, tasks_per_node, workers_per_gpu)
    return refine_task(root, element * tasks_per_node + local_id, workers)


def call_with_resources(gpus: str, cpus: int, function: Callable[..., T], *arguments: Any) -> T:
    """Call `function` with only these GPUs visible and with one thread for each of its cores.

    Processes that each start a thread for every core of the machine slow each other down.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    os.environ.setdefault("OMP_NUM_THREADS", str(cpus))
    return function(*arguments)


def merge_task(root: str, processes: int, memory: int | None = None) -> str:
    """Merge the run in one job; return its final state. RetryError while another one merges it."""
    from proxhpc.assemble.merge import merge_run

    run = RunDir(Path(root))
    with job_progress(run, "merge") as progress, _merge_lease(run):
        merge_run(run, processes=processes, memory=memory, progress=progress)
    return "done"


def merge_phase_task(
    root: str,
    phase: MergePhaseName,
    number: int,
    elements: int,
    processes: int,
    memory: int | None = None,
) -> str:
    """Do the units of one merge phase that belong to element `number`; return its final state.

    Elements of a phase run at the same time. `match` and `start` have one element, which excludes
    other merges.
    """
    from proxhpc.assemble.phases import run_share

    run = RunDir(Path(root))
    lease = _merge_lease(run) if phase in ("match", "start") else nullcontext()
    with job_progress(run, "merge") as progress, lease:
        run_share(
            run,
            phase,
            (number, elements),
            processes=processes,
            memory=memory,
            progress=progress,
        )
    return "done"


def _merge_lease(run: RunDir) -> AbstractContextManager[Lease]:
    return hold_lease(run, "merge", Queue().is_queued, stale_after(run))


@contextmanager
def job_progress(run: RunDir, role: str) -> Iterator[ReportProgress]:
    """Write a progress file for a job that may stop anywhere, such as one of the merge."""
    log = ProgressLog(run, LeaseOwner.current(role), role)
    log.write("starting")
    # submitit ignores SIGTERM, and its handler of Slurm's warning before the limit needs a limit.
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, raise_interrupt)
    try:
        yield lambda *_: log.heartbeat()
    except BaseException as error:
        log.write("failed", error)
        raise
    log.write("done")


def raise_interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal like Ctrl-C, so that every `finally` runs."""
    raise KeyboardInterrupt


def stop_margin(left: float) -> float:
    """Return how many seconds before its time limit a worker stops, commits and exits."""
    return min(120.0, 0.1 * left)


def narrow_gpus(local_id: int, tasks: int, sharing: int = 1) -> None:
    """Reduce CUDA_VISIBLE_DEVICES to this task's part if Slurm gave each task all GPUs.

    `sharing` tasks have the same part. Entries may be numbers or UUIDs and are passed on unchanged.
    An empty variable stays empty.
    """
    visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    share, first = len(visible) * sharing // tasks, local_id // sharing
    if share:
        part = visible[first * share : (first + 1) * share]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(part)

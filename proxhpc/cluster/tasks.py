"""What a job runs. Jobs carry pointers only: the run directory and a number."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from proxhpc.cluster.backend import stale_after
from proxhpc.cluster.slurm import Queue, seconds_left
from proxhpc.run.lease import LeaseOwner, hold_lease
from proxhpc.run.paths import RunDir
from proxhpc.run.progress import ProgressLog

if TYPE_CHECKING:  # numpy: not before there is something to merge
    from proxhpc.assemble.phases import MergePhaseName
    from proxhpc.run.pool import ReportProgress

T = TypeVar("T")


def refine_task(root: str, number: int, of: int) -> str:
    """Be the worker `number` of `of`; its final state."""
    from proxhpc.worker.worker import Assignment, run_worker

    run = RunDir(Path(root))
    left = seconds_left()
    seconds = None if left is None else max(0.0, left - margin(left))
    return run_worker(run, Assignment(number, of, seconds, stale_after(run)), Queue().alive)


def refine_element(root: str, element: int, tasks_per_node: int, of: int) -> str:
    """Be one task of an array element: with several tasks a node, each takes a GPU of its own."""
    local = int(os.environ.get("SLURM_LOCALID", "0"))
    if tasks_per_node > 1:
        take_gpu(local, tasks_per_node)
    return refine_task(root, element * tasks_per_node + local, of)


def with_share(devices: str, cpus: int, function: Callable[..., T], *arguments: Any) -> T:
    """Call `function` with these GPUs visible, and no others, and as many threads as cores.

    Processes that each start a thread for every core of the machine wait for each other in vain.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = devices
    os.environ.setdefault("OMP_NUM_THREADS", str(cpus))
    return function(*arguments)


def merge_task(root: str, processes: int, memory: int | None = None) -> str:
    """Merge the run, alone; its final state. RetryError while somebody else merges it."""
    from proxhpc.assemble.merge import MEMORY, merge_run

    run = RunDir(Path(root))
    with _merging(run) as progress, hold_lease(run, "merge", Queue().alive, stale_after(run)):
        merge_run(run, processes=processes, memory=memory or MEMORY, progress=progress)
    return "done"


def merge_share(
    root: str,
    phase: "MergePhaseName",
    number: int,
    of: int,
    processes: int,
    memory: int | None = None,
) -> str:
    """Do share `number` of `of` of one phase of the merge; its final state.

    Others do theirs at the same time. The match has no shares, and is done alone, as a merge is.
    """
    from proxhpc.assemble.merge import MEMORY
    from proxhpc.assemble.phases import run_share

    run = RunDir(Path(root))
    alone = hold_lease(run, "merge", Queue().alive, stale_after(run))
    with _merging(run) as progress, alone if phase == "match" else nullcontext():
        run_share(
            run,
            phase,
            (number, of),
            processes=processes,
            memory=memory or MEMORY,
            progress=progress,
        )
    return "done"


@contextmanager
def _merging(run: RunDir) -> Iterator["ReportProgress"]:
    """Tell how a job of the merge fares, in a progress file of its own."""
    log = ProgressLog(run, LeaseOwner.current("merge"), "merge")
    log.write("starting")
    # submitit would swallow it. Every file of a merge is whole or absent, so it may end anywhere.
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield lambda *_: log.heartbeat()
    except BaseException as error:
        log.write("failed", error=type(error).__name__, message=str(error)[:2000])
        raise
    log.write("done")


def interrupt(number: int, frame: FrameType | None) -> None:
    """Signal handler: end as at Ctrl-C, through every `finally`."""
    raise KeyboardInterrupt


def margin(left: float) -> float:
    """Seconds before the limit at which a worker stops: commit, close, be gone."""
    return min(120.0, 0.1 * left)


def take_gpu(local: int, tasks: int) -> None:
    """Narrow CUDA_VISIBLE_DEVICES to this task's share where Slurm gave every task all GPUs.

    Entries may be numbers or UUIDs; they are passed on as they are.
    """
    visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    share = len(visible) // tasks
    if share:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible[local * share : (local + 1) * share])

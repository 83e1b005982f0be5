"""Processes that train one model together: on this node, or as the tasks of a Slurm job step.

Each has one GPU where there are GPUs. transformers and accelerate use the process group and the
variables that torchrun would set.
"""

import os
import signal
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from proxhpc.cluster.job_step import StepTask
from proxhpc.errors import ProxError, RetryError

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # Slurm warns with SIGUSR2
_COLLECTIVE_TIMEOUT = timedelta(
    days=1
)  # of a collective: the others wait while the first one evaluates
GRACE_S = 20.0  # for the others to end after one died
_FIRST_PORT, _PORTS = 20_000, 12_000  # below the ephemeral ports

T = TypeVar("T")
_Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Group:
    """The processes of a group, of which this node's have the ranks from `first` on.

    `meeting` is the URL at which they find each other. The node has `local_count` of them in all
    tasks, and this task's are numbered from `local_first` on.
    """

    meeting: str
    count: int
    first: int = 0
    local_first: int = 0
    local_count: int = 1
    threads: int = 1


def run_processes(
    count: int | None,
    worker: Callable[..., T],
    *arguments: object,
    log: _Log,
    task: StepTask | None = None,
) -> T:
    """Run `worker(*arguments, log)` in all processes of a group; the result of this task's first.

    `count` is the number in this task; None: one for each GPU. With `task`, the processes of all
    tasks of the job step form one group. `worker` must be a function of a module, and arguments and
    result must be picklable. ProxErrors of the processes are raised here; RetryError if one dies.
    """
    import torch

    step = task or StepTask("", 0, 1, 0, 1, "")
    count = count or max(1, torch.cuda.device_count() // step.local_count)
    if count * step.count == 1:
        return worker(*arguments, log)
    with tempfile.TemporaryDirectory(prefix="proxhpc-train-") as folder:
        meeting = Path(folder, "meeting").as_uri()
        if task:
            port = _FIRST_PORT + zlib.crc32(f"{step.step} {arguments}".encode()) % _PORTS
            meeting = f"tcp://{step.address}:{port}"
        group = _Group(
            meeting,
            count * step.count,
            count * step.rank,
            count * step.local_rank,
            count * step.local_count,
            max(1, torch.get_num_threads() // count),
        )
        results = _run_group(group, count, worker, arguments, log)
    for _, value in sorted(results.items()):
        if isinstance(value, ProxError):
            raise value
    result: T = results[group.first]
    return result


def _run_group(
    group: _Group,
    count: int,
    worker: Callable[..., object],
    arguments: tuple[object, ...],
    log: _Log,
) -> dict[int, Any]:
    """Run this task's processes; what they return or raise, by rank. RetryError if one dies."""
    from torch import multiprocessing

    messages = multiprocessing.get_context("spawn").SimpleQueue()
    results: dict[int, Any] = {}

    def receive() -> None:
        while not messages.empty():
            rank, is_log, value = messages.get()
            if is_log:
                log(value)
            else:
                results[rank] = value

    # They get SIGINT when this process dies.
    processes = multiprocessing.spawn(
        _main, (group, messages, worker, arguments), nprocs=count, join=False, daemon=True
    )

    def forward(number: int, frame: FrameType | None) -> None:
        for process in processes.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    try:
        with on_stop_signals(forward):  # they stop after a step
            while not processes.join(timeout=0.2, grace_period=GRACE_S):
                receive()
        receive()
    except multiprocessing.ProcessExitedException as error:
        receive()
        if not any(isinstance(value, ProxError) for value in results.values()):
            raise RetryError(
                f"process {error.error_index} of the training run: {error.msg}",
                hint="its error message is above; continue with --resume",
            ) from error
    return results


@contextmanager
def first_process_first() -> Iterator[bool]:
    """Let the first process of the group do something before the others; whether this is it."""
    from torch import distributed

    in_group = distributed.is_initialized()
    is_first = not in_group or distributed.get_rank() == 0
    if not is_first:
        distributed.barrier()
    yield is_first
    if is_first and in_group:
        distributed.barrier()


@contextmanager
def on_stop_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the signals that stop a training; only the main thread can."""
    with ExitStack() as previous:
        if threading.current_thread() is threading.main_thread():
            for number in _STOP_SIGNALS:
                previous.callback(signal.signal, number, signal.signal(number, handler))
        yield


def _main(
    index: int,
    group: _Group,
    messages: "SimpleQueue[tuple[int, bool, Any]]",
    worker: Callable[..., object],
    arguments: tuple[object, ...],
) -> None:
    """The main function of a process."""
    import torch

    rank, local_rank = group.first + index, group.local_first + index
    local = {"LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": group.local_count}
    numbers = {"RANK": rank, "WORLD_SIZE": group.count, **local}
    os.environ |= {name: str(value) for name, value in numbers.items()}
    os.environ["MASTER_ADDR"] = urlsplit(group.meeting).hostname or "localhost"  # is checked only
    os.environ.setdefault("OMP_NUM_THREADS", str(group.threads))  # or accelerate chooses
    torch.set_num_threads(group.threads)
    backend = "gloo"
    if gpus := torch.cuda.device_count():
        torch.cuda.set_device(local_rank % gpus)
        backend = "nccl" if group.local_count <= gpus else "gloo"
    torch.distributed.init_process_group(
        backend,
        init_method=group.meeting,
        rank=rank,
        world_size=group.count,
        timeout=_COLLECTIVE_TIMEOUT,
    )
    try:
        result = worker(*arguments, lambda line: messages.put((rank, True, line)))
        torch.distributed.destroy_process_group()
    except ProxError as error:
        result = error
    messages.put((rank, False, result))
    # Skip Python's finalization: a thread of the group that releases a tensor then aborts the
    # process (pytorch#190489), although its work is done.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(isinstance(result, ProxError)))

"""Processes that train one model together: on this node, or as the tasks of a Slurm job step.

Each has one GPU where there are GPUs. transformers and accelerate use the process group and the
variables that torchrun would set.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from proxhpc.cluster.job_step import StepTask
from proxhpc.engines.spawn import OrphanKiller
from proxhpc.errors import ProxError, RetryError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # Slurm warns with SIGUSR2
TIMEOUT = timedelta(days=1)  # of a collective: the others wait while the first one evaluates
GRACE_S = 20.0  # for the others to end after one died
_FIRST_PORT, _PORTS = 20_000, 12_000  # below the ephemeral ports

T = TypeVar("T")
Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Place:
    """A process in its group; `meeting` is the URL at which torch's processes find each other."""

    rank: int
    count: int
    local_rank: int
    local_count: int
    threads: int
    meeting: str


def run_processes(
    count: int | None,
    worker: Callable[..., T],
    *arguments: object,
    log: Log,
    task: StepTask | None = None,
) -> T:
    """Run `worker(*arguments, log)` in all processes of a group; the result of this node's first.

    `count` is the number on this node; None: one for each GPU. With `task`, the processes of all
    tasks of the job step form one group. `worker` must be a function of a module, and arguments and
    result must be picklable. ProxErrors of the processes are raised here; RetryError if one dies.
    """
    import torch

    tasks = task.count if task else 1
    if count is None:
        count = max(1, torch.cuda.device_count() // (task.local_count if task else 1))
    if count * tasks == 1:
        return worker(*arguments, log)
    threads = max(1, torch.get_num_threads() // count)
    with tempfile.TemporaryDirectory(prefix="proxhpc-train-") as folder:
        meeting = Path(folder, "meeting").as_uri()
        if task:
            port = _FIRST_PORT + zlib.crc32(f"{task.step} {arguments}".encode()) % _PORTS
            meeting = f"tcp://{task.address}:{port}"
        first, local = (task.rank, task.local_rank) if task else (0, 0)
        local_count = count * (task.local_count if task else 1)
        places = [
            _Place(
                first * count + n, tasks * count, local * count + n, local_count, threads, meeting
            )
            for n in range(count)
        ]
        return _run_places(places, worker, arguments, log)


def _run_places(
    places: Sequence[_Place], worker: Callable[..., T], arguments: tuple[object, ...], log: Log
) -> T:
    context = multiprocessing.get_context("spawn")
    messages = context.SimpleQueue()
    processes: list[BaseProcess] = [
        context.Process(target=_main, args=(place, messages, worker, arguments), daemon=True)
        for place in places
    ]
    results: dict[int, Any] = {}  # by rank

    def receive() -> None:
        while not messages.empty():
            rank, kind, value = messages.get()
            if kind == "log":
                log(value)
            else:
                results[rank] = value

    def forward(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.pid and process.is_alive():
                os.kill(process.pid, number)

    orphan_killer = OrphanKiller()
    try:
        for process in processes:
            process.start()
        orphan_killer.watch({process.pid for process in processes if process.pid})
        with on_stop_signals(forward):  # the processes stop after a step
            died = _wait(processes, receive)
    finally:
        orphan_killer.release()
    errors = [value for _, value in sorted(results.items()) if isinstance(value, ProxError)]
    if errors:
        raise errors[0]
    if died:
        raise RetryError(
            f"{died[1]} of the training run exited with {died[0]}",
            hint="its error message is above; continue with --resume",
        )
    result: T = results[places[0].rank]
    return result


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
            for number in STOP_SIGNALS:
                previous.callback(signal.signal, number, signal.signal(number, handler))
        yield


def _wait(processes: Sequence[BaseProcess], receive: Callable[[], None]) -> tuple[int, str] | None:
    """Wait until all have ended; kill those that another's death leaves waiting.

    Returns the exit code and the name of the process that died, None if none did.
    """
    deadline = float("inf")
    while alive := [process for process in processes if process.is_alive()]:
        wait([process.sentinel for process in alive], timeout=0.2)
        receive()
        if any(process.exitcode for process in processes):
            deadline = min(deadline, time.monotonic() + GRACE_S)
        if time.monotonic() > deadline:
            break
    died = sorted((process.exitcode, process.name) for process in processes if process.exitcode)
    for process in alive:
        process.kill()
        process.join()
    receive()
    return died[0] if died else None


def _main(
    place: _Place,
    messages: "SimpleQueue[tuple[int, str, Any]]",
    worker: Callable[..., object],
    arguments: tuple[object, ...],
) -> None:
    """The main function of a process."""
    import torch

    local = {"LOCAL_RANK": place.local_rank, "LOCAL_WORLD_SIZE": place.local_count}
    for name, value in {"RANK": place.rank, "WORLD_SIZE": place.count, **local}.items():
        os.environ[name] = str(value)
    os.environ.setdefault("OMP_NUM_THREADS", str(place.threads))  # or accelerate chooses
    torch.set_num_threads(place.threads)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
        backend = "nccl" if place.local_count <= torch.cuda.device_count() else "gloo"
    torch.distributed.init_process_group(
        backend, init_method=place.meeting, rank=place.rank, world_size=place.count, timeout=TIMEOUT
    )
    failed = False
    try:
        result = worker(*arguments, lambda line: messages.put((place.rank, "log", line)))
        messages.put((place.rank, "result", result))
    except ProxError as error:
        messages.put((place.rank, "result", error))
        failed = True
    if not failed:
        torch.distributed.destroy_process_group()
    # Skip Python's finalization: a thread of the group that releases a tensor then aborts the
    # process (pytorch#190489), although its work is done.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(failed))

"""Data-parallel training on one node: several processes, one GPU each where there are GPUs.

Each rank computes gradients on its own batches, and all apply the mean gradient, so that their
weights stay equal. Rank 0 is the process that called; it also evaluates, logs, saves checkpoints
and decides when to stop. The loop needs only three collectives and has its own optimizer step and
moving average, so it uses torch.distributed directly.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from proxhpc.engines.spawn import SIGNALS, OrphanKiller
from proxhpc.errors import RetryError

if TYPE_CHECKING:
    import torch
    from torch.distributed import TCPStore

HOST = "127.0.0.1"
COLLECTIVE_TIMEOUT = timedelta(days=1)  # the other ranks wait while rank 0 evaluates
GRACE_S = 20.0  # for a collective to fail by itself after a process died
_HINT = "its error message is above; continue with --resume"


@dataclass(frozen=True, slots=True)
class TrainingRanks:
    """The rank of a process among the `count` processes of a training run."""

    rank: int = 0
    count: int = 1

    def broadcast_weights(self, module: "torch.nn.Module") -> None:
        """Copy rank 0's weights to all ranks."""
        if self.count > 1:
            from torch import distributed

            for value in module.state_dict().values():
                distributed.broadcast(value, 0)

    def broadcast_progress(self, more: bool, done: float, device: str) -> tuple[bool, float]:
        """Rank 0's arguments: whether there is another step, and the share of the training done."""
        if self.count == 1:
            return more, done
        import torch

        message = torch.tensor([float(more), done], dtype=torch.float64, device=device)
        torch.distributed.broadcast(message, 0)
        return bool(message[0]), float(message[1])

    def average_gradients(self, parameters: "Sequence[torch.nn.Parameter]") -> None:
        """Replace each gradient by its mean over all ranks."""
        if self.count == 1:
            return
        import torch

        for parameter in parameters:
            if parameter.grad is None:  # this rank's batch did not use the parameter
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.reshape(-1) for parameter in parameters])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        means = flat.split([parameter.numel() for parameter in parameters])
        for parameter, mean in zip(parameters, means, strict=True):
            parameter.grad.copy_(mean.view_as(parameter))


@contextmanager
def launch_processes(
    count: int | None, worker: Callable[..., None], *arguments: object
) -> Iterator[TrainingRanks]:
    """Start the other processes of a training run; the caller becomes rank 0.

    `count` includes the caller; None: one process for each GPU. Each other process calls the
    module-level function `worker(*arguments, ranks)` and exits when that returns, or when this
    process dies. RetryError if one of them dies.
    """
    import torch
    from torch import distributed

    if count is None:
        count = max(1, torch.cuda.device_count())
    if count == 1:
        yield TrainingRanks()
        return
    threads = torch.get_num_threads()
    store = distributed.TCPStore(HOST, 0, count, True, COLLECTIVE_TIMEOUT, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = [
        context.Process(
            target=_run_worker,
            args=(TrainingRanks(rank, count), store.port, worker, arguments),
            daemon=True,
        )
        for rank in range(1, count)
    ]
    orphan_killer = OrphanKiller()
    try:
        for process in processes:
            process.start()
        orphan_killer.watch({process.pid for process in processes if process.pid})
        with _watched(processes):
            _join_group(TrainingRanks(0, count), store)
            yield TrainingRanks(0, count)
            for process in processes:
                process.join()
    finally:
        orphan_killer.release()
        if distributed.is_initialized():
            distributed.destroy_process_group()
        torch.set_num_threads(threads)


def _run_worker(
    ranks: TrainingRanks, port: int, worker: Callable[..., None], arguments: Sequence[object]
) -> None:
    """The main function of ranks above 0. Rank 0 signals when to stop, so they ignore SIGNALS."""
    from torch import distributed

    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    store = distributed.TCPStore(HOST, port, ranks.count, False, COLLECTIVE_TIMEOUT)
    _join_group(ranks, store)
    worker(*arguments, ranks)
    distributed.destroy_process_group()
    # Skip Python's finalization: a thread of the group that releases a tensor then aborts the
    # process (pytorch#190489), although its work is done.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _join_group(ranks: TrainingRanks, store: "TCPStore") -> None:
    """Join the process group, on a GPU of this rank's own or with its share of the CPU threads."""
    import torch

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.rank % torch.cuda.device_count())
        backend = "nccl" if ranks.count <= torch.cuda.device_count() else "gloo"
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // ranks.count))
    torch.distributed.init_process_group(
        backend,
        store=store,
        rank=ranks.rank,
        world_size=ranks.count,
        timeout=COLLECTIVE_TIMEOUT,
    )


@contextmanager
def _watched(processes: Sequence[BaseProcess]) -> Iterator[None]:
    """Raise RetryError when one of the processes dies.

    On CPUs the pending collective then fails by itself. On GPUs it may block forever in C, so
    this process exits after GRACE_S seconds with the error's exit code.
    """
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(1):
            if (death := _death(processes)) and not finished.wait(GRACE_S):
                sys.stderr.write(f"{death}; {_HINT}\n")
                os._exit(RetryError.exit_code)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except RuntimeError as error:
        finished.wait(2)  # the connection is closed before the exit code is known
        if death := _death(processes):
            raise RetryError(death, hint=_HINT) from error
        raise
    finally:
        finished.set()
        thread.join()
    if death := _death(processes):
        raise RetryError(death, hint=_HINT)


def _death(processes: Sequence[BaseProcess]) -> str:
    """Which process died; empty if none did."""
    died = (process for process in processes if process.exitcode)
    return next((f"{p.name} of the training run exited with {p.exitcode}" for p in died), "")

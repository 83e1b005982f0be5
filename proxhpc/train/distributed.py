"""Several processes that train one model on one node, a GPU each where there are GPUs.

Each learns from batches of its own and all move alike, by the mean of their gradients. The first
one, which is the process that was called, does all else: it judges, saves, and says when to end.
Written on torch.distributed as it is: the loop has optimizers and a moving average of its own, and
wants no more of a library than three collectives.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from proxhpc.engines.spawn import SIGNALS, OrphanKiller
from proxhpc.errors import RetryError

HOST = "127.0.0.1"
PATIENCE = timedelta(days=1)  # while the first one judges the others wait for its word
GRACE_S = 20.0  # for a collective to fail by itself when a process has died


class Ranks:
    """A process's place among the `count` of a training; the first one is `rank` 0."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def first(self) -> bool:
        """Whether this is the one that judges and saves."""
        return self.rank == 0

    def share(self, module: Any) -> None:
        """Give every process the first one's weights."""
        if self.count > 1:
            from torch import distributed

            for value in module.state_dict().values():
                distributed.broadcast(value, 0)

    def agree(self, go: bool, done: float, device: str) -> tuple[bool, float]:
        """Whether to make another step, and the share of the training done, as the first says."""
        if self.count == 1:
            return go, done
        import torch

        told = torch.tensor([float(go), done], dtype=torch.float64, device=device)
        torch.distributed.broadcast(told, 0)
        return bool(told[0]), float(told[1])

    def mean(self, parameters: Sequence[Any]) -> None:
        """Make every gradient the mean of those of all processes."""
        if self.count == 1:
            return
        import torch

        for parameter in parameters:
            if parameter.grad is None:  # not every batch has something for every parameter
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.reshape(-1) for parameter in parameters])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        at = 0
        for parameter in parameters:
            size = parameter.numel()
            parameter.grad.copy_(flat[at : at + size].view_as(parameter))
            at += size


def process_ranks() -> int:
    """How many processes a training on this machine is to have: one for each GPU."""
    import torch

    return max(1, int(torch.cuda.device_count()))


@contextmanager
def launch_processes(count: int, other: Callable[..., None], *arguments: Any) -> Iterator[Ranks]:
    """Start the other processes of a training, and be its first one.

    Each calls `other(*arguments, ranks)`, a function of a module, and ends when that returns, or
    with this process, however that ends. RetryError when one of them dies.
    """
    if count == 1:
        yield Ranks()
        return
    import torch
    from torch import distributed

    threads = torch.get_num_threads()
    store = distributed.TCPStore(HOST, 0, count, True, PATIENCE, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = [
        context.Process(target=_be, args=(rank, count, store.port, other, arguments), daemon=True)
        for rank in range(1, count)
    ]
    tie = OrphanKiller()
    try:
        for process in processes:
            process.start()
        tie.watch({process.pid for process in processes if process.pid})
        with _watched(processes):
            _join(0, count, store)
            yield Ranks(0, count)
            for process in processes:
                process.join()
    finally:
        tie.release()
        if distributed.is_initialized():
            distributed.destroy_process_group()
        torch.set_num_threads(threads)


def _be(rank: int, count: int, port: int, other: Callable[..., None], given: Sequence[Any]) -> None:
    """What a process but the first one does. It ends by the first one's word, not by signals."""
    from torch import distributed

    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    store = distributed.TCPStore(HOST, port, count, False, PATIENCE)
    _join(rank, count, store)
    other(*given, Ranks(rank, count))
    distributed.destroy_process_group()
    # Without Python's own end: a thread of the group's that lets go of a tensor then aborts the
    # process (pytorch#190489), whose work is done.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _join(rank: int, count: int, store: Any) -> None:
    """Become one of the group, on a device of one's own."""
    import torch

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())
        backend = "nccl" if count <= torch.cuda.device_count() else "gloo"
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=count, timeout=PATIENCE
    )


@contextmanager
def _watched(processes: Sequence[BaseProcess]) -> Iterator[None]:
    """Raise RetryError when one of the processes dies.

    A collective of the CPU's then fails by itself; one on GPUs may wait for ever, in C. So after a
    while this process ends as the error would have ended it.
    """
    done = threading.Event()
    dead: list[str] = []

    def watch() -> None:
        left = list(processes)
        while left and not done.is_set():
            wait([process.sentinel for process in left], timeout=1)
            for process in [process for process in left if process.exitcode is not None]:
                left.remove(process)
                if process.exitcode:
                    dead.append(f"{process.name} of the training ended with {process.exitcode}")
            if dead:
                if not done.wait(GRACE_S):
                    sys.stderr.write(f"{dead[0]}; go on with --resume\n")
                    os._exit(RetryError.exit_code)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except RuntimeError as error:
        done.wait(2)  # for the sentinel of who died to be seen
        if dead:
            raise RetryError(
                dead[0], hint="its last words are above; go on with --resume"
            ) from error
        raise
    finally:
        done.set()
        thread.join()
    if dead:
        raise RetryError(dead[0], hint="its last words are above; go on with --resume")

"""Runs units of work on a run, one after the other or in several processes.

A unit is a function of (run, plan, number). Its result must not depend on which process runs it,
when, or how often, so array elements on a cluster call the same functions.
"""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TypeVar

from proxhpc.errors import RetryError
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan

T = TypeVar("T")
Unit = Callable[[RunDir, Plan, int], T]
ReportProgress = Callable[[str, int, int], None]
_COLLECTED = 100_000  # objects between collections: units make many, and hardly any in cycles


@dataclass(frozen=True, slots=True)
class Pool:
    """Runs units for one command, in this process if `executor` is None.

    `progress` is called with a phase's name, its finished units and their total.
    """

    run: RunDir
    plan: Plan
    command: str
    processes: int = 1
    progress: ReportProgress | None = None
    executor: ProcessPoolExecutor | None = None

    def map(self, phase: str, unit: Unit[T], numbers: Iterable[int]) -> list[T]:
        """Results of a phase's units, in the order of `numbers`. Raises the first error."""
        numbers = list(numbers)
        results = dict(self.each(phase, unit, numbers))
        return [results[number] for number in numbers]

    def each(self, phase: str, unit: Unit[T], numbers: Iterable[int]) -> Iterator[tuple[int, T]]:
        """Number and result of each of a phase's units as it finishes, in any order."""
        numbers = list(numbers)
        progress = self.progress or (lambda phase, done, total: None)
        progress(phase, 0, len(numbers))
        for done, result in enumerate(self._results(unit, numbers), 1):
            yield result
            progress(phase, done, len(numbers))

    def _results(self, unit: Unit[T], numbers: list[int]) -> Iterator[tuple[int, T]]:
        if self.executor is None:
            for number in numbers:
                yield number, unit(self.run, self.plan, number)
            return
        try:
            futures: dict[Future[T], int] = {
                self.executor.submit(_call, unit, number): number for number in numbers
            }
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        except BrokenProcessPool as error:
            raise RetryError(
                f"a process of `proxhpc {self.command}` died; the kernel may have killed it for"
                " its memory",
                hint=f"run `proxhpc {self.command}` again with fewer processes or more memory",
            ) from error


@contextmanager
def open_pool(
    run: RunDir,
    plan: Plan,
    processes: int,
    progress: ReportProgress | None = None,
    *,
    command: str = "merge",
) -> Iterator[Pool]:
    """A pool of `processes`; with 1, units run in this process. An error stops all units at once.

    `command` is the verb that error messages name.
    """
    if processes <= 1:
        before = gc.get_threshold()
        gc.set_threshold(_COLLECTED)
        try:
            yield Pool(run, plan, command, progress=progress)
        finally:
            gc.set_threshold(*before)
        return
    earlier_children = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_initialize,
        initargs=(run, plan),
    )
    try:
        yield Pool(run, plan, command, processes, progress, executor)
        executor.shutdown()
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        # Units replace files atomically, so a process may be killed at any point.
        children = set(multiprocessing.active_children()) - earlier_children
        for child in children:
            child.terminate()
        for child in children:
            wait([child.sentinel])  # the executor's thread may have reaped it: join would fail
        raise


_state: tuple[RunDir, Plan] | None = None  # of a process of the pool: sent once, for all units


def _initialize(run: RunDir, plan: Plan) -> None:
    """Prepare a process of the pool, which must not outlive the one that opened it."""
    global _state
    gc.set_threshold(_COLLECTED)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent receives it too and stops us
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_exit_with, args=(parent.sentinel,), daemon=True).start()
    _state = run, plan


def _exit_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _call(unit: Unit[T], number: int) -> T:
    if _state is None:
        raise RuntimeError("not in a process of the pool")
    return unit(*_state, number)

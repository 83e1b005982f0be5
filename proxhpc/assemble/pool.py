"""Runs the units of a phase, one after the other or in several processes.

A unit is a function of (run, plan, number), as an array element of a cluster would call it. Its
results do not depend on who runs it, when, or how often.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import TypeVar

from proxhpc.errors import RetryError
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan

T = TypeVar("T")
Unit = Callable[[RunDir, Plan, int], T]
ReportProgress = Callable[[str, int, int], None]


class Pool:
    """Where units run; `progress` is told the phase, the units done and their number."""

    def __init__(
        self,
        run: RunDir,
        plan: Plan,
        executor: ProcessPoolExecutor | None,
        progress: ReportProgress | None,
        processes: int = 1,
    ) -> None:
        self.processes = processes
        self.run, self.plan = run, plan
        self._executor = executor
        self._progress = progress or (lambda phase, done, of: None)

    def map(self, phase: str, unit: Unit[T], numbers: Iterable[int]) -> list[T]:
        """Results of a phase's units, in the order of `numbers`; the first error is raised."""
        todo = list(numbers)
        results = dict(self.each(phase, unit, todo))
        return [results[number] for number in todo]

    def each(self, phase: str, unit: Unit[T], numbers: Iterable[int]) -> Iterator[tuple[int, T]]:
        """Number and result of each of a phase's units as it ends, in any order."""
        todo = list(numbers)
        self._progress(phase, 0, len(todo))
        for done, result in enumerate(self._results(unit, todo), 1):
            yield result
            self._progress(phase, done, len(todo))

    def _results(self, unit: Unit[T], todo: list[int]) -> Iterator[tuple[int, T]]:
        if self._executor is None:
            for number in todo:
                yield number, unit(self.run, self.plan, number)
            return
        try:
            futures: dict[Future[T], int] = {
                self._executor.submit(_call, unit, number): number for number in todo
            }
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        except BrokenProcessPool as error:
            raise RetryError(
                "a process of the merge died; the kernel may have killed it for its memory",
                hint="merge again, with fewer processes or more memory: it goes on where it was",
            ) from error


@contextmanager
def open_pool(
    run: RunDir, plan: Plan, processes: int, progress: ReportProgress | None = None
) -> Iterator[Pool]:
    """A pool of `processes`, this one alone for 1. On an error its work is stopped at once."""
    if processes <= 1:
        yield Pool(run, plan, None, progress)
        return
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(run, plan),
    )
    try:
        yield Pool(run, plan, executor, progress, processes)
        executor.shutdown()
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        # Every file of the merge is whole or absent, so a unit may die anywhere.
        children = set(multiprocessing.active_children()) - others
        for child in children:
            child.terminate()
        for child in children:
            wait([child.sentinel])  # the executor's own thread may have taken its exit status
        raise


_state: tuple[RunDir, Plan] | None = None  # of a process of the pool: sent once, for all units


def _start(run: RunDir, plan: Plan) -> None:
    """Begin a process of the pool, which lives no longer than the one that opened it."""
    global _state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends us
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    _state = run, plan


def _die_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _call(unit: Unit[T], number: int) -> T:
    if _state is None:
        raise RuntimeError("not in a process of the pool")
    return unit(*_state, number)

"""Rows of whole numbers sorted in bounded memory; what does not fit waits on disk."""

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from proxhpc.corpus.disk import write_all, writing

IntRows = npt.NDArray[np.int64]
"""Shape (rows, columns)."""

CONCURRENT_SORTERS = (
    6  # that hold their rows at the same time, with what is made of a block of them
)
_MIN_ROWS = 1024  # rows that are held whatever the memory
MAX_MERGED_RUNS = 16  # that are merged at a time


@dataclass(frozen=True, slots=True)
class Scratch:
    """Where rows wait, and the bytes that all that are held together may take."""

    folder: Path
    memory: int

    def max_rows(self, columns: int) -> int:
        """How many rows one sorter may hold: with copies, their order and what is compared."""
        return max(_MIN_ROWS, self.memory // CONCURRENT_SORTERS // (24 * columns + 32))


class RowBuffer:
    """Rows that are held together, `limit` at most."""

    def __init__(self, limit: int, columns: int) -> None:
        self._limit, self._columns = limit, columns
        self._waiting: list[IntRows] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, rows: IntRows) -> Iterator[IntRows]:
        """Take in more rows; all that were held are given back where there is no room for more."""
        for start in range(0, len(rows), self._limit):
            some = rows[start : start + self._limit]
            if self._count + len(some) > self._limit:
                yield self.take()
            self._waiting.append(some)
            self._count += len(some)

    def take(self) -> IntRows:
        """All rows that are held, which no longer are."""
        rows: IntRows = np.concatenate([np.empty((0, self._columns), np.int64), *self._waiting])
        self._waiting.clear()
        self._count = 0
        return rows


class Sorter:
    """Takes rows, and gives each of them once, ascending by the first column, then the next."""

    def __init__(self, scratch: Scratch, columns: int) -> None:
        self.columns = columns
        self._scratch = scratch
        self._limit = scratch.max_rows(columns)
        self._held = RowBuffer(self._limit, columns)
        self._runs: list[_SortedRun] = []

    def add(self, rows: IntRows) -> None:
        """Take more rows, in any order."""
        for full in self._held.add(rows):
            self._spill(full)

    def __iter__(self) -> Iterator[IntRows]:
        """All rows, in blocks; as often as they are asked for."""
        if not self._runs:
            rows = sorted_unique(self._held.take())
            self.add(rows)
            if len(rows):
                yield rows
            return
        if self._held:
            self._spill(self._held.take())
        while len(self._runs) > MAX_MERGED_RUNS:
            file = _RunFile(self._scratch.folder, self.columns)
            some = [
                self._runs[at : at + MAX_MERGED_RUNS]
                for at in range(0, len(self._runs), MAX_MERGED_RUNS)
            ]
            self._runs = [file.write(_merge_runs(runs, self._limit)) for runs in some]
        yield from _merge_runs(self._runs, self._limit)

    def _spill(self, rows: IntRows) -> None:
        file = self._runs[-1].file if self._runs else _RunFile(self._scratch.folder, self.columns)
        self._runs.append(file.write([sorted_unique(rows)]))


class _RunFile:
    """Sorted runs one behind the other, in a file without a name: a killed process leaves none."""

    def __init__(self, folder: Path, columns: int) -> None:
        self._fd, name = tempfile.mkstemp(dir=folder)
        os.unlink(name)
        self._path = folder / "sorting"  # for errors
        weakref.finalize(self, os.close, self._fd)
        self._columns = columns
        self._rows = 0

    def write(self, blocks: Iterable[IntRows]) -> "_SortedRun":
        """Write sorted blocks as the next run."""
        start = self._rows
        for rows in blocks:
            with writing(self._path):
                data = np.ascontiguousarray(rows).data.cast("B")
                write_all(self._fd, data, self._rows * self._columns * 8)
            self._rows += len(rows)
        return _SortedRun(self, start, self._rows)

    def read(self, start: int, stop: int) -> IntRows:
        """So many rows of those that were written."""
        size = self._columns * 8
        data = os.pread(self._fd, (stop - start) * size, start * size)
        return np.frombuffer(data, np.int64).reshape(-1, self._columns)


@dataclass(frozen=True, slots=True)
class _SortedRun:
    """Where sorted rows lie."""

    file: _RunFile
    start: int
    end: int


class _RunCursor:
    """What is left of a run, of which some is in memory."""

    def __init__(self, run: _SortedRun) -> None:
        self._run, self._at = run, run.start
        self.rows = run.file.read(run.start, run.start)

    @property
    def more(self) -> bool:
        """Whether there are rows behind those in memory."""
        return self._at < self._run.end

    def fill(self, count: int) -> None:
        """Have some rows in memory, if there are any left."""
        if not len(self.rows) and self.more:
            self.rows = self._run.file.read(self._at, min(self._run.end, self._at + count))
            self._at += len(self.rows)

    def take(self, edge: tuple[int, ...] | None) -> IntRows:
        """Take out the rows up to `edge`, all for None."""
        count = len(self.rows) if edge is None else _count_up_to(self.rows, edge)
        taken, self.rows = self.rows[:count], self.rows[count:]
        return taken


def _merge_runs(runs: Iterable[_SortedRun], limit: int) -> Iterator[IntRows]:
    """The rows of some runs, of which so many are in memory at a time."""
    heads = [_RunCursor(run) for run in runs]
    share = max(1, limit // len(heads))
    while heads:
        for head in heads:
            head.fill(share)
        # What is up to the last of the rows of any run has been read of every run.
        edge = min((tuple(head.rows[-1].tolist()) for head in heads if head.more), default=None)
        yield sorted_unique(np.concatenate([head.take(edge) for head in heads]))
        heads = [head for head in heads if head.more or len(head.rows)]


def _count_up_to(rows: IntRows, edge: tuple[int, ...]) -> int:
    """How many of some sorted rows are not behind `edge`."""
    low, high = 0, len(rows)
    for column, value in enumerate(edge):
        own = rows[low:high, column]
        low, high = (low + int(np.searchsorted(own, value, side)) for side in ("left", "right"))
    return high


def sorted_unique(rows: IntRows) -> IntRows:
    """Each of the rows once, ascending."""
    rows = rows[np.lexsort(rows.T[::-1])]
    first = np.ones(len(rows), np.bool_)
    np.any(rows[1:] != rows[:-1], axis=1, out=first[1:])
    return rows if first.all() else rows[first]


def group_leaders(
    *columns: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Which rows of sorted columns begin a run of equals, and for each row where its run begins."""
    leads = np.ones(len(columns[0]), np.bool_)
    leads[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return leads, np.flatnonzero(leads)[np.cumsum(leads) - 1]


def with_leaders(blocks: Iterator[IntRows] | Sorter) -> Iterator[tuple[IntRows, IntRows]]:
    """Blocks of sorted rows, and for each row the first one with the same first column."""
    last = None
    for rows in blocks:
        first = rows[group_leaders(rows[:, 0])[1]]
        if last is not None and last[0] == rows[0, 0]:
            first[: np.searchsorted(rows[:, 0], last[0], "right")] = last
        last = first[-1].copy()
        yield rows, first

"""Rows of integers sorted in bounded memory, on disk where they do not fit."""

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

Flags = npt.NDArray[np.bool_]

DEFAULT_MEMORY = 1 << 30  # bytes for sorting, in all processes together
CONCURRENT_SORTERS = 6  # that hold rows at the same time, counting copies of a block
_MIN_ROWS = 1024  # that a sorter may hold, however little the memory
MAX_MERGED_RUNS = 16  # at a time


@dataclass(frozen=True, slots=True)
class Scratch:
    """A folder for rows on disk, and the bytes of memory that all sorters share."""

    folder: Path
    memory: int

    def max_rows(self, columns: int) -> int:
        """How many rows one sorter may hold, allowing for copies, their order and comparisons."""
        return max(_MIN_ROWS, self.memory // CONCURRENT_SORTERS // (24 * columns + 32))


class RowBuffer:
    """Holds at most `limit` rows."""

    def __init__(self, limit: int, columns: int) -> None:
        self._limit, self._columns = limit, columns
        self._blocks: list[IntRows] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, rows: IntRows) -> Iterator[IntRows]:
        """Add rows; whenever the buffer is full, yield what it held."""
        for start in range(0, len(rows), self._limit):
            block = rows[start : start + self._limit]
            if self._count + len(block) > self._limit:
                yield self.take()
            self._blocks.append(block)
            self._count += len(block)

    def take(self) -> IntRows:
        """Remove and return all rows."""
        rows: IntRows = np.concatenate([np.empty((0, self._columns), np.int64), *self._blocks])
        self._blocks.clear()
        self._count = 0
        return rows


class Sorter:
    """Yields rows in ascending order of their first `keys` columns, by default of all.

    Of rows with equal keys, it yields one.
    """

    def __init__(self, scratch: Scratch, columns: int, keys: int | None = None) -> None:
        self.columns = columns
        self._keys = keys or columns
        self._scratch = scratch
        self._limit = scratch.max_rows(columns)
        self._buffer = RowBuffer(self._limit, columns)
        self._runs: list[SortedRun] = []

    def add(self, rows: IntRows) -> None:
        """Add rows, in any order."""
        for block in self._buffer.add(rows):
            self._spill(block)

    def __iter__(self) -> Iterator[IntRows]:
        """All rows, in blocks; may be called repeatedly."""
        if not self._runs:
            rows = sorted_unique(self._buffer.take(), self._keys)
            self.add(rows)
            if len(rows):
                yield rows
            return
        if self._buffer:
            self._spill(self._buffer.take())
        while len(self._runs) > MAX_MERGED_RUNS:
            file, starts = self._new_file(), range(0, len(self._runs), MAX_MERGED_RUNS)
            batches = [self._runs[start : start + MAX_MERGED_RUNS] for start in starts]
            self._runs = [file.write(self._merged(runs)) for runs in batches]
        yield from self._merged(self._runs)

    def _merged(self, runs: Iterable["SortedRun"]) -> Iterator[IntRows]:
        return _merge_runs(runs, self._limit, self._keys)

    def _spill(self, rows: IntRows) -> None:
        file = self._runs[-1].file if self._runs else self._new_file()
        self._runs.append(file.write([sorted_unique(rows, self._keys)]))

    def _new_file(self) -> "RunFile":
        return RunFile(self._scratch.folder, self.columns)


class RunFile:
    """Sorted runs, one after the other, in a file without a name: a killed process leaves none."""

    def __init__(self, folder: Path, columns: int) -> None:
        self._fd, name = tempfile.mkstemp(dir=folder)
        os.unlink(name)
        self._path = folder / "sorting"  # for errors
        weakref.finalize(self, os.close, self._fd)
        self._columns = columns
        self._rows = 0

    def write(self, blocks: Iterable[IntRows]) -> "SortedRun":
        """Append sorted blocks as one run."""
        start = self._rows
        for rows in blocks:
            with writing(self._path):
                data = np.ascontiguousarray(rows).data.cast("B")
                write_all(self._fd, data, self._rows * self._columns * 8)
            self._rows += len(rows)
        return SortedRun(self, start, self._rows)

    def read(self, start: int, stop: int) -> IntRows:
        """The rows in [start, stop)."""
        size = self._columns * 8
        data = os.pread(self._fd, (stop - start) * size, start * size)
        return np.frombuffer(data, np.int64).reshape(-1, self._columns)


@dataclass(frozen=True, slots=True)
class SortedRun:
    """The rows [start, end) of a file."""

    file: RunFile
    start: int
    end: int


class _RunCursor:
    """The rows of a run that are not merged yet; `rows` are the first of them, in memory."""

    def __init__(self, run: SortedRun) -> None:
        self._run, self._next = run, run.start
        self.rows = run.file.read(run.start, run.start)

    @property
    def has_more(self) -> bool:
        """Whether there are rows on disk after those in memory."""
        return self._next < self._run.end

    def fill(self, count: int) -> None:
        """Read the next `count` rows if none is in memory."""
        if not len(self.rows) and self.has_more:
            self.rows = self._run.file.read(self._next, min(self._run.end, self._next + count))
            self._next += len(self.rows)

    def take(self, last: tuple[int, ...] | None) -> IntRows:
        """Remove and return the rows in memory up to the row `last`, or all for None."""
        count = len(self.rows) if last is None else _count_up_to(self.rows, last)
        rows, self.rows = self.rows[:count], self.rows[count:]
        return rows


def _merge_runs(runs: Iterable[SortedRun], limit: int, keys: int) -> Iterator[IntRows]:
    """Merge sorted runs, holding about `limit` rows in memory."""
    cursors = [_RunCursor(run) for run in runs]
    share = max(1, limit // len(cursors))
    while cursors:
        for cursor in cursors:
            cursor.fill(share)
        # Of every run, all rows up to the smallest of these last rows are in memory.
        last = min((tuple(c.rows[-1, :keys].tolist()) for c in cursors if c.has_more), default=None)
        yield sorted_unique(np.concatenate([cursor.take(last) for cursor in cursors]), keys)
        cursors = [cursor for cursor in cursors if cursor.has_more or len(cursor.rows)]


def _count_up_to(rows: IntRows, last: tuple[int, ...]) -> int:
    low, high = 0, len(rows)
    for index, value in enumerate(last):
        column = rows[low:high, index]
        low, high = (low + int(np.searchsorted(column, value, side)) for side in ("left", "right"))
    return high


def sorted_unique(rows: IntRows, keys: int | None = None) -> IntRows:
    """Each distinct row once, ascending; rows are equal if their first `keys` columns are."""
    columns = rows[:, :keys]
    order = np.argsort(columns[:, 0])  # by one column first: most rows differ there
    first = columns[order, 0]
    same = np.zeros(len(rows) + 1, np.bool_)
    same[1:-1] = first[1:] == first[:-1]
    tied = np.flatnonzero(same[1:] | same[:-1])
    if not len(tied):
        return rows[order]
    among = order[tied]
    order[tied] = among = among[np.lexsort(columns[among].T[::-1])]
    repeated = (columns[among[1:]] == columns[among[:-1]]).all(axis=1)
    return rows[np.delete(order, tied[1:][repeated])]


def group_leaders(*columns: npt.NDArray[Any]) -> tuple[Flags, npt.NDArray[np.int64]]:
    """Which rows of sorted columns are the first of equal ones, and each row's first, by index."""
    is_leader = np.ones(len(columns[0]), np.bool_)
    is_leader[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return is_leader, np.flatnonzero(is_leader)[np.cumsum(is_leader) - 1]


def with_leaders(blocks: Iterable[IntRows], columns: int = 1) -> Iterator[tuple[IntRows, IntRows]]:
    """Yield the blocks of sorted rows, and for each row the first row with its first columns."""
    last = None
    for rows in blocks:
        if not len(rows):
            continue
        _, first = group_leaders(*rows[:, :columns].T)
        leaders = rows[first]
        if last is not None and (last[:columns] == rows[0, :columns]).all():
            leaders[first == 0] = last
        last = leaders[-1].copy()
        yield rows, leaders


class SortedCursor:
    """Takes sorted rows from their beginning, as far as they are needed."""

    def __init__(self, blocks: Iterable[IntRows], columns: int) -> None:
        self._blocks = iter(blocks)
        self._none = np.empty((0, columns), np.int64)
        self._rows = next(self._blocks, self._none)

    def take(self, last: int) -> IntRows:
        """Remove and return the rows whose first column is at most `last`."""
        taken = [self._none]
        while len(self._rows):
            count = int(np.searchsorted(self._rows[:, 0], last, "right"))
            taken.append(self._rows[:count])
            self._rows = self._rows[count:]
            if len(self._rows):
                break
            self._rows = next(self._blocks, self._none)
        return np.concatenate(taken)

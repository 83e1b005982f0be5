"""Rows of whole numbers sorted in bounded memory; what does not fit waits on disk."""

import os
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
"""Shape (rows, columns)."""

SORTERS = 6  # that hold their rows at the same time, with what is made of a block of them
LEAST = 1024  # rows that are held whatever the memory


@dataclass(frozen=True, slots=True)
class Scratch:
    """Where rows wait, and the bytes that all that are held together may take."""

    folder: Path
    memory: int

    def rows(self, columns: int) -> int:
        """How many rows one sorter may hold: with copies, their order and what is compared."""
        return max(LEAST, self.memory // SORTERS // (24 * columns + 32))


class Sorter:
    """Takes rows, and gives each of them once, ascending by the first column, then the next."""

    def __init__(self, scratch: Scratch, columns: int) -> None:
        self.columns = columns
        self._scratch = scratch
        self._limit = scratch.rows(columns)
        self._waiting: list[Rows] = []
        self._held = 0
        self._fd = -1
        self._ends = [0]  # of sorted runs in the file, in rows

    def add(self, rows: Rows) -> None:
        """Take more rows, in any order."""
        for start in range(0, len(rows), self._limit):
            some = rows[start : start + self._limit]
            if self._held + len(some) > self._limit:
                self._spill()
            self._waiting.append(some)
            self._held += len(some)

    def __iter__(self) -> Iterator[Rows]:
        """All rows, in blocks; as often as they are asked for."""
        if len(self._ends) == 1:
            rows = self._sorted()
            self._waiting, self._held = [rows], len(rows)
            if self._held:
                yield rows
            return
        self._spill()
        yield from self._merged()

    def _sorted(self) -> Rows:
        return ordered(np.concatenate([np.empty((0, self.columns), np.int64), *self._waiting]))

    def _spill(self) -> None:
        if not self._held:
            return
        if self._fd < 0:
            # Without a name, so that whoever is killed leaves nothing.
            self._fd, name = tempfile.mkstemp(dir=self._scratch.folder)
            os.unlink(name)
            weakref.finalize(self, os.close, self._fd)
        rows = self._sorted()
        self._waiting.clear()
        self._held = 0
        start, data = self._ends[-1], rows.data.cast("B")
        self._ends.append(start + len(rows))
        at = start * self.columns * 8
        while data:
            done = os.pwrite(self._fd, data, at)
            data, at = data[done:], at + done

    def _merged(self) -> Iterator[Rows]:
        runs = [_Run(self, *edges) for edges in pairwise(self._ends)]
        share = max(1, self._limit // len(runs))
        while runs:
            for run in runs:
                run.fill(share)
            # What is up to the last of the rows of any run has been read of every run.
            edges = [tuple(run.rows[-1].tolist()) for run in runs if run.more]
            yield ordered(np.concatenate([run.take(min(edges, default=None)) for run in runs]))
            runs = [run for run in runs if run.more or len(run.rows)]

    def _read(self, start: int, stop: int) -> Rows:
        size = self.columns * 8
        data = os.pread(self._fd, (stop - start) * size, start * size)
        return np.frombuffer(data, np.int64).reshape(-1, self.columns)


class _Run:
    """Sorted rows in the file, and those of them in memory."""

    def __init__(self, sorter: Sorter, start: int, end: int) -> None:
        self._sorter, self._at, self._end = sorter, start, end
        self.rows = np.empty((0, sorter.columns), np.int64)

    @property
    def more(self) -> bool:
        return self._at < self._end

    def fill(self, count: int) -> None:
        """Have some rows in memory, if there are any left."""
        if not len(self.rows) and self.more:
            self.rows = self._sorter._read(self._at, min(self._end, self._at + count))
            self._at += len(self.rows)

    def take(self, edge: tuple[int, ...] | None) -> Rows:
        """Take out the rows up to `edge`, all for None."""
        count = len(self.rows) if edge is None else _upto(self.rows, edge)
        taken, self.rows = self.rows[:count], self.rows[count:]
        return taken


def _upto(rows: Rows, edge: tuple[int, ...]) -> int:
    """How many of some sorted rows are not behind `edge`."""
    low, high = 0, len(rows)
    for column, value in enumerate(edge):
        own = rows[low:high, column]
        low, high = (low + int(np.searchsorted(own, value, side)) for side in ("left", "right"))
    return high


def ordered(rows: Rows) -> Rows:
    """Each of the rows once, ascending."""
    rows = rows[np.lexsort(rows.T[::-1])]
    first = np.ones(len(rows), np.bool_)
    np.any(rows[1:] != rows[:-1], axis=1, out=first[1:])
    return rows if first.all() else rows[first]


def heads(blocks: Iterator[Rows] | Sorter) -> Iterator[tuple[Rows, Rows]]:
    """Blocks of sorted rows, and for each row the first one with the same first column."""
    last = None
    for rows in blocks:
        leads = np.ones(len(rows), np.bool_)
        np.not_equal(rows[1:, 0], rows[:-1, 0], out=leads[1:])
        first = rows[np.flatnonzero(leads)[np.cumsum(leads) - 1]]
        if last is not None and last[0] == rows[0, 0]:
            first[: np.searchsorted(rows[:, 0], last[0], "right")] = last
        last = first[-1].copy()
        yield rows, first

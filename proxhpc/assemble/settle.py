"""The round that decides which documents are removed, from the pairs of similar ones.

Documents are taken in order of priority. One that is not removed yet stays, and removes every worse
document that it is similar to. So each removed document is similar to its survivor, and no document
that stays is similar to a better one that does.

The documents that come first in a pair are taken in blocks. What a block removes of later blocks is
sent to these as messages, so memory does not grow with the pairs.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from proxhpc.assemble.rounds import Documents, RoundFiles, RowKind, group_of
from proxhpc.dedup.sorting import (
    IntRows,
    RowBuffer,
    RunFile,
    Scratch,
    SortedRun,
    Sorter,
    group_leaders,
    sorted_unique,
)
from proxhpc.run.shards import shard_groups

_PRIORITY = 3  # columns: two ranks and the document
_WORSE, _THOUSANDTHS = 5, 6  # columns of edges


def settle(files: RoundFiles, unit: int) -> None:
    """Write the removed documents, each with every similar document that stays.

    The second column numbers these by priority: the document's survivor has the smallest number.
    """
    own_groups = len(shard_groups(files.plan))
    edges = Sorter(files.scratch, _THOUSANDTHS + 1, _THOUSANDTHS)
    near = files.plan.manifest.dedup.near
    kinds: list[RowKind] = ["edges"]
    if near and near.verify == "text":
        kinds.append("text_edges")
    for kind in kinds:
        for rows in files.read(kind, unit):
            edges.add(rows[group_of(rows[:, _WORSE]) < own_groups])
    removed = files.writer("removed", unit)
    for rows in remove_similar(files.scratch, edges):
        removed.add(group_of(rows[:, 0]), rows)
    removed.finish()


def remove_similar(scratch: Scratch, edges: Sorter) -> Iterator[IntRows]:
    """Yield the rows of `removed` from sorted edges without pairs of external documents."""
    blocks = _Blocks(scratch, edges)
    messages = _Messages(scratch)
    number, block = -1, _Block(np.empty(0, np.int64))
    for ordinals, rows in _numbered(edges):
        cuts = np.flatnonzero(np.diff(ordinals // blocks.size, prepend=-1, append=-1)).tolist()
        for start, stop in pairwise(cuts):
            if (wanted := int(ordinals[start]) // blocks.size) != number:
                number, block = wanted, _Block(blocks.read(wanted))
                for documents in messages.take(number):
                    block.remove(documents)
            part = rows[start:stop]
            better, worse = ordinals[start:stop], part[:, _WORSE]
            kept = block.process(better - number * blocks.size, worse)
            part, better, worse = part[kept], better[kept], worse[kept]
            destinations = blocks.find(part[:, _PRIORITY : 2 * _PRIORITY])
            later = destinations > number
            messages.send(np.stack([destinations[later], worse[later]], axis=1))
            yield np.stack([worse, better, part[:, 2], part[:, _THOUSANDTHS]], axis=1)


class _Blocks:
    """The documents that come first in an edge, by priority, `size` in a block."""

    def __init__(self, scratch: Scratch, edges: Sorter) -> None:
        self.size = scratch.max_rows(_PRIORITY)
        self._file = RunFile(scratch.folder, _PRIORITY)
        self._count = self._file.write(_first_documents(edges)).end
        firsts = range(0, self._count, self.size)
        self._starts = np.concatenate(
            [np.empty((0, _PRIORITY), np.int64), *(self._file.read(n, n + 1) for n in firsts)]
        )

    def read(self, number: int) -> Documents:
        """The documents of a block."""
        start = number * self.size
        return self._file.read(start, min(self._count, start + self.size))[:, 2]

    def find(self, priorities: IntRows) -> npt.NDArray[np.int64]:
        """The block in whose range each priority is, by bisection."""
        low, high = np.zeros((2, len(priorities)), np.int64)
        high += len(self._starts)
        while (high - low > 1).any():
            middle = (low + high) // 2
            after = ~_precedes(priorities, self._starts[middle])
            low, high = np.where(after, middle, low), np.where(after, high, middle)
        return low


class _Block:
    """Which of a block's documents, by number in the block, are removed."""

    def __init__(self, documents: Documents) -> None:
        self._order = np.argsort(documents)
        self._sorted = documents[self._order]
        self._removed = bytearray(len(documents))

    def remove(self, documents: Documents) -> None:
        """Remove those of these documents that are in the block."""
        numbers = self._numbers(documents)
        np.frombuffer(self._removed, np.uint8)[numbers[numbers >= 0]] = 1

    def process(self, better: npt.NDArray[np.int64], worse: Documents) -> npt.NDArray[np.bool_]:
        """Take the next edges, from a document of the block by number; which remove the other."""
        removed, kept = self._removed, bytearray(len(better))
        pairs = zip(better.tolist(), self._numbers(worse).tolist(), strict=True)
        for edge, (left, right) in enumerate(pairs):
            if not removed[left]:
                kept[edge] = 1
                if right >= 0:
                    removed[right] = 1
        return np.frombuffer(kept, np.bool_)

    def _numbers(self, documents: Documents) -> npt.NDArray[np.int64]:
        """The documents' numbers in the block, -1 for those of other blocks."""
        places = np.searchsorted(self._sorted, documents)
        places[places == len(self._sorted)] = 0
        found = self._sorted[places] == documents
        return np.where(found, self._order[places], -1)


class _Messages:
    """Removed documents of later blocks: rows of a block and a document."""

    def __init__(self, scratch: Scratch) -> None:
        self._limit = scratch.max_rows(2)
        self._buffer = RowBuffer(self._limit, 2)
        self._file = RunFile(scratch.folder, 2)
        self._runs: list[_Mail] = []

    def send(self, rows: IntRows) -> None:
        """Send documents to later blocks."""
        for block in self._buffer.add(rows):
            self._runs.append(_Mail(self._file.write([sorted_unique(block)])))

    def take(self, number: int) -> Iterator[Documents]:
        """Yield the documents that were sent to a block; blocks are asked for in order."""
        rows = self._buffer.take()
        mine = rows[:, 0] == number
        self.send(rows[~mine])
        yield rows[mine, 1]
        for mail in self._runs:
            yield from mail.take(number, self._limit)


class _Mail:
    """Sorted messages on disk, of which those before `_next` are delivered."""

    def __init__(self, run: SortedRun) -> None:
        self._run, self._next = run, run.start
        self._block = 0  # no message is for an earlier block

    def take(self, number: int, limit: int) -> Iterator[Documents]:
        """Yield the documents that were sent to a block."""
        while self._block <= number and self._next < self._run.end:
            rows = self._run.file.read(self._next, min(self._run.end, self._next + limit))
            count = int(np.searchsorted(rows[:, 0], number, "right"))
            self._next += count
            yield rows[:count, 1]
            if count < len(rows):
                self._block = int(rows[count, 0])


def _first_documents(edges: Iterable[IntRows]) -> Iterator[IntRows]:
    """Yield each document that comes first in an edge once, by priority."""
    for is_first, rows in _with_firsts(edges):
        if is_first.any():
            yield rows[is_first, :_PRIORITY]


def _numbered(edges: Iterable[IntRows]) -> Iterator[tuple[npt.NDArray[np.int64], IntRows]]:
    """Yield the edges, each with the number by priority of its first document."""
    count = -1
    for is_first, rows in _with_firsts(edges):
        numbers = count + np.cumsum(is_first)
        count = int(numbers[-1])
        yield numbers, rows


def _with_firsts(edges: Iterable[IntRows]) -> Iterator[tuple[npt.NDArray[np.bool_], IntRows]]:
    """Yield the edges, and which of them are the first of their first document."""
    last = None
    for rows in filter(len, edges):
        is_first, _ = group_leaders(*rows[:, :_PRIORITY].T)
        is_first[0] = last is None or bool((last != rows[0, :_PRIORITY]).any())
        last = rows[-1, :_PRIORITY].copy()
        yield is_first, rows


def _precedes(left: IntRows, right: IntRows) -> npt.NDArray[np.bool_]:
    """Which rows are smaller than the other ones, column by column."""
    smaller = np.zeros(len(left), np.bool_)
    for a, b in zip(left.T[::-1], right.T[::-1], strict=True):
        smaller = (a < b) | ((a == b) & smaller)
    return smaller

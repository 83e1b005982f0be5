"""Duplicate sets from pairs of documents: connected components in bounded memory.

Pairs that fit into memory are joined there. Of more pairs, each block is reduced to stars, which
link every document of a set to its first one. Stars are joined by sorting, with the alternating
algorithm of Kiveris et al. (Connected Components in MapReduce and Beyond, SoCC 2014).
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from proxhpc.dedup.sorting import IntRows, RowBuffer, Scratch, Sorter, with_leaders

Documents = npt.NDArray[np.int64]
"""Numbers of documents in the whole run, in input order."""

Pairs = npt.NDArray[np.int64]
"""Shape (pairs, 2): documents that are duplicates of each other."""

NO_PAIRS: Pairs = np.empty((0, 2), np.int64)


class SetBuilder:
    """Joins pairs into duplicate sets."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._buffer = RowBuffer(scratch.max_rows(2), 2)
        self._stars = Sorter(scratch, 2)
        self._blocks = 0

    def add(self, pairs: Pairs) -> None:
        """Add pairs, in any order."""
        for block in self._buffer.add(pairs):
            self._reduce(block)

    def build(self) -> Sorter:
        """Every document that has a duplicate, ascending, and the first document of its set."""
        if self._buffer:
            self._reduce(self._buffer.take())
        stars = self._stars
        changed = self._blocks > 1
        while changed:
            smaller, small_moved = _small_star(self._scratch, stars)
            stars, large_moved = _large_star(self._scratch, smaller)
            changed = small_moved or large_moved
        out = Sorter(self._scratch, 2)
        for rows in stars:
            out.add(rows)
            out.add(np.repeat(rows[:, 1:], 2, axis=1))
        return out

    def _reduce(self, pairs: Pairs) -> None:
        self._stars.add(connected_components(pairs))
        self._blocks += 1


def connected_components(pairs: Pairs) -> Pairs:
    """The sets that pairs form, as stars: each further document and the first of its set."""
    documents, ends = np.unique(pairs, return_inverse=True)
    left, right = ends.reshape(pairs.shape).T
    first = np.arange(len(documents))
    # Hook the later of two roots to the earlier one, then let all point to their roots:
    # the number of rounds grows with the logarithm of the longest chain.
    while True:
        a, b = first[left], first[right]
        differ = a != b
        if not differ.any():
            break
        low, high = np.minimum(a, b)[differ], np.maximum(a, b)[differ]
        np.minimum.at(first, high, low)
        while not np.array_equal(parents := first[first], first):
            first = parents
    others = first != np.arange(len(documents))
    return np.stack([documents[others], documents[first[others]]], axis=1)


def _small_star(scratch: Scratch, pairs: Sorter) -> tuple[Sorter, bool]:
    """Link each document and its earlier neighbours to the first of these; True if any moved."""
    out, moved = Sorter(scratch, 2), False
    for rows, leaders in with_leaders(pairs):
        is_first = rows[:, 1] == leaders[:, 1]
        moved |= not is_first.all()
        out.add(np.stack([np.where(is_first, rows[:, 0], rows[:, 1]), leaders[:, 1]], axis=1))
    return out, moved


def _large_star(scratch: Scratch, pairs: Sorter) -> tuple[Sorter, bool]:
    """Link each document's later neighbours to the first of all; True if any moved."""
    both_ways = Sorter(scratch, 2)
    for rows in pairs:
        both_ways.add(rows)
        both_ways.add(rows[:, ::-1])
    out, moved = Sorter(scratch, 2), False
    for rows, leaders in with_leaders(both_ways):
        later = rows[:, 1] > rows[:, 0]
        root = np.minimum(rows[later, 0], leaders[later, 1])
        moved |= bool((root != rows[later, 0]).any())
        out.add(np.stack([rows[later, 1], root], axis=1))
    return out, moved


def pairs_across_sets(scratch: Scratch, pairs: Sorter, sets: Sorter) -> Sorter:
    """The pairs whose documents are not in the same set."""
    half = Sorter(scratch, 3)
    for rows, firsts in _with_set(scratch, pairs, sets):
        half.add(np.column_stack([rows[:, ::-1], firsts]))  # next, the other document's set
    out = Sorter(scratch, 2)
    for rows, firsts in _with_set(scratch, half, sets):
        out.add(rows[firsts != rows[:, 2], 1::-1])
    return out


def _with_set(
    scratch: Scratch, wanted: Sorter, sets: Sorter
) -> Iterator[tuple[IntRows, Documents]]:
    """Yield blocks of `wanted`, sorted by document, and the first document of each row's set.

    The document is a row's first column. A document that is in no set counts as a set by itself.
    """
    joined = Sorter(scratch, wanted.columns + 1)
    for rows in sets:
        labels = np.zeros((len(rows), joined.columns), np.int64)
        labels[:, 0], labels[:, 2] = rows[:, 0], rows[:, 1]
        joined.add(labels)
    for rows in wanted:
        joined.add(np.insert(rows, 1, 1, axis=1))  # sorts after the document's label
    for rows, leaders in with_leaders(joined):
        is_wanted = rows[:, 1] == 1
        rows, leaders = rows[is_wanted], leaders[is_wanted]
        firsts = np.where(leaders[:, 1] == 0, leaders[:, 2], rows[:, 0])
        yield np.delete(rows, 1, axis=1), firsts

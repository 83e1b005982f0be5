"""Sets of duplicates, from pairs of documents, in bounded memory.

Pairs that fit into memory are joined there. Of more, each block is reduced to the stars of its own
sets, and the stars are joined by sorting: in turns, each document is tied to the smallest of its
earlier neighbours with these, and later neighbours to the smallest of all (Kiveris et al.:
Connected Components in MapReduce and Beyond, SoCC 2014, the alternating algorithm).
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
    """Joins pairs into sets."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._held = RowBuffer(scratch.max_rows(2), 2)
        self._stars = Sorter(scratch, 2)
        self._blocks = 0

    def add(self, pairs: Pairs) -> None:
        """Take in more pairs; their order makes no difference."""
        for full in self._held.add(pairs):
            self._reduce(full)

    def build(self) -> Sorter:
        """Every document that has a duplicate, ascending, and the first of its set."""
        if self._held:
            self._reduce(self._held.take())
        stars = self._stars
        changed = self._blocks > 1
        while changed:
            smaller, joined = _small_star(self._scratch, stars)
            stars, moved = _large_star(self._scratch, smaller)
            changed = joined or moved
        out = Sorter(self._scratch, 2)
        for rows in stars:
            out.add(rows)
            out.add(np.repeat(rows[:, 1:], 2, axis=1))
        return out

    def _reduce(self, pairs: Pairs) -> None:
        self._stars.add(connected_components(pairs))
        self._blocks += 1


def connected_components(pairs: Pairs) -> Pairs:
    """The sets that some pairs make: each document with the first of its set."""
    documents, ends = np.unique(pairs, return_inverse=True)
    left, right = ends.reshape(pairs.shape).T
    first = np.arange(len(documents))
    # Hook the later of two roots to the earlier one, then let all point to their roots:
    # the number of rounds grows with the logarithm of the longest chain.
    while True:
        a, b = first[left], first[right]
        apart = a != b
        if not apart.any():
            break
        low, high = np.minimum(a, b)[apart], np.maximum(a, b)[apart]
        np.minimum.at(first, high, low)
        while not np.array_equal(up := first[first], first):
            first = up
    others = first != np.arange(len(documents))
    return np.stack([documents[others], documents[first[others]]], axis=1)


def _small_star(scratch: Scratch, pairs: Sorter) -> tuple[Sorter, bool]:
    """Each document and its earlier neighbours tied to the first of these; whether any moved."""
    out, moved = Sorter(scratch, 2), False
    for rows, first in with_leaders(pairs):
        lead = rows[:, 1] == first[:, 1]
        moved |= not lead.all()
        out.add(np.stack([np.where(lead, rows[:, 0], rows[:, 1]), first[:, 1]], axis=1))
    return out, moved


def _large_star(scratch: Scratch, pairs: Sorter) -> tuple[Sorter, bool]:
    """Later neighbours of each document tied to the first of all; whether any moved."""
    both = Sorter(scratch, 2)
    for rows in pairs:
        both.add(rows)
        both.add(rows[:, ::-1])
    out, moved = Sorter(scratch, 2), False
    for rows, first in with_leaders(both):
        later = rows[:, 1] > rows[:, 0]
        root = np.minimum(rows[later, 0], first[later, 1])
        moved |= bool((root != rows[later, 0]).any())
        out.add(np.stack([rows[later, 1], root], axis=1))
    return out, moved


def pairs_across_sets(scratch: Scratch, pairs: Sorter, sets: Sorter) -> Sorter:
    """Those of the pairs that are not in one of the sets."""
    left = Sorter(scratch, 3)
    for rows, first in _with_set(scratch, pairs, sets):
        left.add(np.column_stack([rows[:, ::-1], first]))  # the other end is asked for next
    out = Sorter(scratch, 2)
    for rows, first in _with_set(scratch, left, sets):
        out.add(rows[first != rows[:, 2], 1::-1])
    return out


def _with_set(
    scratch: Scratch, wanted: Sorter, sets: Sorter
) -> Iterator[tuple[IntRows, Documents]]:
    """Blocks of rows, and the first of the set of the document in their first column.

    Itself where it is in no set.
    """
    both = Sorter(scratch, wanted.columns + 1)
    for rows in sets:
        label = np.zeros((len(rows), both.columns), np.int64)
        label[:, 0], label[:, 2] = rows[:, 0], rows[:, 1]
        both.add(label)
    for rows in wanted:
        both.add(np.insert(rows, 1, 1, axis=1))  # behind the document's label
    for rows, first in with_leaders(both):
        asked = rows[:, 1] == 1
        rows, first = rows[asked], first[asked]
        yield np.delete(rows, 1, axis=1), np.where(first[:, 1] == 0, first[:, 2], rows[:, 0])

"""Who is left out: of every set of duplicates all but its survivor, from files of pairs.

The survivor is the document that is worth most, and of equals the first.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from proxhpc.assemble.pairs import Sketches
from proxhpc.dedup.clusters import Documents, Pairs
from proxhpc.dedup.sorting import IntRows, Scratch, Sorter, group_leaders, with_leaders
from proxhpc.run.plan import Plan

Preference = npt.NDArray[np.uint64]

MAX_LISTED_SETS = 10  # sets that are told one by one
_SIGN = np.uint64(1 << 63)


class DuplicateSets:
    """How many sets of duplicates there are, and of what sizes, told in the order of their firsts.

    `size_histogram` counts them by the octave of their size; `largest` are (size, first document that is
    left out). A document of another corpus, which is kept, does not count for a size.
    """

    def __init__(self) -> None:
        self.count = 0
        self.size_histogram = np.zeros(64, np.int64)
        self.largest: IntRows = np.empty((0, 2), np.int64)
        self._open = np.empty((0, 3), np.int64)  # of the last set: first, documents left out, first

    def add(self, firsts: Documents, documents: Documents) -> None:
        """Take documents that are left out, and the first of the set of each, set by set."""
        if not len(firsts):
            return
        at = np.flatnonzero(group_leaders(firsts)[0])
        counts = np.diff(at, append=len(firsts))
        sets = np.stack([firsts[at], counts, np.minimum.reduceat(documents, at)], axis=1)
        if len(self._open) and self._open[0, 0] == sets[0, 0]:
            sets[0, 1] += self._open[0, 1]
            sets[0, 2] = min(sets[0, 2], self._open[0, 2])
        else:
            self._close(self._open)
        self._close(sets[:-1])
        self._open = sets[-1:]

    def finish(self) -> "DuplicateSets":
        """Take the last set as whole."""
        self._close(self._open)
        self._open = self._open[:0]
        return self

    def _close(self, sets: IntRows) -> None:
        self.count += len(sets)
        sizes = sets[:, 1] + 1
        self.size_histogram += np.bincount(np.frexp(sizes)[1], minlength=len(self.size_histogram))
        known = np.concatenate([self.largest, np.stack([sizes, sets[:, 2]], axis=1)])
        self.largest = known[np.lexsort((known[:, 1], -known[:, 0]))[:MAX_LISTED_SETS]]


def choose_survivors(
    scratch: Scratch, plan: Plan, sketches: Sketches, sets: Sorter
) -> tuple[Sorter, DuplicateSets]:
    """The documents that are left out, ascending, each with its survivor; and their sets."""
    by_worth = Sorter(scratch, 5)
    for rows in sets:
        documents, firsts = rows.T
        worth = [~_signed(each) for each in _worth(plan, sketches, documents)]
        by_worth.add(np.stack([firsts, *worth, documents], axis=1))
    lost, found = Sorter(scratch, 2), DuplicateSets()
    for rows, best in with_leaders(by_worth):
        documents, kept = rows[:, -1], best[:, -1]
        out = (documents != kept) & (documents < sketches.own)
        lost.add(np.stack([documents[out], kept[out]], axis=1))
        found.add(rows[out, 0], documents[out])
    return lost, found.finish()


def _worth(plan: Plan, sketches: Sketches, documents: Documents) -> list[Preference]:
    """What decides which of its duplicates a document is, the most important first."""
    rows = sketches.rows(documents)
    chars = rows["chars"] if plan.manifest.dedup.keep != "first" else np.zeros(len(rows))
    outside = documents >= sketches.own
    return [each.astype(np.uint64) for each in (outside, rows["rank"], chars)]


def _signed(values: Preference) -> Documents:
    """Signed numbers in the same order."""
    return (values ^ _SIGN).view(np.int64)


def duplicate_flags(
    blocks: Iterable[Pairs], edges: npt.NDArray[np.int64]
) -> Iterator[npt.NDArray[np.bool_]]:
    """Which documents between two edges and the next are left out; blocks are ascending."""
    more, waiting = iter(blocks), np.empty(0, np.int64)
    for first, last in pairwise(edges.tolist()):
        own = np.zeros(last - first, np.bool_)
        while True:
            count = np.searchsorted(waiting, last)
            own[waiting[:count] - first] = True
            waiting = waiting[count:]
            if len(waiting) or (block := next(more, None)) is None:
                break
            waiting = block[:, 0]
        yield own

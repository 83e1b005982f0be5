"""The survivor of each duplicate set, and how large the sets are.

The survivor is the document with the highest rank; of equal ones, the first.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from proxhpc.assemble.pairs import Sketches
from proxhpc.dedup.clusters import Documents, Pairs
from proxhpc.dedup.sorting import Flags, IntRows, Scratch, Sorter, group_leaders, with_leaders
from proxhpc.run.plan import Plan

MAX_LISTED_SETS = 10  # of the largest ones
_SIGN = np.uint64(1 << 63)  # flipped, unsigned numbers are in order as signed ones


class DuplicateSets:
    """Sizes of duplicate sets, which are added in the order of their first documents.

    `size_histogram` counts sets by the `log2_bucket` of their size. `largest` has rows of a size
    and the set's first duplicate. External documents do not count for a size.
    """

    def __init__(self) -> None:
        self.count = 0
        self.size_histogram = np.zeros(64, np.int64)
        self.largest: IntRows = np.empty((0, 2), np.int64)
        # The last set, which may continue: first document, number of duplicates, first duplicate.
        self._last = np.empty((0, 3), np.int64)

    def add(self, firsts: Documents, duplicates: Documents) -> None:
        """Add duplicates, and the first document of the set of each, set by set."""
        if not len(firsts):
            return
        starts = np.flatnonzero(group_leaders(firsts)[0])
        counts = np.diff(starts, append=len(firsts))
        sets = np.stack([firsts[starts], counts, np.minimum.reduceat(duplicates, starts)], axis=1)
        if len(self._last) and self._last[0, 0] == sets[0, 0]:
            sets[0, 1] += self._last[0, 1]
            sets[0, 2] = min(sets[0, 2], self._last[0, 2])
        else:
            self._count(self._last)
        self._count(sets[:-1])
        self._last = sets[-1:]

    def finish(self) -> "DuplicateSets":
        """Count the last set."""
        self._count(self._last)
        self._last = self._last[:0]
        return self

    def _count(self, sets: IntRows) -> None:
        self.count += len(sets)
        sizes = sets[:, 1] + 1
        self.size_histogram += np.bincount(np.frexp(sizes)[1], minlength=len(self.size_histogram))
        known = np.concatenate([self.largest, np.stack([sizes, sets[:, 2]], axis=1)])
        self.largest = known[np.lexsort((known[:, 1], -known[:, 0]))[:MAX_LISTED_SETS]]


def choose_survivors(
    scratch: Scratch, plan: Plan, sketches: Sketches, sets: Sorter
) -> tuple[Sorter, DuplicateSets]:
    """The duplicates to remove, ascending, each with its survivor; and the sizes of their sets."""
    by_rank = Sorter(scratch, 5)
    for rows in sets:
        documents, firsts = rows.T
        columns = _sort_columns(plan, sketches, documents)
        by_rank.add(np.stack([firsts, *columns, documents], axis=1))
    duplicates, sizes = Sorter(scratch, 2), DuplicateSets()
    for rows, leaders in with_leaders(by_rank):
        documents, survivors = rows[:, -1], leaders[:, -1]
        removed = (documents != survivors) & (documents < sketches.own_documents)
        duplicates.add(np.stack([documents[removed], survivors[removed]], axis=1))
        sizes.add(rows[removed, 0], documents[removed])
    return duplicates, sizes.finish()


def _sort_columns(plan: Plan, sketches: Sketches, documents: Documents) -> list[Documents]:
    """Sort columns that decide which document survives, most important first; the smallest wins."""
    rows = sketches.rows(documents)
    chars = rows["chars"] if plan.manifest.dedup.keep != "first" else np.zeros(len(rows))
    ranks = documents >= sketches.own_documents, rows["rank"], chars
    return [(~values.astype(np.uint64) ^ _SIGN).view(np.int64) for values in ranks]


def duplicate_flags(blocks: Iterable[Pairs], edges: npt.NDArray[np.int64]) -> Iterator[Flags]:
    """For each range between two edges, which of its documents are duplicates to remove.

    The first columns of `blocks` are these documents, ascending.
    """
    remaining, documents = iter(blocks), np.empty(0, np.int64)
    for first, last in pairwise(edges.tolist()):
        flags = np.zeros(last - first, np.bool_)
        while True:
            count = np.searchsorted(documents, last)
            flags[documents[:count] - first] = True
            documents = documents[count:]
            if len(documents) or (block := next(remaining, None)) is None:
                break
            documents = block[:, 0]
        yield flags

"""Sets of duplicates, from pairs of documents, on arrays over those documents alone."""

from typing import Any

import numpy as np
import numpy.typing as npt

Documents = npt.NDArray[np.int64]
"""Numbers of documents in the whole run, in input order."""

Pairs = npt.NDArray[np.int64]
"""Shape (pairs, 2): documents that are duplicates of each other."""

NO_PAIRS: Pairs = np.empty((0, 2), np.int64)
_BUFFER = 1 << 20  # pairs that wait


class Forest:
    """Joins pairs into sets; it keeps 16 bytes for each document that is in one."""

    def __init__(self) -> None:
        self._pairs = NO_PAIRS
        self._waiting: list[Pairs] = []

    def add(self, pairs: Pairs) -> None:
        """Take in more pairs; their order makes no difference."""
        self._waiting.append(pairs)
        if sum(map(len, self._waiting)) > _BUFFER:
            self._settle()

    def sets(self) -> tuple[Documents, Documents]:
        """Every document that has a duplicate, ascending, and beside each the first of its set."""
        self._settle()
        first = np.unique(self._pairs[:, 1])
        documents = np.concatenate([self._pairs[:, 0], first])
        firsts = np.concatenate([self._pairs[:, 1], first])
        order = np.argsort(documents)
        return documents[order], firsts[order]

    def apart(self, pairs: Pairs) -> npt.NDArray[np.bool_]:
        """Which of these pairs are not in one set yet."""
        documents, firsts = self.sets()
        if not len(documents) or not len(pairs):
            return np.ones(len(pairs), np.bool_)
        places = np.searchsorted(documents, pairs).clip(max=len(documents) - 1)
        ends = np.where(documents[places] == pairs, firsts[places], pairs)
        return np.asarray(ends[:, 0] != ends[:, 1])

    def _settle(self) -> None:
        """Reduce everything to pairs of a document and the first of its set."""
        pairs = np.concatenate([self._pairs, *self._waiting])
        self._waiting.clear()
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
        self._pairs = np.stack([documents[others], documents[first[others]]], axis=1)


def distinct(pairs: Pairs) -> Pairs:
    """Each pair once, in order."""
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    return pairs[leaders(pairs[:, 0], pairs[:, 1])[0]] if len(pairs) else pairs


def leaders(*columns: npt.NDArray[Any]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Which rows of sorted columns begin a run of equals, and for each row where its run begins."""
    leads = np.ones(len(columns[0]), np.bool_)
    leads[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return leads, np.flatnonzero(leads)[np.cumsum(leads) - 1]


def survivors(firsts: Documents, *worth: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """For each document of a set, the place of its set's survivor.

    That is the one with the highest `worth` (unsigned, the most important last), then the first.
    `firsts` and `worth` are of the documents of all sets, in input order.
    """
    columns = [~column for column in worth]
    order = np.lexsort((*columns, firsts))  # stable: equals stay in input order
    _, begins = leaders(firsts[order])
    out = np.empty(len(order), np.int64)
    out[order] = order[begins]
    return out

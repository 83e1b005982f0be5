"""Compares documents with one leader that are unlike the best, such as pages of one template.

All of them agree in most slots, by the template, so neither bands nor the number of equal slots
tells similar ones apart. What they have besides the template does: similar documents agree in
values of slots that few others of the family have.
"""

import numpy as np
import numpy.typing as npt

from proxhpc.dedup.minhash import Signatures
from proxhpc.dedup.sorting import group_leaders

ALL_COMPARED = 16  # documents that are all compared with each other
_MAX_HOLDERS = 64  # of a value that counts as rare
_MAX_MEETINGS = 1 << 20  # of two documents in a rare value; else fewer values are rare
_MAX_PARTNERS = 4  # better documents with which one of a larger family is paired
_BATCH = 1 << 18  # slots that are sorted at a time
_SLICE = 1 << 14  # pairs that are compared at a time

Indices = npt.NDArray[np.int64]


def similar_pairs(signatures: Signatures, least: int) -> tuple[Indices, Indices]:
    """Pairs of documents that agree in `least` slots or more, and in how many they agree.

    A pair is an index and a later one, shape (pairs, 2). The documents are in order of priority.
    """
    size = len(signatures)
    if size <= ALL_COMPARED:
        pairs = np.stack(np.triu_indices(size, 1), axis=1)
        shared = np.zeros(len(pairs), np.int64)
    else:
        pairs, shared = _pairs_with_rare_values(signatures)
    slices = (pairs[start : start + _SLICE].T for start in range(0, len(pairs), _SLICE))
    equal = np.concatenate(
        [np.empty(0, np.int64)]
        + [np.count_nonzero(signatures[a] == signatures[b], axis=1) for a, b in slices]
    )
    pairs, shared, equal = (column[equal >= least] for column in (pairs, shared, equal))
    if size > ALL_COMPARED:  # keep the best partners of each
        order = np.lexsort((pairs[:, 0], -equal, -shared, pairs[:, 1]))
        _, first = group_leaders(pairs[order, 1]) if len(order) else (order, order)
        best = np.sort(order[np.arange(len(order)) - first < _MAX_PARTNERS])
        pairs, equal = pairs[best], equal[best]
    return pairs, equal


def _pairs_with_rare_values(signatures: Signatures) -> tuple[Indices, Indices]:
    """Pairs of documents that share rare values, and how many values they share."""
    size = len(signatures)
    step = max(1, _BATCH // size)
    runs = [_Runs(signatures[:, at : at + step]) for at in range(0, signatures.shape[1], step)]
    holders = min(_MAX_HOLDERS, size // 4)
    while holders > 2 and sum(run.meetings(holders) for run in runs) > _MAX_MEETINGS:
        holders //= 2
    met = np.concatenate([run.pairs(holders) for run in runs])
    keys, shared = np.unique(met[:, 0] * size + met[:, 1], return_counts=True)
    return np.stack([keys // size, keys % size], axis=1), shared


class _Runs:
    """The documents of each value of some slots."""

    def __init__(self, signatures: Signatures) -> None:
        size, slots = signatures.shape
        keys = signatures + (np.arange(slots, dtype=np.uint32) << np.uint32(16))
        keys = keys.T.ravel()
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        self._documents = (order % size).astype(np.uint32)
        self._starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
        self._lengths = np.diff(np.r_[self._starts, len(keys)])
        several = self._lengths > 1
        self._starts, self._lengths = self._starts[several], self._lengths[several]

    def meetings(self, holders: int) -> int:
        """How many pairs of documents share a value that at most `holders` have."""
        lengths = self._lengths[self._lengths <= holders]
        return int((lengths * (lengths - 1) // 2).sum())

    def pairs(self, holders: int) -> Indices:
        """These pairs, each with the smaller index first."""
        found = [np.empty((0, 2), np.uint32)]
        rare = self._lengths <= holders
        starts, lengths = self._starts[rare], self._lengths[rare]
        for offset in range(1, holders):
            starts, lengths = starts[lengths > offset], lengths[lengths > offset]
            if not len(starts):
                break
            counts = lengths - offset
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            at = np.repeat(starts, counts) + within
            found.append(np.stack([self._documents[at], self._documents[at + offset]], axis=1))
        return np.concatenate(found).astype(np.int64)

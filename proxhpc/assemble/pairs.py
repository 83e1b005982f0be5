"""Pairs of duplicates, found one range of one band's keys at a time, in bounded memory.

Documents with the same key are compared: by the rest of their hash if the key is of the whole text,
by their signatures if it is a MinHash band. Pairs that signatures cannot decide are left to their
texts. The pairs depend on the documents and their order in the input only, not on groups, ranges or
processes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from proxhpc.assemble.sketch import all_groups
from proxhpc.dedup.arrays import RowReader, open_array, save_blocks
from proxhpc.dedup.bands import EXACT, NEAR, BandFile, Keys, key_ranges
from proxhpc.dedup.clusters import NO_PAIRS, Documents, Pairs
from proxhpc.dedup.hashes import Sketch
from proxhpc.dedup.minhash import Signatures, Similarities, similarity, similarity_bounds
from proxhpc.dedup.sorting import group_leaders
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.shards import shard_groups
from proxhpc.spec.sections import Near

MAX_LEADERS = 16  # documents of one key that the others are compared with, one after the other
_SLICE_BYTES = 4 << 20  # bytes of signatures that are compared at a time


@dataclass(frozen=True, slots=True)
class KeyRange:
    """The keys in [low, high) of one band."""

    band: int
    low: int
    high: int


class PairCandidates(NamedTuple):
    """Pairs of a document and an earlier one.

    They are certain duplicates, and pairs to be decided by comparing texts.
    """

    duplicates: Pairs
    undecided: Pairs


def match_tasks(plan: Plan, documents: int, memory: int) -> list[KeyRange]:
    """The key ranges to match, each within about `memory` bytes."""
    dedup = plan.manifest.dedup
    bands = [EXACT] if dedup.exact else []
    if dedup.near:
        bands += range(NEAR, NEAR + dedup.near.bands)
    return [KeyRange(band, *edges) for band in bands for edges in key_ranges(documents, memory)]


class Sketches:
    """The sketched documents of all groups, by their numbers in the run."""

    def __init__(self, run: RunDir, plan: Plan) -> None:
        self.run = run
        sizes = [len(open_array(run.sketch(group))) for group in all_groups(plan)]
        self.group_starts = np.cumsum([0, *sizes])
        self.own_documents = int(self.group_starts[len(shard_groups(plan))])  # then external ones
        self._readers: dict[Path, RowReader] = {}

    def __len__(self) -> int:
        return int(self.group_starts[-1])

    def rows(self, documents: Documents) -> Sketch:
        """The sketches of these documents."""
        return self._gather(documents, self.run.sketch)

    def low(self, documents: Documents) -> npt.NDArray[np.uint64]:
        """The lower half of the hash of each of these documents' texts."""
        return self._gather(documents, self.run.sketch, "low")

    def signatures(self, documents: Documents) -> Signatures:
        """The signatures of these documents."""
        return self._gather(documents, self.run.signatures)

    def group_of(self, documents: Documents) -> npt.NDArray[np.int64]:
        """The group of each of these documents."""
        return np.searchsorted(self.group_starts, documents, "right") - 1

    def repeated_keys(self, keys: KeyRange) -> tuple[Keys, Documents]:
        """The keys in a range that several documents have, and each key's documents in order."""
        all_keys, documents = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for group, start in enumerate(self.group_starts[:-1].tolist()):
            file = BandFile(self.run.bands(group))
            own_keys, numbers = file.read(keys.band, keys.low, keys.high)
            all_keys.append(own_keys)
            documents.append(numbers + start)
        return keep_repeated(np.concatenate(all_keys), np.concatenate(documents))

    def _gather(
        self, documents: Documents, path: Callable[[int], Path], field: str | None = None
    ) -> npt.NDArray[Any]:
        order = np.argsort(documents, kind="stable")
        edges = np.searchsorted(documents[order], self.group_starts).tolist()
        out = None
        for group, (first, last) in enumerate(pairwise(edges)):
            if first == last:
                continue
            indices, file = order[first:last], path(group)
            if file not in self._readers:
                self._readers[file] = RowReader(file)
            rows = self._readers[file].take(documents[indices] - self.group_starts[group], field)
            if out is None:
                out = np.empty((len(documents), *rows.shape[1:]), rows.dtype)
            out[indices] = rows
        if out is None:
            raise ValueError("no documents given")
        return out


def keep_repeated(keys: Keys, documents: Documents) -> tuple[Keys, Documents]:
    """The keys that occur more than once, ascending, each key's documents in their given order."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    same = np.zeros(len(keys) + 1, np.bool_)
    same[1:-1] = keys[1:] == keys[:-1]
    repeated = same[1:] | same[:-1]
    return keys[repeated], documents[order[repeated]]


def find_pairs(sketches: Sketches, task: KeyRange, near: Near | None) -> Iterator[PairCandidates]:
    """The duplicates among documents that share a key."""
    keys, documents = sketches.repeated_keys(task)
    if not len(keys):
        return
    if task.band == EXACT or near is None:
        yield PairCandidates(exact_pairs(documents, keys, sketches.low(documents)), NO_PAIRS)
    else:
        yield from _near_pairs(sketches, keys, documents, near)


def exact_pairs(documents: Documents, high: Keys, low: Keys) -> Pairs:
    """Documents with the same 128-bit hash, each with the first of them."""
    order = np.lexsort((low, high))
    is_leader, leader = group_leaders(high[order], low[order])
    return np.stack([documents[order[~is_leader]], documents[order[leader[~is_leader]]]], axis=1)


def _near_pairs(
    sketches: Sketches, keys: Keys, documents: Documents, near: Near
) -> Iterator[PairCandidates]:
    """Yield batches of pairs of documents with equal keys; each is ordered as the sorted `keys`.

    Each document is compared with the first of its key, the dissimilar ones then with the first of
    them, and so on.
    """
    for _ in range(MAX_LEADERS):
        is_leader, leader = group_leaders(keys)
        pairs = np.stack([documents[~is_leader], documents[leader[~is_leader]]], axis=1)
        low = high = estimate_similarity(sketches, pairs)
        if near.verify == "text":
            low, high = similarity_bounds(low, near.bands * near.rows)
        similar = low >= near.threshold
        yield PairCandidates(pairs[similar], pairs[~similar & (high >= near.threshold)])
        keys, documents = keep_repeated(keys[~is_leader][~similar], documents[~is_leader][~similar])
        if not len(keys):
            return


def estimate_similarity(sketches: Sketches, pairs: Pairs) -> Similarities:
    """Estimated Jaccard similarity of the two documents of each pair."""
    out = np.empty(len(pairs))
    if not len(pairs):
        return out
    step = max(1, _SLICE_BYTES // (2 * sketches.signatures(pairs[:1, 0]).nbytes))
    for start in range(0, len(pairs), step):
        block = pairs[start : start + step]
        both = sketches.signatures(block.T.reshape(-1))
        out[start : start + step] = similarity(both[: len(block)], both[len(block) :])
    return out


def write_pairs(run: RunDir, plan: Plan, number: int, source_digest: str, memory: int) -> None:
    """Write the pairs of one of the match tasks for `memory` bytes, unless the file exists.

    A row has the two documents, and 1 if their texts must decide, else 0.
    """
    path = run.match_files(source_digest).found_pairs(number)
    if path.exists():
        return
    sketches = Sketches(run, plan)
    task = match_tasks(plan, len(sketches), memory)[number]
    rows = (
        np.insert(pairs, 2, undecided, axis=1)
        for candidates in find_pairs(sketches, task, plan.manifest.dedup.near)
        for undecided, pairs in enumerate(candidates)
    )
    save_blocks(path, rows, "<i8", 3)


def read_pairs(path: Path, max_rows: int) -> Iterator[PairCandidates]:
    """The pairs of one task, at most `max_rows` at a time."""
    for start in range(0, len(open_array(path)), max_rows):
        rows = np.array(open_array(path)[start : start + max_rows])
        undecided = rows[:, 2] == 1
        yield PairCandidates(rows[~undecided, :2], rows[undecided, :2])

"""Pairs of duplicates, a range of keys of one band after the other, in bounded memory.

Documents with the same key are compared: by the rest of their hash where the key is of the whole
text, by their signatures where it is a band of MinHash; pairs that signatures cannot tell are left
to their texts. Everything follows from the documents and their order in the input, nothing from
groups, ranges or processes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from proxhpc.assemble.sketch import all_groups, shard_groups
from proxhpc.dedup.arrays import RowReader, open_array, save_blocks
from proxhpc.dedup.bands import EXACT, NEAR, BandFile, Keys, key_ranges
from proxhpc.dedup.clusters import NO_PAIRS, Documents, Pairs
from proxhpc.dedup.hashes import Sketch
from proxhpc.dedup.minhash import Signatures, similarity, similarity_bounds
from proxhpc.dedup.sorting import group_leaders
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.spec.sections import Near

MAX_LEADERS = 16  # documents of one key that others are compared with; what is like none stays
_SLICE_BYTES = 4 << 20  # bytes of signatures that are compared at a time


@dataclass(frozen=True, slots=True)
class KeyRange:
    """The keys in [low, high) of one band."""

    band: int
    low: int
    high: int


class PairCandidates(NamedTuple):
    """Pairs of a document and an earlier one: duplicates, and those whose texts must tell."""

    duplicates: Pairs
    undecided: Pairs


def match_tasks(plan: Plan, documents: int, memory: int) -> list[KeyRange]:
    """What there is to match, in pieces that fit into so many bytes."""
    dedup = plan.manifest.dedup
    bands = [EXACT] if dedup.exact else []
    if dedup.near:
        bands += range(NEAR, NEAR + dedup.near.bands)
    return [KeyRange(band, *edges) for band in bands for edges in key_ranges(documents, memory)]


class Sketches:
    """The documents of a run as they lie in the groups' files, by their numbers in the run."""

    def __init__(self, run: RunDir, plan: Plan) -> None:
        self.run = run
        sizes = [len(open_array(run.sketch(group))) for group in all_groups(plan)]
        self.firsts = np.cumsum([0, *sizes])
        self.own = int(
            self.firsts[len(shard_groups(plan))]
        )  # behind them is what they are compared with
        self._opened: dict[Path, RowReader] = {}

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def rows(self, documents: Documents) -> Sketch:
        """The 56 bytes of each of these documents."""
        rows: Sketch = self._gather(documents, self.run.sketch)
        return rows

    def low(self, documents: Documents) -> npt.NDArray[np.uint64]:
        """The lower half of the hash of each of these documents' texts."""
        return self._gather(documents, self.run.sketch, "low")

    def signatures(self, documents: Documents) -> Signatures:
        """The signature of each of these documents."""
        signatures: Signatures = self._gather(documents, self.run.signatures)
        return signatures

    def group_of(self, documents: Documents) -> npt.NDArray[np.int64]:
        """The group of each of these documents."""
        return np.searchsorted(self.firsts, documents, "right") - 1

    def band(self, task: KeyRange) -> tuple[Keys, Documents]:
        """The keys of a task that more than one document has, ascending, then in input order."""
        return keep_repeated(*self._keys(task))

    def _keys(self, task: KeyRange) -> tuple[Keys, Documents]:
        keys, documents = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for group, first in enumerate(self.firsts[:-1].tolist()):
            own, numbers = BandFile(self.run.bands(group)).read(task.band, task.low, task.high)
            keys.append(own)
            documents.append(numbers + first)
        return np.concatenate(keys), np.concatenate(documents)

    def _gather(
        self, documents: Documents, path: Callable[[int], Path], field: str | None = None
    ) -> npt.NDArray[Any]:
        order = np.argsort(documents, kind="stable")
        edges = np.searchsorted(documents[order], self.firsts).tolist()
        out = None
        for group, (first, last) in enumerate(pairwise(edges)):
            if first == last:
                continue
            there, file = order[first:last], path(group)
            if file not in self._opened:
                self._opened[file] = RowReader(file)
            taken = self._opened[file].take(documents[there] - self.firsts[group], field)
            if out is None:
                out = np.empty((len(documents), *taken.shape[1:]), taken.dtype)
            out[there] = taken
        if out is None:
            raise ValueError("no document asked for")
        return out


def keep_repeated(keys: Keys, documents: Documents) -> tuple[Keys, Documents]:
    """Those keys that more than one document has, ascending, and whose they are, in input order."""
    order = np.argsort(keys, kind="stable")  # groups are in input order, and a group's documents
    keys = keys[order]
    same = np.zeros(len(keys) + 1, np.bool_)
    same[1:-1] = keys[1:] == keys[:-1]
    several = same[1:] | same[:-1]
    return keys[several], documents[order[several]]


def find_pairs(documents: Sketches, task: KeyRange, near: Near | None) -> Iterator[PairCandidates]:
    """The duplicates among documents that share a key."""
    keys, numbers = documents.band(task)
    if not len(keys):
        return
    if task.band == EXACT or near is None:
        yield PairCandidates(exact_pairs(numbers, keys, documents.low(numbers)), NO_PAIRS)
    else:
        yield from _near_pairs(documents, keys, numbers, near)


def exact_pairs(numbers: Documents, high: Keys, low: Keys) -> Pairs:
    """Documents with the same 128 bits, each with the first of them."""
    order = np.lexsort((low, high))
    leads, begins = group_leaders(high[order], low[order])
    return np.stack([numbers[order[~leads]], numbers[order[begins[~leads]]]], axis=1)


def _near_pairs(
    documents: Sketches, keys: Keys, numbers: Documents, near: Near
) -> Iterator[PairCandidates]:
    """Documents compared with the first of their key, and the rest with the first of the rest."""
    for _ in range(MAX_LEADERS):
        leads, begins = group_leaders(keys)
        pairs = np.stack([numbers[~leads], numbers[begins[~leads]]], axis=1)
        low = high = estimate_similarity(documents, pairs)
        if near.verify == "text":
            low, high = similarity_bounds(low, near.bands * near.rows)
        alike = low >= near.threshold
        yield PairCandidates(pairs[alike], pairs[~alike & (high >= near.threshold)])
        keys, numbers = keep_repeated(keys[~leads][~alike], numbers[~leads][~alike])
        if not len(keys):
            return


def estimate_similarity(documents: Sketches, pairs: Pairs) -> npt.NDArray[np.float64]:
    """Estimated Jaccard similarity of the two documents of each pair."""
    out = np.empty(len(pairs))
    if not len(pairs):
        return out
    step = max(1, _SLICE_BYTES // (2 * documents.signatures(pairs[:1, 0]).nbytes))
    for start in range(0, len(pairs), step):
        some = pairs[start : start + step]
        both = documents.signatures(some.T.reshape(-1))
        out[start : start + step] = similarity(both[: len(some)], both[len(some) :])
    return out


def write_pairs(run: RunDir, plan: Plan, number: int, made_of: str, memory: int) -> None:
    """Write the pairs of one of the tasks that fit into `memory`, unless that was done.

    Rows of two documents and 1 where their texts must tell. A unit of work for any process.
    """
    path = run.match_files(made_of).found_pairs(number)
    if path.exists():
        return
    sketches = Sketches(run, plan)
    task = match_tasks(plan, len(sketches), memory)[number]
    found = find_pairs(sketches, task, plan.manifest.dedup.near)
    rows = (
        np.insert(pairs, 2, unsure, axis=1) for each in found for unsure, pairs in enumerate(each)
    )
    save_blocks(path, rows, "<i8", 3)


def read_pairs(path: Path, rows: int) -> Iterator[PairCandidates]:
    """What was written of a task, so many rows at a time."""
    for start in range(0, len(open_array(path)), rows):
        some = np.array(open_array(path)[start : start + rows])
        unsure = some[:, 2] == 1
        yield PairCandidates(some[~unsure, :2], some[unsure, :2])

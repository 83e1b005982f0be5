"""Pairs of documents that only their texts can tell, compared by the shingles themselves.

The documents that are in such pairs are read once, group by group, and their distinct shingles
kept in a file until the pairs are compared: 8 bytes a shingle, for few of all documents.
"""

import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from proxhpc.assemble.clusters import NO_PAIRS, Documents, Pairs
from proxhpc.assemble.hashed import Sketch, save_array
from proxhpc.assemble.pairs import Sketches
from proxhpc.assemble.pool import Pool
from proxhpc.assemble.replay import Refined, replay_shard
from proxhpc.assemble.shingles import Hashes, fold, shingles
from proxhpc.assemble.sketch import against, records_against
from proxhpc.corpus.disk import temporary, writing
from proxhpc.corpus.document import Document
from proxhpc.plan import Plan
from proxhpc.rundir import RunDir

PAIRS = 1 << 14  # compared in one go


def compare(pool: Pool, unsure: Pairs, sketches: Sketches) -> Pairs:
    """Those of the pairs whose documents have the manifest's share of shingles in common."""
    if not len(unsure):
        return NO_PAIRS
    run = pool.run
    compared = np.unique(unsure)
    save_array(run.compared, compared)
    save_array(run.unsure, unsure)
    groups = np.unique(sketches.group_of(compared)).tolist()
    pool.map("read", keep_shingles, groups)
    found = pool.map("compare", alike, range(-(-len(unsure) // PAIRS)))
    for path in (run.compared, run.unsure, *map(run.shingles, groups)):
        path.unlink()
    return np.concatenate(found)


def keep_shingles(run: RunDir, plan: Plan, group: int) -> None:
    """Write the distinct shingles of those documents of one group that are to be compared.

    One document's behind the other's, ascending, and last where each begins and all end.
    """
    near = plan.manifest.dedup.near
    if near is None:
        raise ValueError("no near-duplicates are looked for")
    sketches = Sketches(run, plan)
    own = _compared(run, sketches, group)
    path = run.shingles(group)
    edges = [0]
    draft = temporary(path)
    with writing(path):
        try:
            with draft.open("xb") as file:
                for text in _texts(run, plan, sketches.rows(own)):
                    hashes = np.unique(shingles(fold(text), near.shingle))
                    file.write(hashes.astype("<u8").tobytes())
                    edges.append(edges[-1] + len(hashes))
                file.write(np.array(edges, "<u8").tobytes())
            if len(edges) != len(own) + 1:
                raise RuntimeError(f"{len(edges) - 1} of {len(own)} documents of group {group}")
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)


def alike(run: RunDir, plan: Plan, number: int) -> Pairs:
    """Those of some pairs whose share of common shingles reaches the threshold."""
    near = plan.manifest.dedup.near
    if near is None:
        raise ValueError("no near-duplicates are looked for")
    kept = _Kept(run, Sketches(run, plan))
    pairs = np.load(run.unsure, mmap_mode="r")[number * PAIRS : (number + 1) * PAIRS]
    shares = [jaccard(kept.of(left), kept.of(right)) for left, right in pairs.tolist()]
    return np.array(pairs[np.array(shares) >= near.threshold])


def jaccard(left: Hashes, right: Hashes) -> float:
    """Share of common shingles of two documents, of which each has some, ascending."""
    common = len(np.intersect1d(left, right, assume_unique=True))
    return common / (len(left) + len(right) - common)


class _Kept:
    """Shingles of the documents that are compared."""

    def __init__(self, run: RunDir, sketches: Sketches) -> None:
        self._run, self._sketches = run, sketches
        self._files: dict[int, tuple[Documents, npt.NDArray[np.uint64]]] = {}

    def of(self, document: int) -> Hashes:
        """One document's."""
        group = int(self._sketches.group_of(np.array([document]))[0])
        if group not in self._files:
            values: Hashes = np.memmap(self._run.shingles(group), "<u8", "r")
            self._files[group] = _compared(self._run, self._sketches, group), values
        own, values = self._files[group]
        place = int(np.searchsorted(own, document)) - len(own) - 1
        first, last = int(values[place]), values[place + 1]
        return np.array(values[first : int(last)])


def _compared(run: RunDir, sketches: Sketches, group: int) -> Documents:
    """Documents of one group that are to be compared, ascending."""
    every = np.load(run.compared, mmap_mode="r")
    first, last = np.searchsorted(every, sketches.firsts[group : group + 2])
    return np.array(every[first:last])


def _texts(run: RunDir, plan: Plan, documents: Sketch) -> Iterator[str]:
    """Texts of documents of one group, in their order."""
    for shard in np.unique(documents["shard"]).tolist():
        numbers = documents["number"][documents["shard"] == shard].tolist()
        if shard < len(plan.shards):
            for item in replay_shard(run, plan, shard, numbers):
                if isinstance(item, Refined):
                    yield item.text or ""
            continue
        wanted = set(numbers)
        piece = against(plan)[shard - len(plan.shards)]
        for number, record in enumerate(records_against(plan, piece)):
            if number in wanted and isinstance(record, Document):
                yield record.text

"""Pairs of documents that only their texts can tell, compared by the shingles themselves.

The documents that are in such pairs are read once, group by group, and their distinct shingles
kept in a file until the pairs are compared: 8 bytes a shingle, for few of all documents. Each unit
leaves a file, so that a match which is killed goes on with the next.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt

from proxhpc.assemble.pairs import Sketches
from proxhpc.assemble.replay import ReplayedRecord, replay_shard
from proxhpc.assemble.sketch import external_pieces, external_records
from proxhpc.corpus.disk import replacing
from proxhpc.corpus.document import Document
from proxhpc.dedup.arrays import open_array, save_blocks
from proxhpc.dedup.clusters import Documents, Pairs
from proxhpc.dedup.hashes import Sketch
from proxhpc.dedup.shingles import Hashes, fold, shingles
from proxhpc.dedup.sorting import Scratch, Sorter
from proxhpc.run.paths import MatchFiles, RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.pool import Pool
from proxhpc.spec.sections import Near

_PAIRS_AT_ONCE = 1 << 14  # compared in one go


def compare_texts(pool: Pool, scratch: Scratch, unsure: Sorter, made_of: str) -> Iterator[Pairs]:
    """Those of the pairs whose documents have the manifest's share of shingles in common."""
    files, sketches = pool.run.match_files(made_of), Sketches(pool.run, pool.plan)
    save_blocks(files.undecided, unsure, "<i8", 2)
    pairs = len(open_array(files.undecided))
    if not pairs:
        return
    compared, groups = Sorter(scratch, 1), set[int]()
    for rows in unsure:
        compared.add(rows.reshape(-1, 1))
        groups.update(np.unique(sketches.group_of(rows)).tolist())
    save_blocks(files.compared, compared, "<i8", 1)
    pool.map("read", partial(save_shingles, made_of=made_of), sorted(groups))
    numbers = range(-(-pairs // _PAIRS_AT_ONCE))
    pool.map("compare", partial(write_similar_pairs, made_of=made_of), numbers)
    for number in numbers:
        yield np.array(open_array(files.similar_pairs(number)))


def save_shingles(run: RunDir, plan: Plan, group: int, made_of: str) -> None:
    """Write the distinct shingles of those documents of one group that are to be compared.

    One document's behind the other's, ascending, and last where each begins and all end.
    """
    path = run.match_files(made_of).shingles(group)
    if path.exists():
        return
    near = _near(plan)
    sketches = Sketches(run, plan)
    first, last = _compared(
        run.match_files(made_of), sketches, np.array([group, group + 1])
    ).tolist()
    own = np.array(open_array(run.match_files(made_of).compared)[first:last, 0])
    edges = [0]
    with replacing(path) as file:
        for text in _texts(run, plan, sketches.rows(own)):
            hashes = np.unique(shingles(fold(text), near.shingle))
            file.write(hashes.astype("<u8").tobytes())
            edges.append(edges[-1] + len(hashes))
        file.write(np.array(edges, "<u8").tobytes())
        if len(edges) != len(own) + 1:
            raise RuntimeError(f"{len(edges) - 1} of {len(own)} documents of group {group}")


def write_similar_pairs(run: RunDir, plan: Plan, number: int, made_of: str) -> None:
    """Write those of some pairs whose share of common shingles reaches the threshold."""
    files, near = run.match_files(made_of), _near(plan)
    if files.similar_pairs(number).exists():
        return
    pairs = np.array(
        open_array(files.undecided)[number * _PAIRS_AT_ONCE : (number + 1) * _PAIRS_AT_ONCE]
    )
    kept = _SavedShingles(files, Sketches(run, plan), pairs)
    shares = [jaccard(kept.of(left), kept.of(right)) for left, right in pairs.tolist()]
    save_blocks(files.similar_pairs(number), [pairs[np.array(shares) >= near.threshold]], "<i8", 2)


def jaccard(left: Hashes, right: Hashes) -> float:
    """Share of common shingles of two documents, of which each has some, ascending."""
    common = len(np.intersect1d(left, right, assume_unique=True))
    return common / (len(left) + len(right) - common)


class _SavedShingles:
    """Shingles of the documents of some pairs, read where they are asked for."""

    def __init__(self, files: MatchFiles, sketches: Sketches, pairs: Pairs) -> None:
        documents = np.unique(pairs)
        groups = sketches.group_of(documents)
        firsts = _compared(files, sketches, groups)
        sizes = _compared(files, sketches, groups + 1) - firsts
        every = open_array(files.compared)[:, 0]
        # Of a group with n documents the last n + 1 numbers say where each begins and all end.
        behind = np.searchsorted(every, documents) - firsts - sizes - 1
        places = zip(groups.tolist(), behind.tolist(), strict=True)
        self._places = dict(zip(documents.tolist(), places, strict=True))
        self._files = files

    def of(self, document: int) -> Hashes:
        """One document's."""
        group, behind = self._places[document]
        path = self._files.shingles(group)
        at = path.stat().st_size + 8 * behind
        first, last = np.fromfile(path, "<u8", 2, offset=at).tolist()
        return np.fromfile(path, "<u8", last - first, offset=8 * first)


def _compared(
    files: MatchFiles, sketches: Sketches, groups: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """How many of the documents that are compared lie before each of these groups."""
    every: Documents = open_array(files.compared)[:, 0]
    return np.searchsorted(every, sketches.firsts[groups])


def _near(plan: Plan) -> Near:
    near = plan.manifest.dedup.near
    if near is None:
        raise ValueError("no near-duplicates are looked for")
    return near


def _texts(run: RunDir, plan: Plan, documents: Sketch) -> Iterator[str]:
    """Texts of documents of one group, in their order."""
    for shard in np.unique(documents["shard"]).tolist():
        numbers = documents["number"][documents["shard"] == shard].tolist()
        if shard < len(plan.shards):
            for item in replay_shard(run, plan, shard, numbers):
                if isinstance(item, ReplayedRecord):
                    yield item.text or ""
            continue
        wanted = set(numbers)
        piece = external_pieces(plan)[shard - len(plan.shards)]
        for number, record in enumerate(external_records(plan, piece)):
            if number in wanted and isinstance(record, Document):
                yield record.text

"""Compares the texts of pairs that signatures cannot decide, by their exact shingle sets.

The documents of these pairs are read once, group by group, and their distinct shingles are kept in
a file until the pairs are compared: 8 bytes a shingle, for a small share of all documents. Each
unit writes a file, so a match that is killed resumes with the next unit.
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

_PAIRS_PER_UNIT = 1 << 14


def compare_texts(
    pool: Pool, scratch: Scratch, undecided: Sorter, source_digest: str
) -> Iterator[Pairs]:
    """The undecided pairs whose texts are similar enough to be duplicates."""
    files, sketches = pool.run.match_files(source_digest), Sketches(pool.run, pool.plan)
    save_blocks(files.undecided, undecided, "<i8", 2)
    pairs = len(open_array(files.undecided))
    if not pairs:
        return
    compared, groups = Sorter(scratch, 1), set[int]()
    for rows in undecided:
        compared.add(rows.reshape(-1, 1))
        groups.update(np.unique(sketches.group_of(rows)).tolist())
    save_blocks(files.compared, compared, "<i8", 1)
    pool.map("read", partial(save_shingles, source_digest=source_digest), sorted(groups))
    units = range(-(-pairs // _PAIRS_PER_UNIT))
    pool.map("compare", partial(write_similar_pairs, source_digest=source_digest), units)
    for number in units:
        yield np.array(open_array(files.similar_pairs(number)))


def save_shingles(run: RunDir, plan: Plan, group: int, source_digest: str) -> None:
    """Write the distinct shingles of a group's compared documents, unless the file exists.

    The file has each document's shingles, ascending, and then the offset of each document's first
    shingle and the total.
    """
    files = run.match_files(source_digest)
    path = files.shingles(group)
    if path.exists():
        return
    near = _near(plan)
    sketches = Sketches(run, plan)
    first, last = _compared_before(files, sketches, np.array([group, group + 1])).tolist()
    documents = np.array(open_array(files.compared)[first:last, 0])
    offsets = [0]
    with replacing(path) as file:
        for text in _texts(run, plan, sketches.rows(documents)):
            hashes = np.unique(shingles(fold(text), near.shingle))
            file.write(hashes.astype("<u8").tobytes())
            offsets.append(offsets[-1] + len(hashes))
        file.write(np.array(offsets, "<u8").tobytes())
        if len(offsets) != len(documents) + 1:
            raise RuntimeError(f"group {group}: {len(offsets) - 1} texts, not {len(documents)}")


def write_similar_pairs(run: RunDir, plan: Plan, number: int, source_digest: str) -> None:
    """Write the pairs of one unit whose Jaccard similarity reaches the threshold."""
    files, near = run.match_files(source_digest), _near(plan)
    if files.similar_pairs(number).exists():
        return
    start = number * _PAIRS_PER_UNIT
    pairs = np.array(open_array(files.undecided)[start : start + _PAIRS_PER_UNIT])
    saved = _SavedShingles(files, Sketches(run, plan), pairs)
    shares = [jaccard(saved.of(left), saved.of(right)) for left, right in pairs.tolist()]
    similar = pairs[np.array(shares) >= near.threshold]
    save_blocks(files.similar_pairs(number), [similar], "<i8", 2)


def jaccard(left: Hashes, right: Hashes) -> float:
    """Jaccard similarity of two documents' distinct shingles, which are ascending."""
    common = len(np.intersect1d(left, right, assume_unique=True))
    return common / (len(left) + len(right) - common)


class _SavedShingles:
    """Reads the saved shingles of the documents of some pairs, one document at a time."""

    def __init__(self, files: MatchFiles, sketches: Sketches, pairs: Pairs) -> None:
        documents = np.unique(pairs)
        groups = sketches.group_of(documents)
        firsts = _compared_before(files, sketches, groups)
        sizes = _compared_before(files, sketches, groups + 1) - firsts
        compared = open_array(files.compared)[:, 0]
        # In the file of a group with n documents, the last n + 1 numbers are the offsets.
        from_end = np.searchsorted(compared, documents) - firsts - sizes - 1
        positions = zip(groups.tolist(), from_end.tolist(), strict=True)
        self._positions = dict(zip(documents.tolist(), positions, strict=True))
        self._files = files

    def of(self, document: int) -> Hashes:
        """One document's shingles."""
        group, from_end = self._positions[document]
        path = self._files.shingles(group)
        offset = path.stat().st_size + 8 * from_end
        first, last = np.fromfile(path, "<u8", 2, offset=offset).tolist()
        return np.fromfile(path, "<u8", last - first, offset=8 * first)


def _compared_before(
    files: MatchFiles, sketches: Sketches, groups: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """How many compared documents are in groups before each of these groups."""
    compared: Documents = open_array(files.compared)[:, 0]
    return np.searchsorted(compared, sketches.group_starts[groups])


def _near(plan: Plan) -> Near:
    near = plan.manifest.dedup.near
    if near is None:
        raise ValueError("the manifest has no dedup.near")
    return near


def _texts(run: RunDir, plan: Plan, documents: Sketch) -> Iterator[str]:
    """The texts of documents of one group, in order."""
    for shard in np.unique(documents["shard"]).tolist():
        numbers = documents["record"][documents["shard"] == shard].tolist()
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

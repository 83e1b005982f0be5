"""Compares the texts of pairs that signatures cannot decide, by their exact shingle sets.

The documents of these pairs are read once, group by group, and their distinct shingles are kept in
a file until the pairs are compared: 8 bytes a shingle, for a small share of all documents. Each
unit writes a file, so a match that is killed resumes with the next unit.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from proxhpc.assemble.pairs import Sketches
from proxhpc.assemble.replay import replay_documents
from proxhpc.assemble.sketch import external_records
from proxhpc.corpus.disk import replacing
from proxhpc.corpus.document import Document
from proxhpc.dedup.arrays import open_array, save_blocks
from proxhpc.dedup.clusters import Pairs
from proxhpc.dedup.hashes import Sketch
from proxhpc.dedup.shingles import Hashes, fold, shingles
from proxhpc.dedup.sorting import Scratch, Sorter
from proxhpc.run.paths import RunDir
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
    pairs, near = len(open_array(files.undecided)), pool.plan.manifest.dedup.near
    if not pairs or near is None:
        return
    compared, groups = Sorter(scratch, 1), set[int]()
    for rows in undecided:
        compared.add(rows.reshape(-1, 1))
        groups.update(np.unique(sketches.group_of(rows)).tolist())
    save_blocks(files.compared, compared, "<i8", 1)
    read = partial(save_shingles, near=near, source_digest=source_digest)
    pool.map("read", read, sorted(groups))
    units = range(-(-pairs // _PAIRS_PER_UNIT))
    compare = partial(write_similar_pairs, near=near, source_digest=source_digest)
    pool.map("compare", compare, units)
    for number in units:
        yield np.array(open_array(files.similar_pairs(number)))


def save_shingles(run: RunDir, plan: Plan, group: int, near: Near, source_digest: str) -> None:
    """Write the distinct shingles of a group's compared documents, unless the file exists.

    The file has, in numbers of 8 bytes, where each document's shingles begin and the last one's
    end; then the shingles of each document, ascending.
    """
    files = run.match_files(source_digest)
    path = files.shingles(group)
    if path.exists():
        return
    sketches = Sketches(run, plan)
    compared = open_array(files.compared)[:, 0]
    first, last = np.searchsorted(compared, sketches.group_starts[[group, group + 1]]).tolist()
    documents = np.array(compared[first:last])
    offsets = [len(documents) + 1]
    with replacing(path) as file:
        file.seek(8 * offsets[0])
        for text in _texts(run, plan, sketches.rows(documents)):
            hashes = np.unique(shingles(fold(text), near.shingle))
            file.write(hashes.astype("<u8").tobytes())
            offsets.append(offsets[-1] + len(hashes))
        if len(offsets) != len(documents) + 1:
            raise RuntimeError(f"group {group}: {len(offsets) - 1} texts, not {len(documents)}")
        file.seek(0)
        file.write(np.array(offsets, "<u8").tobytes())


def write_similar_pairs(
    run: RunDir, plan: Plan, number: int, near: Near, source_digest: str
) -> None:
    """Write the pairs of one unit whose Jaccard similarity reaches the threshold."""
    files = run.match_files(source_digest)
    if files.similar_pairs(number).exists():
        return
    start = number * _PAIRS_PER_UNIT
    pairs = np.array(open_array(files.undecided)[start : start + _PAIRS_PER_UNIT])
    sketches, compared = Sketches(run, plan), open_array(files.compared)[:, 0]
    groups = sketches.group_of(pairs)
    first_in_group = np.searchsorted(compared, sketches.group_starts[groups])
    numbers = np.searchsorted(compared, pairs) - first_in_group
    shares = [
        jaccard(*(_read_shingles(files.shingles(group), n) for group, n in both))
        for both in np.stack([groups, numbers], axis=2).tolist()
    ]
    similar = pairs[np.array(shares) >= near.threshold]
    save_blocks(files.similar_pairs(number), [similar], "<i8", 2)


def _read_shingles(path: Path, number: int) -> Hashes:
    """The shingles of one of the documents in a file of `save_shingles`."""
    first, last = np.fromfile(path, "<u8", 2, offset=8 * number).tolist()
    return np.fromfile(path, "<u8", last - first, offset=8 * first)


def jaccard(left: Hashes, right: Hashes) -> float:
    """Jaccard similarity of two documents' distinct shingles, which are ascending."""
    common = len(np.intersect1d(left, right, assume_unique=True))
    return common / (len(left) + len(right) - common)


def _texts(run: RunDir, plan: Plan, documents: Sketch) -> Iterator[str]:
    piece = int(documents["shard"][0]) - len(plan.shards)  # of the external corpus
    if piece < 0:
        yield from (record.text or "" for record in replay_documents(run, plan, documents))
        return
    wanted = set(documents["record"].tolist())
    for number, record in enumerate(external_records(plan, piece)):
        if number in wanted and isinstance(record, Document):
            yield record.text

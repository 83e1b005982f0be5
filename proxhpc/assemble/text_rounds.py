"""Rounds of the match phase that compare texts where signatures cannot decide.

`read` sends the distinct shingles of both documents of each undecided pair to the group of the
better one, where `compare` computes the exact similarity. A document is read once in its group,
whatever number of pairs it is in.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from proxhpc.assemble.replay import replay_documents
from proxhpc.assemble.rounds import NO_DOCUMENT, SHINGLE_COLUMNS, RoundFiles, group_of
from proxhpc.assemble.sketch import external_records, load_chosen, require_receipt
from proxhpc.corpus.document import Document
from proxhpc.dedup.hashes import INDEX_BITS, Sketch
from proxhpc.dedup.shingles import fold, shingles
from proxhpc.dedup.sorting import IntRows, Sorter, group_leaders
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan

ShingleSet = npt.NDArray[np.int64]
"""Distinct hashes of shingles, ascending."""

_PAIRS = 256  # of a document that are written together
_RANKS = slice(2 + SHINGLE_COLUMNS, None)  # columns of shingles: priorities of both documents


def write_shingles(files: RoundFiles, group: int) -> None:
    """Write the shingles of the group's documents that are in undecided pairs."""
    near, out = files.plan.manifest.dedup.near, files.writer("shingles", group)
    wanted = _wanted_shingles(files, group)
    chosen = np.zeros(require_receipt(files.run, group).documents, np.bool_)
    for rows in wanted:
        chosen[rows[:, 0] - (group << INDEX_BITS)] = True
    texts = _texts(files.run, files.plan, load_chosen(files.run, group, chosen))
    current, pieces = NO_DOCUMENT, np.empty((0, SHINGLE_COLUMNS), np.int64)
    for rows in wanted:
        edges = np.flatnonzero(group_leaders(rows[:, 0])[0]).tolist()
        for of_document in np.split(rows, edges[1:]):
            if of_document[0, 0] != current and near:
                current = int(of_document[0, 0])
                pieces = _pieces(shingle_set(next(texts), near.shingle))
            for start in range(0, len(of_document), _PAIRS):
                pairs = of_document[start : start + _PAIRS, 1:].repeat(len(pieces), axis=0)
                repeated = np.tile(pieces, (len(pairs) // len(pieces), 1))
                block = np.concatenate([pairs[:, :2], repeated, pairs[:, 2:]], axis=1)
                out.add(group_of(block[:, 0]), block)
    out.finish()


def compare_texts(files: RoundFiles, group: int) -> None:
    """Write the pairs whose texts are similar enough, for the better documents in this group."""
    near, out = files.plan.manifest.dedup.near, files.writer("text_edges", group)
    better = np.empty(0, np.int64)
    for (document, other, *ranks), hashes in _shingle_sets(files.sorted("shingles", group, 3)):
        if other == NO_DOCUMENT:
            better = hashes
            continue
        common, union = overlap(better, hashes)
        if near and common / union >= near.threshold:
            row = [*ranks[:2], document, *ranks[2:], other, 1000 * common // union]
            out.add(np.zeros(1, np.int64), np.array([row]))
    out.finish()


def shingle_set(text: str, size: int) -> ShingleSet:
    """The distinct shingles of a text, as signed numbers."""
    return np.unique(shingles(fold(text), size).view(np.int64))


def overlap(left: ShingleSet, right: ShingleSet) -> tuple[int, int]:
    """How many shingles two documents share, and how many they have together."""
    common = len(np.intersect1d(left, right, assume_unique=True))
    return common, len(left) + len(right) - common


def _wanted_shingles(files: RoundFiles, group: int) -> Sorter:
    """Rows of a document of the group, and the first two and last four columns of `shingles`."""
    wanted = Sorter(files.scratch, 7, 3)
    for rows in files.read("undecided", group):
        ranks = rows[:, [0, 1, 3, 4]]
        better, worse = rows[:, 2], rows[:, 5]
        alone = np.full(len(rows), NO_DOCUMENT)
        for document, other in ((better, alone), (worse, worse)):
            columns = np.column_stack([document, better, other, ranks])
            wanted.add(columns[group_of(document) == group])
    return wanted


def _pieces(hashes: ShingleSet) -> IntRows:
    """The shingles in rows; the last one is repeated to fill its row."""
    return np.pad(hashes, (0, -len(hashes) % SHINGLE_COLUMNS), "edge").reshape(-1, SHINGLE_COLUMNS)


def _shingle_sets(blocks: Iterable[IntRows]) -> Iterator[tuple[list[int], ShingleSet]]:
    """Yield the columns of each pair of sorted rows without shingles, and its shingles."""
    columns: list[int] = []
    parts: list[IntRows] = []
    for rows in blocks:
        edges = np.flatnonzero(group_leaders(rows[:, 0], rows[:, 1])[0]).tolist()
        for part in np.split(rows, edges[1:]):
            if columns and columns[:2] != part[0, :2].tolist():
                yield columns, np.unique(np.concatenate(parts))
                parts.clear()
            columns = [*part[0, :2].tolist(), *part[0, _RANKS].tolist()]
            parts.append(part[:, 2 : 2 + SHINGLE_COLUMNS])
    if columns:
        yield columns, np.unique(np.concatenate(parts))


def _texts(run: RunDir, plan: Plan, documents: Sketch) -> Iterator[str]:
    """The refined texts of documents of one group."""
    if not len(documents):
        return
    piece = int(documents["shard"][0]) - len(plan.shards)  # of the external corpus
    if piece < 0:
        yield from (record.text or "" for record in replay_documents(run, plan, documents))
        return
    records = enumerate(external_records(plan, piece))
    for wanted in documents["record"].tolist():
        record = next(record for number, record in records if number == wanted)
        yield record.text if isinstance(record, Document) else ""

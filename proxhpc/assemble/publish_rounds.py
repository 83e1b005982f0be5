"""Rounds of the match phase after the decision: names, listings and sizes of duplicate sets.

`resolve` gives each removed document, copies included, its survivor. `name` decides which others of
a set stay, too, and sends a survivor's name to the groups of its duplicates. `finish` writes what a
group's duplicates are, and sends the ids of its survivors to the units of `ids`, which count those
that are shared.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import orjson

from proxhpc.assemble.line_rounds import LineEdits, edit_lines
from proxhpc.assemble.listings import DocumentName, name_documents
from proxhpc.assemble.match_result import GroupResult, LineCounts
from proxhpc.assemble.rounds import (
    NAME_COLUMNS,
    NO_DOCUMENT,
    Documents,
    RoundFiles,
    external_pieces,
    group_of,
)
from proxhpc.assemble.rows import cluster_id
from proxhpc.assemble.sketch import (
    SketchReceipt,
    load_chosen,
    read_sketch,
    require_receipt,
)
from proxhpc.corpus.writer import PartWriter
from proxhpc.dedup.arrays import file_digest, save_array, save_json
from proxhpc.dedup.exchange import partition_of
from proxhpc.dedup.hashes import INDEX_BITS, Sketch, document_numbers, priorities
from proxhpc.dedup.sorting import Flags, IntRows, group_leaders, with_leaders
from proxhpc.run.plan import Plan
from proxhpc.run.shards import shard_groups

MAX_LISTED_SETS = 10  # of the largest ones
MAX_SHARED_ID_EXAMPLES = 10
_INDEX = (1 << INDEX_BITS) - 1
_NAME_BYTES = 8 * NAME_COLUMNS
_NAMED = 1 << 13  # survivors whose names are in memory
_SAME, _NEAR, _SAME_URL = range(3)  # likeness of a document to its survivor
_STAYS = -1  # number of the piece in a row of `named` that has a cluster's size and id instead
_CLUSTER = slice(5, 7)  # these columns


@dataclass(frozen=True, slots=True)
class SetSizes:
    """The duplicate sets whose survivors are in one group.

    `histogram` counts them by the `log2_bucket` of their size, in which external documents do not
    count. `largest` has size and best duplicate of the largest ones. `further` counts documents
    that stay beside the survivor.
    """

    histogram: tuple[int, ...]
    largest: tuple[tuple[int, int], ...]
    further: int


@dataclass(frozen=True, slots=True)
class SharedIdCounts:
    """Documents whose id an earlier survivor has, and the first of them."""

    documents: int
    examples: tuple[int, ...]


def resolve_survivors(files: RoundFiles, group: int) -> None:
    """Send each document that is removed because of one in this group to its survivor's group."""
    claims, first = files.writer("claims", group), group << INDEX_BITS
    survivors = np.full(require_receipt(files.run, group).documents, NO_DOCUMENT)
    shares = np.full(len(survivors), 1000, np.uint16)
    dedup = files.plan.manifest.dedup
    ranks, start = np.zeros((len(survivors) if dedup.near else 0, 2), np.int64), 0
    for block in read_sketch(files.run, group) if dedup.near else ():
        ranks[start : start + len(block)] = priorities(block, dedup)
        start += len(block)

    def claim(documents: Documents, removed: IntRows) -> None:
        """Write claims of the survivors of `documents` on the `removed` ones that are like them.

        Columns of `removed`: priority, document, and whether it is linked by its URL.
        """
        survivor = survivors[documents - first]
        is_near = survivor != NO_DOCUMENT
        survivor = np.where(is_near, survivor, documents)
        likeness = np.where(removed[:, 3], _SAME_URL, np.where(is_near, _NEAR, _SAME))
        columns = [survivor, removed[:, :3], shares[documents - first], likeness]
        claims.add(group_of(survivor), np.column_stack(columns))

    if dedup.near:
        for rows, best in with_leaders(files.sorted("removed", group)):
            rows = rows[rows[:, 1] == best[:, 1]]
            at = rows[:, 0] - first
            survivors[at], shares[at] = rows[:, 2], rows[:, 3]
            claim(rows[:, 0], np.column_stack([ranks[at], rows[:, 0], np.zeros_like(at)]))
    if dedup.compares_texts or dedup.url:
        for rows in files.sorted("leaders", group):
            claim(rows[:, 0], rows[:, 1:])
    claims.finish()


def name_survivors(files: RoundFiles, group: int) -> None:
    """Send the names of a group's survivors to their duplicates, and count these.

    The best others of a set stay, too, if the manifest has `dedup.survivors`.
    """
    claims, manifest = files.sorted("claims", group), files.plan.manifest
    is_own = group < len(shard_groups(files.plan))  # else the set has no document of the corpus
    further, seen = 0, np.zeros(require_receipt(files.run, group).documents, np.int64)
    sizes, firsts = np.zeros_like(seen), np.zeros_like(seen)
    for rows in claims:
        is_first, _ = group_leaders(rows[:, 0])
        leading = rows[is_first]
        leading = leading[sizes[leading[:, 0] & _INDEX] == 0]
        firsts[leading[:, 0] & _INDEX] = leading[:, 3]
        np.add.at(sizes, rows[:, 0] & _INDEX, 1)
    chosen = sizes > 0
    named = files.writer("named", group)
    names = name_documents(files.run, files.plan, load_chosen(files.run, group, chosen))
    last, name = NO_DOCUMENT, ("", "")
    for rows in _slices(claims):
        is_first, leading = group_leaders(rows[:, 0])
        encoded, ids = [], []
        for survivor in rows[is_first, 0].tolist():
            if survivor != last:
                last, name = survivor, next(names)
            encoded.append(_encode_name(name))
            ids.append(cluster_id(name[1]))
        at, numbers = rows[:, 0] & _INDEX, np.cumsum(is_first) - 1
        rank = np.arange(len(rows)) - leading + seen[at]
        seen[at] = rank + 1
        stays = np.logical_and(rank < manifest.dedup.survivors - 1, is_own)
        further += int(stays.sum())
        if manifest.output.cluster_size and is_own:
            clusters = np.stack([sizes[at] + 1, np.array(ids, np.uint64).view(np.int64)[numbers]])
            for documents, wanted in ((rows[:, 3], stays), (rows[:, 0], rank == 0)):
                own = np.full((int(wanted.sum()), files.columns("named")), _STAYS)
                own[:, 0], own[:, _CLUSTER] = documents[wanted], clusters.T[wanted]
                named.add(group_of(own[:, 0]), own)
        pieces = _name_pieces(encoded, numbers)
        pieces = pieces[~stays[pieces[:, 0]]]
        claim = rows[pieces[:, 0]]
        columns = [claim[:, 3], pieces[:, 1], claim[:, 0], claim[:, 4:], pieces[:, 2:]]
        named.add(group_of(claim[:, 3]), np.column_stack(columns))
    named.finish()
    _save_sizes(files, group, sizes[chosen] + 1, firsts[chosen], further)


def finish_group(files: RoundFiles, group: int) -> None:
    """Write a group's duplicates with their survivors, and send the ids of its own survivors."""
    receipt = require_receipt(files.run, group)
    removed, counts = np.zeros(receipt.documents, np.bool_), Counter[str]()
    own_groups = len(shard_groups(files.plan))
    pieces = external_pieces(files.plan)
    corpora = np.array([files.plan.corpus_of(piece.spans[0].file) for piece in pieces], np.int64)
    external = Counter[int]()
    named = files.sorted("named", group, 2)
    clusters = [np.empty((0, 3), np.int64)]
    for rows in named:
        stays = rows[rows[:, 1] == _STAYS]
        clusters.append(np.column_stack([stays[:, 0] & _INDEX, stays[:, _CLUSTER]]))
        rows = rows[rows[:, 1] == 0]
        removed[rows[:, 0] & _INDEX] = True
        counts["near"] += int((rows[:, 4] == _NEAR).sum())
        counts["url"] += int((rows[:, 4] == _SAME_URL).sum())
        others = group_of(rows[:, 2]) - own_groups
        external += Counter(corpora[others[others >= 0]].tolist())
    edits = LineEdits("", LineCounts(), np.zeros_like(removed))
    if files.plan.manifest.dedup.lines:
        edits = edit_lines(files, group)
    by_file, left_out = Counter[int](), Counter[int]()
    count_files = _file_counter(files.plan, receipt)
    ids, start = files.writer("ids", group), 0
    for block in read_sketch(files.run, group) if group < own_groups else ():
        place = slice(start, start + len(block))
        kept = ~(removed[place] | edits.left_out[place])
        numbers = document_numbers(group, start, len(block))[kept]
        left_out += count_files(block[edits.left_out[place]])
        start += len(block)
        hashes = block["id"][kept].view(np.int64)
        ids.add(partition_of(hashes, ids.units), np.stack([hashes, numbers], axis=1))
        by_file += count_files(block[kept])
    ids.finish()
    listing = _write_listing(files, group, removed, named) if removed.any() else ""
    in_sets = np.concatenate(clusters)
    result = GroupResult(
        flags=save_array(
            files.files.flags(group), np.packbits(np.stack([removed, edits.left_out]), axis=1)
        ),
        clusters=save_array(files.files.clusters(group), in_sets) if len(in_sets) else "",
        listing=listing,
        duplicates=int(removed.sum()),
        near=counts["near"],
        same_url=counts["url"],
        external=dict(external),
        survivors=dict(by_file),
        left_out=dict(left_out),
        lines=edits.counts,
        line_programs=edits.digest,
    )
    save_json(files.files.of_unit("groups", group), result)


def count_shared_ids(files: RoundFiles, unit: int) -> None:
    """Count survivors with the id of an earlier one."""
    count, examples = 0, np.empty(0, np.int64)
    for rows, leaders in with_leaders(files.sorted("ids", unit)):
        later = rows[rows[:, 1] != leaders[:, 1], 1]
        count += len(later)
        examples = np.sort(np.concatenate([examples, later]))[:MAX_SHARED_ID_EXAMPLES]
    counts = SharedIdCounts(count, tuple(examples.tolist()))
    save_json(files.files.of_unit("shared_ids", unit), counts)


def _slices(blocks: Iterable[IntRows]) -> Iterator[IntRows]:
    """The rows in smaller blocks, each of which gets much larger with names."""
    for rows in blocks:
        yield from (rows[start : start + _NAMED] for start in range(0, len(rows), _NAMED))


def _save_sizes(
    files: RoundFiles, group: int, sizes: npt.NDArray[np.int64], firsts: Documents, further: int
) -> None:
    """Write how large a group's sets are."""
    largest = np.stack([sizes, firsts], axis=1)
    largest = largest[np.lexsort((firsts, -sizes))[:MAX_LISTED_SETS]]
    histogram = np.trim_zeros(np.bincount(np.frexp(sizes)[1], minlength=1), "b")
    examples = tuple((size, first) for size, first in largest.tolist())
    value = SetSizes(tuple(histogram.tolist()), examples, further)
    save_json(files.files.of_unit("sets", group), value)


def _encode_name(name: DocumentName) -> bytes:
    return orjson.dumps({"id": name[0], "source": name[1]})


def _name_pieces(names: Sequence[bytes], of_claims: npt.NDArray[np.int64]) -> IntRows:
    """Rows of a claim's index, the number of a piece of its name, and that piece, padded.

    `of_claims` has the name of each claim, by index.
    """
    padded = [name + bytes(-len(name) % _NAME_BYTES) for name in names]
    data = np.frombuffer(b"".join(padded), "<i8").reshape(-1, NAME_COLUMNS)
    lengths = np.array([len(name) // _NAME_BYTES for name in padded], np.int64)
    starts = np.cumsum(lengths) - lengths
    counts = lengths[of_claims]
    claims = np.repeat(np.arange(len(of_claims)), counts)
    numbers = np.arange(len(claims)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.column_stack([claims, numbers, data[starts[of_claims][claims] + numbers]])


def _write_listing(files: RoundFiles, group: int, removed: Flags, named: Iterable[IntRows]) -> str:
    """Write each duplicate of a group with its survivor, in input order; the file's digest."""
    path = files.files.duplicates(group)
    path.parent.mkdir(parents=True, exist_ok=True)
    documents = load_chosen(files.run, group, removed)
    names = name_documents(files.run, files.plan, documents)
    with PartWriter(path) as writer:
        for similarity, survivor in _survivors(named):
            writer.write(
                {
                    "duplicate": orjson.Fragment(_encode_name(next(names))),
                    "survivor": orjson.Fragment(survivor),
                    "similarity": similarity,
                }
            )
    return file_digest(path)


def _survivors(named: Iterable[IntRows]) -> Iterator[tuple[float | None, bytes]]:
    """Yield each duplicate's similarity to its survivor, and the survivor's encoded name.

    The similarity is None for those that are left out by their URL.
    """
    similarity: float | None = None
    pieces: list[bytes] = []
    for rows in named:
        rows = rows[rows[:, 1] != _STAYS]
        data = rows[:, -NAME_COLUMNS:].tobytes()
        edges = range(0, len(data) + 1, _NAME_BYTES)
        columns = zip(*rows[:, [1, 3, 4]].T.tolist(), pairwise(edges), strict=True)
        for number, share, likeness, (start, stop) in columns:
            if number == 0 and pieces:
                yield similarity, b"".join(pieces).rstrip(b"\0")
                pieces.clear()
            similarity = None if likeness == _SAME_URL else share / 1000
            pieces.append(data[start:stop])
    if pieces:
        yield similarity, b"".join(pieces).rstrip(b"\0")


def _file_counter(plan: Plan, receipt: SketchReceipt) -> Callable[[Sketch], Counter[int]]:
    """A function that counts documents of a group by number of input file."""
    starts, files = [], []
    groups = shard_groups(plan)
    shards = groups[receipt.group] if receipt.group < len(groups) else range(0)
    for shard, spans in zip(shards, receipt.spans_by_shard, strict=True):
        record = 0
        for span in spans:
            starts.append(shard << 32 | record)
            files.append(span.file)
            record += span.records

    def count(documents: Sketch) -> Counter[int]:
        keys = documents["shard"].astype(np.uint64) << np.uint64(32) | documents["record"]
        # A span without records has the start of the next one; the last of equal starts owns.
        owners = np.searchsorted(np.array(starts, np.uint64), keys, side="right") - 1
        numbers, counts = np.unique(np.array(files, np.int64)[owners], return_counts=True)
        return Counter(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))

    return count

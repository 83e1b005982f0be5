"""The match phase: finds duplicates, chooses survivors, and plans the parts of the corpus.

The result depends on the documents and their order in the input only, not on shards or workers.
Pairs are found one range of keys at a time and stored; pairs, duplicate sets and removed documents
are sorted on disk if they do not fit into memory.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import xxhash

from proxhpc.assemble.coverage import check_coverage
from proxhpc.assemble.duplicates import DuplicateSets, choose_survivors, duplicate_flags
from proxhpc.assemble.pairs import (
    KeyRange,
    Sketches,
    estimate_similarity,
    keep_repeated,
    match_tasks,
    read_pairs,
    write_pairs,
)
from proxhpc.assemble.parts import PartRange, part_splitter
from proxhpc.assemble.sketch import SketchReceipt, read_receipt
from proxhpc.assemble.text_pairs import compare_texts
from proxhpc.dedup.arrays import (
    file_digest,
    load_array,
    load_json,
    save_array,
    save_blocks,
    save_json,
    to_json,
)
from proxhpc.dedup.bands import SHARED_ID, key_ranges
from proxhpc.dedup.clusters import Documents, SetBuilder, pairs_across_sets
from proxhpc.dedup.hashes import Sketch, check_files, load_sketch
from proxhpc.dedup.sorting import Flags, Scratch, Sorter
from proxhpc.errors import StopError
from proxhpc.faults import fault_point
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.pool import Pool
from proxhpc.run.shards import shard_groups

_MAX_SHARED_ID_EXAMPLES = 10
_SLICE_DOCUMENTS = 1 << 14  # documents that are looked up at a time


@dataclass(frozen=True, slots=True)
class MatchResult:
    """What the match phase found. `digest` identifies what it was made from.

    `duplicates` are removed; of these, `near` differ in text from their survivor, and for
    `external` the survivor is in the external corpus. `survivors` counts the documents that are
    written, by input file. `shared_ids` are documents whose id (by a 64-bit hash) an earlier
    survivor has too; `shared_id_examples` are some of them, as (shard, record). `set_sizes` counts
    duplicate sets by the `log2_bucket` of their size. `largest_sets` describes the largest ones:
    the size of each, and shard and record of its first duplicate. `flag_digests` and
    `pairs_digest` are digests of files: which documents of each group are duplicates, and of what.
    """

    digest: str
    documents: int
    duplicates: int
    near: int
    external: int
    shared_ids: int
    shared_id_examples: tuple[tuple[int, int], ...]
    survivors: tuple[int, ...]
    parts: tuple[PartRange, ...]
    flag_digests: tuple[str, ...]
    pairs_digest: str
    set_sizes: tuple[int, ...]
    largest_sets: tuple[tuple[int, int, int], ...]


def match_documents(pool: Pool, receipts: Sequence[SketchReceipt], memory: int) -> MatchResult:
    """Run the match phase, unless its result is current.

    All processes of the pool together use about `memory` bytes.
    """
    run, plan = pool.run, pool.plan
    sections = [plan.manifest.dedup, plan.manifest.output]
    source = xxhash.xxh3_128_hexdigest(b"".join(map(to_json, [*sections, *receipts])))
    earlier = read_match(run)
    own_receipts = receipts[: len(shard_groups(plan))]
    files = [run.pairs, *(run.duplicate_flags(receipt.group) for receipt in own_receipts)]
    if earlier and earlier.digest == source and all(path.exists() for path in files):
        return earlier
    check_coverage(plan, (span for receipt in own_receipts for span in receipt.spans))
    run.pairs.parent.mkdir(parents=True, exist_ok=True)
    run.match.unlink(missing_ok=True)
    for receipt in receipts:
        check_files(run, receipt.group, receipt.files)
    result = _match(pool, own_receipts, source, memory)
    save_json(run.match, result)
    fault_point("match written")
    _delete_match_files(run)
    return result


def read_match(run: RunDir) -> MatchResult | None:
    """The result of an earlier match phase, None if there is none."""
    return load_json(run.match, MatchResult)


def require_match(run: RunDir) -> MatchResult:
    """The result of the match phase. StopError if there is none."""
    result = read_match(run)
    if result is None:
        raise StopError(f"there is no {run.match}", hint="merge again from the start")
    return result


def load_survivors(run: RunDir, match: MatchResult, group: int) -> Sketch:
    """A group's documents that survived deduplication, in input order."""
    receipt = read_receipt(run, group)
    if receipt is None:
        raise StopError(f"there is no {run.sketch_receipt(group)}", hint="merge again")
    return _survivors(run, receipt, match.flag_digests[group])


def _survivors(run: RunDir, receipt: SketchReceipt, flag_digest: str) -> Sketch:
    documents = load_sketch(run, receipt.group, receipt.files)
    return documents[_survivor_flags(run, receipt.group, flag_digest, receipt.documents)]


def _survivor_flags(run: RunDir, group: int, digest: str, documents: int) -> Flags:
    """Which of a group's documents survived; `digest` is that of the group's file of flags."""
    bits = load_array(run.duplicate_flags(group), digest)
    return ~np.unpackbits(bits, count=documents).astype(np.bool_)


def _match(
    pool: Pool, own_receipts: Sequence[SketchReceipt], source_digest: str, memory: int
) -> MatchResult:
    run, plan = pool.run, pool.plan
    sketches = Sketches(run, plan)
    duplicates, sets = _find_duplicates(pool, sketches, source_digest, memory)
    flag_digests = _save_flags(run, sketches, own_receipts, duplicates)
    shared_ids, shared_id_examples = _shared_ids(sketches, flag_digests, memory)
    by_file = np.zeros(len(plan.inputs), np.int64)
    parts = part_splitter(plan.manifest.output)
    for receipt, digest in zip(own_receipts, flag_digests, strict=True):
        survivors = _survivors(run, receipt, digest)
        by_file += _count_by_file(plan, receipt, survivors)
        parts.add(survivors)
    counts = Counter[str]()
    save_blocks(run.pairs, _pair_rows(sketches, duplicates, counts), "<u4", 5)
    largest = zip(sets.largest[:, 0].tolist(), _keys(sketches, sets.largest[:, 1]), strict=True)
    return MatchResult(
        digest=source_digest,
        documents=sketches.own_documents,
        duplicates=counts["duplicates"],
        near=counts["near"],
        external=counts["external"],
        shared_ids=shared_ids,
        shared_id_examples=tuple(_keys(sketches, shared_id_examples)),
        survivors=tuple(by_file.tolist()),
        parts=tuple(parts.finish()),
        flag_digests=flag_digests,
        pairs_digest=file_digest(run.pairs),
        set_sizes=tuple(np.trim_zeros(sets.size_histogram, "b").tolist()),
        largest_sets=tuple((size, *key) for size, key in largest),
    )


def _find_duplicates(
    pool: Pool, sketches: Sketches, source_digest: str, memory: int
) -> tuple[Sorter, DuplicateSets]:
    run, plan = pool.run, pool.plan
    share = memory // pool.processes
    tasks = range(len(match_tasks(plan, len(sketches), share)))
    # The number of ranges depends on the memory, and what each task finds depends on the ranges.
    source_digest = f"{source_digest}-{len(tasks)}"
    files = run.match_files(source_digest)
    _delete_match_files(run, keep=source_digest)
    files.root.mkdir(exist_ok=True)
    scratch = Scratch(files.root, memory)
    unit = partial(write_pairs, source_digest=source_digest, memory=share)
    for _ in pool.each("match", unit, tasks):
        fault_point("pairs found")
    builder, undecided = SetBuilder(scratch), Sorter(scratch, 2)
    for number in tasks:
        for candidates in read_pairs(files.found_pairs(number), scratch.max_rows(3)):
            builder.add(candidates.duplicates)
            undecided.add(candidates.undecided)
    sets = builder.build()
    if any(True for _ in undecided):
        builder = SetBuilder(scratch)
        for rows in sets:
            builder.add(rows)
        undecided = pairs_across_sets(scratch, undecided, sets)
        for pairs in compare_texts(pool, scratch, undecided, source_digest):
            builder.add(pairs)
        sets = builder.build()
    return choose_survivors(scratch, plan, sketches, sets)


def _delete_match_files(run: RunDir, keep: str = "") -> None:
    """Delete the folders of match phases in progress, except the one named `keep`."""
    for path in run.pairs.parent.iterdir():
        if path.is_dir() and path.name != keep:
            shutil.rmtree(path)


def _save_flags(
    run: RunDir, sketches: Sketches, own_receipts: Sequence[SketchReceipt], duplicates: Sorter
) -> tuple[str, ...]:
    """Write which documents of each group are duplicates; return the digests of the files."""
    flags = duplicate_flags(duplicates, sketches.group_starts[: len(own_receipts) + 1])
    return tuple(
        save_array(run.duplicate_flags(receipt.group), np.packbits(group_flags))
        for receipt, group_flags in zip(own_receipts, flags, strict=True)
    )


def _pair_rows(
    sketches: Sketches, duplicates: Sorter, counts: Counter[str]
) -> Iterator[npt.NDArray[np.uint32]]:
    """Rows of a duplicate's shard and record, its survivor's, and 1000 times their similarity.

    `counts` gets their number, and how many are near-duplicates and of the external corpus.
    """
    for pairs in (
        rows[start : start + _SLICE_DOCUMENTS]
        for rows in duplicates
        for start in range(0, len(rows), _SLICE_DOCUMENTS)
    ):
        columns = np.empty((len(pairs), 5), np.uint32)
        duplicate, survivor = (sketches.rows(side) for side in pairs.T)
        for column, rows in ((0, duplicate), (2, survivor)):
            columns[:, column], columns[:, column + 1] = rows["shard"], rows["record"]
        near = (duplicate["high"] != survivor["high"]) | (duplicate["low"] != survivor["low"])
        columns[:, 4] = 1000
        columns[near, 4] = 1000 * estimate_similarity(sketches, pairs[near])
        counts["duplicates"] += len(pairs)
        counts["near"] += int(near.sum())
        counts["external"] += int((pairs[:, 1] >= sketches.own_documents).sum())
        yield columns


def _shared_ids(
    sketches: Sketches, flag_digests: Sequence[str], memory: int
) -> tuple[int, Documents]:
    """How many survivors have the id of an earlier one, and the first of them."""
    count, examples = 0, np.empty(0, np.int64)
    for low, high in key_ranges(len(sketches), memory):
        ids, documents = sketches.repeated_keys(KeyRange(SHARED_ID, low, high))
        survived = _survived(sketches, flag_digests, documents)
        ids, documents = keep_repeated(ids[survived], documents[survived])
        later = documents[1:][ids[1:] == ids[:-1]]
        count += len(later)
        examples = np.sort(np.concatenate([examples, later]))[:_MAX_SHARED_ID_EXAMPLES]
    return count, examples


def _survived(sketches: Sketches, flag_digests: Sequence[str], documents: Documents) -> Flags:
    """Which of these documents survived; False for external ones."""
    out = np.zeros(len(documents), np.bool_)
    groups = sketches.group_of(documents)
    for group, digest in enumerate(flag_digests):
        in_group = groups == group
        if in_group.any():
            first, last = sketches.group_starts[group : group + 2].tolist()
            flags = _survivor_flags(sketches.run, group, digest, last - first)
            out[in_group] = flags[documents[in_group] - first]
    return out


def _count_by_file(plan: Plan, receipt: SketchReceipt, survivors: Sketch) -> npt.NDArray[np.int64]:
    keys = survivors["shard"].astype(np.uint64) << np.uint64(32) | survivors["record"]
    starts, files = [], []
    shards = shard_groups(plan)[receipt.group]
    for shard, spans in zip(shards, receipt.spans_by_shard, strict=True):
        record = 0
        for span in spans:
            starts.append(shard << 32 | record)
            files.append(span.file)
            record += span.records
    # A span without records has the start of the next one; the last of equal starts is the owner.
    owners = np.searchsorted(np.array(starts, np.uint64), keys, side="right") - 1
    return np.bincount(np.array(files)[owners], minlength=len(plan.inputs))


def _keys(sketches: Sketches, documents: Documents) -> list[tuple[int, int]]:
    rows = sketches.rows(documents) if len(documents) else ()
    return [(int(row["shard"]), int(row["record"])) for row in rows]

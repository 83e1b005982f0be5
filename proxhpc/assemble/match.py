"""Match: one survivor of every set of duplicates, and where each part of the corpus begins.

Everything follows from the documents and their order in the input, nothing from shards or workers.
Pairs are found a range of keys after the other, and written; they, the sets that they make and
what is left out of these are sorted on disk where they do not fit into memory.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
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
from proxhpc.assemble.sketch import SketchReceipt, shard_groups, spans_of
from proxhpc.assemble.text_pairs import compare_texts
from proxhpc.corpus.disk import write_atomic
from proxhpc.dedup.arrays import add_checksum, load_array, read_checksummed, save_array, save_blocks
from proxhpc.dedup.bands import SHARED_ID, damaged_file, file_digest, key_ranges
from proxhpc.dedup.clusters import Documents, SetBuilder, pairs_across_sets
from proxhpc.dedup.hashes import Sketch, check_files, load_sketch
from proxhpc.dedup.sorting import Scratch, Sorter
from proxhpc.faults import fault_point
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.pool import Pool

_SHARED_ID_EXAMPLES = 10  # of shared ids
_SLICE_DOCUMENTS = 1 << 14  # documents that are looked up at a time

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class MatchResult:
    """What the match decided. `digest` carries on what it was decided from.

    `near` are the duplicates with another text than the document that is kept for them, `outside`
    those for which one of the corpus to compare with is kept.
    `survivors` counts by input file the documents that are written. `shared_ids` are documents
    whose id an earlier survivor has too, by a 64-bit hash; `examples` are some of them, as
    (shard, record). `dropped` and `pairs` are digests of files: which documents of each group are
    duplicates, and of what. `set_sizes` counts sets by the octave of their size, and `largest` are
    the largest ones: size, and the (shard, record) of the first document that is left out.
    """

    digest: str
    documents: int
    duplicates: int
    near: int
    external: int
    sets: int
    largest_set: int
    shared_ids: int
    shared_id_examples: tuple[tuple[int, int], ...]
    survivors: tuple[int, ...]
    parts: tuple[PartRange, ...]
    flag_digests: tuple[str, ...]
    pairs_digest: str
    set_sizes: tuple[int, ...] = ()
    largest_sets: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def decode(cls, raw: bytes) -> "MatchResult":
        """Read its JSON form."""
        data: dict[str, Any] = orjson.loads(raw)
        data["shared_id_examples"] = tuple((a, b) for a, b in data["shared_id_examples"])
        data["survivors"] = tuple(data["survivors"])
        data["set_sizes"] = tuple(data["set_sizes"])
        data["largest_sets"] = tuple((size, a, b) for size, a, b in data["largest_sets"])
        data["flag_digests"] = tuple(data["flag_digests"])
        data["parts"] = tuple(PartRange(**part) for part in data["parts"])
        return cls(**data)


def match_documents(pool: Pool, receipts: Sequence[SketchReceipt], memory: int) -> MatchResult:
    """Decide what is a duplicate and what goes where, unless that was done.

    `memory` bytes are for all processes of the pool together.
    """
    run, plan = pool.run, pool.plan
    manifest = plan.manifest
    rules = [part.model_dump(mode="json") for part in (manifest.dedup, manifest.output)]
    made_of = xxhash.xxh3_128_hexdigest(orjson.dumps([rules, *(r.digest for r in receipts)]))
    earlier = read_match(run)
    own = receipts[: len(shard_groups(plan))]
    made = [run.pairs, *(run.duplicate_flags(receipt.group) for receipt in own)]
    if earlier and earlier.digest == made_of and all(path.exists() for path in made):
        return earlier
    check_coverage(plan, (tile for receipt in own for tile in spans_of(receipt)))
    run.pairs.parent.mkdir(parents=True, exist_ok=True)
    run.match.unlink(missing_ok=True)
    for receipt in receipts:
        check_files(run, receipt.group, receipt.files)
    sketches = Sketches(run, plan)
    lost, sets = _duplicates(pool, sketches, made_of, memory)
    alive = _save_flags(run, sketches, own, lost)
    shared, examples = _shared_ids(sketches, alive, memory)
    by_file = np.zeros(len(plan.inputs), np.int64)
    parts = part_splitter(manifest.output)
    for receipt in own:
        stay = load_sketch(run, receipt.group, receipt.files)[alive.of(receipt.group)]
        by_file += _by_file(plan, receipt, stay)
        parts.add(stay)
    pairs = _save_pairs(run, sketches, lost)
    largest = zip(sets.largest[:, 0].tolist(), _places(sketches, sets.largest[:, 1]), strict=True)
    found = MatchResult(
        digest=made_of,
        documents=sketches.own,
        duplicates=pairs.documents,
        near=pairs.near,
        external=pairs.outside,
        sets=sets.count,
        largest_set=int(sets.largest[0, 0]) if sets.count else 0,
        shared_ids=shared,
        shared_id_examples=tuple(_places(sketches, examples)),
        survivors=tuple(by_file.tolist()),
        parts=tuple(parts.finish()),
        set_sizes=tuple(np.trim_zeros(sets.size_histogram, "b").tolist()),
        largest_sets=tuple((size, *place) for size, place in largest),
        flag_digests=alive.digests,
        pairs_digest=pairs.digest,
    )
    write_atomic(
        run.match, add_checksum(orjson.dumps(asdict(found), option=orjson.OPT_APPEND_NEWLINE))
    )
    fault_point("match written")
    _clear(run)
    return found


def read_match(run: RunDir) -> MatchResult | None:
    """What was decided before, None if nothing."""
    try:
        return MatchResult.decode(read_checksummed(run.match))
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise damaged_file(run.match) from error


def load_survivor_flags(run: RunDir, match: MatchResult, group: int, documents: int) -> Flags:
    """Which of a group's documents are written."""
    return _load_flags(run, group, match.flag_digests[group], documents)


@dataclass(frozen=True, slots=True)
class SurvivorMask:
    """Which documents of a run are no duplicates, read group by group."""

    run: RunDir
    edges: npt.NDArray[np.int64]
    digests: tuple[str, ...]  # of the run's own groups

    def of(self, group: int) -> Flags:
        """Those of one group."""
        first, last = self.edges[group : group + 2].tolist()
        return _load_flags(self.run, group, self.digests[group], last - first)

    def among(self, documents: Documents) -> Flags:
        """Those of these documents, of the run's own."""
        out = np.zeros(len(documents), np.bool_)
        groups = np.searchsorted(self.edges, documents, "right") - 1
        for group in np.unique(groups[groups < len(self.digests)]).tolist():
            there = groups == group
            out[there] = self.of(group)[documents[there] - self.edges[group]]
        return out


def _load_flags(run: RunDir, group: int, known: str, documents: int) -> Flags:
    bits = load_array(run.duplicate_flags(group), known)
    return ~np.unpackbits(bits, count=documents).astype(np.bool_)


def _duplicates(
    pool: Pool, sketches: Sketches, made_of: str, memory: int
) -> tuple[Sorter, DuplicateSets]:
    """What is left out, and the sets that it is in."""
    run, plan = pool.run, pool.plan
    share = memory // pool.processes
    todo = range(len(match_tasks(plan, len(sketches), share)))
    # Where the ranges begin and end depends on their number, and that on the memory.
    made_of = f"{made_of}-{len(todo)}"
    folder = run.match_files(made_of).root
    _clear(run, made_of)
    folder.mkdir(exist_ok=True)
    scratch = Scratch(folder, memory)
    for _ in pool.each("match", partial(write_pairs, made_of=made_of, memory=share), todo):
        fault_point("pairs found")
    forest, unsure = SetBuilder(scratch), Sorter(scratch, 2)
    for number in todo:
        for found in read_pairs(run.match_files(made_of).found_pairs(number), scratch.max_rows(3)):
            forest.add(found.duplicates)
            unsure.add(found.undecided)
    sets = forest.build()
    if any(True for _ in unsure):
        forest = SetBuilder(scratch)
        for rows in sets:
            forest.add(rows)
        for rows in compare_texts(pool, scratch, pairs_across_sets(scratch, unsure, sets), made_of):
            forest.add(rows)
        sets = forest.build()
    return choose_survivors(scratch, plan, sketches, sets)


def _clear(run: RunDir, but: str = "") -> None:
    """Delete what other matches left on their way."""
    for path in run.pairs.parent.iterdir():
        if path.is_dir() and path.name != but:
            shutil.rmtree(path)


def _save_flags(
    run: RunDir, sketches: Sketches, own: Sequence[SketchReceipt], lost: Sorter
) -> SurvivorMask:
    """Write for each group which of its documents are left out."""
    digests = [
        save_array(run.duplicate_flags(receipt.group), np.packbits(dropped))
        for receipt, dropped in zip(
            own, duplicate_flags(lost, sketches.firsts[: len(own) + 1]), strict=True
        )
    ]
    return SurvivorMask(run, sketches.firsts, tuple(digests))


@dataclass(slots=True)
class _SavedPairs:
    """What is told of the file of pairs."""

    documents: int = 0
    near: int = 0
    outside: int = 0
    digest: str = ""


def _save_pairs(run: RunDir, sketches: Sketches, lost: Sorter) -> _SavedPairs:
    """Write the pairs as (shard, record, shard, record, thousandths alike)."""
    saved = _SavedPairs()
    save_blocks(run.pairs, _numbers(sketches, lost, saved), "<u4", 5)
    saved.digest = file_digest(run.pairs)
    return saved


def _numbers(
    sketches: Sketches, lost: Sorter, saved: _SavedPairs
) -> Iterator[npt.NDArray[np.uint32]]:
    for pairs in (
        rows[at : at + _SLICE_DOCUMENTS]
        for rows in lost
        for at in range(0, len(rows), _SLICE_DOCUMENTS)
    ):
        columns = np.empty((len(pairs), 5), np.uint32)
        one, other = (sketches.rows(side) for side in pairs.T)
        for column, rows in ((0, one), (2, other)):
            columns[:, column], columns[:, column + 1] = rows["shard"], rows["number"]
        apart = (one["high"] != other["high"]) | (one["low"] != other["low"])
        columns[:, 4] = 1000
        columns[apart, 4] = 1000 * estimate_similarity(sketches, pairs[apart])
        saved.documents += len(pairs)
        saved.near += int(apart.sum())
        saved.outside += int((pairs[:, 1] >= sketches.own).sum())
        yield columns


def _shared_ids(sketches: Sketches, alive: SurvivorMask, memory: int) -> tuple[int, Documents]:
    """How many survivors have the id of an earlier one, and the first of them."""
    count, examples = 0, np.empty(0, np.int64)
    for low, high in key_ranges(len(sketches), memory):
        ids, documents = sketches.band(KeyRange(SHARED_ID, low, high))
        stay = alive.among(documents)
        ids, documents = keep_repeated(ids[stay], documents[stay])
        found = documents[1:][ids[1:] == ids[:-1]]
        count += len(found)
        examples = np.sort(np.concatenate([examples, found]))[:_SHARED_ID_EXAMPLES]
    return count, examples


def _by_file(plan: Plan, receipt: SketchReceipt, survivors: Sketch) -> npt.NDArray[np.int64]:
    """Count a group's survivors by input file."""
    places = survivors["shard"].astype(np.uint64) << np.uint64(32) | survivors["number"]
    starts, files = [], []
    for shard, tiles in zip(shard_groups(plan)[receipt.group], receipt.spans, strict=True):
        number = 0
        for tile in tiles:
            starts.append(shard << 32 | number)
            files.append(tile.file)
            number += tile.records
    # A span without records begins where the next one does: the last of equals is the owner.
    owners = np.searchsorted(np.array(starts, np.uint64), places, side="right") - 1
    return np.bincount(np.array(files)[owners], minlength=len(plan.inputs))


def _places(sketches: Sketches, documents: Documents) -> list[tuple[int, int]]:
    return [_place(row) for row in sketches.rows(documents)] if len(documents) else []


def _place(row: Any) -> tuple[int, int]:
    return int(row["shard"]), int(row["number"])

"""The match phase: a chain of rounds that find duplicates and plan the parts of the corpus.

The result depends on the documents and their order in the input only, not on shards, workers,
memory or the number of units. Rounds run one after another: if a round has a file, all earlier ones
are complete, and their files are deleted once no later round reads them.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import nsmallest
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import xxhash

from proxhpc.assemble.coverage import check_coverage
from proxhpc.assemble.exact_round import find_copies, find_same_urls, write_text_hashes
from proxhpc.assemble.line_rounds import find_repeated_lines, send_lines
from proxhpc.assemble.match_result import (
    GroupResult,
    LineCounts,
    MatchResult,
    load_survivors,
    read_match,
    require_match,
)
from proxhpc.assemble.near_rounds import (
    compare_signatures,
    link_to_leaders,
    ship_signatures,
    write_band_keys,
)
from proxhpc.assemble.parts import part_splitter
from proxhpc.assemble.publish_rounds import (
    MAX_LISTED_SETS,
    MAX_SHARED_ID_EXAMPLES,
    SetSizes,
    SharedIdCounts,
    count_shared_ids,
    finish_group,
    name_survivors,
    resolve_survivors,
)
from proxhpc.assemble.rounds import RoundFiles, UnitKind, unit_count
from proxhpc.assemble.settle import settle
from proxhpc.assemble.sketch import SketchReceipt, load_chosen, require_receipt
from proxhpc.assemble.text_rounds import compare_texts, write_shingles
from proxhpc.dedup.arrays import load_json, save_json, to_json
from proxhpc.dedup.hashes import INDEX_BITS, RecordKey
from proxhpc.errors import StopError
from proxhpc.faults import fault_point
from proxhpc.run.merge_phases import ROUND_NAMES, RoundName
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.pool import Pool
from proxhpc.run.shards import shard_groups

T = TypeVar("T")


class MatchRound(NamedTuple):
    """A round: its kind of units, what each does, and the files that it reads and writes.

    A unit is done if its file of the last kind exists.
    """

    units: UnitKind
    function: Callable[[RoundFiles, int], None]
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MatchSource:
    """What the files of the match phase are made from."""

    digest: str


class PendingRound(NamedTuple):
    """The units of a round that are not done, of `total`."""

    name: RoundName
    total: int
    units: tuple[int, ...]


def round_names(plan: Plan) -> list[RoundName]:
    """The rounds of a run's match phase, in order."""
    dedup = plan.manifest.dedup
    left_out = set() if dedup.compares_texts or dedup.url else {"exact"}
    if not (dedup.compares_texts and dedup.url):
        left_out |= {"urls", "texts"}
    if not dedup.near:
        left_out |= {"bands", "candidates", "ship", "verify", "read", "compare", "settle"}
    elif dedup.near.verify != "text":
        left_out |= {"read", "compare"}
    if not dedup.lines:
        left_out |= {"lines", "repeated"}
    return [name for name in ROUND_NAMES if name not in left_out]


def round_units(plan: Plan, name: RoundName) -> int:
    """How many units a round has."""
    return unit_count(plan, MATCH_ROUNDS[name].units)


def pending_rounds(run: RunDir, plan: Plan) -> list[PendingRound]:
    """The rounds with their pending units, in order, by file names alone."""
    source = load_json(run.match_source, MatchSource)
    folder = run.match_files(source.digest).root if source else None
    pending: list[PendingRound] = []
    is_done = run.match.exists()
    for name in reversed(round_names(plan)):
        total = round_units(plan, name)
        written = (
            set() if is_done or folder is None else _names(folder / MATCH_ROUNDS[name].writes[-1])
        )
        units = () if is_done else tuple(n for n in range(total) if f"{n:05d}" not in written)
        pending.append(PendingRound(name, total, units))
        is_done = is_done or len(units) < total
    return pending[::-1]


def start_match(run: RunDir, plan: Plan, receipts: Sequence[SketchReceipt]) -> str:
    """Delete what was made from other sketches; return the digest of what is matched now."""
    sections = [plan.manifest.dedup, plan.manifest.output]
    digest = xxhash.xxh3_128_hexdigest(b"".join(map(to_json, [*sections, *receipts])))
    source = load_json(run.match_source, MatchSource)
    if source is None or source.digest != digest or _is_incomplete(run):
        own_groups = len(shard_groups(plan))
        check_coverage(plan, (span for receipt in receipts[:own_groups] for span in receipt.spans))
        run.match.unlink(missing_ok=True)
        shutil.rmtree(run.match_folder, ignore_errors=True)
        run.match_files(digest).root.mkdir(parents=True)
        save_json(run.match_source, MatchSource(digest))
    return digest


def match_documents(pool: Pool, receipts: Sequence[SketchReceipt], memory: int) -> MatchResult:
    """Run the rounds that are not done.

    All processes of the pool together use about `memory` bytes.
    """
    start_match(pool.run, pool.plan, receipts)
    for name in round_names(pool.plan):
        run_round(pool, name, range(round_units(pool.plan, name)), memory)
    _delete_files(pool.run, [])
    return require_match(pool.run)


def run_round(pool: Pool, name: RoundName, units: Sequence[int], memory: int) -> None:
    """Run these units of a round unless they are done. StopError if the match is not started."""
    run, plan = pool.run, pool.plan
    source = load_json(run.match_source, MatchSource)
    if source is None:
        raise StopError(f"there is no {run.match_source}", hint="merge again from the start")
    (pending,) = (each for each in pending_rounds(run, plan) if each.name == name)
    units = sorted({*units} & {*pending.units})
    if 0 in units:
        names = round_names(plan)
        _delete_files(run, names[names.index(name) :])
    folder = run.match_files(source.digest).root
    unit = partial(_run_unit, name=name, folder=folder, memory=memory // pool.processes)
    for _ in pool.each(name, unit, units):
        pass  # a unit's result is in its file


def _run_unit(
    run: RunDir, plan: Plan, unit: int, *, name: RoundName, folder: Path, memory: int
) -> None:
    MATCH_ROUNDS[name].function(RoundFiles(run, plan, folder, memory), unit)
    fault_point("round written", name)


def _collect(files: RoundFiles, _: int) -> None:
    """Write the result of the match phase from those of its units."""
    run, plan = files.run, files.plan
    digest = (load_json(run.match_source, MatchSource) or MatchSource("")).digest
    groups = [*_results(files, "groups", GroupResult)][: len(shard_groups(plan))]
    sets = [*_results(files, "sets", SetSizes)]
    ids = [*_results(files, "shared_ids", SharedIdCounts)]
    listed = chain.from_iterable(each.largest for each in sets)
    largest = nsmallest(MAX_LISTED_SETS, listed, key=lambda row: (-row[0], row[1]))
    examples = nsmallest(MAX_SHARED_ID_EXAMPLES, chain.from_iterable(e.examples for e in ids))
    histogram = np.zeros(64, np.int64)
    for each in sets:
        histogram[: len(each.histogram)] += np.array(each.histogram, np.int64)
    survivors, left_out = np.zeros((2, len(plan.inputs)), np.int64)
    splitter = part_splitter(plan.manifest.output)
    documents = 0
    for group, result in enumerate(groups):
        splitter.add(load_survivors(run, digest, group, result.flags, result.clusters).documents)
        documents += require_receipt(run, group).documents
        for file, count in result.survivors.items():
            survivors[file] += count
        for file, count in result.left_out.items():
            left_out[file] += count
    match = MatchResult(
        digest=digest,
        documents=documents,
        duplicates=sum(group.duplicates for group in groups),
        near=sum(group.near for group in groups),
        same_url=sum(group.same_url for group in groups),
        external=dict(sum((Counter(group.external) for group in groups), Counter())),
        shared_ids=sum(each.documents for each in ids),
        shared_id_examples=tuple(_key(run, document) for document in examples),
        survivors=tuple(survivors.tolist()),
        left_out=tuple(left_out.tolist()),
        lines=sum((group.lines for group in groups), LineCounts()),
        line_programs=tuple(group.line_programs for group in groups),
        parts=tuple(splitter.finish()),
        flags=tuple(group.flags for group in groups),
        clusters=tuple(group.clusters for group in groups),
        listings=tuple(group.listing for group in groups),
        set_sizes=tuple(np.trim_zeros(histogram, "b").tolist()),
        largest_sets=tuple((size, *_key(run, document)) for size, document in largest),
        further=sum(each.further for each in sets),
        partly_compared=_partly_compared(files),
    )
    save_json(run.match, match)
    fault_point("match written")


def _results(files: RoundFiles, kind: str, of: type[T]) -> Iterator[T]:
    """The results that the units of a round wrote."""
    (units,) = (each.units for each in MATCH_ROUNDS.values() if each.writes[-1] == kind)
    for unit in range(unit_count(files.plan, units)):
        path = files.files.of_unit(kind, unit)
        if (result := load_json(path, of)) is None:
            raise StopError(f"there is no {path}", hint=f"delete {files.folder} and merge again")
        yield result


def _partly_compared(files: RoundFiles) -> int:
    folder = files.files.of_unit("partly_compared", 0).parent
    return sum(int(path.read_bytes()) for path in folder.iterdir()) if folder.is_dir() else 0


def _key(run: RunDir, document: int) -> RecordKey:
    """Shard and record of a document."""
    group, index = document >> INDEX_BITS, document & ((1 << INDEX_BITS) - 1)
    chosen = np.arange(require_receipt(run, group).documents) == index
    (row,) = load_chosen(run, group, chosen)
    return int(row["shard"]), int(row["record"])


def _is_incomplete(run: RunDir) -> bool:
    """Whether there is a result without the files that it names."""
    match = read_match(run)
    if match is None:
        return False
    files = run.match_files(match.digest)
    kinds = (
        (files.flags, match.flags),
        (files.duplicates, match.listings),
        (files.clusters, match.clusters),
        (files.line_programs, match.line_programs),
    )
    named = (path(n) for path, digests in kinds for n, digest in enumerate(digests) if digest)
    return not all(path.exists() for path in named)


def _delete_files(run: RunDir, later: Sequence[RoundName]) -> None:
    """Delete the files of units that no later round reads."""
    kept = {kind for name in later for kind in MATCH_ROUNDS[name].reads}
    written = {kind for each in MATCH_ROUNDS.values() for kind in each.writes}
    for folder in run.match_folder.glob("*/*"):
        if folder.name in written - kept:
            shutil.rmtree(folder, ignore_errors=True)


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()


MATCH_ROUNDS: dict[RoundName, MatchRound] = {
    "urls": MatchRound("exact", find_same_urls, (), ("url_leaders", "url_copies")),
    "texts": MatchRound("group", write_text_hashes, ("url_leaders", "url_copies"), ("texts",)),
    "exact": MatchRound("exact", find_copies, ("texts",), ("leaders", "copies")),
    "bands": MatchRound("group", write_band_keys, ("copies",), ("keys",)),
    "candidates": MatchRound("key", link_to_leaders, ("keys",), ("stars",)),
    "ship": MatchRound("group", ship_signatures, ("stars",), ("members",)),
    "verify": MatchRound(
        "key", compare_signatures, ("members",), ("partly_compared", "undecided", "edges")
    ),
    "read": MatchRound("group", write_shingles, ("undecided",), ("shingles",)),
    "compare": MatchRound("group", compare_texts, ("shingles",), ("text_edges",)),
    "settle": MatchRound("one", settle, ("edges", "text_edges"), ("removed",)),
    "resolve": MatchRound("group", resolve_survivors, ("removed", "leaders"), ("claims",)),
    "name": MatchRound("group", name_survivors, ("claims",), ("named", "sets")),
    "lines": MatchRound("group", send_lines, ("named",), ("lines",)),
    "repeated": MatchRound("key", find_repeated_lines, ("lines",), ("repeated",)),
    "finish": MatchRound("group", finish_group, ("named", "repeated"), ("ids", "groups")),
    "ids": MatchRound("exact", count_shared_ids, ("ids",), ("shared_ids",)),
    "collect": MatchRound(
        "one", _collect, ("sets", "groups", "shared_ids", "partly_compared"), ("match",)
    ),
}

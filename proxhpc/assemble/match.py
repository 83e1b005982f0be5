"""Match: one survivor of every set of duplicates, and where each part of the corpus begins.

Everything follows from the documents and their order in the input, nothing from shards or workers.
Keys are matched range by range, so memory does not grow with the corpus but by 24 bytes for each
document that has a duplicate, and 16 for each pair that is compared by text.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

from proxhpc.assemble.bands import SHARED_ID, damaged, ranges
from proxhpc.assemble.clusters import NO_PAIRS, Documents, Forest, distinct, survivors
from proxhpc.assemble.hashed import Sketch, check_files, load_array, load_sketch, save_array
from proxhpc.assemble.pairs import Sketches, Task, estimate, pairs_of, repeated, tasks
from proxhpc.assemble.parts import PartRange, cut_parts
from proxhpc.assemble.pool import Pool
from proxhpc.assemble.sealed import seal, unseal
from proxhpc.assemble.sketch import Receipt, groups, spans_of
from proxhpc.assemble.texts import compare
from proxhpc.assemble.tiling import check_tiling
from proxhpc.corpus.disk import write_atomic
from proxhpc.faults import reach
from proxhpc.plan import Plan
from proxhpc.rundir import RunDir

EXAMPLES = 10  # of shared ids, and of large sets of duplicates
SLICE = 1 << 16  # documents that are looked up at a time

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Match:
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
    outside: int
    clusters: int
    largest_cluster: int
    shared_ids: int
    examples: tuple[tuple[int, int], ...]
    survivors: tuple[int, ...]
    parts: tuple[PartRange, ...]
    dropped: tuple[str, ...]
    pairs: str
    set_sizes: tuple[int, ...] = ()
    largest: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def decode(cls, raw: bytes) -> "Match":
        """Read its JSON form."""
        data: dict[str, Any] = orjson.loads(raw)
        data["examples"] = tuple((a, b) for a, b in data["examples"])
        data["survivors"] = tuple(data["survivors"])
        data["set_sizes"] = tuple(data["set_sizes"])
        data["largest"] = tuple((size, a, b) for size, a, b in data["largest"])
        data["dropped"] = tuple(data["dropped"])
        data["parts"] = tuple(PartRange(**part) for part in data["parts"])
        return cls(**data)


def match(pool: Pool, receipts: Sequence[Receipt], memory: int) -> Match:
    """Decide what is a duplicate and what goes where, unless that was done.

    `memory` bytes are for all processes of the pool together.
    """
    run, plan = pool.run, pool.plan
    manifest = plan.manifest
    rules = [part.model_dump(mode="json") for part in (manifest.dedup, manifest.output)]
    digest = xxhash.xxh3_128_hexdigest(orjson.dumps([rules, *(r.digest for r in receipts)]))
    earlier = read_match(run)
    own = receipts[: len(groups(plan))]
    made = [run.pairs, *(run.dropped(receipt.group) for receipt in own)]
    if earlier and earlier.digest == digest and all(path.exists() for path in made):
        return earlier
    check_tiling(plan, (tile for receipt in own for tile in spans_of(receipt)))
    run.pairs.parent.mkdir(parents=True, exist_ok=True)
    run.match.unlink(missing_ok=True)
    for receipt in receipts:
        check_files(run, receipt.group, receipt.files)
    sketches = Sketches(run, plan)
    dropped, kept, firsts = _duplicates(pool, sketches, memory)
    alive = Alive(sketches, dropped)
    flags = [save_array(run.dropped(r.group), np.packbits(~alive.of(r.group))) for r in own]
    shared = _shared_ids(sketches, alive, memory)
    _, at, sizes = np.unique(firsts, return_index=True, return_counts=True)
    order = np.lexsort((at, -sizes))[:EXAMPLES]
    by_file = np.zeros(len(plan.inputs), np.int64)
    parts = cut_parts(manifest.output)
    for receipt in own:
        stay = load_sketch(run, receipt.group, receipt.files)[alive.of(receipt.group)]
        by_file += _by_file(plan, receipt, stay)
        parts.add(stay)
    near, pairs = _save_pairs(run, sketches, dropped, kept)
    found = Match(
        digest=digest,
        documents=sketches.own,
        duplicates=len(dropped),
        near=near,
        outside=int((kept >= sketches.own).sum()),
        clusters=len(sizes),
        largest_cluster=int(sizes.max()) + 1 if len(sizes) else 0,
        shared_ids=len(shared),
        examples=tuple(_places(sketches, shared[:EXAMPLES])),
        survivors=tuple(by_file.tolist()),
        parts=tuple(parts.finish()),
        set_sizes=tuple(np.bincount(np.frexp(sizes + 1)[1]).tolist()),
        largest=tuple(
            (int(size) + 1, *place)
            for size, place in zip(sizes[order], _places(sketches, dropped[at[order]]), strict=True)
        ),
        dropped=tuple(flags),
        pairs=pairs,
    )
    write_atomic(run.match, seal(orjson.dumps(asdict(found), option=orjson.OPT_APPEND_NEWLINE)))
    reach("match written")
    return found


def read_match(run: RunDir) -> Match | None:
    """What was decided before, None if nothing."""
    try:
        return Match.decode(unseal(run.match))
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise damaged(run.match) from error


def load_alive(run: RunDir, match: Match, group: int, documents: int) -> Flags:
    """Which of a group's documents are written."""
    dropped = load_array(run.dropped(group), match.dropped[group])
    return ~np.unpackbits(dropped, count=documents).astype(np.bool_)


class Alive:
    """Which documents of a run are no duplicates."""

    def __init__(self, sketches: Sketches, dropped: Documents) -> None:
        self._edges = sketches.firsts
        self._dropped = dropped  # ascending

    def of(self, group: int) -> Flags:
        """Those of one group."""
        first, last = self._edges[group : group + 2]
        out = np.ones(last - first, np.bool_)
        low, high = np.searchsorted(self._dropped, (first, last))
        out[self._dropped[low:high] - first] = False
        return out

    def among(self, documents: Documents) -> Flags:
        """Those of these documents."""
        return ~np.isin(documents, self._dropped)


def _duplicates(
    pool: Pool, sketches: Sketches, memory: int
) -> tuple[Documents, Documents, Documents]:
    """Duplicates, ascending; beside each its survivor, and the first document of its set."""
    share = memory // pool.processes
    todo = range(len(tasks(pool.plan, len(sketches), share)))
    forest, unsure = Forest(), NO_PAIRS
    for _, found in pool.each("match", partial(pairs_of, memory=share), todo):
        forest.add(found.same)
        unsure = distinct(np.concatenate([unsure, found.unsure]))
    forest.add(compare(pool, unsure[forest.apart(unsure)], sketches))
    documents, firsts = forest.sets()
    if not len(documents):
        return documents, documents, firsts
    kept = documents[survivors(firsts, *_worth(pool.plan, sketches, documents))]
    lost = (documents != kept) & (documents < sketches.own)
    return documents[lost], kept[lost], firsts[lost]


def _worth(plan: Plan, sketches: Sketches, documents: Documents) -> list[npt.NDArray[Any]]:
    """What decides which of its duplicates a document is, the most important last."""
    rows = sketches.rows(documents)
    longer = [] if plan.manifest.dedup.keep == "first" else [rows["chars"]]
    return [*longer, rows["rank"], (documents >= sketches.own).astype(np.uint8)]


def _save_pairs(
    run: RunDir, sketches: Sketches, dropped: Documents, kept: Documents
) -> tuple[int, str]:
    """Write the pairs as (shard, record, shard, record, thousandths alike).

    How many of them differ, and the file's digest.
    """
    differ = 0
    columns = np.empty((len(dropped), 5), np.uint32)
    for start in range(0, len(dropped), SLICE):
        part = slice(start, start + SLICE)
        lost, stays = dropped[part], kept[part]
        one, other = sketches.rows(lost), sketches.rows(stays)
        for column, rows in ((0, one), (2, other)):
            columns[part, column], columns[part, column + 1] = rows["shard"], rows["number"]
        apart = (one["high"] != other["high"]) | (one["low"] != other["low"])
        alike = np.full(len(lost), 1000, np.uint32)
        alike[apart] = 1000 * estimate(sketches, np.stack([lost[apart], stays[apart]], axis=1))
        columns[part, 4] = alike
        differ += int(apart.sum())
    return differ, save_array(run.pairs, columns)


def _shared_ids(sketches: Sketches, alive: Alive, memory: int) -> Documents:
    """Survivors with the id of an earlier one, ascending."""
    found = [np.empty(0, np.int64)]
    for low, high in ranges(len(sketches), memory):
        ids, documents = sketches.band(Task(SHARED_ID, low, high))
        stay = alive.among(documents) & (documents < sketches.own)
        ids, documents = repeated(ids[stay], documents[stay])
        found.append(documents[1:][ids[1:] == ids[:-1]])
    return np.sort(np.concatenate(found))


def _by_file(plan: Plan, receipt: Receipt, survivors: Sketch) -> npt.NDArray[np.int64]:
    """Count a group's survivors by input file."""
    places = survivors["shard"].astype(np.uint64) << np.uint64(32) | survivors["number"]
    starts, files = [], []
    for shard, tiles in zip(groups(plan)[receipt.group], receipt.tiles, strict=True):
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

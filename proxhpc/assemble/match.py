"""Match: one survivor of every set of duplicates, and where each part of the corpus begins.

Everything follows from the documents and their order in the input, nothing from shards or workers.
All hashes are in memory at once: about 100 bytes a document at the peak, for 40 on disk.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

from proxhpc.assemble.sketch import SKETCH, Receipt, Sketch, load_sketch, save_array, spans_of
from proxhpc.assemble.tiling import check_tiling
from proxhpc.corpus.disk import write_atomic
from proxhpc.errors import StopError
from proxhpc.faults import reach
from proxhpc.plan import Plan
from proxhpc.rundir import RunDir

EXAMPLES = 10

Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PartRange:
    """Documents of one part, without duplicates: from `first` to `last`, each (shard, record)."""

    documents: int
    bytes: int
    first: tuple[int, int]
    last: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Match:
    """What the match decided. `digest` carries on what it was decided from.

    `survivors` counts by input file the documents that are written. `shared_ids` are documents
    whose id an earlier survivor has too, by a 64-bit hash; `examples` are some of them, as
    (shard, record).
    """

    digest: str
    documents: int
    duplicates: int
    clusters: int
    largest_cluster: int
    shared_ids: int
    examples: tuple[tuple[int, int], ...]
    survivors: tuple[int, ...]
    parts: tuple[PartRange, ...]

    @classmethod
    def decode(cls, raw: bytes) -> "Match":
        """Read its JSON form."""
        data: dict[str, Any] = orjson.loads(raw)
        data["examples"] = tuple((a, b) for a, b in data["examples"])
        data["survivors"] = tuple(data["survivors"])
        data["parts"] = tuple(
            PartRange(**part | {"first": tuple(part["first"]), "last": tuple(part["last"])})
            for part in data["parts"]
        )
        return cls(**data)


def match(run: RunDir, plan: Plan, receipts: Sequence[Receipt]) -> Match:
    """Decide what is a duplicate and what goes where, unless that was done."""
    manifest = plan.manifest
    rules = [manifest.dedup.exact, manifest.output.part_size]
    digest = xxhash.xxh3_128_hexdigest(orjson.dumps([rules, *(r.digest for r in receipts)]))
    earlier = read_match(run)
    if earlier and earlier.digest == digest:
        return earlier
    check_tiling(plan, (tile for receipt in receipts for tile in spans_of(receipt)))
    run.pairs.parent.mkdir(parents=True, exist_ok=True)
    run.match.unlink(missing_ok=True)
    # Group by group, so that no second copy of everything is ever made.
    hashes = np.empty(sum(receipt.documents for receipt in receipts), SKETCH)
    at = 0
    for receipt in receipts:
        hashes[at : at + receipt.documents] = load_sketch(run, receipt)
        at += receipt.documents
    dropped, kept = find_duplicates(hashes) if manifest.dedup.exact else (_none(), _none())
    alive = np.ones(len(hashes), np.bool_)
    alive[dropped] = False
    _save(run, receipts, hashes, alive, (dropped, kept))
    shared = _shared_ids(hashes["id"], alive)
    sizes = np.unique(kept, return_counts=True)[1]
    found = Match(
        digest=digest,
        documents=len(hashes),
        duplicates=len(dropped),
        clusters=len(sizes),
        largest_cluster=int(sizes.max()) + 1 if len(sizes) else 0,
        shared_ids=len(shared),
        examples=tuple(_place(hashes, index) for index in shared[:EXAMPLES]),
        survivors=tuple(_by_file(plan, receipts, hashes, alive)),
        parts=tuple(cut_parts(hashes, alive, manifest.output.part_size)),
    )
    write_atomic(run.match, orjson.dumps(asdict(found), option=orjson.OPT_APPEND_NEWLINE))
    reach("match written")
    return found


def read_match(run: RunDir) -> Match | None:
    """What was decided before, None if nothing."""
    try:
        return Match.decode(run.match.read_bytes())
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise StopError(
            f"{run.match} is damaged", hint="delete it and merge again: it is made anew"
        ) from error


def find_duplicates(hashes: Sketch) -> tuple[Indices, Indices]:
    """Indices of the duplicates, ascending, and beside each the index of its survivor.

    The survivor of documents with the same hash is the longest, then the first in input order.
    """
    # Stable, so that what has the same hash and length stays in input order.
    order = np.lexsort((~hashes["chars"], hashes["low"], hashes["high"]))
    leads = np.ones(len(order), np.bool_)
    for key in ("high", "low"):
        column = hashes[key][order]
        same = column[1:] == column[:-1]
        leads[1:] = ~same if key == "high" else leads[1:] | ~same
    survivors = order[leads][np.cumsum(leads) - 1]
    dropped, kept = order[~leads], survivors[~leads]
    back = np.argsort(dropped)
    return dropped[back], kept[back]


def cut_parts(hashes: Sketch, alive: Flags, part_size: int) -> Iterator[PartRange]:
    """Ranges of documents: a part takes those that begin within its `part_size` bytes of rows."""
    indices = np.flatnonzero(alive)
    if not len(indices):
        return
    sizes = hashes["size"][indices].astype(np.uint64)
    before = np.cumsum(sizes) - sizes
    starts = np.unique(before // np.uint64(part_size), return_index=True)[1]
    stops = [*starts[1:].tolist(), len(indices)]
    for start, stop in zip(starts.tolist(), stops, strict=True):
        yield PartRange(
            documents=stop - start,
            bytes=int(sizes[start:stop].sum()),
            first=_place(hashes, indices[start]),
            last=_place(hashes, indices[stop - 1]),
        )


def load_alive(run: RunDir, group: int, documents: int) -> Flags:
    """Which of a group's documents are written."""
    return ~np.unpackbits(np.load(run.dropped(group)), count=documents).astype(np.bool_)


def _save(
    run: RunDir,
    receipts: Sequence[Receipt],
    hashes: Sketch,
    alive: Flags,
    duplicates: tuple[Indices, Indices],
) -> None:
    """Write the bits of each group, and the pairs as (shard, record, shard, record)."""
    at = 0
    for receipt in receipts:
        bits = np.packbits(~alive[at : at + receipt.documents])
        save_array(run.dropped(receipt.group), bits)
        at += receipt.documents
    columns = [hashes[key][index] for index in duplicates for key in ("shard", "number")]
    save_array(run.pairs, np.stack(columns, axis=1))


def _shared_ids(ids: npt.NDArray[np.uint64], alive: Flags) -> Indices:
    """Indices of survivors with the id of an earlier one, ascending."""
    indices = np.flatnonzero(alive)
    first = np.unique(ids[indices], return_index=True)[1]
    repeated = np.ones(len(indices), np.bool_)
    repeated[first] = False
    return indices[repeated]


def _by_file(plan: Plan, receipts: Sequence[Receipt], hashes: Sketch, alive: Flags) -> list[int]:
    """Count survivors by input file."""
    totals = np.zeros(len(plan.inputs), np.int64)
    at, shard = 0, 0
    for receipt in receipts:
        part = slice(at, at + receipt.documents)
        own = hashes[part][alive[part]]
        places = own["shard"].astype(np.uint64) << np.uint64(32) | own["number"]
        starts, files = [], []
        for tiles in receipt.tiles:
            number = 0
            for tile in tiles:
                starts.append(shard << 32 | number)
                files.append(tile.file)
                number += tile.records
            shard += 1
        # A span without records begins where the next one does: the last of equals is the owner.
        owners = np.searchsorted(np.array(starts, np.uint64), places, side="right") - 1
        totals += np.bincount(np.array(files)[owners], minlength=len(totals))
        at += receipt.documents
    counted: list[int] = totals.tolist()
    return counted


def _place(hashes: Sketch, index: Any) -> tuple[int, int]:
    return int(hashes["shard"][index]), int(hashes["number"][index])


def _none() -> Indices:
    return np.empty(0, np.int64)

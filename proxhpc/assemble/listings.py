"""Listings beside the corpus: what was set aside, and what was left out as a duplicate."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import zstandard

from proxhpc.assemble.match import Match, read_match
from proxhpc.assemble.rows import source
from proxhpc.assemble.sketch import Receipt, groups
from proxhpc.corpus.document import End
from proxhpc.corpus.writer import PartWriter
from proxhpc.plan import Plan
from proxhpc.refine.ledger import read_ledger
from proxhpc.rundir import RunDir

Place = tuple[int, int]  # shard, record
Name = tuple[str, str]  # id, source


def write_quarantine(run: RunDir, receipts: Sequence[Receipt]) -> int:
    """Gather what the groups set aside into one file; how many records. No file for none."""
    count = 0
    with_any = [r.group for r in receipts if r.counts.quarantined.total()]
    if not with_any:
        run.quarantine.unlink(missing_ok=True)
        return 0
    run.quarantine.parent.mkdir(parents=True, exist_ok=True)
    with PartWriter(run.quarantine) as writer:
        for group in with_any:
            for row in read_rows(run.sketch_quarantine(group)):
                writer.write(row)
                count += 1
    return count


def names(run: RunDir, plan: Plan, group: int) -> list[tuple[Place, Name]]:
    """Id and source of those documents of a group that are named: duplicates, shared ids."""
    pairs, match = np.load(run.pairs), read_match(run)
    found: list[tuple[Place, Name]] = []
    examples = np.array(match.examples if match else (), np.uint32).reshape(-1, 2)
    places = np.concatenate([pairs[:, :2], pairs[:, 2:4], examples])
    shards = groups(plan)[group]
    places = places[(places[:, 0] >= shards.start) & (places[:, 0] < shards.stop)]
    for shard in np.unique(places[:, 0]).tolist():
        wanted = set(places[places[:, 0] == shard, 1].tolist())
        number = 0
        for row in read_ledger(run.ledger(shard), plan.digest, shard):
            if isinstance(row, End):
                continue
            if number in wanted:
                found.append(((shard, number), (row.id, source(plan, row))))
            number += 1
    return found


def write_duplicates(run: RunDir, match: Match, name: Mapping[Place, Name]) -> None:
    """Write which document is kept for which, in input order. No file for none."""
    if not match.duplicates:
        run.duplicates.unlink(missing_ok=True)
        return
    with PartWriter(run.duplicates) as writer:
        for a, b, c, d, alike in np.load(run.pairs).tolist():
            dropped, kept = name[a, b], name[c, d]
            writer.write(
                {
                    "dropped": {"id": dropped[0], "source": dropped[1]},
                    "kept": {"id": kept[0], "source": kept[1]},
                    "similarity": alike / 1000,
                }
            )


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .jsonl.zst that the merge wrote itself."""
    with path.open("rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file)
        rest = b""
        while chunk := reader.read(1 << 20):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from map(orjson.loads, lines)

"""Listings beside the corpus: what was set aside, and what was left out as a duplicate."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import zstandard

from proxhpc.assemble.match import MatchResult
from proxhpc.assemble.rows import record_source
from proxhpc.assemble.sketch import SketchReceipt, external_pieces, external_records, shard_groups
from proxhpc.assemble.survivors import require_match
from proxhpc.corpus.document import Document, End
from proxhpc.corpus.writer import PartWriter
from proxhpc.dedup.arrays import load_array
from proxhpc.dedup.bands import damaged_file, file_digest
from proxhpc.run.ledger import read_ledger
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan

RecordKey = tuple[int, int]  # shard, record
DocumentName = tuple[str, str]  # id, source


def write_quarantine(run: RunDir, receipts: Sequence[SketchReceipt]) -> int:
    """Gather what the groups set aside into one file; how many records. No file for none."""
    count = 0
    with_any = [r for r in receipts if r.quarantine]
    if not with_any:
        run.quarantine.unlink(missing_ok=True)
        return 0
    run.quarantine.parent.mkdir(parents=True, exist_ok=True)
    with PartWriter(run.quarantine) as writer:
        for receipt in with_any:
            path = run.sketch_quarantine(receipt.group)
            if file_digest(path) != receipt.quarantine:
                raise damaged_file(path)
            for row in read_listing(path):
                writer.write(row)
                count += 1
    return count


def name_documents(run: RunDir, plan: Plan, group: int) -> list[tuple[RecordKey, DocumentName]]:
    """Id and source of those documents of a group that are named: duplicates, shared ids."""
    match = require_match(run)
    pairs = load_array(run.pairs, match.pairs_digest)
    found: list[tuple[RecordKey, DocumentName]] = []
    examples = np.array(match.shared_id_examples, np.uint32).reshape(-1, 2)
    places = np.concatenate([pairs[:, :2], pairs[:, 2:4], examples])
    own = shard_groups(plan)
    behind = len(plan.shards) + group - len(own)  # the place of a piece that is compared with
    shards = own[group] if group < len(own) else range(behind, behind + 1)
    places = places[(places[:, 0] >= shards.start) & (places[:, 0] < shards.stop)]
    for shard in np.unique(places[:, 0]).tolist():
        wanted = set(places[places[:, 0] == shard, 1].tolist())
        every = enumerate(read_names(run, plan, shard))
        found += [((shard, number), name) for number, name in every if number in wanted]
    return found


def read_names(run: RunDir, plan: Plan, shard: int) -> Iterator[DocumentName]:
    """Names of the records of a shard, or of a piece of the corpus to compare with."""
    if shard < len(plan.shards):
        for row in read_ledger(run.ledger(shard), plan.digest, shard):
            if not isinstance(row, End):
                yield row.id, record_source(plan, row)
        return
    for record in external_records(plan, external_pieces(plan)[shard - len(plan.shards)]):
        place = f"{plan.against[record.file].name}:{record.position}"
        yield (record.id if isinstance(record, Document) else ""), place


def write_duplicates(
    run: RunDir, match: MatchResult, name: Mapping[RecordKey, DocumentName]
) -> None:
    """Write which document is kept for which, in input order. No file for none."""
    if not match.duplicates:
        run.duplicates.unlink(missing_ok=True)
        return
    with PartWriter(run.duplicates) as writer:
        for a, b, c, d, alike in load_array(run.pairs, match.pairs_digest).tolist():
            dropped, kept = name[a, b], name[c, d]
            writer.write(
                {
                    "dropped": {"id": dropped[0], "source": dropped[1]},
                    "kept": {"id": kept[0], "source": kept[1]},
                    "similarity": alike / 1000,
                }
            )


def read_listing(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .jsonl.zst that the merge wrote itself."""
    with path.open("rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file)
        rest = b""
        while chunk := reader.read(1 << 20):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from map(orjson.loads, lines)

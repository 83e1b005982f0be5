"""Listings beside the corpus: quarantined records, and duplicates with their survivors."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import zstandard

from proxhpc.assemble.match import MatchResult, require_match
from proxhpc.assemble.rows import record_source
from proxhpc.assemble.sketch import SketchReceipt, external_records
from proxhpc.corpus.document import Document, SpanEnd
from proxhpc.corpus.writer import PartWriter
from proxhpc.dedup.arrays import check_file, load_array
from proxhpc.dedup.hashes import RecordKey
from proxhpc.run.ledger import read_ledger
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.shards import shard_groups

DocumentName = tuple[str, str]  # id, source


def write_quarantine(run: RunDir, receipts: Sequence[SketchReceipt]) -> None:
    """Join the groups' quarantined records into one file; there is no file if there are none."""
    receipts = [receipt for receipt in receipts if receipt.quarantine]
    if not receipts:
        run.quarantine.unlink(missing_ok=True)
        return
    run.quarantine.parent.mkdir(parents=True, exist_ok=True)
    with PartWriter(run.quarantine) as writer:
        for receipt in receipts:
            path = run.sketch_quarantine(receipt.group)
            check_file(path, receipt.quarantine)
            for row in read_listing(path):
                writer.write(row)


def name_documents(run: RunDir, plan: Plan, group: int) -> list[tuple[RecordKey, DocumentName]]:
    """The names of a group's documents that are listed: duplicates, survivors, shared ids."""
    match = require_match(run)
    pairs = load_array(run.pairs, match.pairs_digest)
    shared_ids = np.array(match.shared_id_examples, np.uint32).reshape(-1, 2)
    keys = np.concatenate([pairs[:, :2], pairs[:, 2:4], shared_ids])
    own_groups = shard_groups(plan)
    piece = len(plan.shards) + group - len(own_groups)  # of the external corpus
    shards = own_groups[group] if group < len(own_groups) else range(piece, piece + 1)
    keys = keys[(keys[:, 0] >= shards.start) & (keys[:, 0] < shards.stop)]
    names: list[tuple[RecordKey, DocumentName]] = []
    for shard in np.unique(keys[:, 0]).tolist():
        wanted = set(keys[keys[:, 0] == shard, 1].tolist())
        records = enumerate(read_names(run, plan, shard))
        names += [((shard, record), name) for record, name in records if record in wanted]
    return names


def read_names(run: RunDir, plan: Plan, shard: int) -> Iterator[DocumentName]:
    """The names of the records of a shard, or of a piece of the external corpus, in order."""
    if shard < len(plan.shards):
        for row in read_ledger(run.ledger(shard), plan.digest, shard):
            if not isinstance(row, SpanEnd):
                yield row.id, record_source(plan, row)
        return
    for record in external_records(plan, shard - len(plan.shards)):
        source = f"{plan.against[record.file].name}:{record.position}"
        yield (record.id if isinstance(record, Document) else ""), source


def write_duplicates(
    run: RunDir, match: MatchResult, names: Mapping[RecordKey, DocumentName]
) -> None:
    """Write each duplicate and its survivor, in input order; there is no file if there are none."""
    if not match.duplicates:
        run.duplicates.unlink(missing_ok=True)
        return
    with PartWriter(run.duplicates) as writer:
        for *keys, thousandths in load_array(run.pairs, match.pairs_digest).tolist():
            duplicate, survivor = names[keys[0], keys[1]], names[keys[2], keys[3]]
            writer.write(
                {
                    "duplicate": {"id": duplicate[0], "source": duplicate[1]},
                    "survivor": {"id": survivor[0], "source": survivor[1]},
                    "similarity": thousandths / 1000,
                }
            )


def read_listing(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .jsonl.zst file that the merge wrote."""
    with zstandard.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        yield from map(orjson.loads, lines)

"""The write phase: one part of the corpus, from the raw input, the ledgers and the match."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from proxhpc.account.quantity import quantity
from proxhpc.assemble.columns import make_encoder
from proxhpc.assemble.corpus_rows import corpus_rows
from proxhpc.assemble.match_result import MatchResult, load_survivors, require_match
from proxhpc.assemble.parts import PartRange, sort_keys
from proxhpc.assemble.patches import CorpusRow
from proxhpc.assemble.shape import RowShape, ShapeCollector
from proxhpc.assemble.shuffle import gather_part
from proxhpc.corpus.writer import PartWriter
from proxhpc.dedup.arrays import load_json, save_json
from proxhpc.errors import StopError
from proxhpc.faults import fault_point
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.shards import shard_groups


@dataclass(frozen=True, slots=True)
class PartReceipt:
    """One part's rows, its file, and sums over its documents.

    `bytes_raw` counts the rows as JSON lines, `text_bytes` the texts alone. `removed_tokens` were
    removed with repeated lines. `files` counts documents by number of input file, in input order.
    `shape` has the fields of JSON lines.
    """

    match_digest: str
    name: str
    documents: int
    bytes_raw: int
    bytes_stored: int
    sha256: str
    text_bytes: int
    tokens: int
    files: dict[int, int]
    shape: RowShape
    removed_tokens: int = 0


def write_part(run: RunDir, plan: Plan, part: int, memory: int) -> PartReceipt:
    """Write one part, unless its file is current, and return its receipt.

    `memory` is for the rows of a shuffled part, in bytes.
    The part gets its name when it is complete, and its receipt is written after it.
    """
    match, output = require_match(run), plan.manifest.output
    if part >= len(match.parts):
        raise StopError(f"{run.match} has no part {part}", hint="merge again from the start")
    if earlier := finished_part(run, plan, match, part):
        return earlier
    path = run.part(part, output.format)
    path.parent.mkdir(parents=True, exist_ok=True)
    text_bytes = tokens = removed = 0
    files: Counter[int] = Counter()
    shapes = ShapeCollector()
    if output.shuffle:
        rows = gather_part(run, plan, match, part, memory)
    else:
        rows = _rows(run, plan, match, part)
    with PartWriter(path, make_encoder(output)) as writer:
        for item in rows:
            writer.write_line(item.line)
            text_bytes += item.text_bytes
            tokens += item.tokens
            removed += item.removed_tokens
            files[item.file] += 1
            shapes.add(item.shape)
        _check(writer, match.parts[part], same_size=not match.lines.lines)
        written = writer.close()
    receipt = PartReceipt(
        match_digest=match.digest,
        name=written.name,
        documents=written.documents,
        bytes_raw=written.bytes_raw,
        bytes_stored=written.bytes,
        sha256=written.sha256,
        text_bytes=text_bytes,
        tokens=tokens,
        removed_tokens=removed,
        files=dict(sorted(files.items())),
        shape=shapes.shape,
    )
    fault_point("part written")
    save_json(run.part_receipt(part), receipt)
    return receipt


def finished_part(run: RunDir, plan: Plan, match: MatchResult, part: int) -> PartReceipt | None:
    """The receipt of a part, if its file exists in full length and is of this match."""
    try:
        receipt = load_json(run.part_receipt(part), PartReceipt)
        size = run.part(part, plan.manifest.output.format).stat().st_size
    except (FileNotFoundError, StopError):
        return None  # also if the receipt is damaged: the part is written again
    if receipt and (receipt.match_digest, receipt.bytes_stored) == (match.digest, size):
        return receipt
    return None


def _check(writer: PartWriter, expected: PartRange, *, same_size: bool) -> None:
    """Check a part's sizes against the match, which knows rows with their repeated lines only."""
    size = writer.bytes_raw if same_size else expected.bytes
    if (writer.documents, size) != (expected.documents, expected.bytes):
        raise StopError(
            f"{writer.path} would have {quantity(writer.documents, 'document')} with"
            f" {quantity(writer.bytes_raw, 'byte')},"
            f" but the match has {expected.documents} with {expected.bytes} for it",
            hint="an input or a ledger changed during the merge; merge again",
        )


def _rows(run: RunDir, plan: Plan, match: MatchResult, number: int) -> Iterator[CorpusRow]:
    part = match.parts[number]
    first, last = np.uint64(part.first), np.uint64(part.last)
    for group, shards in enumerate(shard_groups(plan)):
        if shards.stop <= part.first >> 32 or shards.start > part.last >> 32:
            continue
        digests = match.flags[group], match.clusters[group]
        documents, clusters = load_survivors(run, match.digest, group, *digests)
        keys = sort_keys(documents, plan.manifest.output)
        chosen = (keys >= first) & (keys <= last)
        yield from corpus_rows(run, plan, match, group, documents[chosen], clusters[chosen])

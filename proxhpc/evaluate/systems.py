"""Runs a refiner and the baselines on gold records, and counts for the metrics.

Chunk-level records go to the chunk stage only, doc-level records to the doc stage only: labels of
a page's lines do not say whether the page is worth keeping.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from proxhpc import preview
from proxhpc.account.counts import Counts
from proxhpc.account.quantity import quantity
from proxhpc.corpus.document import Document
from proxhpc.errors import UserError
from proxhpc.evaluate.baselines import BASELINES, Baseline
from proxhpc.evaluate.gold import GoldRecord, records_by_level
from proxhpc.evaluate.metrics import GoldLines, MetricCounts, document_counts, line_counts
from proxhpc.program.policy import Policy
from proxhpc.program.replay import doc_verdict, read_window_program
from proxhpc.refine.refiner import Refiner, open_refiner
from proxhpc.run.ledger import Row, tally
from proxhpc.run.models import ModelRef
from proxhpc.run.plan import find_models, freeze_manifest
from proxhpc.spec.manifest import Manifest
from proxhpc.spec.sections import Level

Log = Callable[[str], object]
_LOG_SECONDS = 10


@dataclass(frozen=True, slots=True)
class SystemResult:
    """A system's decisions on the records of one level, as a row of counts for each.

    `seconds` is the time of deciding, 0 if that took none. For a refiner, `totals` are those of
    its ledger rows, and `scores` the log-odds of dropping (None where the engine gives none). Other
    systems have no model and no scores.
    """

    name: str
    rows: list[MetricCounts]
    seconds: float = 0
    totals: Counts = field(default_factory=Counts)
    model: ModelRef | None = None
    scores: Sequence[float | None] = ()


def run_systems(
    manifest: Manifest, records: Sequence[GoldRecord], log: Log
) -> dict[Level, list[SystemResult]]:
    """By level, the results of the refiner, of the rules and of the other baselines.

    The refiner is missing where it has no stage. `log` gets progress messages. UserError if no
    stage of the manifest is of a level of the records.
    """
    of_level = records_by_level(records)
    if not of_level.keys() & {stage.level for stage in manifest.stages}:
        raise UserError(
            f"the gold records are of level {' and '.join(of_level)}, the refiner's stages are not",
            hint="give --model for chunk-level records and --doc-model for doc-level ones",
        )
    chunk, doc = [GoldLines.of(gold) for gold in of_level.get("chunk", ())], of_level.get("doc", [])
    results: dict[Level, list[SystemResult]] = {level: [] for level in of_level}
    rules = preview.preview_manifest()
    for refiner in (manifest,) if manifest.engine.name == "rules" else (manifest, rules):
        for level, result in asyncio.run(_run_refiner(refiner, chunk, doc, log)).items():
            results[level].append(result)
    if chunk:
        results["chunk"] += [_run_baseline(name, chunk, rule) for name, rule in BASELINES.items()]
    if doc:
        rows = [document_counts(gold, kept=True) for gold in doc]
        results["doc"].append(SystemResult("keep all", rows))
    return results


def refiner_name(manifest: Manifest) -> str:
    """The name of a refiner: `rules`, or its models."""
    models = dict.fromkeys(stage.model for stage in manifest.stages if stage.model)
    return "rules" if manifest.engine.name == "rules" else " + ".join(models)


def _run_baseline(name: str, documents: Sequence[GoldLines], baseline: Baseline) -> SystemResult:
    started = time.monotonic()
    decisions = [baseline(lines.gold) for lines in documents]
    seconds = time.monotonic() - started
    pairs = zip(documents, decisions, strict=True)
    rows = [{} if kept is None else line_counts(lines, kept) for lines, kept in pairs]
    return SystemResult(name, rows, seconds)


async def _run_refiner(
    manifest: Manifest, chunk: Sequence[GoldLines], doc: Sequence[GoldRecord], log: Log
) -> Mapping[Level, SystemResult]:
    models = find_models(manifest)
    manifest = freeze_manifest(manifest, models)
    name = refiner_name(manifest)
    refiner = await open_refiner(manifest, models)
    results: dict[Level, SystemResult] = {}
    try:
        if refiner.chunk and chunk:
            chunk_refiner = Refiner(manifest, None, refiner.chunk)
            rows, seconds = await _refine(chunk_refiner, [lines.gold for lines in chunk], log)
            counts = [
                _chunk_counts(lines, row, chunk_refiner)
                for lines, row in zip(chunk, rows, strict=True)
            ]
            model = models.get("chunk")
            results["chunk"] = SystemResult(name, counts, seconds, tally(rows), model)
        if refiner.doc and doc:
            refiner.doc.scored = True
            rows, seconds = await _refine(Refiner(manifest, refiner.doc, None), doc, log)
            counts = [_doc_counts(gold, row) for gold, row in zip(doc, rows, strict=True)]
            model, scores = models.get("doc"), [row.score for row in rows]
            results["doc"] = SystemResult(name, counts, seconds, tally(rows), model, scores)
    finally:
        await refiner.close()
    return results


async def _refine(
    refiner: Refiner, records: Sequence[GoldRecord], log: Log
) -> tuple[list[Row], float]:
    """The ledger rows of records, and the seconds that they took."""
    documents: Iterator[preview.NamedDocument] = (
        (gold.location, Document(gold.id, gold.text, 0, number))
        for number, gold in enumerate(records)
    )
    started = logged = time.monotonic()
    rows = []
    async for _, row in preview.refine_in_order(refiner, documents):
        rows.append(row)
        if time.monotonic() - logged >= _LOG_SECONDS:
            logged = time.monotonic()
            log(f"{len(rows):,} of {quantity(len(records), 'document')}")
    return rows, time.monotonic() - started


def _chunk_counts(lines: GoldLines, row: Row, refiner: Refiner) -> MetricCounts:
    """The counts of a document that the chunk stage refined."""
    kept = bytearray(lines.gold.text.count("\n") + 1)  # no line, if the document is dropped
    text = None
    if row.outcome in ("kept", "edited"):
        kept = bytearray(b"\1" * len(kept))
        result = row.replay(lines.gold.text, refiner.policy, refiner.program_format)
        for start, stop in result.removed:
            kept[start:stop] = bytes(stop - start)
        text = result.text if result.strings_replaced else None
    strict = isinstance(refiner.policy, Policy) and refiner.policy.strict
    programs = [
        read_window_program(call.window, refiner.program_format, strict=strict)
        for call in row.windows
    ]
    valid = [not program.rejected and not program.truncated for program in programs]
    return line_counts(lines, kept, text) | _program_counts(valid)


def _doc_counts(gold: GoldRecord, row: Row) -> MetricCounts:
    """The counts of a doc stage's verdict."""
    valid = [] if row.doc is None else [not doc_verdict(row.doc.output, Policy()).rejected]
    return document_counts(gold, row.outcome == "kept") | _program_counts(valid)


def _program_counts(valid: Sequence[bool]) -> MetricCounts:
    return {"programs": len(valid), "valid": sum(valid)}

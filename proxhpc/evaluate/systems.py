"""Runs a refiner and the baselines on gold records, and counts for the metrics.

Chunk-level records go to the chunk stage only, doc-level records to the doc stage only: labels of
a page's lines do not say whether the page is worth keeping.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from proxhpc import preview
from proxhpc.account.counts import Counts
from proxhpc.account.quantity import quantity
from proxhpc.corpus.document import Document
from proxhpc.engines.rules.engine import RULES
from proxhpc.errors import UserError
from proxhpc.evaluate.baselines import BASELINES, Baseline
from proxhpc.evaluate.gold import GoldRecord, records_by_level
from proxhpc.evaluate.limits import LimitEffect, chunk_effects, doc_effects, refined_counts
from proxhpc.evaluate.metrics import GoldLines, MetricCounts, document_counts, line_counts
from proxhpc.program.lines import line_starts
from proxhpc.program.policy import Policy
from proxhpc.program.replay import doc_verdict, read_windows
from proxhpc.refine.refiner import Refiner, open_refiner
from proxhpc.run.ledger import Row, tally
from proxhpc.run.models import ModelRef
from proxhpc.run.plan import find_models, freeze_manifest
from proxhpc.spec.manifest import Manifest
from proxhpc.spec.sections import Level, RuleSet

Log = Callable[[str], object]
ALL_RULES = "rules"  # the refiner with all rules, which is also a baseline
_LOG_SECONDS = 10


@dataclass(frozen=True, slots=True)
class SystemResult:
    """A system's decisions on the records of one level, as a row of counts for each.

    `seconds` is the time of deciding, 0 if that took none. For a refiner, `totals` are those of
    its ledger rows, `scores` the log-odds of dropping (None where the engine gives none),
    `unusable` the share of such answers, and `limits` what was overruled. Other systems have none
    of these.
    """

    name: str
    rows: list[MetricCounts]
    seconds: float = 0
    totals: Counts = field(default_factory=Counts)
    model: ModelRef | None = None
    scores: Sequence[float | None] = ()
    unusable: float | None = None
    limits: Sequence[LimitEffect] = ()


def refiner_manifests(
    models: Sequence[tuple[str | None, str | None]],
    manifests: Sequence[Path],
    rules: Sequence[RuleSet],
    *,
    prompt: str | None = None,
    engine: str | None = None,
) -> list[Manifest]:
    """The refiners to compare, in this order; all rules if none is named.

    `models` are pairs of a chunk and a doc model. `prompt` and `engine` are for models. UserError.
    """
    refiners = [
        preview.RefinerChoice(model=model, doc_model=doc_model, prompt=prompt, engine=engine).open()
        for model, doc_model in models
    ]
    if models:
        prompt = engine = None
    refiners += [preview.RefinerChoice(path, engine, prompt=prompt).open() for path in manifests]
    base = preview.RefinerChoice(prompt=prompt, engine=engine).open()
    for name in rules:
        options = base.engine.model_copy(update={"rules": (name,)})
        refiners.append(base.model_copy(update={"engine": options}))
    return refiners or [base]


def run_systems(
    manifests: Sequence[Manifest], records: Sequence[GoldRecord], log: Log
) -> dict[Level, list[SystemResult]]:
    """By level, the results of the refiners, of the rules and of the other baselines.

    One refiner is loaded at a time; it is missing where it has no stage. `log` gets progress
    messages. UserError if no stage of a manifest is of a level of the records.
    """
    of_level = records_by_level(records)
    refiners = dict(zip(refiner_names(manifests), manifests, strict=True))
    for name, manifest in refiners.items():
        if not of_level.keys() & {stage.level for stage in manifest.stages}:
            raise UserError(
                f"the gold records are of level {' and '.join(of_level)}, the stages of {name} not",
                hint="give --model for chunk-level records and --doc-model for doc-level ones",
            )
    chunk, doc = [GoldLines.of(gold) for gold in of_level.get("chunk", ())], of_level.get("doc", [])
    results: dict[Level, list[SystemResult]] = {level: [] for level in of_level}
    baseline = {} if ALL_RULES in refiners else {ALL_RULES: preview.RefinerChoice().open()}
    for name, manifest in (refiners | baseline).items():
        for level, result in asyncio.run(_run_refiner(name, manifest, chunk, doc, log)).items():
            results[level].append(result)
    if chunk:
        results["chunk"] += [_run_baseline(name, chunk, rule) for name, rule in BASELINES.items()]
    if doc:
        rows = [document_counts(gold, kept=True) for gold in doc]
        results["doc"].append(SystemResult("keep all", rows))
    return results


def refiner_names(manifests: Sequence[Manifest]) -> list[str]:
    """Different names: the models of each refiner, or its rules."""
    names = [_refiner_name(manifest) for manifest in manifests]
    numbers = [names[: index + 1].count(name) for index, name in enumerate(names)]
    pairs = zip(names, numbers, strict=True)
    return [f"{name} #{number}" if number > 1 else name for name, number in pairs]


def _refiner_name(manifest: Manifest) -> str:
    if manifest.engine.name != "rules":
        return " + ".join(dict.fromkeys(s.model for s in manifest.stages if s.model))
    sets = manifest.engine.rules
    return ALL_RULES if set(sets) == set(RULES) else f"{ALL_RULES} {','.join(sets)}"


def _run_baseline(name: str, documents: Sequence[GoldLines], baseline: Baseline) -> SystemResult:
    started = time.monotonic()
    decisions = [baseline(lines.gold) for lines in documents]
    seconds = time.monotonic() - started
    pairs = zip(documents, decisions, strict=True)
    rows = [{} if kept is None else line_counts(lines, kept) for lines, kept in pairs]
    return SystemResult(name, rows, seconds)


def _prepare(
    manifest: Manifest, levels: Mapping[Level, bool]
) -> tuple[Manifest, dict[str, ModelRef]]:
    """The manifest with only the stages that have records, and their models."""
    stages = tuple(stage for stage in manifest.stages if levels[stage.level])
    engine = manifest.engine.model_copy(update={"max_unusable": 1.0})  # warn, do not stop
    manifest = manifest.model_copy(update={"stages": stages, "engine": engine})
    models = find_models(manifest)
    return freeze_manifest(manifest, models), models


async def _run_refiner(
    name: str, manifest: Manifest, chunk: Sequence[GoldLines], doc: Sequence[GoldRecord], log: Log
) -> Mapping[Level, SystemResult]:
    manifest, models = _prepare(manifest, {"chunk": bool(chunk), "doc": bool(doc)})
    refiner = await open_refiner(manifest, models)
    results: dict[Level, SystemResult] = {}
    try:
        for stage in reversed(manifest.stages):
            level, is_doc = stage.level, stage.level == "doc"
            if refiner.doc:
                refiner.doc.scored = True
            runners = (refiner.doc, None) if is_doc else (None, refiner.chunk)
            one = Refiner(manifest, *runners)
            records = doc if is_doc else [lines.gold for lines in chunk]
            rows, seconds = await _refine(one, records, log)
            if is_doc:
                counts = [_doc_counts(gold, row, one) for gold, row in zip(doc, rows, strict=True)]
                limits = doc_effects(name, doc, rows)
            else:
                pairs = zip(chunk, rows, strict=True)
                counts = [_chunk_counts(lines, row, one) for lines, row in pairs]
                scores = [count["token_f1"] for count in counts]
                limits = chunk_effects(name, chunk, rows, scores, one.policy, one.program_format)
            for warning in one.canary.warnings():
                log(warning)
            results[level] = SystemResult(
                name,
                counts,
                seconds,
                tally(rows),
                models.get(level),
                [row.score for row in rows],
                unusable=one.canary.stages[level].share,
                limits=limits,
            )
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
    raw = lines.gold.text
    result = row.replay(raw, refiner.policy, refiner.program_format)
    if row.outcome == "quarantined":  # perhaps by the engine
        result = result._replace(outcome="quarantined")
    strict = isinstance(refiner.policy, Policy) and refiner.policy.strict
    programs = read_windows(
        raw,
        [call.window for call in row.windows],
        refiner.program_format,
        line_starts(raw, row.cuts),
        strict=strict,
    )
    valid = [
        not (program.rejected.keys() - {"other_window"} or program.truncated)
        for program in programs
    ]
    return refined_counts(lines, result, row.cuts) | _program_counts(valid)


def _doc_counts(gold: GoldRecord, row: Row, refiner: Refiner) -> MetricCounts:
    policy = refiner.policy if isinstance(refiner.policy, Policy) else Policy()
    valid = [] if row.doc is None else [not doc_verdict(row.doc.output, policy).rejected]
    return document_counts(gold, row.outcome == "kept") | _program_counts(valid)


def _program_counts(valid: Sequence[bool]) -> MetricCounts:
    return {"programs": len(valid), "valid": sum(valid)}

"""A refiner and its baselines over gold records, scored by the same code.

Chunk-level records are asked of the chunk stage alone, doc-level ones of the doc stage alone: what
people said about a page's lines does not tell whether the page is worth keeping.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from proxhpc import preview as here
from proxhpc.account.counts import Counts
from proxhpc.account.flops import Usage, flops
from proxhpc.corpus.document import Document
from proxhpc.errors import UserError
from proxhpc.evaluate.baselines import BASELINES, Baseline
from proxhpc.evaluate.gold import GoldRecord
from proxhpc.evaluate.metrics import Cells, GoldLines, document_row, line_row
from proxhpc.program.policy import Policy
from proxhpc.program.replay import doc_verdict, read_placed, replay
from proxhpc.refine.refiner import Refiner, open_refiner
from proxhpc.run.ledger import Row, tally
from proxhpc.run.models import ModelRef
from proxhpc.run.plan import find_models, freeze_manifest
from proxhpc.spec.manifest import Manifest

LevelName = Literal["chunk", "doc"]
Say = Callable[[str], object]
_PROGRESS_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Answers:
    """A system's decisions on the records of one level, scored: a row of cells for each.

    `seconds` is what deciding took, scoring left out, 0 where nothing was to decide; `counts` are
    those of a refiner's ledger rows, `flops` what its model did; None: no model, or not known.
    `scores` are log-odds of dropping, None where an engine gives none; empty for whole systems.
    """

    name: str
    cells: list[Cells]
    seconds: float = 0
    counts: Counts = field(default_factory=Counts)
    flops: int | None = None
    scores: Sequence[float | None] = ()


Asked = dict[LevelName, list[Answers]]
"""By level the refiner's answers, first if it has that stage, and those of the baselines."""


def ask(manifest: Manifest, records: Sequence[GoldRecord], say: Say) -> Asked:
    """Have the manifest's refiner, the rules and the other baselines decide about gold records.

    `say` is told now and then how far a refiner is. UserError where no stage of the manifest is
    of the level of any record.
    """
    chunk = [GoldLines.of(gold) for gold in records if gold.wanted is not None]
    doc = [gold for gold in records if gold.keep is not None]
    levels: dict[LevelName, int] = {"chunk": len(chunk), "doc": len(doc)}
    stages = {stage.level for stage in manifest.stages}
    if not any(levels[level] for level in levels if level in stages):
        has = " and ".join(level for level in levels if levels[level])
        raise UserError(
            f"the gold records are of level {has}, the refiner's stages are not",
            hint="give --model for chunk-level records and --doc-model for doc-level ones",
        )
    asked: Asked = {level: [] for level, number in levels.items() if number}
    rules = here.preview_manifest(None, engine=None, model=None, doc_model=None, prompt=None)
    for one in (manifest,) if manifest.engine.name == "rules" else (manifest, rules):
        for level, answers in asyncio.run(_refine(one, chunk, doc, say)).items():
            asked[level].append(answers)
    if chunk:
        asked["chunk"] += [_decide(name, chunk, rule) for name, rule in BASELINES.items()]
    if doc:
        asked["doc"].append(Answers("keep all", [document_row(gold, kept=True) for gold in doc]))
    return asked


def name_of(manifest: Manifest) -> str:
    """What a refiner is called: the rules, or its models."""
    models = dict.fromkeys(stage.model for stage in manifest.stages if stage.model)
    return "rules" if manifest.engine.name == "rules" else " + ".join(models)


def _decide(name: str, documents: Sequence[GoldLines], baseline: Baseline) -> Answers:
    began = time.monotonic()
    decisions = [baseline(lines.gold) for lines in documents]
    seconds = time.monotonic() - began
    pairs = zip(documents, decisions, strict=True)
    cells = [{} if kept is None else line_row(lines, kept) for lines, kept in pairs]
    return Answers(name, cells, seconds)


async def _refine(
    manifest: Manifest, chunk: Sequence[GoldLines], doc: Sequence[GoldRecord], say: Say
) -> Mapping[LevelName, Answers]:
    models = find_models(manifest)
    manifest = freeze_manifest(manifest, models)
    name = name_of(manifest)
    refiner = await open_refiner(manifest, models)
    found: dict[LevelName, Answers] = {}
    try:
        if refiner.chunk and chunk:
            alone = Refiner(manifest, None, refiner.chunk)
            rows, seconds = await _rows(alone, [lines.gold for lines in chunk], say)
            edits = zip(chunk, rows, strict=True)
            cells = [_edited(lines, row, alone) for lines, row in edits]
            counts = tally(rows)
            done = _flops(models.get("chunk"), counts.chunk)
            found["chunk"] = Answers(name, cells, seconds, counts, done)
        if refiner.doc and doc:
            refiner.doc.scored = True
            rows, seconds = await _rows(Refiner(manifest, refiner.doc, None), doc, say)
            cells = [_judged(gold, row) for gold, row in zip(doc, rows, strict=True)]
            counts = tally(rows)
            done = _flops(models.get("doc"), counts.doc)
            scores = [row.score for row in rows]
            found["doc"] = Answers(name, cells, seconds, counts, done, scores)
    finally:
        await refiner.close()
    return found


def _flops(model: ModelRef | None, usage: Usage) -> int | None:
    return flops(model.shape, usage) if model and model.shape else None


async def _rows(
    refiner: Refiner, records: Sequence[GoldRecord], say: Say
) -> tuple[list[Row], float]:
    """The ledger rows of records, and the seconds that they took."""
    found: Iterator[here.NamedDocument] = (
        (gold.place, Document(gold.id, gold.text, 0, number)) for number, gold in enumerate(records)
    )
    began = said = time.monotonic()
    rows = []
    async for _, row in here.rows(refiner, found):
        rows.append(row)
        if time.monotonic() - said >= _PROGRESS_SECONDS:
            said = time.monotonic()
            say(f"{len(rows):,} of {len(records):,} documents")
    return rows, time.monotonic() - began


def _edited(lines: GoldLines, row: Row, refiner: Refiner) -> Cells:
    """The cells of what a chunk stage made of a document."""
    windows = [call.window for call in row.windows]
    kept = bytearray(lines.gold.text.count("\n") + 1)  # where nothing would be in the corpus
    text = None
    if row.outcome in ("kept", "edited"):
        kept = bytearray(b"\1" * len(kept))
        outcome = replay(lines.gold.text, None, windows, refiner.policy, refiner.style)
        for start, stop in outcome.removed:
            kept[start:stop] = bytes(stop - start)
        text = outcome.text if outcome.strings_replaced else None
    read = [read_placed(window, refiner.style) for window in windows]
    valid = [not window.rejected and not window.cut for window in read]
    return line_row(lines, kept, text) | _programs(valid)


def _judged(gold: GoldRecord, row: Row) -> Cells:
    """The cells of a doc stage's verdict."""
    clear = [] if row.doc is None else [not doc_verdict(row.doc.emitted, Policy()).rejected]
    return document_row(gold, row.outcome == "kept") | _programs(clear)


def _programs(valid: Sequence[bool]) -> Cells:
    return {"programs": len(valid), "valid": sum(valid)}

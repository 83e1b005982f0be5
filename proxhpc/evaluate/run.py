"""A refiner and its baselines over gold records, scored by the same code.

Chunk-level records are asked of the chunk stage alone, doc-level ones of the doc stage alone: what
people said about a page's lines does not tell whether the page is worth keeping.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from proxhpc import here
from proxhpc.corpus.document import Document
from proxhpc.errors import UserError
from proxhpc.evaluate.baselines import BASELINES
from proxhpc.evaluate.gold import Gold
from proxhpc.evaluate.metrics import GoldLines, document_row, line_row
from proxhpc.manifest import Manifest
from proxhpc.plan import find_models, settle
from proxhpc.program.edits import read_window
from proxhpc.program.policy import Policy
from proxhpc.program.replay import Outcome, doc_verdict, replay
from proxhpc.program.syntax import FIRST_LINE
from proxhpc.refine.ledger import Call, Row
from proxhpc.refine.refiner import Refiner, open_refiner

LevelName = Literal["chunk", "doc"]
Cells = dict[str, float]


@dataclass(slots=True)
class Answers:
    """A system's decisions on the records of one level, scored: a row of counts for each.

    `rejected` and `flags` are those of the ledger rows, `quarantined` documents by reason.
    """

    name: str
    rows: list[Cells] = field(default_factory=list)
    seconds: float = 0
    rejected: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)

    def note(self, row: Row) -> None:
        """Count what a ledger row tells beside the decision."""
        self.rejected.update(row.rejected)
        self.flags.update(row.flags)
        if row.status == "quarantined":
            self.quarantined[row.reason] += 1


Asked = dict[LevelName, list[Answers]]
"""By level the refiner's answers, first if it has that stage, and those of the baselines."""


def ask(manifest: Manifest, records: Sequence[Gold]) -> Asked:
    """Have the manifest's refiner, the rules and the other baselines decide about gold records.

    UserError where no stage of the manifest is of the level of any record.
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
    rules = here.manifest_of(None, engine=None, model=None, doc_model=None, prompt=None)
    for one in (manifest,) if manifest.engine.name == "rules" else (manifest, rules):
        for level, answers in asyncio.run(_refine(one, chunk, doc)).items():
            asked[level].append(answers)
    for name, baseline in BASELINES.items():
        if chunk:
            asked["chunk"].append(_decide(name, chunk, baseline))
    if doc:
        rows = [document_row(gold, kept=True) for gold in doc]
        asked["doc"].append(Answers("keep all", rows))
    return asked


def name_of(manifest: Manifest) -> str:
    """What a refiner is called: the rules, or its models."""
    models = dict.fromkeys(stage.model for stage in manifest.stages if stage.model)
    return "rules" if manifest.engine.name == "rules" else " + ".join(models)


def _decide(
    name: str, documents: Sequence[GoldLines], baseline: Callable[[Gold], bytes | None]
) -> Answers:
    began = time.monotonic()
    decisions = [baseline(lines.gold) for lines in documents]
    answers = Answers(name, seconds=time.monotonic() - began)
    answers.rows = [
        {} if kept is None else line_row(lines, kept)
        for lines, kept in zip(documents, decisions, strict=True)
    ]
    return answers


async def _refine(
    manifest: Manifest, chunk: Sequence[GoldLines], doc: Sequence[Gold]
) -> Mapping[LevelName, Answers]:
    models = find_models(manifest)
    manifest = settle(manifest, models)
    refiner = await open_refiner(manifest, models)
    found: dict[LevelName, Answers] = {}
    try:
        if refiner.chunk and chunk:
            found["chunk"] = answers = Answers(name_of(manifest))
            alone = Refiner(manifest, None, refiner.chunk)
            await _run(alone, [lines.gold for lines in chunk], answers, _Lines(alone, chunk))
        if refiner.doc and doc:
            found["doc"] = answers = Answers(name_of(manifest))
            await _run(Refiner(manifest, refiner.doc, None), doc, answers, _document)
    finally:
        await refiner.close()
    return found


Score = Callable[[int, Gold, Row], Cells]


async def _run(refiner: Refiner, records: Sequence[Gold], answers: Answers, score: Score) -> None:
    """Refine all records, then score them: the time is the refiner's alone."""
    found: Iterator[here.Named] = (
        (gold.place, Document(gold.id, gold.text, 0, number)) for number, gold in enumerate(records)
    )
    began = time.monotonic()
    rows = [row async for _, row in here.rows(refiner, found)]
    answers.seconds = time.monotonic() - began
    for number, (gold, row) in enumerate(zip(records, rows, strict=True)):
        answers.note(row)
        answers.rows.append(score(number, gold, row))


def _document(number: int, gold: Gold, row: Row) -> Cells:
    programs = [] if row.doc is None else [not doc_verdict(row.doc.emitted, Policy()).rejected]
    return document_row(gold, row.status == "kept") | _programs(programs)


class _Lines:
    """Scores the rows of a chunk stage."""

    def __init__(self, refiner: Refiner, documents: Sequence[GoldLines]) -> None:
        self.policy, self.style, self.documents = refiner.policy, refiner.style, documents

    def __call__(self, number: int, gold: Gold, row: Row) -> Cells:
        windows = [call.window for call in row.windows]
        kept = bytearray(b"\1" * (gold.text.count("\n") + 1))
        text = None
        if row.status in ("kept", "edited"):
            outcome: Outcome = replay(gold.text, None, windows, self.policy, self.style)
            for start, stop in outcome.removed:
                kept[start:stop] = bytes(stop - start)
            text = outcome.text if outcome.strings_replaced else None
        else:  # nothing of it would be in the corpus
            kept = bytearray(len(kept))
        programs = [self._valid(call) for call in row.windows]
        return line_row(self.documents[number], kept, text) | _programs(programs)

    def _valid(self, call: Call) -> bool:
        """Whether every statement of a program is well formed and within its window."""
        first = FIRST_LINE[self.style.dialect]
        first += call.start if self.style.numbering == "document" else 0
        program, finish = call.emitted.program, call.emitted.finish
        read = read_window(program, self.style.dialect, finish, call.start, call.stop, first)
        return not read.rejected and not read.cut


def _programs(valid: Sequence[bool]) -> Cells:
    return {"programs": len(valid), "valid": sum(valid)}

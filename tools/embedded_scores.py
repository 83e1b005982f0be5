"""Scores of the embedded refiner for its card, beside rules, the classical labeler and the oracle.

Pages of validation hosts, pages of a source that is never learnt from, and documents with human
verdicts are refined by `proxhpc evaluate`'s own code; the labeler's chances above one half count
as its decisions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from proxhpc.evaluate.gold import GoldRecord, Selection, read_gold
from proxhpc.evaluate.metrics import GoldLines, MetricScores, score_documents, score_lines
from proxhpc.evaluate.result import Evaluation, Group, System, evaluate
from proxhpc.preview import preview_manifest
from proxhpc.train.card import markdown_table

Chances = Mapping[tuple[str, str], Sequence[float]]
LABELER = "labeler (LightGBM)"
LINES = ("token_f1", "line_f1", "long_lines_lost", "tokens_kept", "valid_programs")
VERDICTS = ("accuracy", "f1", "documents_kept", "valid_programs")
PERCENT = 95


@dataclass(frozen=True, slots=True)
class Judged:
    """An evaluation of a set of records, and what the labeler scores in each of its groups."""

    title: str
    found: Evaluation
    labeler: dict[str, MetricScores]


def judge(model: Path, title: str, file: Path, limit: int | None, chances: Chances) -> Judged:
    """Score a model's directory on a file of gold records, `limit` of them at random."""
    selection = Selection(limit=limit)
    records = read_gold([file], selection=selection)
    manifest = preview_manifest(
        None, engine="transformers", model=str(model), doc_model=str(model), prompt=None
    )
    found = evaluate(manifest, records, [file], selection, rounds=500)
    labeler = {group.name: _labeler(_members(group, records), chances) for group in found.groups}
    return Judged(title, found, labeler)


def _members(group: Group, records: Sequence[GoldRecord]) -> list[GoldRecord]:
    if group.name == "unanimous":
        return [record for record in records if record.unanimous]
    wanted = group.name.removeprefix("source=")
    return [record for record in records if wanted in ("all", record.source)]


def _labeler(records: Sequence[GoldRecord], chances: Chances) -> MetricScores:
    if records[0].keep is not None:
        drop = [chances["doc", record.id][0] for record in records]
        return score_documents(records, [chance < 0.5 for chance in drop], drop)
    kept = [[chance <= 0.5 for chance in chances["chunk", record.id]] for record in records]
    return score_lines([GoldLines.of(record) for record in records], kept)


def markdown(judged: Sequence[Judged]) -> str:
    """The tables of the card."""
    return "\n\n".join(f"### {one.title}\n\n{_table(one)}" for one in judged) + "\n"


def _table(one: Judged) -> str:
    metrics = LINES if one.found.groups[0].level == "chunk" else VERDICTS
    rows = []
    for group in one.found.groups:
        about = f"{group.name.removeprefix('source=')} ({group.documents})"
        for system in group.systems:
            name = "this model" if system.name == one.found.refiner else system.name
            rows.append([about, name, *_cells(system, metrics)])
        labeler = one.labeler[group.name]
        rows.append([about, LABELER, *(_number(labeler.get(name)) for name in metrics)])
    return markdown_table(
        ("documents", "refiner", *(name.replace("_", " ") for name in metrics)), rows
    )


def _cells(system: System, metrics: Sequence[str]) -> Iterator[str]:
    for name in metrics:
        score = system.scores[name]
        interval = name == metrics[0] and score.low is not None
        yield _number(score.value) + (f" ({score.low:.3f}-{score.high:.3f})" if interval else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"

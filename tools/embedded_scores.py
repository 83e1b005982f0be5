"""Scores of the embedded models for their cards, beside rules, the classical labeler and oracle.

The evaluation is that of `proxhpc evaluate`; records of lines need a model for lines, verdicts one
for verdicts. The labeler drops what it gives a probability above
one half.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from proxhpc.evaluate.gold import GoldRecord, Selection, read_gold
from proxhpc.evaluate.metrics import GoldLines, MetricScores, score_documents, score_lines
from proxhpc.evaluate.result import Evaluation, GroupScores, SystemScores, evaluate
from proxhpc.preview import RefinerChoice
from proxhpc.train.card import markdown_table

DropProbabilities = Mapping[tuple[str, str], Sequence[float]]
"""By level and id, of each line or of the document."""

LABELER = "labeler (LightGBM)"
LINE_METRICS = ("token_f1", "line_f1", "long_lines_lost", "tokens_kept", "valid_programs")
VERDICT_METRICS = ("accuracy", "f1", "documents_kept", "valid_programs")


@dataclass(frozen=True, slots=True)
class SetScores:
    """An evaluation, and the labeler's scores in each of its groups."""

    title: str
    evaluation: Evaluation
    labeler: dict[str, MetricScores]


def evaluate_set(
    model: Path, title: str, file: Path, limit: int | None, probabilities: DropProbabilities
) -> SetScores:
    """Evaluate a model and the labeler on gold records, up to `limit` of them drawn at random."""
    selection = Selection(limit=limit)
    records = read_gold([file], selection=selection)
    manifest = RefinerChoice(engine="transformers", model=str(model), doc_model=str(model)).open()
    evaluation = evaluate([manifest], records, [file], selection, rounds=500)
    labeler = {
        group.name: _labeler_scores(_members(group, records), probabilities)
        for group in evaluation.groups
    }
    return SetScores(title, evaluation, labeler)


def _members(group: GroupScores, records: Sequence[GoldRecord]) -> list[GoldRecord]:
    if group.name == "unanimous":
        return [record for record in records if record.unanimous]
    source = group.name.removeprefix("source=")
    return [record for record in records if source in ("all", record.source)]


def _labeler_scores(
    records: Sequence[GoldRecord], probabilities: DropProbabilities
) -> MetricScores:
    if records[0].keep is not None:
        drop = [probabilities["doc", record.id][0] for record in records]
        return score_documents(records, [value < 0.5 for value in drop], drop)
    kept = [[value <= 0.5 for value in probabilities["chunk", record.id]] for record in records]
    return score_lines([GoldLines.of(record) for record in records], kept)


def markdown(scores: Sequence[SetScores]) -> str:
    """A table for each set."""
    return "\n\n".join(f"### {each.title}\n\n{_table(each)}" for each in scores) + "\n"


def _table(scores: SetScores) -> str:
    groups = scores.evaluation.groups
    metrics = LINE_METRICS if groups[0].level == "chunk" else VERDICT_METRICS
    rows = []
    for group in groups:
        label = f"{group.name.removeprefix('source=')} ({group.documents})"
        for system in group.systems:
            is_model = system.name == scores.evaluation.refiner
            rows.append([label, "this model" if is_model else system.name])
            rows[-1] += _cells(system, metrics)
        labeler = scores.labeler[group.name]
        rows.append([label, LABELER, *(_number(labeler.get(name)) for name in metrics)])
    header = ("documents", "refiner", *(name.replace("_", " ") for name in metrics))
    return markdown_table(header, rows)


def _cells(system: SystemScores, metrics: Sequence[str]) -> Iterator[str]:
    for name in metrics:
        score = system.scores[name]
        interval = name == metrics[0] and score.low is not None
        yield _number(score.value) + (f" ({score.low:.3f}-{score.high:.3f})" if interval else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"

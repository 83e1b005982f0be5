"""Scores of every system by group of documents, with intervals, and differences to the refiner."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxhpc.evaluate.bootstrap import Score, resample, score
from proxhpc.evaluate.gold import GoldRecord, Selection
from proxhpc.evaluate.metrics import DOCUMENT_METRICS, LINE_METRICS, MetricLevel, count_table
from proxhpc.evaluate.ranking import auc_score
from proxhpc.evaluate.run import Answers, LevelName, Say, ask, name_of
from proxhpc.spec.manifest import Manifest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Table = NDArray[np.float64]

ROUNDS = 1000
METRIC_LEVELS: dict[LevelName, MetricLevel] = {"chunk": LINE_METRICS, "doc": DOCUMENT_METRICS}


@dataclass(frozen=True, slots=True)
class System:
    """A system's scores in a group, by metric.

    `ahead` is by how much the refiner's scores are higher, on the same documents; empty for the
    refiner itself, and without `auc`: no baseline has one.
    """

    name: str
    documents: int
    scores: dict[str, Score]
    ahead: dict[str, Score]


@dataclass(frozen=True, slots=True)
class Group:
    """Records of a level: `all`, `unanimous`, or those of a `source=…`."""

    level: LevelName
    name: str
    documents: int
    systems: tuple[System, ...]


@dataclass(frozen=True, slots=True)
class Running:
    """How a system got on with all records of a level.

    Documents per second are None where nothing was timed, FLOPs without a model of known shape.
    """

    level: LevelName
    name: str
    documents_per_second: float | None
    flops_per_document: float | None
    rejected: dict[str, int]
    flags: dict[str, int]
    quarantined: dict[str, int]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that `proxhpc evaluate` found out; `labels` counts lines by their letter."""

    refiner: str
    files: tuple[str, ...]
    selection: Selection
    records: int
    labels: dict[str, int]
    bootstrap: int
    groups: tuple[Group, ...]
    running: tuple[Running, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self)


def evaluate(
    manifest: Manifest,
    records: Sequence[GoldRecord],
    files: Sequence[Path],
    selection: Selection = Selection(),  # noqa: B008
    rounds: int = ROUNDS,
    say: Say = lambda _: None,
) -> Evaluation:
    """Score a manifest's refiner and the baselines on gold records.

    `rounds` resamplings of the documents, drawn from the selection's seed, make the intervals; 0
    for none. `say` and UserError as `run.ask`.
    """
    asked = ask(manifest, records, say)
    of_level: dict[LevelName, list[GoldRecord]] = {
        "chunk": [gold for gold in records if gold.wanted is not None],
        "doc": [gold for gold in records if gold.keep is not None],
    }
    labels: Counter[str] = Counter()
    for gold in of_level["chunk"]:
        labels.update(gold.labels)
    name = name_of(manifest)
    groups = []
    for level, systems in asked.items():
        tables = {one.name: count_table(METRIC_LEVELS[level], one.cells) for one in systems}
        scores = {one.name: one.scores for one in systems}
        for group, places in _groups(level, of_level[level]):
            some = {system: rows[places] for system, rows in tables.items()}
            found = _compare(some, name, METRIC_LEVELS[level], rounds, selection.seed)
            if level == "doc":
                some_gold = [(place, of_level["doc"][place]) for place in places]
                found = tuple(
                    _ranked(one, some_gold, scores[one.name], (rounds, selection.seed))
                    for one in found
                )
            groups.append(Group(level, group, len(places), found))
    return Evaluation(
        refiner=name,
        files=tuple(map(str, files)),
        selection=selection,
        records=len(records),
        labels=dict(sorted(labels.items())),
        bootstrap=rounds,
        groups=tuple(groups),
        running=tuple(_running(level, one) for level, systems in asked.items() for one in systems),
    )


def _groups(level: LevelName, records: Sequence[GoldRecord]) -> list[tuple[str, list[int]]]:
    """Names of groups, and which records belong to each."""
    groups = [("all", list(range(len(records))))]
    agreed = [place for place, gold in enumerate(records) if gold.unanimous]
    if level == "doc" and 0 < len(agreed) < len(records):
        groups.append(("unanimous", agreed))
    sources: dict[str, list[int]] = {}
    for place, gold in enumerate(records):
        sources.setdefault(gold.source, []).append(place)
    if len(sources) > 1:
        groups += [(f"source={name}", sources[name]) for name in sorted(sources)]
    return groups


def _compare(
    tables: "dict[str, Table]", refiner: str, level: MetricLevel, rounds: int, seed: int
) -> tuple[System, ...]:
    return tuple(
        _system(name, own, tables.get(refiner) if name != refiner else None, level, (rounds, seed))
        for name, own in tables.items()
    )


def _system(
    name: str, own: "Table", other: "Table | None", level: MetricLevel, drawing: tuple[int, int]
) -> System:
    """One system's scores, and the `other` one's lead, on documents that both decided about."""
    decided = own[:, 0] > 0
    pair = [own[decided]] + ([] if other is None else [other[decided]])
    values = [level.of(one.sum(axis=0)) for one in pair]
    drawn: list[Table | None] = [None] * len(pair)
    if drawing[0] and len(pair[0]):
        drawn = [*resample(pair, level.of, *drawing)]
    scores = _scores(level, values[0], drawn[0])
    ahead: dict[str, Score] = {}
    if other is not None:
        mine, theirs = drawn
        lead = None if mine is None or theirs is None else theirs - mine
        ahead = _scores(level, values[1] - values[0], lead)
    return System(name, len(pair[0]), scores, ahead)


def _ranked(
    system: System,
    records: Sequence[tuple[int, GoldRecord]],
    scores: Sequence[float | None],
    drawing: tuple[int, int],
) -> System:
    """The system with its AUC on the documents that have a score; `scores` are by place."""
    pairs = [
        (not gold.keep, value)
        for place, gold in records
        if scores and (value := scores[place]) is not None
    ]
    area = auc_score([drop for drop, _ in pairs], [value for _, value in pairs], *drawing)
    return replace(system, scores=system.scores | {"auc": area})


def _scores(level: MetricLevel, values: "Table", drawn: "Table | None") -> dict[str, Score]:
    return {
        ratio.name: score(values[place], None if drawn is None else drawn[:, place])
        for place, ratio in enumerate(level.ratios)
    }


def _running(level: LevelName, answers: Answers) -> Running:
    counts, seconds, documents = answers.counts, answers.seconds, len(answers.cells)
    return Running(
        level,
        answers.name,
        documents_per_second=documents / seconds if seconds > 0 else None,
        flops_per_document=None if answers.flops is None else answers.flops / documents,
        rejected=dict(counts.rejected),
        flags=dict(counts.flags),
        quarantined=dict(counts.quarantined),
    )

"""Scores of each system by group of documents, with intervals, and the refiner's lead."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from proxhpc.account.flops import flops
from proxhpc.corpus.hosts import Split
from proxhpc.evaluate.bootstrap import Score, auc_score, resample, score
from proxhpc.evaluate.gold import GoldRecord, Selection, records_by_level
from proxhpc.evaluate.limits import LimitEffect
from proxhpc.evaluate.metrics import DOCUMENT_METRICS, LINE_METRICS, MetricLevel, count_table
from proxhpc.evaluate.systems import Log, SystemResult, refiner_names, run_systems
from proxhpc.outputs import OutputModel
from proxhpc.spec.manifest import Manifest
from proxhpc.spec.sections import Level

if TYPE_CHECKING:
    from proxhpc.evaluate.bootstrap import Table

ROUNDS = 1000
METRIC_LEVELS: dict[Level, MetricLevel] = {"chunk": LINE_METRICS, "doc": DOCUMENT_METRICS}


class SystemScores(OutputModel):
    """A system's scores in a group of documents."""

    name: str
    """The models of a refiner joined by ` + `, `rules` with the rule sets unless these are all, or
    the name of a baseline. A name that occurs again is numbered."""
    documents: int
    """Documents on which the system decided."""
    scores: dict[str, Score]
    """Scores by metric."""
    lead: dict[str, Score]
    """The score of the first refiner with a stage of this level, minus this system's, by metric, on
    the documents on which both decided. Empty for that refiner; without `auc`, which baselines do
    not have."""


class GroupScores(OutputModel):
    """The scores of a group of documents."""

    level: Level
    """The level of the records."""
    name: str
    """`all`, `unanimous` (doc-level records on which all annotators agreed) or `source=NAME`."""
    documents: int
    """Documents in the group."""
    systems: tuple[SystemScores, ...]
    """The refiners that have a stage of this level, in the order of `refiners`, then the
    baselines."""


class Execution(OutputModel):
    """How a system ran on all records of a level."""

    level: Level
    """The level of the records."""
    name: str
    """The system's name, as in `groups`."""
    documents_per_second: float | None
    """Documents per second in one process, without loading; null if it was not measured."""
    flops_per_document: float | None
    """The model's FLOPs per document; null without a model whose shape is known."""
    rejected: dict[str, int]
    """Rejected statements and programs by reason."""
    lenient: dict[str, int]
    """What was overlooked to read and execute programs, by name."""
    flags: dict[str, int]
    """Flags of ledger rows."""
    quarantined: dict[str, int]
    """Quarantined documents by reason."""
    unusable: float | None
    """Share of the model's answers that are unusable; null without answers."""


class SelectedRecords(OutputModel):
    """The options that selected the records."""

    where: tuple[str, ...]
    """Conditions of --where, as KEY=VALUE."""
    exclude: tuple[str, ...]
    """Conditions of --exclude, as KEY=VALUE."""
    limit: int | None
    """The value of --limit."""
    seed: int
    """The seed of --limit and of the resamplings."""
    split: Split | None
    """The value of --split."""


class Evaluation(OutputModel):
    """The result of `proxhpc evaluate`."""

    format: Literal["proxhpc.evaluate/1"] = "proxhpc.evaluate/1"
    """Kind and version of this document."""
    refiner: str
    """The name of the first refiner, as in `groups`."""
    refiners: tuple[str, ...]
    """The names of all refiners."""
    files: tuple[str, ...]
    """The files of gold records."""
    selection: SelectedRecords
    """How records were selected from the files."""
    records: int
    """Records that were selected."""
    labels: dict[str, int]
    """Lines of chunk-level records by label; line metrics count only `G`, `E` and `B`."""
    bootstrap: int
    """Resamplings for the intervals; 0 for none."""
    groups: tuple[GroupScores, ...]
    """Scores by level and group of documents."""
    execution: tuple[Execution, ...]
    """Speed, cost and rejections by level and system."""
    limits: tuple[LimitEffect, ...]
    """What limits of the policy and other reasons overruled, by level, refiner and reason."""


def evaluate(
    manifests: Sequence[Manifest],
    records: Sequence[GoldRecord],
    files: Sequence[Path],
    selection: Selection = Selection(),  # noqa: B008
    rounds: int = ROUNDS,
    log: Log = lambda _: None,
) -> Evaluation:
    """Score the refiners of manifests and the baselines on gold records.

    Intervals come from `rounds` resamplings of the documents (0: no intervals) with the
    selection's seed. `log` and UserError as in `run_systems`.
    """
    results = run_systems(manifests, records, log)
    of_level = records_by_level(records)
    labels = Counter(label for gold in of_level.get("chunk", ()) for label in gold.labels)
    refiners = refiner_names(manifests)
    groups: list[GroupScores] = []
    for level, systems in results.items():
        first = next((one.name for one in systems if one.name in refiners), "")
        comparison = SystemComparison(
            level, systems, of_level[level], first, rounds, selection.seed
        )
        groups += [comparison.group(*group) for group in _groups(level, of_level[level])]
    return Evaluation(
        refiner=refiners[0],
        refiners=tuple(refiners),
        files=tuple(map(str, files)),
        selection=SelectedRecords(
            where=tuple(map("=".join, selection.where)),
            exclude=tuple(map("=".join, selection.exclude)),
            limit=selection.limit,
            seed=selection.seed,
            split=selection.split,
        ),
        records=len(records),
        labels=dict(sorted(labels.items())),
        bootstrap=rounds,
        groups=tuple(groups),
        execution=tuple(
            _execution(level, system) for level, systems in results.items() for system in systems
        ),
        limits=tuple(
            effect
            for systems in results.values()
            for system in systems
            if system.name in refiners
            for effect in system.limits
        ),
    )


def _groups(level: Level, records: Sequence[GoldRecord]) -> list[tuple[str, list[int]]]:
    """The names of the groups, with the indices of their records."""
    groups = [("all", list(range(len(records))))]
    unanimous = [index for index, gold in enumerate(records) if gold.unanimous]
    if level == "doc" and 0 < len(unanimous) < len(records):
        groups.append(("unanimous", unanimous))
    sources: dict[str, list[int]] = {}
    for index, gold in enumerate(records):
        sources.setdefault(gold.source, []).append(index)
    if len(sources) > 1:
        groups += [(f"source={name}", sources[name]) for name in sorted(sources)]
    return groups


@dataclass(frozen=True, slots=True)
class SystemComparison:
    """Compares systems on the records of a level; `rounds` and `seed` are the bootstrap's."""

    level: Level
    systems: Sequence[SystemResult]
    records: Sequence[GoldRecord]
    refiner: str
    rounds: int
    seed: int

    def group(self, name: str, indices: list[int]) -> GroupScores:
        """The scores of all systems on the records with these indices."""
        metrics = METRIC_LEVELS[self.level]
        tables = {one.name: count_table(metrics, one.rows)[indices] for one in self.systems}
        systems = []
        for system in self.systems:
            refiner = None if system.name == self.refiner else tables.get(self.refiner)
            systems.append(self._compare(system, indices, tables[system.name], refiner))
        return GroupScores(
            level=self.level, name=name, documents=len(indices), systems=tuple(systems)
        )

    def _compare(
        self, system: SystemResult, indices: list[int], table: "Table", refiner: "Table | None"
    ) -> SystemScores:
        """A system's scores, and the refiner's lead, on the documents on which both decided."""
        metrics = METRIC_LEVELS[self.level]
        decided = table[:, metrics.counts.index("documents")] > 0
        tables = [table[decided]] + ([] if refiner is None else [refiner[decided]])
        values = [metrics.values(one.sum(axis=0)) for one in tables]
        rounds = self.rounds if decided.any() else 0
        resampled = resample(tables, metrics.values, rounds, self.seed)
        scores = _scores(metrics, values[0], resampled[0])
        if self.level == "doc":
            scores["auc"] = self._auc(system, indices)
        lead: dict[str, Score] = {}
        if refiner is not None:
            lead = _scores(metrics, values[1] - values[0], resampled[1] - resampled[0])
        return SystemScores(name=system.name, documents=len(tables[0]), scores=scores, lead=lead)

    def _auc(self, system: SystemResult, indices: list[int]) -> Score:
        pairs = [
            (not self.records[index].keep, value)
            for index in indices
            if system.scores and (value := system.scores[index]) is not None
        ]
        drop, scores = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        return auc_score(drop, scores, self.rounds, self.seed)


def _scores(metrics: MetricLevel, values: "Table", resampled: "Table") -> dict[str, Score]:
    return {
        ratio.name: score(values[index], resampled[:, index])
        for index, ratio in enumerate(metrics.ratios)
    }


def _execution(level: Level, system: SystemResult) -> Execution:
    totals, seconds, documents = system.totals, system.seconds, len(system.rows)
    usage, model = totals.doc if level == "doc" else totals.chunk, system.model
    work = flops(model.shape, usage) if model and model.shape else None
    return Execution(
        level=level,
        name=system.name,
        documents_per_second=documents / seconds if seconds > 0 else None,
        flops_per_document=None if work is None else work / documents,
        rejected=dict(totals.rejected),
        lenient=dict(totals.lenient),
        flags=dict(totals.flags),
        quarantined=dict(totals.quarantined),
        unusable=system.unusable,
    )

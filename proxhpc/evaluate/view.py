"""An evaluation as tables on a terminal."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from proxhpc.account.quantity import quantity
from proxhpc.account.reasons import reason_text
from proxhpc.evaluate.bootstrap import Score
from proxhpc.evaluate.limits import LimitEffect
from proxhpc.evaluate.result import Evaluation, Execution, GroupScores, SystemScores
from proxhpc.spec.sections import Level
from proxhpc.status.terminal import percentage, plain_table, safe, short, whole

MAIN_METRICS: dict[Level, tuple[str, ...]] = {"chunk": ("token_f1",), "doc": ("accuracy", "auc")}
"""Metrics that are printed with their interval and with the refiner's lead."""

HEADS = {
    "token_f1": "token F1",
    "line_precision": "line P",
    "line_recall": "R",
    "line_f1": "F1",
    "long_lines_lost": "long lost",
    "precision": "P",
    "recall": "R",
    "f1": "F1",
    "documents_kept": "docs kept",
    "bytes_kept": "bytes kept",
    "tokens_kept": "tokens kept",
    "valid_programs": "valid",
    "auc": "AUC",
}


def render_evaluation(evaluation: Evaluation) -> RenderableType:
    """A table for each level that a refiner was scored on, then limits and notes."""
    parts: list[RenderableType] = []
    for level, title in (("chunk", "lines and text"), ("doc", "whole documents")):
        groups = [group for group in evaluation.groups if group.level == level]
        if groups and groups[0].systems[0].name in evaluation.refiners:  # they come first
            documents = whole(groups[0].documents)
            leader = ""
            if len(evaluation.refiners) > 1:
                leader = next(one.name for one in groups[0].systems if not one.lead)
            lead = f"lead of {_short_name(leader)}" if leader else "refiner's lead"
            table = _table(groups, evaluation.refiners, lead)
            parts += [Text(f"{title} ({documents})", style="bold"), table, Text()]
    for name in evaluation.refiners:
        if limits := [limit for limit in evaluation.limits if limit.name == name]:
            parts += [
                Text(f"overruled: {_short_name(name)}", style="bold"),
                _limits(limits),
                Text(),
            ]
    parts += [Text(line, style="dim") for line in _notes(evaluation)]
    return Group(*parts)


def _table(groups: list[GroupScores], refiners: Sequence[str], lead: str) -> Table:
    """All systems on all documents, and the refiners on those of each group."""
    main = MAIN_METRICS[groups[0].level]
    heads = (HEADS.get(name, name) for name in groups[0].systems[0].scores)
    table = plain_table([""], [*heads, lead], wrap=False)
    for system in groups[0].systems:
        table.add_row(*map(Text, _row(_short_name(system.name), system, main)))
    for group in groups[1:]:
        title = f"{safe(group.name, 60)} ({whole(group.documents)})"
        systems = [system for system in group.systems if system.name in refiners]
        if len(systems) > 1:
            table.add_row(Text(title, style="bold"))
        for system in systems:
            name = _short_name(system.name) if len(systems) > 1 else title
            table.add_row(*map(Text, _row(name, system, main)))
    return table


def _limits(limits: list[LimitEffect]) -> Table:
    numbers = ("overruled", "documents", "score as set", "without", "right in")
    table = plain_table([""], numbers, wrap=False)
    for limit in limits:
        changed = limit.right + limit.wrong
        cells = (
            reason_text(limit.reason) + (f" ({limit.key})" if limit.key else ""),
            whole(limit.overruled),
            whole(limit.documents),
            _three_digits(limit.as_set),
            _three_digits(limit.without),
            "-" if limit.without is None else f"{whole(limit.right)} of {whole(changed)}",
        )
        table.add_row(*(Text(safe(cell)) for cell in cells))
    return table


def _row(title: str, system: SystemScores, main: tuple[str, ...]) -> Iterator[str]:
    yield title
    for name, score in system.scores.items():
        yield _interval(score) if name in main else _three_digits(score.value)
    yield " ".join(_interval(score, "+") for name, score in system.lead.items() if name in main)


def _short_name(name: str) -> str:
    """Models without their directories."""
    return safe(" + ".join(model.rpartition("/")[2] for model in name.split(" + ")), 40)


def _three_digits(value: float | None, sign: str = "") -> str:
    """`.837`, `1.000`, `-` if undefined."""
    if value is None:
        return "-"
    text = f"{value:{sign}.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.9995 else text


def _interval(score: Score, sign: str = "") -> str:
    value = _three_digits(score.value, sign)
    if score.low is None:
        return value
    return f"{value} [{_three_digits(score.low, sign)}, {_three_digits(score.high, sign)}]"


def _notes(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.bootstrap:
        yield (
            f"[…]: 95 % interval of {quantity(evaluation.bootstrap, 'resampling')} of the "
            "documents; a lead compares both on the same resamplings"
        )
    uncounted = {name: n for name, n in evaluation.labels.items() if name not in "GEB"}
    if uncounted:
        counts = ", ".join(f"{whole(number)} {safe(name)}" for name, number in uncounted.items())
        yield f"lines with other labels, not counted: {counts}"
    if evaluation.limits:
        yield (
            "score: mean token F1 or, of verdicts, accuracy; without: if only this limit were off; "
            "right in: of the documents whose score the limit changes"
        )
    for name in evaluation.refiners:
        several = len(evaluation.refiners) > 1
        prefix = f"{_short_name(name)}, " if several else ""
        stages = [stage for stage in evaluation.execution if stage.name == name]
        for level in dict.fromkeys(group.level for group in evaluation.groups):
            if level not in (stage.level for stage in stages):
                who = _short_name(name) if several else "the refiner"
                yield f"{who} has no {level} stage: not evaluated on {level}-level records"
        for stage in stages:
            yield from (prefix + line for line in _stage_notes(stage))


def _stage_notes(stage: Execution) -> Iterator[str]:
    flops = stage.flops_per_document
    cost = "" if flops is None else f", {short(flops)} FLOPs per document"
    yield f"{stage.level} stage: {short(stage.documents_per_second)} documents/s{cost}"
    if stage.unusable:
        yield f"{stage.level} stage: {percentage(stage.unusable, 1)} of the answers are unusable"
    for title, counts in (
        ("rejected", stage.rejected),
        ("read leniently", stage.lenient),
        ("flags", stage.flags),
        ("quarantined", stage.quarantined),
    ):
        if counts:
            text = ", ".join(f"{safe(name)} {whole(number)}" for name, number in counts.items())
            yield f"{stage.level} stage, {title}: {text}"

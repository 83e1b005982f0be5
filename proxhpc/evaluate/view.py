"""An evaluation on a terminal."""

from collections.abc import Iterator

from rich.console import Group as Together
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from proxhpc.evaluate.bootstrap import Score
from proxhpc.evaluate.result import Evaluation, Group, Running, System
from proxhpc.evaluate.run import LevelName
from proxhpc.status.terminal import safe, short, whole

MAIN: dict[LevelName, tuple[str, ...]] = {"chunk": ("token_f1",), "doc": ("accuracy", "auc")}
"""Metrics shown with their interval, and with the refiner's lead over baselines that have them."""

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


def render_evaluation(found: Evaluation) -> RenderableType:
    """Tables by level, a block for each group of documents, and remarks."""
    parts: list[RenderableType] = []
    for level, what in (("chunk", "lines and text"), ("doc", "whole documents")):
        groups = [group for group in found.groups if group.level == level]
        if groups:
            number = whole(groups[0].documents)
            parts += [Text(f"{what} ({number})", style="bold"), _table(groups), Text()]
    parts += [Text(line, style="dim") for line in _remarks(found)]
    return Together(*parts)


def _table(groups: list[Group]) -> Table:
    level = groups[0].level
    names = list(groups[0].systems[0].scores)
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    grid.add_column("", overflow="fold")
    for name in names:
        grid.add_column(HEADS.get(name, name), justify="right", no_wrap=True)
    grid.add_column("refiner ahead by", justify="right", no_wrap=True)
    for place, group in enumerate(groups):
        if len(groups) > 1:
            title = group.name if not place else f"{group.name} ({whole(group.documents)})"
            grid.add_row(Text(safe(title, 60), style="bold"))
        for system in group.systems:
            grid.add_row(*(Text(cell) for cell in _row(system, MAIN[level])))
    return grid


def _row(system: System, main: tuple[str, ...]) -> Iterator[str]:
    yield _short(system.name)
    for name, score in system.scores.items():
        yield _interval(score) if name in main else _three(score.value)
    yield " ".join(_interval(score, "+") for name, score in system.ahead.items() if name in main)


def _short(name: str) -> str:
    """Models without their directories."""
    return safe(" + ".join(model.rpartition("/")[2] for model in name.split(" + ")), 40)


def _three(value: float | None, sign: str = "") -> str:
    """`.837`, `1.000`, `-` where there is nothing to have a share of."""
    if value is None:
        return "-"
    text = f"{value:{sign}.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.9995 else text


def _interval(score: Score, sign: str = "") -> str:
    if score.low is None:
        return _three(score.value, sign)
    low, high = (_three(end, sign) for end in (score.low, score.high))
    return f"{_three(score.value, sign)} [{low}, {high}]"


def _remarks(found: Evaluation) -> Iterator[str]:
    if found.bootstrap:
        yield (
            f"[…]: 95 % interval of {whole(found.bootstrap)} resamplings of the documents, "
            "the same for both in a difference"
        )
    uncounted = {name: n for name, n in found.labels.items() if name not in "GB"}
    if uncounted:
        said = ", ".join(f"{whole(number)} {safe(name)}" for name, number in uncounted.items())
        yield f"lines of no known kind, not counted: {said}"
    ran = [run for run in found.running if run.name == found.refiner]
    for level in dict.fromkeys(group.level for group in found.groups):
        if level not in (run.level for run in ran):
            yield f"the refiner has no {level} stage and was not asked about {level}-level records"
    for run in ran:
        yield from _ran(run)


def _ran(run: Running) -> Iterator[str]:
    work = run.flops_per_document
    cost = "" if work is None else f", {short(work)} FLOPs a document"
    yield f"{run.level} stage: {short(run.documents_per_second)} documents/s{cost}"
    for what in ("rejected", "flags", "quarantined"):
        counts: dict[str, int] = getattr(run, what)
        if counts:
            said = ", ".join(f"{safe(name)} {whole(number)}" for name, number in counts.items())
            yield f"{run.level} stage, {what}: {said}"

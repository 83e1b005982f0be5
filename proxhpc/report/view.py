"""A report or an account on a terminal: about ten lines."""

import os
import shlex
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

from rich.console import RenderableType, group
from rich.table import Table
from rich.text import Text

from proxhpc.report.advice import next_steps
from proxhpc.report.model import AccountBase
from proxhpc.report.text import sentence
from proxhpc.run.paths import RunDir
from proxhpc.status.terminal import safe, short, whole
from proxhpc.status.totals import unusable_warning


@group()
def render_report(report: AccountBase) -> Iterator[RenderableType]:
    """How much was removed and why, counts, where the corpus and the page are, what to do next."""
    yield Text.assemble((f"{safe(report.name)}: ", "bold"), sentence(report))
    yield _counts(report)
    if warning := unusable_warning(report.documents, report.edits):
        yield Text(warning, style="yellow")
    run = RunDir(Path(report.execution.run))
    paths = Table.grid(padding=(0, 2, 0, 0))
    if report.documents.written is not None:
        paths.add_row("corpus", Text(_shown(report.execution.corpus), overflow="fold"))
    paths.add_row("report", Text(_shown(str(run.report_html)), overflow="fold"))
    command = next_steps(report)[0].command
    here = shlex.quote(_shown(report.execution.run))
    command = command.replace(shlex.quote(report.execution.run), here)
    paths.add_row("next", Text(safe(command), style="bold", overflow="fold"))
    yield paths


def _shown(path: str) -> str:
    """A path relative to the working directory, if it is below it."""
    return safe(os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path)


def _counts(report: AccountBase) -> Table:
    """Documents and tokens by outcome, without outcomes that no document has."""
    documents, tokens = report.documents, report.tokens
    lost: dict[str, int] = {}
    for entry in report.outcomes:
        if entry.raw_tokens is not None:
            lost[entry.outcome] = lost.get(entry.outcome, 0) - entry.raw_tokens
    last: tuple[str, int, int | None] = ("in the corpus", documents.written or 0, tokens.written)
    if documents.written is None:
        last = ("refined", documents.refined, tokens.refined)
    columns: list[tuple[str, int, int | None]] = [
        ("kept", documents.kept, None),
        ("edited", documents.edited, lost.get("edited")),
        ("dropped", sum(documents.dropped.values()), lost.get("dropped")),
        ("quarantined", sum(documents.quarantined.values()), lost.get("quarantined")),
        ("duplicates", documents.duplicates or 0, lost.get("duplicate")),
    ]
    shown = [("read", documents.read, tokens.read), *filter(itemgetter(1), columns), last]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("", *map(itemgetter(0), shown)):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    table.add_row("documents", *(whole(number) for _, number, _ in shown))
    table.add_row("tokens", *("" if number is None else short(number) for *_, number in shown))
    return table

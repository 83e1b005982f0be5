"""A report or an account on a terminal: ten lines, and the demo's document before and after."""

import os
import shlex
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from textwrap import wrap

from rich.console import RenderableType, group
from rich.table import Table
from rich.text import Text

from proxhpc.account.quantity import quantity
from proxhpc.assemble.stats import ExampleTexts
from proxhpc.inspect.view import SIGNS, change_text
from proxhpc.report.advice import next_steps
from proxhpc.report.examples import short_diff, typical_example
from proxhpc.report.model import AccountBase
from proxhpc.report.text import sentence
from proxhpc.run.paths import RunDir
from proxhpc.status.terminal import plain_table, safe, short, whole
from proxhpc.status.totals import unusable_warning

_COMMANDS = 3
_SENTENCE_LINES = 5  # and commands; with counts and paths these are ten lines
_WIDTH = 80  # of a usual terminal
_LINE_WIDTH = 78  # of a document's line


@group()
def render_report(
    report: AccountBase, examples: Sequence[ExampleTexts] = ()
) -> Iterator[RenderableType]:
    """How much was removed and why, counts, where the corpus and the page are, what to do next.

    With `examples`, one of them is shown.
    """
    is_merged = report.documents.written is not None
    headline = f"{safe(report.name)}{' finished' if is_merged else ''}: "
    yield Text.assemble((headline, "bold"), sentence(report))
    yield _counts(report)
    if warning := unusable_warning(report.documents, report.edits):
        yield Text(warning, style="yellow")
    run = RunDir(Path(report.execution.run))
    paths = Table.grid(padding=(0, 2, 0, 0))
    if is_merged:
        paths.add_row("corpus", Text(_shown(report.execution.corpus), overflow="fold"))
    paths.add_row("report", Text(_shown(str(run.report_html)), overflow="fold"))
    example = typical_example(examples)
    room = _SENTENCE_LINES - len(wrap(headline + sentence(report), _WIDTH))
    room = max(1, min(room, _COMMANDS)) if example is None else _COMMANDS
    steps = next_steps(report)[:room]
    here = shlex.quote(_shown(report.execution.run))
    for number, step in enumerate(steps):
        command = step.command.replace(shlex.quote(report.execution.run), here)
        name = "" if number else "next"
        paths.add_row(name, Text(safe(command), style="bold", overflow="fold"))
    if example is not None:
        yield from _example(example)
    yield paths


def _example(example: ExampleTexts) -> Iterator[Text]:
    """A document before and after, with lines cut and long parts left out."""
    yield Text.assemble("\nbefore and after: ", (safe(example.id or example.source, 200), "bold"))
    for change in short_diff(example):
        if isinstance(change, int):
            yield Text(f"    … {quantity(change, 'more line')}", style="dim")
        else:
            line = Text.assemble(f"  {SIGNS[change.kind]} ", change_text(change))
            line.truncate(_LINE_WIDTH, overflow="ellipsis")
            yield line
    yield Text()


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
        ("left out", sum((documents.left_out or {}).values()), lost.get("left_out")),
    ]
    shown = [("read", documents.read, tokens.read), *filter(itemgetter(1), columns), last]
    table = plain_table([""], map(itemgetter(0), shown))
    table.add_row("documents", *(whole(number) for _, number, _ in shown))
    table.add_row("tokens", *("" if number is None else short(number) for *_, number in shown))
    return table

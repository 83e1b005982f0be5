"""A verdict on a terminal."""

from collections.abc import Iterator

from rich.console import RenderableType, group
from rich.table import Table
from rich.text import Text

from proxhpc.prove.model import ProveVerdict
from proxhpc.prove.tables import account_text, arm_table, difference_table, task_table
from proxhpc.status.terminal import safe


@group()
def render_verdict(verdict: ProveVerdict) -> Iterator[RenderableType]:
    """The sentence, warnings, differences, tasks, and what the arms cost."""
    yield Text.assemble((f"{safe(verdict.name)}: ", "bold"), safe(verdict.sentence))
    for warning in verdict.warnings:
        yield Text(safe(warning), style="yellow")
    for rows in (difference_table(verdict), task_table(verdict), arm_table(verdict)):
        if rows[1:]:
            yield Text()
            yield _text_table(rows)
    yield from (Text(f"\n{line}") for line in account_text(verdict))


def _text_table(rows: list[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, cell in zip(rows[0], rows[1], strict=True):
        is_number = any(character.isdigit() for character in cell)
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    return table

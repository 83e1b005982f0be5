"""A report or an account on a terminal."""

from collections.abc import Iterator

from rich.console import RenderableType, group
from rich.table import Table
from rich.text import Text

from proxhpc.report import text
from proxhpc.report.model import AccountBase, Report, RunAccount
from proxhpc.status.terminal import safe


@group()
def render_report(report: Report) -> Iterator[RenderableType]:
    """The report of a merged run."""
    yield Text(safe(report.name), style="bold")
    yield from _tables(report)


@group()
def render_account(account: RunAccount) -> Iterator[RenderableType]:
    """The account so far of a run that is not merged."""
    yield Text.assemble((safe(account.name), "bold"), ("  so far: not merged yet", "yellow"))
    yield from _tables(account)


def _tables(report: AccountBase) -> Iterator[RenderableType]:
    yield _table(text.outcome_table(report))
    yield Text()
    yield _table(text.size_table(report))
    yield Text(f"tokens: {safe(report.token_unit)}", style="dim")
    for table in (
        text.request_table(report),
        text.flops_table(report),
        text.extra_table(report),
        text.training_table(report.comparison),
        text.estimate_table(report),
        text.timing_table(report.execution),
    ):
        if len(table) > 1:
            yield Text()
            yield _table(table)


def _table(rows: text.TextTable) -> Table:
    header = rows[0]
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
        show_header=any(header),
    )
    for position, name in enumerate(header):
        is_text = position == 0 or name == "model" or not any(header)
        table.add_column(Text(name), justify="left" if is_text else "right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    return table

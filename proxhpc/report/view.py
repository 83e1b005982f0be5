"""A report or an account on a terminal."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from proxhpc.report import text
from proxhpc.report.model import AccountBase, Report, RunAccount
from proxhpc.status.terminal import safe


def render_report(report: Report) -> RenderableType:
    """The report of a merged run."""
    return Group(Text(safe(report.name), style="bold"), *_tables(report))


def render_account(account: RunAccount) -> RenderableType:
    """The account so far of a run that is not merged."""
    note = ("  so far: not merged yet", "yellow")
    return Group(Text.assemble((safe(account.name), "bold"), note), *_tables(account))


def _tables(report: AccountBase) -> Iterator[RenderableType]:
    yield _table(("", "documents", ""), text.outcome_rows(report))
    yield Text()
    yield _table(text.SIZE_COLUMNS, text.size_rows(report))
    yield Text(f"tokens: {safe(report.token_unit)}", style="dim")
    for header, rows in (
        (text.REQUEST_COLUMNS, text.request_rows(report)),
        (text.FLOPS_COLUMNS, text.flops_rows(report)),
        (text.EXTRA_COLUMNS, text.extra_rows(report)),
        (("", ""), text.training_rows(report.comparison)),
        (text.ESTIMATE_COLUMNS, text.estimate_rows(report)),
        (("", ""), text.timing_rows(report.execution)),
    ):
        if rows:
            yield Text()
            yield _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[text.TextRow]) -> Table:
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
    for row in rows:
        table.add_row(*map(Text, row))
    return table

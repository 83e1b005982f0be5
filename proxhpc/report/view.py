"""A report on a terminal."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from proxhpc.report import text
from proxhpc.status.terminal import safe, short, whole


def render_report(report: dict[str, Any]) -> RenderableType:
    """The report's figures, for the end of a launch."""
    tokens = safe(report["tokens"]["counted"])
    return Group(
        Text(safe(report["name"]), style="bold"),
        _table(("", "documents", ""), text.flow(report)),
        Text(),
        _table(("", "raw", "refined", "written", "kept"), text.sizes(report)),
        Text(f"tokens: {tokens}", style="dim"),
        *_compute(report),
    )


def render_account(account: dict[str, Any]) -> RenderableType:
    """A run's compute, at any time."""
    so_far = "  so far: not merged yet" if account["partial"] else ""
    read = f"{short(account['tokens']['read'])} tokens of {whole(account['documents'])} documents"
    return Group(
        Text.assemble((safe(account["name"]), "bold"), (so_far, "yellow")),
        Text(f"{read}; tokens: {safe(account['token_unit'])}", style="dim"),
        *_compute(account),
    )


def _compute(report: dict[str, Any]) -> Iterator[RenderableType]:
    """Model work, FLOPs, GPU time, training, and estimate against truth."""
    for header, rows in (
        (text.WORK, text.work(report)),
        (text.COSTS, text.costs(report)),
        (text.SPARED, text.spared(report)),
        (("", ""), text.training(report)),
        (text.ESTIMATE, text.estimate_rows(report)),
        (("", ""), text.timing(report)),
    ):
        if rows:
            yield Text()
            yield _table(header, rows)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
        show_header=any(header),
    )
    for place, name in enumerate(header):
        left = place == 0 or name == "model" or tuple(header) == ("", "")
        table.add_column(Text(name), justify="left" if left else "right", overflow="fold")
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    return table

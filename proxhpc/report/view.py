"""A report on a terminal."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from proxhpc.report import text
from proxhpc.status.terminal import safe


def render(report: dict[str, Any]) -> RenderableType:
    """The report's figures, for the end of a launch."""
    tokens = safe(report["tokens"]["counted"])
    parts: list[RenderableType] = [
        Text(safe(report["name"]), style="bold"),
        _table(("", "documents", ""), text.flow(report)),
        Text(),
        _table(("", "raw", "refined", "written", "kept"), text.sizes(report)),
        Text(f"tokens: {tokens}", style="dim"),
        Text(),
        _table(COSTS, text.costs(report)),
    ]
    if lines := text.training(report):
        parts += [Text(), _table(("", ""), lines)]
    parts += [Text(), _table(("", ""), text.timing(report))]
    return Group(*parts)


COSTS = (
    *("", "model", "requests", "tokens in", "cached", "tokens out"),
    *("FLOPs", "paper, measured", "paper, short"),
)


def _table(header: tuple[str, ...], lines: list[Any]) -> Table:
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
        show_header=any(header),
    )
    for place, name in enumerate(header):
        left = place == 0 or name == "model" or header == ("", "")
        table.add_column(Text(name), justify="left" if left else "right", overflow="fold")
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    return table

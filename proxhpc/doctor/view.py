"""Findings on a terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from proxhpc.doctor.finding import Finding, Severity
from proxhpc.status.terminal import safe

_MARKS: dict[Severity, tuple[str, str]] = {
    "fine": ("ok", ""),
    "note": ("note", "yellow"),
    "bad": ("BAD", "red"),
}


def render_findings(findings: Sequence[Finding]) -> RenderableType:
    """A table for a terminal, and the verdict behind it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "what", "found", "so"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        mark, style = _MARKS[finding.verdict]
        cells = (finding.what, finding.found, finding.so)
        table.add_row(mark, *(Text(safe(cell)) for cell in cells), style=style)
    bad = sum(finding.verdict == "bad" for finding in findings)
    verdict = f"a launch would not work: {bad} to mend" if bad else "a launch would work"
    return Group(table, Text(""), Text(verdict, style="bold red" if bad else "bold green"))

"""A diagnosis on a terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from proxhpc.doctor.finding import Diagnosis, Severity
from proxhpc.status.terminal import safe

_STYLES: dict[Severity, str] = {"ok": "", "warning": "yellow", "error": "red"}


def render_diagnosis(diagnosis: Diagnosis) -> RenderableType:
    """Return a table of the findings, and whether a launch would work."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "check", "result", "what it means"):
        table.add_column(column, overflow="fold")
    for finding in diagnosis.findings:
        cells = (finding.check, finding.result, finding.consequence)
        style = _STYLES[finding.verdict]
        table.add_row(finding.verdict, *(Text(safe(cell)) for cell in cells), style=style)
    errors = sum(finding.verdict == "error" for finding in diagnosis.findings)
    if errors:
        conclusion = Text(f"a launch would not work: {errors} to fix", "bold red")
    else:
        conclusion = Text("a launch would work", "bold green")
    return Group(table, Text(""), conclusion)

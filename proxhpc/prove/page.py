"""The page of a verdict."""

from proxhpc.prove import tables
from proxhpc.prove.model import ProveVerdict
from proxhpc.report.html import render_page


def prove_page(verdict: ProveVerdict) -> str:
    """The whole page, in the report's style."""
    return render_page("prove.html", "proxhpc.prove", verdict=verdict, tables=tables)

"""A summary of examples on a terminal."""

from collections import Counter, defaultdict

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from proxhpc.annotate.summary import Summary
from proxhpc.status.terminal import safe, whole

_COLUMNS = (
    *("examples", "dropped", "untouched", "with_strings"),
    *("lines", "lines_dropped", "lines_unknown"),
)


def render_summary(summary: Summary) -> RenderableType:
    """What the examples are, and what became of everything that is none."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("teacher", "level", "split"):
        table.add_column(name, overflow="fold")
    for name in ("sources", *_COLUMNS):
        table.add_column(name.replace("_", " "), justify="right")
    groups: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for (teacher, _, level, split), counts in summary.groups.items():
        groups[teacher, level, split].update(counts | {"sources": 1})
    for key, counts in sorted(groups.items()):
        numbers = [whole(counts[name]) if name in counts else "" for name in ("sources", *_COLUMNS)]
        table.add_row(*(Text(safe(cell, 60)) for cell in (*key, *numbers)))
    aside = Counter({f"{level}: {why}": n for (level, why), n in summary.aside.items()})
    none = Counter[str]()
    rest = (
        ("documents", summary.documents, summary.left_out),
        ("examples", summary.made, summary.not_chosen),
        ("answers and windows set aside", aside.total(), aside),
        ("records held out", summary.held_out, none),
        ("documents without a host", summary.without_host, none),
    )
    lines = [Text(f"{whole(total)} {name}{_but(counts)}") for name, total, counts in rest if total]
    hosts = (f"{whole(len(summary.hosts[split]))} {split}" for split in ("train", "validation"))
    return Group(table, Text(), *lines, Text(f"hosts: {', '.join(hosts)}"))


def _but(counts: Counter[str]) -> str:
    parts = [f"{safe(reason, 60)} {whole(number)}" for reason, number in counts.most_common()]
    return f"; {', '.join(parts)}" if parts else ""

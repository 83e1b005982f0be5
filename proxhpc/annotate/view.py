"""The summary of an annotation on a terminal."""

from collections import Counter, defaultdict
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.text import Text

from proxhpc.account.quantity import quantity
from proxhpc.annotate.summary import AnnotationSummary
from proxhpc.status.terminal import plain_table, safe, whole

_COLUMNS = (
    *("examples", "dropped", "untouched", "with_strings"),
    *("lines", "lines_dropped", "lines_unknown"),
)


def render_summary(summary: AnnotationSummary) -> RenderableType:
    """A table of the examples, and what became of all other documents and windows."""
    heads = (name.replace("_", " ") for name in ("sources", *_COLUMNS))
    table = plain_table(("teacher", "level", "split"), heads)
    groups: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for group in summary.groups:
        counts = {name: n for name in _COLUMNS if (n := getattr(group, name)) is not None}
        groups[group.teacher, group.level, group.split].update(counts | {"sources": 1})
    for key, counts in sorted(groups.items()):
        numbers = [whole(counts[name]) if name in counts else "" for name in ("sources", *_COLUMNS)]
        table.add_row(*(Text(safe(cell, 60)) for cell in (*key, *numbers)))
    discarded = {
        f"{level}: {reason}": number
        for level, reasons in summary.discarded.items()
        for reason, number in reasons.items()
    }
    counted: tuple[tuple[str, int, str, Mapping[str, int]], ...] = (
        ("document", summary.documents.read, "", summary.documents.left_out),
        ("example", summary.examples.created, "", summary.examples.left_out),
        ("answer or window", sum(discarded.values()), " discarded", discarded),
        ("record", summary.held_out, " held out", {}),
        ("document", summary.without_host, " without a host", {}),
    )
    plurals = {"answer or window": "answers and windows"}
    lines = [
        Text(f"{quantity(number, noun, plurals.get(noun, ''))}{what}{_by_reason(by)}")
        for noun, number, what, by in counted
        if number
    ]
    hosts = (
        f"hosts: {whole(summary.hosts.train)} train, {whole(summary.hosts.validation)} validation"
    )
    return Group(table, Text(), *lines, Text(hosts))


def _by_reason(counts: Mapping[str, int]) -> str:
    parts = [f"{safe(name, 60)} {whole(number)}" for name, number in Counter(counts).most_common()]
    return f"; {', '.join(parts)}" if parts else ""

"""The way of the documents as a drawing: from the raw input to the corpus."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from proxhpc.status.terminal import percentage, safe, whole

WIDTH, HEIGHT = 640, 240
_BAR = 14  # width of a column's boxes
COLUMNS = (0, 220, 440)  # left edges
SLOT = 34  # least distance of two boxes, so that their labels do not meet


@dataclass(frozen=True, slots=True)
class _Box:
    """Documents at one place of the flow; `size` is drawn to scale."""

    kind: str
    label: str
    documents: int
    x: float
    y: float
    size: float


def diagram(report: dict[str, Any]) -> str:
    """An SVG; the table beside it says the same in numbers."""
    docs = report["documents"]
    total = docs["read"]
    if not total:
        return ""
    outcomes = [
        ("kept", docs["kept"]),
        ("edited", docs["edited"]),
        ("dropped", sum(docs["dropped"].values())),
        ("quarantined", sum(docs["quarantined"].values())),
    ]
    ends = [("written", docs["written"]), ("duplicates", docs["duplicates"])]
    scale = HEIGHT / total
    raw = _Box("in", "documents in", total, COLUMNS[0], 0, HEIGHT)
    middle = [*_column(outcomes, COLUMNS[1], scale)]
    last = [*_column(ends, COLUMNS[2], scale)]
    shapes = [*_links(raw, middle)]
    refined = [box for box in middle if box.kind in ("kept", "edited")]
    shapes += _merged(refined, last)
    shapes += [part for box in (raw, *middle, *last) for part in _draw(box, total)]
    height = max(box.y + max(box.size, SLOT) for box in (raw, *middle, *last)) + 4
    title = "Where the documents went"
    return (
        f'<div class=wide><svg class=flow viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{title}">'
        f"{''.join(shapes)}</svg></div>\n"
    )


def _column(groups: list[tuple[str, int]], x: float, scale: float) -> Iterator[_Box]:
    y = 0.0
    for kind, number in groups:
        if number:
            size = number * scale
            yield _Box(kind, kind, number, x, y, size)
            y += max(size, SLOT) + 6


def _links(source: _Box, targets: list[_Box]) -> Iterator[str]:
    at = source.y
    for target in targets:
        yield _band((source.x + _BAR, at), (target.x, target.y), target.size, target.kind)
        at += target.size


def _merged(sources: list[_Box], targets: list[_Box]) -> Iterator[str]:
    """Bands from what was refined to where it ended; both ends add up to the same."""
    queue = [(box, box.y, box.size) for box in sources]
    for target in targets:
        at, need = target.y, target.size
        while need > 1e-9 and queue:
            box, y, left = queue.pop(0)
            part = min(left, need)
            yield _band((box.x + _BAR, y), (target.x, at), part, target.kind)
            at, need = at + part, need - part
            if left - part > 1e-9:
                queue.insert(0, (box, y + part, left - part))


def _band(start: tuple[float, float], stop: tuple[float, float], size: float, kind: str) -> str:
    (x0, y0), (x1, y1) = start, stop
    half = (x0 + x1) / 2
    size = max(size, 1.0)
    return (
        f'<path class="{kind}" d="M{x0:.1f} {y0:.1f}C{half:.1f} {y0:.1f} {half:.1f} {y1:.1f} '
        f"{x1:.1f} {y1:.1f}V{y1 + size:.1f}C{half:.1f} {y1 + size:.1f} {half:.1f} {y0 + size:.1f} "
        f'{x0:.1f} {y0 + size:.1f}Z"/>'
    )


def _draw(box: _Box, total: int) -> Iterator[str]:
    yield (
        f'<rect class="{box.kind}" x="{box.x}" y="{box.y:.1f}" width="{_BAR}" '
        f'height="{max(box.size, 1.0):.1f}" rx="2"/>'
    )
    x, y = box.x + _BAR + 8, box.y + min(max(box.size / 2, 14), max(box.size, SLOT) - 18)
    yield f'<text x="{x}" y="{y:.1f}">{escape(safe(box.label))}</text>'
    amount = f"{whole(box.documents)}  {percentage(box.documents, total)}"
    yield f'<text class="soft" x="{x}" y="{y + 16:.1f}">{amount}</text>'

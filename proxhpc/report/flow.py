"""Geometry of the drawing that shows where the documents went, as wide as a phone.

Labels stand inside of boxes or right of the last column, so no band crosses one.
"""

from collections.abc import Iterator
from typing import NamedTuple

from proxhpc.report.text import KEPT, WRITTEN
from proxhpc.status.totals import DocumentTotals

BAR_WIDTH = 8.0
_TOP = 24.0  # below the label of the first column
_HEIGHT = 190.0  # of all documents
_SLOT = 36.0  # minimum height of a box with its label
_GAP = 6.0


class FlowBox(NamedTuple):
    """Documents with one outcome: a bar of height `size` at `x`, and a label up to `exit`."""

    kind: str
    label: str
    documents: int
    x: float
    exit: float
    y: float
    size: float

    @property
    def height(self) -> float:
        """Of the bar and the label."""
        return max(self.size, _SLOT)

    @property
    def bottom(self) -> float:
        """Its lower end."""
        return self.y + self.height


class FlowBand(NamedTuple):
    """Documents that go from one box to another; `size` is the band's height."""

    kind: str
    x0: float
    y0: float
    x1: float
    y1: float
    size: float


def document_flow(documents: DocumentTotals) -> tuple[list[FlowBox], list[FlowBand]]:
    """Boxes and bands from the input over the outcomes to the corpus; none without documents."""
    if not documents.read:
        return [], []
    scale = _HEIGHT / documents.read
    outcomes = [
        ("kept", KEPT, documents.kept),
        ("edited", "edited", documents.edited),
        ("dropped", "dropped", sum(documents.dropped.values())),
        ("quarantined", "quarantined", sum(documents.quarantined.values())),
    ]
    ends = [
        ("written", WRITTEN, documents.written or 0),
        ("duplicate", "duplicates", documents.duplicates or 0),
        ("dropped", "left out", sum((documents.left_out or {}).values())),
    ]
    first = [*_column([("in", "read", documents.read)], 0.0, BAR_WIDTH, scale)]
    middle = [*_column(outcomes, 68.0, 192.0, scale)]
    last = [*_column(ends, 250.0, 250.0, scale)]
    refined = [box for box in middle if box.kind in ("kept", "edited")]
    return [*first, *middle, *last], [*_bands(first, middle), *_bands(refined, last)]


def _column(
    groups: list[tuple[str, str, int]], x: float, exit_x: float, scale: float
) -> Iterator[FlowBox]:
    y = _TOP
    for kind, label, number in groups:
        if number:
            box = FlowBox(kind, label, number, x, exit_x, y, number * scale)
            yield box
            y = box.bottom + _GAP


def _bands(sources: list[FlowBox], targets: list[FlowBox]) -> Iterator[FlowBand]:
    """Bands between two columns of the same total size, in the order of both."""
    waiting = [(box, box.y, box.size) for box in sources]
    for target in targets:
        target_y, needed = target.y, target.size
        while needed > 1e-9 and waiting:
            box, y, available = waiting.pop(0)
            size = min(available, needed)
            yield FlowBand(target.kind, box.exit, y, target.x, target_y, size)
            target_y, needed = target_y + size, needed - size
            if available - size > 1e-9:
                waiting.insert(0, (box, y + size, available - size))

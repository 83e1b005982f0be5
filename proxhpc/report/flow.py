"""Geometry of the drawing that shows where the documents went."""

from collections.abc import Iterator
from dataclasses import dataclass

from proxhpc.report.text import KEPT, WRITTEN
from proxhpc.status.totals import DocumentTotals

_HEIGHT = 240.0  # of all documents
_BOX_WIDTH = 14.0
_SLOT = 34.0  # minimum height of a box with its label


@dataclass(frozen=True, slots=True)
class FlowBox:
    """Documents with one outcome; `size` is its height, to scale."""

    kind: str
    label: str
    documents: int
    x: float
    y: float
    size: float

    @property
    def bottom(self) -> float:
        """Lower end of the box with its label."""
        return self.y + max(self.size, _SLOT)

    @property
    def label_y(self) -> float:
        """Base line of the label's first line."""
        return self.y + min(max(self.size / 2, 14.0), max(self.size, _SLOT) - 18)


@dataclass(frozen=True, slots=True)
class FlowBand:
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
    ]
    first = [*_column([("in", "documents read", documents.read)], 0.0, scale)]
    middle = [*_column(outcomes, 220.0, scale)]
    last = [*_column(ends, 440.0, scale)]
    refined = [box for box in middle if box.kind in ("kept", "edited")]
    return [*first, *middle, *last], [*_bands(first, middle), *_bands(refined, last)]


def _column(groups: list[tuple[str, str, int]], x: float, scale: float) -> Iterator[FlowBox]:
    y = 0.0
    for kind, label, number in groups:
        if number:
            box = FlowBox(kind, label, number, x, y, number * scale)
            yield box
            y = box.bottom + 6


def _bands(sources: list[FlowBox], targets: list[FlowBox]) -> Iterator[FlowBand]:
    """Bands between two columns of the same total size, in the order of both."""
    waiting = [(box, box.y, box.size) for box in sources]
    for target in targets:
        target_y, needed = target.y, target.size
        while needed > 1e-9 and waiting:
            box, y, available = waiting.pop(0)
            size = min(available, needed)
            yield FlowBand(target.kind, box.x + _BOX_WIDTH, y, target.x, target_y, size)
            target_y, needed = target_y + size, needed - size
            if available - size > 1e-9:
                waiting.insert(0, (box, y + size, available - size))

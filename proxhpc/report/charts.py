"""Drawings of numbers. They hold no text of strangers, and take their colours from the style."""

from collections.abc import Iterator, Sequence
from typing import Any

from proxhpc.report.markup import Drawn
from proxhpc.status.terminal import duration, short, whole

WIDTH, HEIGHT = 360, 180  # of a drawing, in its own units: a phone's width
LEFT, TOP, BOTTOM = 44, 22, 34  # margins for labels


def bar(ratio: float, kind: str) -> Drawn:
    """A share of a whole as a bar of a table's row."""
    width = 100 * min(max(ratio, 0.0), 1.0)
    return Drawn(
        '<svg class=bar viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="10"/>'
        f'<rect class="{kind}" width="{width:.2f}" height="10"/></svg>'
    )


def histogram(title: str, bins: Sequence[dict[str, Any]]) -> Drawn:
    """Two bars a bin: `raw` documents and `refined` ones, by size from `from` to `to`."""
    highest = max((one[name] for one in bins for name in ("raw", "refined")), default=0)
    if not highest:
        return Drawn("")
    step = (WIDTH - LEFT) / len(bins)
    bottom = HEIGHT - BOTTOM
    shapes = [*_axis(highest, title)]
    for place, one in enumerate(bins):
        x = LEFT + place * step
        for offset, name, kind in ((0.1, "raw", "in"), (0.5, "refined", "kept")):
            size = (bottom - TOP) * one[name] / highest
            shapes.append(
                f'<rect class="{kind}" x="{x + offset * step:.1f}" y="{bottom - size:.1f}" '
                f'width="{0.38 * step:.1f}" height="{size:.1f}">'
                f"<title>{_range(one)}: {whole(one[name])} {name}</title></rect>"
            )
        if place % (len(bins) // 7 + 1) == 0:
            shapes.append(_label(x + step / 10, bottom + 14, short(one["from"])))
    shapes.append(f'<rect class="in" x="{LEFT}" y="{HEIGHT - 11}" width="9" height="9"/>')
    shapes.append(_label(LEFT + 13, HEIGHT - 3, "raw"))
    shapes.append(f'<rect class="kept" x="{LEFT + 52}" y="{HEIGHT - 11}" width="9" height="9"/>')
    shapes.append(_label(LEFT + 65, HEIGHT - 3, "refined"))
    return _figure(title, shapes)


def area(title: str, values: Sequence[float], seconds: float) -> Drawn:
    """A rate over the time of a run."""
    highest = max(values, default=0.0)
    if not highest:
        return Drawn("")
    bottom = HEIGHT - BOTTOM
    step = (WIDTH - LEFT) / len(values)
    line = "".join(
        f"V{bottom - (bottom - TOP) * value / highest:.1f}h{step:.2f}" for value in values
    )
    shapes = [*_axis(highest, title)]
    shapes.append(f'<path class="edited" d="M{LEFT} {bottom}{line}V{bottom}Z"/>')
    shapes.append(_label(LEFT, bottom + 14, "0"))
    shapes.append(_label(WIDTH, bottom + 14, duration(seconds), "end"))
    return _figure(title, shapes)


def lane(
    values: Sequence[float], highest: float, failed: float | None, noted: Sequence[float]
) -> Drawn:
    """The same of one worker as a line of a table; the marks lie from 0 to 1."""
    step = 200 / len(values)
    line = "".join(f"V{20 - 18 * value / (highest or 1):.1f}h{step:.2f}" for value in values)
    marks = [f'<rect class="noted" x="{199 * at:.1f}" width="1" height="20"/>' for at in noted]
    if failed is not None:
        marks.append(f'<rect class="dropped" x="{197 * failed:.1f}" width="3" height="20"/>')
    return Drawn(
        '<svg class=lane viewBox="0 0 200 20" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" y="19" width="200" height="1"/>'
        f'<path class="edited" d="M0 20{line}V20Z"/>{"".join(marks)}</svg>'
    )


def _axis(highest: float, title: str) -> Iterator[str]:
    bottom = HEIGHT - BOTTOM
    yield _label(0, 12, title)
    for part in (0.0, 0.5, 1.0):
        y = bottom - (bottom - TOP) * part
        yield f'<rect class="track" x="{LEFT}" y="{y:.1f}" width="{WIDTH - LEFT}" height="1"/>'
        if part:
            yield _label(LEFT - 4, y + 4, short(highest * part), "end")


def _label(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text class="soft" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'


def _range(one: dict[str, Any]) -> str:
    return whole(one["from"]) if one["from"] == one["to"] else f"{one['from']:,}-{one['to']:,}"


def _figure(title: str, shapes: Sequence[str]) -> Drawn:
    return Drawn(
        f'<svg class=chart viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
        f"{''.join(shapes)}</svg>\n"
    )

"""Where the lines of a text begin, counting places where long lines were split."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from proxhpc.errors import ShardError

Range = tuple[int, int]
"""Lines [a, b)."""

CHANGED_INPUT = "the input changed after its programs were written; refine the shard again"


def runs(numbers: Iterable[int]) -> Iterator[Range]:
    """Yield a range for each run of numbers that follow one another."""
    for _, run in groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
        lines = [line for _, line in run]
        yield lines[0], lines[-1] + 1


def line_starts(text: str, cuts: Sequence[int] = ()) -> list[int]:
    """Return the offset of each line of a text, and that of a line after it.

    A line also begins at each of `cuts`. ShardError if these are not within lines, ascending.
    """
    starts = [0]
    at = text.find("\n") + 1
    while at:
        starts.append(at)
        at = text.find("\n", at) + 1
    starts.append(len(text) + 1)
    if not cuts:
        return starts
    if list(cuts) != sorted({*cuts} - {*starts}) or cuts[0] < 0 or cuts[-1] >= len(text):
        raise ShardError(
            f"lines split at the characters {', '.join(map(str, cuts[:5]))}, … do not fit: the text"
            f" has {len(text)} characters in {len(starts) - 1} lines",
            hint=CHANGED_INPUT,
        )
    return sorted([*starts, *cuts])


def first_parts(text: str, cuts: Sequence[int]) -> Sequence[int]:
    """Return the number of the first part of each whole line, and of a line after the text.

    Where no line is split, that is the number of the line.
    """
    if not cuts:
        return range(text.count("\n") + 2)
    starts = line_starts(text, cuts)
    return [bisect_left(starts, start) for start in line_starts(text)]


def whole_lines(removed: Sequence[Range], parts: Sequence[int]) -> list[Range]:
    """Return the whole lines that are removed, given `first_parts`, without those removed in part.

    Removed ranges of parts that touch count as one.
    """
    joined: list[Range] = []
    for start, stop in removed:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    spans = ((bisect_left(parts, a), bisect_right(parts, b) - 1) for a, b in joined)
    return [(low, high) for low, high in spans if low < high]

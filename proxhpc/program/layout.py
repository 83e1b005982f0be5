"""Changes of characters that keep lines whole: inserted, blank and split lines.

A change replaces the characters [start, stop) of a text. A text is read as if it ended with a
newline, so that each of its lines has one.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import itemgetter

from proxhpc.program.edits import Insertion, WindowEdits, joined_ranges
from proxhpc.program.envelope import add_count
from proxhpc.program.match import SpanChange
from proxhpc.program.policy import Policy
from proxhpc.program.syntax import DIALECTS
from proxhpc.program.words import common_ends

_NEWLINES = re.compile("\n{2,}")
_stop, _target = itemgetter(1), itemgetter(2)


def trimmed(text: str, change: SpanChange) -> SpanChange:
    """Return a change without the characters at its ends that stay the same."""
    start, stop, target = change
    head, tail = common_ends(text[start:stop], target)
    return start + head, stop - tail, target[head : len(target) - tail]


def without_blank_lines(text: str, run: list[SpanChange]) -> list[SpanChange]:
    """Return changes that touch each other, without the blank lines that their strings make."""
    result: list[SpanChange] = []
    first = run[0][0]
    before = text[first - 1] if first else "\n"
    for start, stop, target in run:
        target = _NEWLINES.sub("\n", target)
        target = target.removeprefix("\n") if before == "\n" else target
        before = target[-1:] or before
        result.append((start, stop, target))
    if text[stop : stop + 1] in ("", "\n"):
        last = max((n for n, change in enumerate(result) if change[2]), default=0)
        start, stop, target = result[last]
        result[last] = start, stop, target.removesuffix("\n")
    return result


def accepted_lines(window: WindowEdits, policy: Policy) -> list[Insertion]:
    """Return the lines to insert that no limit rejects; the others are counted as rejected.

    Blank lines in an inserted text go, like those of its window.
    """
    accepted: list[Insertion] = []
    for line, order, inserted in window.inserted:
        inserted = _NEWLINES.sub("\n", inserted).strip("\n")
        if not inserted.strip():
            add_count(window.rejected, "blank_source")
        elif len(inserted) + 1 > policy.max_growth:
            add_count(window.rejected, "growth")
        elif len(accepted) == policy.max_strings:
            add_count(window.rejected, "too_many_strings")
        else:
            accepted.append((line, order, inserted))
    return accepted


def insert_lines(
    text: str,
    insertions: Sequence[Insertion],
    offsets: Sequence[int],
    holes: Sequence[SpanChange],
    edits: Sequence[SpanChange],
) -> list[SpanChange]:
    """Return the changes that insert lines, given the window's removed lines and other changes."""
    changes: list[SpanChange] = []
    others = sorted([*holes, *edits]) if insertions else []
    for line, _, inserted in insertions:
        at = offsets[line]
        after = bisect_left(others, (at,))
        if after and at < others[after - 1][1]:
            at = others[after - 1][1]
        elif _splits(text, at) and after < len(others) and not others[after][2]:
            at = others[after][1] if others[after][0] == at else at
        last = changes[-1][0] if changes else -1
        newline = "\n" * _continues_line(text, at, others, holes, last)
        changes.append((at, at, f"{newline}{inserted}\n"))
    return changes


def _continues_line(
    text: str, at: int, changes: Sequence[SpanChange], holes: Sequence[SpanChange], last: int
) -> bool:
    """Return True if a character offset will be within a line after `changes`, which are sorted.

    The last line before it was inserted at `last`.
    """
    while at > last:
        number = bisect_left(changes, at, key=_stop)
        if number == len(changes) or not changes[number][0] < changes[number][1] == at:
            return _splits(text, at)
        change = start, _, target = changes[number]
        if target:
            return not target.endswith("\n")
        if _splits(text, start) and change in holes:  # `keep_line_ends` ends the line
            return _splits(text, at)
        at = start
    return False


def _splits(text: str, at: int) -> bool:
    """Return True if a character offset is within a line."""
    return 0 < at <= len(text) and text[at - 1] != "\n"


def change_groups(
    changes: Iterable[SpanChange], joins: Callable[[int, int], bool]
) -> list[list[SpanChange]]:
    """Return sorted changes in groups; `joins` gets a change's end and the next one's start."""
    groups: list[list[SpanChange]] = []
    for change in changes:
        if groups and joins(groups[-1][-1][1], change[0]):
            groups[-1].append(change)
        else:
            groups.append([change])
    return groups


def drop_emptied(
    text: str, window: WindowEdits, offsets: Sequence[int], changes: Sequence[SpanChange]
) -> list[SpanChange]:
    """Return a window's changes, sorted, with the lines of which they leave nothing removed.

    In a dialect without blank lines, changes that touch make none either.
    """
    if DIALECTS[window.dialect].compacts == "blank":
        runs = change_groups(changes, lambda before, after: before == after)
        changes = [change for run in runs for change in without_blank_lines(text, run)]
    result: list[SpanChange] = []
    for group in change_groups(changes, lambda before, after: text.find("\n", before, after) < 0):
        low = text.rfind("\n", 0, group[0][0]) + 1
        high = text.find("\n", group[-1][1])
        high = len(text) if high < 0 else high
        inside = offsets[window.start] <= low and high < offsets[window.stop]
        bounds = [low, *chain.from_iterable(change[:2] for change in group), high]
        parts = (text[a:b] for a, b in zip(bounds[::2], bounds[1::2], strict=True))
        empties = inside and not any(map(_target, group)) and not any(map(str.strip, parts))
        result += [(low, high + 1, "")] if empties else group
    return result


def drop_blank(
    text: str, window: WindowEdits, offsets: Sequence[int], changes: Sequence[SpanChange]
) -> None:
    """Add a window's blank lines to its removed lines, except those that changes touch."""
    blank = []
    near = 0
    for line in range(window.start, window.stop):
        at = offsets[line]
        if text[at : at + 1] not in ("", "\n"):
            continue
        while near < len(changes) and changes[near][1] < at:
            near += 1
        if near == len(changes) or changes[near][0] > at:
            blank.append((line, line + 1))
    window.removed[:] = joined_ranges([*window.removed, *blank])


def keep_line_ends(
    text: str, changes: Sequence[SpanChange], starts: Sequence[int]
) -> list[SpanChange]:
    """Return changes in which lines that are removed in part end as they did.

    `starts` are the offsets of all lines, of which some begin within a line of the text. Blanks
    before the end of such a line are removed, too.
    """
    bounds = set(starts)
    runs: list[tuple[SpanChange, bool]] = []  # whether each removes whole parts
    for start, stop, target in changes:
        is_removal = not target and start in bounds and stop in bounds
        if is_removal and runs and runs[-1][1] and runs[-1][0][1] == start:
            start = runs.pop()[0][0]
        runs.append(((start, stop, target), is_removal))
    result: list[SpanChange] = []
    removals: list[SpanChange] = []  # at the end of the result
    for change, is_removal in runs:
        start, stop, target = change
        if is_removal and _removes_end(text, start, stop):
            target = "\n"
            start = _before_blanks(text, start, result[-1][1] if result else 0)
            while removals and removals[-1][1] == start and not removals[-1][2]:
                start = removals.pop()[0]
                result.pop()
                start = _before_blanks(text, start, result[-1][1] if result else 0)
        result.append((start, stop, target))
        if is_removal:
            removals.append(result[-1])
        else:
            removals.clear()
    return result


def _removes_end(text: str, start: int, stop: int) -> bool:
    """Return True if a removal starts within a line and includes its end."""
    return _splits(text, start) and (stop > len(text) or text.find("\n", start, stop) >= 0)


def _before_blanks(text: str, at: int, low: int) -> int:
    while at > low and text[at - 1].isspace() and text[at - 1] != "\n":
        at -= 1
    return at

"""Executes chunk-level programs, each on its window of a document.

All statements refer to the original text, before any edit, so their order does not matter. The one
exception: if two replacements overlap and are not both deletions, the later one is rejected.
Overlapping deletions are joined. Removed lines are removed whatever else edits them.

Windows are converted from ranges of lines to ranges of characters, and the result is copied once.
"""

import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter

from proxhpc.program.edits import StringEdit, WindowEdits
from proxhpc.program.envelope import add_count
from proxhpc.program.layout import (
    accepted_lines,
    drop_blank,
    drop_emptied,
    insert_lines,
    keep_line_ends,
    trimmed,
    without_blank_lines,
)
from proxhpc.program.match import SpanChange, find_edit
from proxhpc.program.policy import Policy
from proxhpc.program.syntax import DIALECTS

# Scripts that write no spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, Han.
_UNSPACED_RANGES = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
UNSPACED = re.compile(f"[{_UNSPACED_RANGES}]")
"""One character of a script that writes no spaces between words."""

_END = sys.maxsize  # after the last character of any text

WindowChanges = tuple[list[SpanChange], int]
"""(changes, replaced): the effect of a program, in characters of the document.

`changes` are disjoint and ascending. They delete the removed lines, each with the newline after it,
replace strings outside them and insert lines. `replaced` counts the strings and inserted lines.
"""


def execute(
    text: str, offsets: Sequence[int], windows: Sequence[WindowEdits], policy: Policy
) -> list[WindowChanges]:
    """Return the changes of each window's program in a text whose lines have these offsets.

    `windows` are ascending and disjoint; rejected statements are added to their counts, and blank
    lines that an edited window loses to their removed lines. The caller applies the error budget.
    Never raises. Takes time linear in text and programs for each of a window's different strings,
    whose number the policy limits.
    """
    results = []
    for window in windows:
        changes = holes = [(offsets[a], offsets[b], "") for a, b in window.removed]
        edits: list[SpanChange] = []
        replaced = 0
        if window.strings:
            edits, replaced = _changes(text, window, offsets, holes, policy)
            changes = sorted(holes + edits) if edits else holes
        if window.dialect != "prox":
            changes, number = _layout(text, window, offsets, (holes, edits), policy)
            replaced += number
        results.append((changes, replaced))
    return results


def _layout(
    text: str,
    window: WindowEdits,
    offsets: Sequence[int],
    changes: tuple[list[SpanChange], list[SpanChange]],
    policy: Policy,
) -> tuple[list[SpanChange], int]:
    """Return the changes of removed lines and strings with those that the dialect adds.

    The number is that of inserted lines.
    """
    holes, edits = changes
    compacts = DIALECTS[window.dialect].compacts
    inserted = accepted_lines(window, policy)
    if compacts:
        edits = drop_emptied(text, window, offsets, edits)
    if compacts == "blank" and (holes or edits or inserted):
        drop_blank(text, window, offsets, edits)
        holes = [(offsets[a], offsets[b], "") for a, b in window.removed]
    lines = insert_lines(text, inserted, offsets, holes, edits)
    # Lines are inserted before other text that is inserted at the same place.
    return sorted(lines + holes + edits, key=_ends), len(lines)


def apply_changes(text: str, results: Sequence[WindowChanges], starts: Sequence[int] = ()) -> str:
    """Return `text` with all changes applied; arguments as of `join_changes`."""
    return change_text(text, join_changes(text, results, starts))


def join_changes(
    text: str, results: Sequence[WindowChanges], starts: Sequence[int] = ()
) -> list[SpanChange]:
    """Return the changes of all windows; `results` are in the order of their windows.

    `starts` are the offsets of all lines, if some of them begin within a line of the text.
    """
    changes: list[SpanChange] = []
    for window_changes, _ in results:
        changes += window_changes
    if starts:
        changes = keep_line_ends(text, changes, starts)
    return changes


def change_text(text: str, changes: Sequence[SpanChange]) -> str:
    """Return `text` with these changes applied, which are in order."""
    size = len(text)
    if changes and changes[-1][0] > size:
        text += "\n"  # the last line's newline, which is not part of the text, is changed, too
    pieces: list[str] = []
    at = 0
    for start, stop, target in changes:
        if at < start:
            pieces.append(text[at:start])
        if target:
            pieces.append(target)
        at = stop
    if at <= size:
        pieces.append(text[at:])
    elif pieces:  # the last line was removed: the one before it ends the text
        pieces[-1] = pieces[-1].removesuffix("\n")
    return "".join(pieces)


def outside_removed(
    changes: list[SpanChange], holes: list[SpanChange], *, joins: bool = False
) -> list[SpanChange] | str:
    """Return the changes outside of removed lines (`holes`), or the reason for a rejection.

    With `joins`, changes may include the newline before removed lines.
    """
    outside = []
    for change in changes:
        start, stop, _ = change
        after = bisect_right(holes, (start, _END, ""))
        if after and start < holes[after - 1][1]:
            if stop > holes[after - 1][1]:
                return "crosses_removed"
        elif after < len(holes) and stop + (not joins) > holes[after][0]:
            return "crosses_removed"
        else:
            outside.append(change)
    return outside


def _changes(
    text: str, window: WindowEdits, offsets: Sequence[int], holes: list[SpanChange], policy: Policy
) -> tuple[list[SpanChange], int]:
    """Return disjoint ascending changes outside of removed lines, and the number of occurrences."""
    strings, limit = window.strings, policy.max_strings
    if len(strings) > 1:
        strings = list(dict.fromkeys(strings))
    accepted: list[SpanChange] = []
    replaced = 0
    low, high = offsets[window.start], offsets[window.stop] - 1
    for string in strings if len(strings) <= limit else strings[:limit]:
        on_line = string[0] is not None
        if on_line:
            changes = _line_changes(text, window, offsets, string, policy)
        else:
            changes = find_edit(text, low, high, string, policy, window.lenient)
        if holes and not isinstance(changes, str):
            changes = outside_removed(changes, holes, joins=on_line)
        if accepted and not isinstance(changes, str):
            changes = _check_overlap(changes, accepted)
        if isinstance(changes, str):
            add_count(window.rejected, changes)
            continue
        replaced += len(changes)
        if accepted:
            _insert(changes, accepted)
        else:
            accepted = changes
    if len(strings) > limit:
        add_count(window.rejected, "too_many_strings", len(strings) - limit)
    return accepted, replaced


def _line_changes(
    text: str, window: WindowEdits, offsets: Sequence[int], string: StringEdit, policy: Policy
) -> list[SpanChange] | str:
    """Return the change of a string that starts on one line, or the reason for a rejection."""
    line, source, target, _ = string
    assert line is not None  # the caller checks it
    low, high = offsets[line], offsets[line + 1] - 1
    if (newline := source.find("\n")) >= 0:  # which must be the one at the end of the line
        high = min(offsets[window.stop] - 1, high + len(source) - newline)
    if DIALECTS[window.dialect].first_match and (at := text.find(source, low, high)) >= 0:
        high = at + len(source)
    changes = find_edit(text, low, high, string, policy, window.lenient)
    if isinstance(changes, str) or not target:
        return changes
    change = trimmed(text, changes[0])
    if DIALECTS[window.dialect].compacts == "blank":
        (change,) = without_blank_lines(text, [change])
    return [change] if change[0] < change[1] or change[2] else []


_start, _stop, _ends = itemgetter(0), itemgetter(1), itemgetter(0, 1)


def _overlapped(change: SpanChange, accepted: list[SpanChange]) -> slice:
    """Return the slice of `accepted` that shares characters with `change`."""
    low = bisect_left(accepted, change[0] + 1, key=_stop)
    high = bisect_left(accepted, change[1], key=_start)
    return slice(low, max(low, high))


def _check_overlap(changes: list[SpanChange], accepted: list[SpanChange]) -> list[SpanChange] | str:
    """Return "overlap" if changes overlap accepted ones and are not all deletions, or `changes`."""
    for change in changes:
        others = accepted[_overlapped(change, accepted)]
        if others and any(target for _, _, target in (change, *others)):
            return "overlap"
    return changes


def _insert(changes: list[SpanChange], accepted: list[SpanChange]) -> None:
    """Insert changes that passed `_check_overlap`, joining deletions that overlap."""
    for change in changes:
        overlapped = _overlapped(change, accepted)
        joined = [change, *accepted[overlapped]]
        start, stop = min(map(_start, joined)), max(map(_stop, joined))
        accepted[overlapped] = [(start, stop, change[2])]

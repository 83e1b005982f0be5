"""Executes chunk-level programs, each on its own window of a document.

Every statement speaks of the document as the model saw it: line numbers and strings are those of
the text before any edit. So the order of statements does not matter, but for one thing: where
two replacements overlap, and one of them at least puts something in, the later one is rejected.
Overlapping deletions join. Removed lines go whatever else edits them.

Windows are ranges of lines and become ranges of characters of the one text; nothing is copied
but what stays, once.
"""

import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from unicodedata import category

from proxhpc.program.edits import StringEdit, WindowEdits, count
from proxhpc.program.policy import Policy

EXECUTE_REASONS = (
    "outside_window",
    "reversed_range",
    "blank_source",
    "not_found",
    "ambiguous",
    "inside_word",
    "too_many_matches",
    "growth",
    "overlap",
    "crosses_removed",
    "too_many_strings",
)
"""Why the executor rejects a well-formed statement; `docs/language.md` shows one of each."""

# Scripts that write no spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, Han.
_UNSPACED_RANGES = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
UNSPACED = re.compile(f"[{_UNSPACED_RANGES}]")
"""One character of a script that writes no spaces between words."""

_END = sys.maxsize  # behind the last character of any text

SpanChange = tuple[int, int, str]
"""Characters [start, stop) of a document become the string."""


Execution = tuple[list[SpanChange], int]
"""(changes, replaced): what a program comes to in its window, in characters of the document.

`changes`, disjoint and ascending, take removed lines out, the newline behind each included,
and replace `replaced` occurrences of strings outside of those.
"""


def execute(
    text: str, total: int, windows: Sequence[WindowEdits], policy: Policy
) -> list[Execution]:
    """Find out what each program comes to in a text of `total` lines.

    `windows` are ascending and disjoint; what is rejected is added to their counts. Error budgets
    are the caller's to apply. Never raises; linear in text and programs, times the
    different strings edited in a window, of which the policy bounds the number.
    """
    starts = _starts(text, total, windows)
    results = []
    for window in windows:
        holes = [(starts[a], starts[b], "") for a, b in window.removed]
        replaced = 0
        if window.strings:
            changes, replaced = _changes(text, window, starts, holes, policy)
            holes = sorted(holes + changes) if changes else holes
        results.append((holes, replaced))
    return results


def apply(text: str, results: Sequence[Execution]) -> str:
    """Return `text` with all changes made; ascending results of disjoint windows."""
    changes: list[SpanChange] = []
    for own, _ in results:
        changes += own
    end = len(text) + 1
    while changes and changes[-1][1] == end:  # the last line that stays loses its newline
        end = changes.pop()[0]
    pieces: list[str] = []
    at = 0
    for start, stop, target in changes:
        if at < start:
            pieces.append(text[at:start])
        if target:
            pieces.append(target)
        at = stop
    pieces.append(text[at : max(at, end - 1)])
    return "".join(pieces)


def only_place(text: str, low: int, high: int, source: str) -> list[int] | str:
    """Where `source` stands in characters [low, high), if only once, or why it does not count."""
    at = text.find(source, low, high)
    if at < 0:
        return "not_found"
    return "ambiguous" if text.find(source, at + 1, high) >= 0 else [at]


def word_places(text: str, low: int, high: int, source: str, policy: Policy) -> list[int] | str:
    """Where `source` stands in characters [low, high), or why none of it counts.

    Read from left to right without overlap, as whole words where the policy says so.
    """
    find, size, most, whole = text.find, len(source), policy.max_matches, policy.whole_words
    at = find(source, low, high)
    if at < 0:
        return "not_found"
    places: list[int] = []
    while at >= 0:
        stop = at + size
        if whole and (
            (at > low and not text[at - 1].isspace() and _in_word(text, at))
            or (stop < high and not text[stop].isspace() and _in_word(text, stop))
        ):
            pass
        elif len(places) == most:
            return "too_many_matches"
        else:
            places.append(at)
        at = find(source, stop, high)
    return places or "inside_word"


def _in_word(text: str, at: int) -> bool:
    """Whether character `at` continues a word of the one before, in a script that has spaces."""
    left, right = text[at - 1], text[at]
    if not (_of_word(left) and _of_word(right)):
        return False
    return not (UNSPACED.match(left) or UNSPACED.match(right))


def _of_word(char: str) -> bool:
    """Whether a character is a letter, a digit, or a mark on one (accents, vowel signs)."""
    return char.isalnum() or (not char.isascii() and category(char)[0] == "M")


def outside(found: list[SpanChange], holes: list[SpanChange]) -> list[SpanChange] | str:
    """Changes that touch no removed line, or why the statement falls."""
    outside = []
    for change in found:
        start, stop, _ = change
        behind = bisect_right(holes, (start, _END, ""))
        if behind and start < holes[behind - 1][1]:
            if stop > holes[behind - 1][1]:
                return "crosses_removed"
        elif behind < len(holes) and stop >= holes[behind][0]:
            return "crosses_removed"
        else:
            outside.append(change)
    return outside


def _starts(text: str, total: int, windows: Sequence[WindowEdits]) -> dict[int, int]:
    """Where the lines that `windows` speak of start; line `total`, behind the last newline.

    Walks from the nearer end of the text.
    """
    lines: list[int] = []
    for start, stop, removed, strings, _, _ in windows:
        for pair in removed:
            lines += pair
        if strings:
            if start:
                lines.append(start)
            if stop < total:
                lines.append(stop)
            if strings[0][0] is not None:
                lines += [line + end for line, *_ in strings if line is not None for end in (0, 1)]
    lines.sort()
    starts = {0: 0, total: len(text) + 1}
    half = total // 2
    known = at = 0
    find = text.find
    for line in lines:
        if line > half:
            break
        while known < line:
            at = find("\n", at) + 1
            known += 1
        starts[line] = at
    known, at = total, len(text) + 1
    rfind = text.rfind
    for line in reversed(lines):
        if line <= half:
            break
        while known > line:
            at = rfind("\n", 0, at - 1) + 1
            known -= 1
        starts[line] = at
    return starts


def _changes(
    text: str, window: WindowEdits, starts: dict[int, int], holes: list[SpanChange], policy: Policy
) -> tuple[list[SpanChange], int]:
    """Disjoint ascending changes outside removed lines, and of how many occurrences."""
    strings, most = window.strings, policy.max_strings
    if len(strings) > 1:
        strings = list(dict.fromkeys(strings))
    accepted: list[SpanChange] = []
    replaced = 0
    for string in strings if len(strings) <= most else strings[:most]:
        found = _find(text, window, starts, string, policy)
        if holes and not isinstance(found, str):
            found = outside(found, holes)
        if accepted and not isinstance(found, str):
            found = _fitting(found, accepted)
        if isinstance(found, str):
            count(window.rejected, found)
            continue
        replaced += len(found)
        if accepted:
            _insert(found, accepted)
        else:
            accepted = found
    if len(strings) > most:
        count(window.rejected, "too_many_strings", len(strings) - most)
    return accepted, replaced


def _find(
    text: str, window: WindowEdits, starts: dict[int, int], edit: StringEdit, policy: Policy
) -> list[SpanChange] | str:
    """All changes that one statement asks for, or the reason why it is rejected."""
    line, source, target, verbatim = edit
    if line is None:
        low, high = starts[window.start], starts[window.stop] - 1
    else:
        low, high = starts[line], starts[line + 1] - 1
    if verbatim:
        if verbatim[0] == source:
            return "ambiguous"  # nothing in the text can tell what the target means
        if text.find(verbatim[0], low, high) >= 0:
            if text.find(source, low, high) >= 0:
                return "ambiguous"
            source, target = verbatim
    if not source or source.isspace():
        return "blank_source"
    if line is None:
        places = word_places(text, low, high, source, policy)
    else:
        places = only_place(text, low, high, source)
    if isinstance(places, str):
        return places
    size = len(source)
    if len(places) * (len(target) - size) > policy.max_growth:
        return "growth"
    return [(at, at + size, target) for at in places]


def _start(item: SpanChange) -> int:
    return item[0]


def _stop(item: SpanChange) -> int:
    return item[1]


def _overlapped(change: SpanChange, accepted: list[SpanChange]) -> slice:
    """Where in `accepted` those stand that share a character with `change`."""
    low = bisect_left(accepted, change[0] + 1, key=_stop)
    high = bisect_left(accepted, change[1], key=_start)
    return slice(low, max(low, high))


def _fitting(found: list[SpanChange], accepted: list[SpanChange]) -> list[SpanChange] | str:
    """`found`, if its changes share no character with others, or all that do only delete."""
    for change in found:
        others = accepted[_overlapped(change, accepted)]
        if others and any(target for _, _, target in (change, *others)):
            return "overlap"
    return found


def _insert(found: list[SpanChange], accepted: list[SpanChange]) -> None:
    """Insert ascending changes, which fit, joining deletions that overlap."""
    for change in found:
        place = _overlapped(change, accepted)
        joined = [change, *accepted[place]]
        start, stop = min(map(_start, joined)), max(map(_stop, joined))
        accepted[place] = [(start, stop, change[2])]

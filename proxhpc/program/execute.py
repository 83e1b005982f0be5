"""Executes chunk-level programs, each on its own window of a document.

Every statement speaks of the document as the model saw it: line numbers and strings are those of
the text before any edit. So the order of statements does not matter, but for one thing: where
two replacements overlap, and one of them at least puts something in, the later one is rejected.
Overlapping deletions join. Removed lines go whatever else edits them.

Windows are ranges of lines and become ranges of characters of the one text; nothing is copied
but what stays, once.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from proxhpc.program.edits import Edits, StringEdit
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

Range = tuple[int, int]


class Window(NamedTuple):
    """The lines [start, stop) of a document and what a program asks for there.

    `removed` are its lines that go, as disjoint ascending ranges [a, b) none next to another;
    the program knows a line by its number in the document less `shift`. `rejected` counts
    statements by reason.
    """

    start: int
    stop: int
    shift: int
    removed: list[Range]
    strings: list[StringEdit]
    rejected: dict[str, int]


def place_edits(start: int, stop: int, first_line: int, edits: Edits) -> Window:
    """Put edits into the window of lines [start, stop), whose first they know as `first_line`."""
    asked, strings, everything, rejected, _ = edits
    shift = start - first_line
    ranges = [(start, stop)] if everything else []
    for first, last in asked:
        if first > last:
            _count(rejected, "reversed_range")
        elif first + shift < start or last + shift >= stop:
            _count(rejected, "outside_window")
        else:
            ranges.append((first + shift, last + shift + 1))
    if len(ranges) > 1:
        ranges = _joined(ranges)
    return Window(start, stop, shift, ranges, strings, rejected)


class Change(NamedTuple):
    """Characters [start, stop) of a document become `target`."""

    start: int
    stop: int
    target: str


class WindowResult(NamedTuple):
    """What a program comes to in its window, in characters of the document.

    `holes` are the removed lines, the newline behind each included; `changes` stand for
    `replaced` occurrences outside of them. Both are disjoint and ascending.
    """

    holes: list[Range]
    changes: list[Change]
    replaced: int


def execute(text: str, total: int, windows: Sequence[Window], policy: Policy) -> list[WindowResult]:
    """Find out what each program comes to in a text of `total` lines.

    `windows` are ascending and disjoint; what is rejected is added to their counts. Error budgets
    are the caller's to apply. Never raises; linear in text and programs, times the
    different strings edited in a window, of which the policy bounds the number.
    """
    starts = _starts(text, total, windows)
    results = []
    for window in windows:
        holes = [(starts[a], starts[b]) for a, b in window.removed]
        changes: list[Change] = []
        replaced = 0
        if window.strings:
            changes, replaced = _Finder(text, window, starts, holes, policy).changes()
        results.append(WindowResult(holes, changes, replaced))
    return results


def apply(text: str, results: Sequence[WindowResult]) -> str:
    """Return `text` with holes and changes made; ascending results of disjoint windows."""
    cuts = [(start, stop, "") for result in results for start, stop in result.holes]
    end = len(text) + 1
    while cuts and cuts[-1][1] == end:  # the last line that stays loses its newline
        end = cuts.pop()[0]
    for result in results:
        cuts += result.changes
    cuts.sort()
    pieces = []
    at = 0
    for start, stop, target in cuts:
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
    size, most, whole = len(source), policy.max_matches, policy.whole_words
    head, tail = whole and _in_word(source[0]), whole and _in_word(source[-1])
    places: list[int] = []
    inside = False
    at = text.find(source, low, high)
    while at >= 0:
        stop = at + size
        if (head and at > low and _in_word(text[at - 1])) or (
            tail and stop < high and _in_word(text[stop])
        ):
            inside = True
        elif len(places) == most:
            return "too_many_matches"
        else:
            places.append(at)
        at = text.find(source, stop, high)
    return places or ("inside_word" if inside else "not_found")


def _in_word(char: str) -> bool:
    """Whether `char` belongs to a word of a script that has spaces."""
    return char.isalnum() and (char.isascii() or not UNSPACED.match(char))


def _count(rejected: dict[str, int], reason: str, number: int = 1) -> None:
    rejected[reason] = rejected.get(reason, 0) + number


def _joined(ranges: list[Range]) -> list[Range]:
    ranges.sort()
    joined = ranges[:1]
    for start, stop in ranges[1:]:
        if start > joined[-1][1]:
            joined.append((start, stop))
        elif stop > joined[-1][1]:
            joined[-1] = (joined[-1][0], stop)
    return joined


def _starts(text: str, total: int, windows: Sequence[Window]) -> dict[int, int]:
    """Where the lines that `windows` speak of start; line `total`, behind the last newline.

    Walks from the nearer end of the text.
    """
    lines: list[int] = []
    for start, stop, shift, removed, strings, _ in windows:
        for pair in removed:
            lines += pair
        if strings:
            lines += (start, stop)
            if strings[0][0] is not None:
                numbers = {line + shift for line, *_ in strings if line is not None}
                lines += [n + end for n in numbers if start <= n < stop for end in (0, 1)]
    lines.sort()
    half = bisect_right(lines, total // 2)
    starts = {}
    known = at = 0
    find = text.find
    for line in lines[:half]:
        for _ in range(line - known):
            at = find("\n", at) + 1
        known = line
        starts[line] = at
    known, at = total, len(text) + 1
    rfind = text.rfind
    for line in reversed(lines[half:]):
        for _ in range(known - line):
            at = rfind("\n", 0, at - 1) + 1
        known = line
        starts[line] = at
    return starts


class _Finder:
    """Looks strings up in one window."""

    __slots__ = ("high", "holes", "low", "policy", "starts", "text", "window")

    def __init__(
        self,
        text: str,
        window: Window,
        starts: dict[int, int],
        holes: list[Range],
        policy: Policy,
    ) -> None:
        self.text, self.window, self.starts = text, window, starts
        self.holes, self.policy = holes, policy
        self.low, self.high = starts[window.start], starts[window.stop] - 1

    def changes(self) -> tuple[list[Change], int]:
        """Disjoint ascending changes outside removed lines, and of how many occurrences."""
        strings, most = self.window.strings, self.policy.max_strings
        different = list(dict.fromkeys(strings)) if len(strings) > 1 else strings
        accepted = _Accepted()
        replaced = 0
        for string in different[:most]:
            found = self.find(string)
            if accepted.changes and not (isinstance(found, str) or all(map(accepted.fits, found))):
                found = "overlap"
            if isinstance(found, str):
                _count(self.window.rejected, found)
            else:
                replaced += len(found)
                accepted.add(found)
        if len(different) > most:
            _count(self.window.rejected, "too_many_strings", len(different) - most)
        return accepted.changes, replaced

    def find(self, edit: StringEdit) -> list[Change] | str:
        """All changes that one statement asks for, or the reason why it is rejected."""
        number, source, target, verbatim = edit
        low, high = self.low, self.high
        if number is not None:
            line = number + self.window.shift
            if not self.window.start <= line < self.window.stop:
                return "outside_window"
            low, high = self.starts[line], self.starts[line + 1] - 1
        if verbatim and self.text.find(verbatim[0], low, high) >= 0:
            if self.text.find(source, low, high) >= 0:
                return "ambiguous"
            source, target = verbatim
        if not source or source.isspace():
            return "blank_source"
        if number is None:
            places = word_places(self.text, low, high, source, self.policy)
        else:
            places = only_place(self.text, low, high, source)
        if isinstance(places, str):
            return places
        size = len(source)
        if len(places) * (len(target) - size) > self.policy.max_growth:
            return "growth"
        found = [Change(at, at + size, target) for at in places]
        return self._outside(found) if self.holes else found

    def _outside(self, found: list[Change]) -> list[Change] | str:
        """Changes that touch no removed line, or why the statement falls."""
        outside = []
        for change in found:
            behind = bisect_right(self.holes, (change.start, len(self.text) + 1))
            if behind and change.start < self.holes[behind - 1][1]:
                if change.stop > self.holes[behind - 1][1]:
                    return "crosses_removed"
            elif behind < len(self.holes) and change.stop >= self.holes[behind][0]:
                return "crosses_removed"
            else:
                outside.append(change)
        return outside


def _start(item: Range | Change) -> int:
    return item[0]


def _stop(item: Change) -> int:
    return item[1]


class _Accepted:
    """Disjoint ascending changes, as one grows them statement by statement."""

    __slots__ = ("changes",)

    def __init__(self) -> None:
        self.changes: list[Change] = []

    def _overlapped(self, change: Change) -> slice:
        """Where in `changes` those stand that share a character with `change`."""
        low = bisect_left(self.changes, change.start + 1, key=_stop)
        high = bisect_left(self.changes, change.stop, key=_start)
        return slice(low, max(low, high))

    def fits(self, change: Change) -> bool:
        """Whether `change` shares no character with another, or all of them only delete."""
        others = self.changes[self._overlapped(change)]
        return not others or not (change.target or any(other.target for other in others))

    def add(self, found: list[Change]) -> None:
        """Insert ascending changes, which fit, joining deletions that overlap."""
        if not self.changes:
            self.changes = found
            return
        for change in found:
            place = self._overlapped(change)
            joined = [change, *self.changes[place]]
            start, stop = min(c.start for c in joined), max(c.stop for c in joined)
            self.changes[place] = [Change(start, stop, change.target)]

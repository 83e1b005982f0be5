"""Executes a chunk-level program on its own window.

Every statement speaks of the window as the model saw it: line numbers and strings are those of
the text before any edit. So the order of statements does not matter, but for one thing: where
two replacements overlap, and one of them at least puts something in, the later one is rejected.
Overlapping deletions join. Removed lines go whatever else edits them.
"""

import re
from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import NamedTuple

from proxhpc.program.edits import Edits, StringEdit
from proxhpc.program.policy import Policy
from proxhpc.program.syntax import Quoted

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
_SPACED_WORD = re.compile(rf"[^\W_{_UNSPACED_RANGES}]")


class WindowResult(NamedTuple):
    """A window after its program: pieces to be joined by newlines, and what was done.

    `removed` counts lines, `replaced` occurrences of strings in lines that stay, `rejected`
    statements by reason, those that the parser rejected included.
    """

    pieces: list[str]
    removed: int
    replaced: int
    rejected: dict[str, int]


class _Edit(NamedTuple):
    """Characters [start, stop) of the window become `target`."""

    start: int
    stop: int
    target: str


Range = tuple[int, int]


def execute(
    edits: Edits, text: str, lines: list[str], policy: Policy, first_line: int
) -> WindowResult:
    """Edit a window, `text`, also given as its `lines`, the first of which bears `first_line`.

    The error budget is the caller's to apply. Never raises; linear in the window times the
    different strings edited, of which the policy bounds the number.
    """
    rejected = dict(edits.rejected)
    removed = _removed(edits, len(lines), first_line, rejected)
    if not (removed or edits.strings):
        return WindowResult([text], 0, 0, rejected)
    holes = _characters(removed, lines)
    changes: list[_Edit] = []
    replaced = 0
    if edits.strings:
        changes, replaced = _changes(
            edits.strings, _Window(text, lines, first_line, policy, holes), rejected
        )
    pieces = _pieces(text, holes, changes)
    return WindowResult(pieces, sum([b - a for a, b in removed]), replaced, rejected)


def _count(rejected: dict[str, int], reason: str, number: int = 1) -> None:
    rejected[reason] = rejected.get(reason, 0) + number


def _removed(edits: Edits, count: int, first_line: int, rejected: dict[str, int]) -> list[Range]:
    """Disjoint ascending ranges [a, b) of the window's lines that go, none next to another."""
    ranges: list[Range] = [(0, count)] if edits.everything else []
    for first, last in edits.ranges:
        if first > last:
            _count(rejected, "reversed_range")
        elif first < first_line or last - first_line >= count:
            _count(rejected, "outside_window")
        else:
            ranges.append((first - first_line, last + 1 - first_line))
    if len(ranges) < 2:
        return ranges
    ranges.sort()
    joined = ranges[:1]
    for start, stop in ranges[1:]:
        if start > joined[-1][1]:
            joined.append((start, stop))
        elif stop > joined[-1][1]:
            joined[-1] = (joined[-1][0], stop)
    return joined


def _characters(removed: list[Range], lines: list[str]) -> list[Range]:
    """Ranges of lines as ranges of characters, the newline behind each line included."""
    holes = []
    line = at = 0
    for first, stop in removed:
        start = at + sum(map(len, lines[line:first])) + first - line
        at = start + sum(map(len, lines[first:stop])) + stop - first
        line = stop
        holes.append((start, at))
    return holes


def _pieces(text: str, holes: list[Range], changes: list[_Edit]) -> list[str]:
    """Return what stays between `holes`, changed, as pieces to be joined by newlines."""
    pieces = []
    at = upcoming = 0
    size = len(text)
    for start, stop in [*holes, (size + 1, size + 1)]:
        if start > at:
            parts = []
            while upcoming < len(changes) and changes[upcoming].start < start:
                change = changes[upcoming]
                parts += [text[at : change.start], change.target]
                at = change.stop
                upcoming += 1
            last = text[at : start - 1]
            pieces.append("".join([*parts, last]) if parts else last)
        at = stop
    return pieces


def _changes(
    strings: list[StringEdit], window: "_Window", rejected: dict[str, int]
) -> tuple[list[_Edit], int]:
    """Disjoint ascending edits outside removed lines, and of how many occurrences."""
    accepted = _Accepted()
    replaced = 0
    different = list(dict.fromkeys(strings))
    most = window.policy.max_strings
    for string in different[:most]:
        found = window.find(string)
        if isinstance(found, list) and accepted.edits and not all(map(accepted.fits, found)):
            found = "overlap"
        if isinstance(found, str):
            _count(rejected, found)
            continue
        replaced += len(found)
        accepted.add(found)
    if len(different) > most:
        _count(rejected, "too_many_strings", len(different) - most)
    return accepted.edits, replaced


class _Window:
    """A window's text, in which the strings of statements are looked up."""

    __slots__ = ("first_line", "holes", "lines", "policy", "starts", "text")

    def __init__(
        self, text: str, lines: list[str], first_line: int, policy: Policy, holes: list[Range]
    ) -> None:
        self.text, self.lines, self.first_line = text, lines, first_line
        self.policy, self.holes = policy, holes
        self.starts: list[int] = []

    def find(self, edit: StringEdit) -> list[_Edit] | str:
        """All edits that one statement asks for, or the reason why it is rejected."""
        low, high = 0, len(self.text)
        if edit.line is not None:
            line = edit.line - self.first_line
            if not 0 <= line < len(self.lines):
                return "outside_window"
            low, high = self._line(line)
        read = self._reading(edit.source, low, high)
        if read is None:
            return "ambiguous"
        source, verbatim = read
        if not source or source.isspace():
            return "blank_source"
        places = self._places(source) if edit.line is None else self._only(source, low, high)
        if isinstance(places, str):
            return places
        target = edit.target.body if verbatim else edit.target.value
        if len(places) * (len(target) - len(source)) > self.policy.max_growth:
            return "growth"
        found = [_Edit(at, at + len(source), target) for at in places]
        return self._outside(found) if self.holes else found

    def _line(self, line: int) -> Range:
        """Characters of one line, its newline left out."""
        if not self.starts:
            self.starts = list(accumulate((len(line) + 1 for line in self.lines), initial=0))
        return self.starts[line], self.starts[line + 1] - 1

    def _reading(self, literal: Quoted, low: int, high: int) -> tuple[str, bool] | None:
        """Choose the reading of a literal that occurs; True if it is the verbatim one.

        None: both occur.
        """
        value = literal.value
        if value == literal.body:
            return value, False
        decoded, verbatim = (self.text.find(s, low, high) >= 0 for s in (value, literal.body))
        return None if decoded and verbatim else (literal.body if verbatim else value, verbatim)

    def _only(self, source: str, low: int, high: int) -> list[int] | str:
        """Where `source` stands in characters [low, high), if only once."""
        at = self.text.find(source, low, high)
        if at < 0:
            return "not_found"
        return "ambiguous" if self.text.find(source, at + 1, high) >= 0 else [at]

    def _places(self, source: str) -> list[int] | str:
        """Where `source` stands as whole words, from left to right, not overlapping."""
        places: list[int] = []
        text, inside = self.text, 0
        head, tail = (
            self.policy.whole_words and _SPACED_WORD.match(source[end]) is not None
            for end in (0, -1)
        )
        at = text.find(source)
        while at >= 0:
            stop = at + len(source)
            if (head and at and _SPACED_WORD.match(text, at - 1)) or (
                tail and _SPACED_WORD.match(text, stop)
            ):
                inside += 1
            elif len(places) == self.policy.max_matches:
                return "too_many_matches"
            else:
                places.append(at)
            at = text.find(source, stop)
        return places or ("inside_word" if inside else "not_found")

    def _outside(self, found: list[_Edit]) -> list[_Edit] | str:
        """Edits that touch no removed line, or why the statement falls."""
        outside = []
        for edit in found:
            behind = bisect_right(self.holes, edit.start, key=_start)
            if behind and edit.start < self.holes[behind - 1][1]:
                if edit.stop > self.holes[behind - 1][1]:
                    return "crosses_removed"
            elif behind < len(self.holes) and edit.stop >= self.holes[behind][0]:
                return "crosses_removed"
            else:
                outside.append(edit)
        return outside


def _start(item: Range | _Edit) -> int:
    return item[0]


def _stop(item: _Edit) -> int:
    return item.stop


class _Accepted:
    """Disjoint ascending edits, as one grows them statement by statement."""

    def __init__(self) -> None:
        self.edits: list[_Edit] = []

    def _overlapped(self, edit: _Edit) -> slice:
        """Where in `edits` those stand that share a character with `edit`."""
        low = bisect_left(self.edits, edit.start + 1, key=_stop)
        high = bisect_left(self.edits, edit.stop, key=_start)
        return slice(low, max(low, high))

    def fits(self, edit: _Edit) -> bool:
        """Whether `edit` shares no character with another, or all of them only delete."""
        others = self.edits[self._overlapped(edit)]
        return not others or not (edit.target or any(other.target for other in others))

    def add(self, found: list[_Edit]) -> None:
        """Insert ascending edits, which fit, joining deletions that overlap."""
        if not self.edits:
            self.edits = found
            return
        for edit in found:
            place = self._overlapped(edit)
            joined = [edit, *self.edits[place]]
            start, stop = min(e.start for e in joined), max(e.stop for e in joined)
            self.edits[place] = [_Edit(start, stop, edit.target)]

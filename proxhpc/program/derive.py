"""The inverse of execution: finds the program that turns one text into another.

It makes training targets from pairs of texts. Lines are aligned at the least program length. The
differences within lines are hunks; for each, the shortest surrounding string is searched whose
replacement has exactly the intended effect. Each program is executed to check its result.
"""

import heapq
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate, chain, groupby

from proxhpc.program.align import MAX_CELLS, EditCosts, LinePairs, align_lines, common_ends
from proxhpc.program.edits import program_edits
from proxhpc.program.execute import (
    UNSPACED,
    apply_changes,
    execute,
    outside_removed,
)
from proxhpc.program.match import SpanChange, find_literal
from proxhpc.program.parse import SURROGATE
from proxhpc.program.policy import Policy
from proxhpc.program.syntax import (
    FIRST_LINE,
    Dialect,
    Keep,
    Normalize,
    Program,
    Quoted,
    RemoveLines,
    RemoveStr,
    ReplaceStr,
    Statement,
)

EDIT_COSTS: dict[Dialect, EditCosts] = {
    "prox": EditCosts(30, 40),
    "refinex": EditCosts(20, 20),
    "ultrax": EditCosts(20, 25),
    "rescraper": EditCosts(8, 12),
}
_MAX_CANDIDATES = 60  # strings tried for one hunk, shortest first, before its whole line
_MAX_CONTEXT = 400  # characters on each side of a hunk that its string may include
_TOKEN = re.compile(rf"{UNSPACED.pattern}|(?:(?!{UNSPACED.pattern})\w)+|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class NoProgram:
    """No program was found, for `reason`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Hunk:
    """Characters [start, stop) of the old text must become `new`."""

    start: int
    stop: int
    new: str


def derive(
    before: str,
    after: str,
    dialect: Dialect = "prox",
    *,
    first_line: int | None = None,
    policy: Policy | None = None,
) -> Program | NoProgram:
    """Return the shortest program found that turns `before`, a window, into `after`.

    Line removals come first, then string edits. `first_line` is the number of the window's first
    line, by default the dialect's. `policy` limits single statements; its document limits do not
    apply.
    """
    policy = policy or Policy()
    first = FIRST_LINE[dialect] if first_line is None else first_line
    lines = before.split("\n")
    if before == after:
        return Program((Keep("untouch_doc" if dialect == "prox" else "keep_all"),))
    if not after:
        return Program((RemoveLines(first, first + len(lines) - 1),))
    new_lines = after.split("\n")
    pairs = align_lines(lines, new_lines, EDIT_COSTS[dialect])
    if pairs is None:
        return NoProgram(f"too large: {len(lines)} lines and {len(new_lines)}; use windows")
    if not pairs:
        return NoProgram("no line of the first text remains")
    text = _OldText(before, lines, pairs, policy)
    removals = [RemoveLines(a + first, b + first - 1) for a, b in text.removed]
    hunks = _hunks(text, lines, new_lines, pairs)
    candidates, reason = list[Program](), ""
    # Hunks this close are also tried as one: copying half a call may be cheaper than a second one.
    for gap in (0, EDIT_COSTS[dialect].replace // 2):
        edits = _edits(text, _joined(hunks, before, gap), dialect, first)
        if isinstance(edits, NoProgram):
            reason = edits.reason
        else:
            candidates.append(Program((*removals, *edits)))
    candidates.sort(key=lambda program: len(str(program)))
    for program in chain(candidates, _line_removals(lines, new_lines, first)):
        reason = _problem(program, text, after, first)
        if not reason:
            return program
    return NoProgram(reason)


def _line_removals(lines: list[str], new_lines: list[str], first: int) -> Iterator[Program]:
    """Yield a program that only removes lines, if the new lines are some of the old in order.

    The cheapest alignment may replace a blank line where this is enough.
    """
    removals, at = [], 0
    for line in (*new_lines, None):
        try:
            match = len(lines) if line is None else lines.index(line, at)
        except ValueError:
            return
        if match > at:
            removals.append(RemoveLines(at + first, match - 1 + first))
        at = match + 1
    yield Program(tuple(removals))


def _problem(program: Program, text: "_OldText", after: str, first: int) -> str:
    """Execute a candidate and return why it is not a solution, or ""."""
    total = len(text.starts) - 1
    window = program_edits(program, 0, total, first, {})
    if apply_changes(text.text, execute(text.text, total, [window], text.policy)) != after:
        return "the only candidate has another effect"
    if window.rejected:
        return f"the only candidate is rejected: {', '.join(window.rejected)}"
    return ""


class _OldText:
    """The old text, the offsets of its lines, and the ranges of lines to remove."""

    def __init__(self, text: str, lines: Sequence[str], pairs: LinePairs, policy: Policy) -> None:
        self.text, self.policy = text, policy
        self.starts = [0, *accumulate(len(line) + 1 for line in lines)]
        unmatched = sorted(set(range(len(lines))) - {old for old, _ in pairs})
        groups = groupby(enumerate(unmatched), key=lambda item: item[1] - item[0])
        runs = [[line for _, line in group] for _, group in groups]
        self.removed = [(run[0], run[-1] + 1) for run in runs]
        self.holes = [(self.starts[a], self.starts[b], "") for a, b in self.removed]

    def line_at(self, offset: int) -> int:
        """Return the number of the line with the character at `offset`."""
        return bisect_right(self.starts, offset) - 1


def _hunks(
    text: _OldText, lines: Sequence[str], new_lines: Sequence[str], pairs: LinePairs
) -> list[Hunk]:
    """Return the differences, ascending and disjoint; each replaces at least one character."""
    hunks: list[Hunk] = []
    done = 0
    for number, (old, new) in enumerate(pairs):
        # Inserted lines are appended to the line before them, or else prepended to the first.
        stop = pairs[number + 1][1] if number + 1 < len(pairs) else len(new_lines)
        target = "\n".join(new_lines[done if number == 0 else new : stop])
        done = stop
        if lines[old]:
            hunks += _line_hunks(lines[old], target, text.starts[old])
        elif target:
            # A blank line has no characters to replace but a newline next to it.
            at = text.starts[old]
            has_newline = at < len(text.text)
            hunk = (
                Hunk(at, at + 1, f"{target}\n") if has_newline else Hunk(at - 1, at, f"\n{target}")
            )
            hunks.append(hunk)
    return hunks


def _line_hunks(old: str, new: str, start: int) -> Iterator[Hunk]:
    """Yield the differences of two lines; the old one starts at offset `start`."""
    if old == new:
        return
    a, b = _TOKEN.findall(old), _TOKEN.findall(new)
    if len(a) * len(b) > MAX_CELLS:
        head, tail = common_ends(old, new)
        a = [old[:head], old[head : len(old) - tail], old[len(old) - tail :]]
        b = [new[:head], new[head : len(new) - tail], new[len(new) - tail :]]
    at = list(accumulate(map(len, a), initial=0))
    done = 0
    for kind, a1, a2, b1, b2 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        begin, end, target = at[a1], at[a2], "".join(b[b1:b2])
        if kind == "insert":  # extend the hunk by an unchanged token beside it
            begin, end = (at[a1 - 1], at[a1]) if a1 else (0, at[1])
            target = old[begin:end] + target if a1 else target + old[begin:end]
        elif kind == "delete":  # of equivalent deletions take the leftmost: equal ones get equal
            while begin > done and old[begin - 1] == old[end - 1]:
                begin, end = begin - 1, end - 1
        yield Hunk(start + begin, start + end, target)
        done = end


def _joined(hunks: Sequence[Hunk], text: str, gap: int) -> list[Hunk]:
    """Join hunks of one line with less than `gap` characters between them."""
    joined: list[Hunk] = []
    for hunk in hunks:
        if joined and hunk.start - joined[-1].stop < gap:
            last = joined[-1]
            between = text[last.stop : hunk.start]
            if "\n" not in between:
                joined[-1] = Hunk(last.start, hunk.stop, last.new + between + hunk.new)
                continue
        joined.append(hunk)
    return joined


def _edits(
    text: _OldText, hunks: list[Hunk], dialect: Dialect, first: int
) -> list[Statement] | NoProgram:
    """Return statements that make all hunks."""
    search = _Search(text, hunks)
    statements: list[Statement] = []
    for number, hunk in enumerate(hunks):
        if search.done[number]:
            continue
        if len(statements) == text.policy.max_strings:
            return NoProgram(f"more than {len(statements)} different strings to edit")
        line = text.line_at(hunk.start)
        edit = search.find(number, line if dialect != "prox" else None)
        if edit is None:
            return NoProgram(f"line {line + first}: no string was found that matches only there")
        source, target = map(Quoted.of, edit)
        if dialect == "prox":
            statements.append(Normalize(source, target))
        elif edit[1]:
            statements.append(ReplaceStr(line + first, source, target))
        else:
            statements.append(RemoveStr(line + first, source))
    return statements


class _Search:
    """Searches for strings around hunks, and records which hunks are done."""

    def __init__(self, text: _OldText, hunks: list[Hunk]) -> None:
        self.text, self.hunks = text, hunks
        self.done = [False] * len(hunks)
        self._starts = [hunk.start for hunk in hunks]
        self._replaced: list[tuple[int, int]] = []  # ranges that statements replace, ascending

    def find(self, number: int, line: int | None) -> tuple[str, str] | None:
        """Return the first string around a hunk that can be replaced, and its replacement.

        The string is replaced everywhere in the text or, if `line` is given, where it occurs once
        on that line.
        """
        text, policy = self.text.text, self.text.policy
        low, high = 0, len(text)
        if line is not None:
            low, high = self.text.starts[line], self.text.starts[line + 1] - 1
        for start, stop in _candidates(text, self.hunks[number], low, high):
            source, target = text[start:stop], self._target(start, stop)
            if target is None or not source.strip() or SURROGATE.search(source + target):
                continue
            matches = find_literal(text, low, high, source, policy, only=line is not None)
            if isinstance(matches, str):
                continue
            if len(matches) * (len(target) - len(source)) > policy.max_growth:
                continue
            if self._accept([(begin, end, target) for begin, end in matches]):
                return source, target
        return None

    def _accept(self, changes: list[SpanChange]) -> bool:
        """Accept changes if they make hunks and nothing else; removed lines do not matter."""
        remaining = outside_removed(changes, self.text.holes)
        if isinstance(remaining, str):
            return False
        for start, stop, target in remaining:
            if self._target(start, stop) != target or self._overlaps(start, stop):
                return False
        for start, stop, _ in remaining:
            self._replaced.insert(bisect_left(self._replaced, (start, stop)), (start, stop))
            for number in self._hunks_in(start, stop):
                self.done[number] = True
        return bool(remaining)

    def _overlaps(self, start: int, stop: int) -> bool:
        """Return True if some of the characters [start, stop) are already replaced."""
        index = bisect_left(self._replaced, (start, stop))
        neighbors = self._replaced[max(0, index - 1) : index + 1]
        return any(low < stop and start < high for low, high in neighbors)

    def _hunks_in(self, start: int, stop: int) -> range:
        """Return the numbers of the hunks that overlap [start, stop)."""
        first = bisect_right(self._starts, start)
        if first and self.hunks[first - 1].stop > start:
            first -= 1
        return range(first, bisect_left(self._starts, stop))

    def _target(self, start: int, stop: int) -> str | None:
        """Return what [start, stop) must become; None if it contains a hunk only in part."""
        pieces: list[str] = []
        at = start
        for number in self._hunks_in(start, stop):
            hunk = self.hunks[number]
            if hunk.start < start or hunk.stop > stop:
                return None
            pieces += self.text.text[at : hunk.start], hunk.new
            at = hunk.stop
        return "".join([*pieces, self.text.text[at:stop]])


def _candidates(text: str, hunk: Hunk, low: int, high: int) -> Iterator[tuple[int, int]]:
    """Yield a hunk's range, then ranges extended by tokens within [low, high), shortest first."""
    before = _TOKEN.findall(text[max(low, hunk.start - _MAX_CONTEXT) : hunk.start])
    after = _TOKEN.findall(text[hunk.stop : min(high, hunk.stop + _MAX_CONTEXT)])
    lefts = list(accumulate(map(len, reversed(before)), initial=0))
    rights = list(accumulate(map(len, after), initial=0))
    left_costs = list(accumulate(map(_printed_length, reversed(before)), initial=0))
    right_costs = list(accumulate(map(_printed_length, after), initial=0))
    queue, seen = [(0, 0, 0)], {(0, 0)}
    for _ in range(_MAX_CANDIDATES):
        if not queue:
            return
        _, left, right = heapq.heappop(queue)
        yield hunk.start - lefts[left], hunk.stop + rights[right]
        for a, b in ((left + 1, right), (left, right + 1)):
            if a < len(lefts) and b < len(rights) and (a, b) not in seen:
                seen.add((a, b))
                heapq.heappush(queue, (left_costs[a] + right_costs[b], a, b))
    start = text.rfind("\n", low, hunk.start) + 1
    stop = text.find("\n", hunk.stop, high)
    yield max(start, low), stop if stop >= 0 else high


def _printed_length(token: str) -> int:
    """Return the length of a token in a program, where a newline may take six characters."""
    return len(token) + 5 * token.count("\n")

"""The inverse of execution: finds the program that turns one text into another.

It makes training targets from pairs of texts. Lines are aligned at the least program length. The
differences within lines are hunks; for each, the shortest surrounding string is searched whose
replacement has exactly the intended effect. Each program is executed to check its result.
"""

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

from proxhpc.program.align import EditCosts, LinePairs, align_lines
from proxhpc.program.edits import WindowLines, program_edits
from proxhpc.program.execute import apply_changes, execute, outside_removed
from proxhpc.program.hunks import TOKEN, AlignedText, Hunk, joined_hunks, text_hunks
from proxhpc.program.lines import Range, line_starts
from proxhpc.program.match import SpanChange, find_literal
from proxhpc.program.parse import SURROGATE
from proxhpc.program.policy import Policy
from proxhpc.program.syntax import (
    DIALECTS,
    FIRST_LINE,
    AddLine,
    Dialect,
    Keep,
    Normalize,
    Program,
    Quoted,
    RemoveAll,
    RemoveLines,
    RemoveStr,
    ReplaceStr,
    Statement,
)

EDIT_COSTS: dict[Dialect, EditCosts] = {
    "prox": EditCosts(30, 40, 60),
    "refinex": EditCosts(20, 20, 40),
    "ultrax": EditCosts(20, 25, 40),
    "rescraper": EditCosts(8, 12, 32),
}
_POLICY = Policy()
_MAX_CANDIDATES = 60  # strings tried for one hunk, shortest first, before its whole line
_MAX_CONTEXT = 400  # characters on each side of a hunk that its string may include


@dataclass(frozen=True, slots=True)
class NoProgram:
    """No program was found, for `reason`."""

    reason: str


def derive(before: str, after: str, dialect: Dialect = "prox") -> Program | NoProgram:
    """Return the shortest program found that turns `before`, a window, into `after`.

    Line removals come first, then string edits. The default policy limits single statements, but
    not what they do together. Blank lines are ignored in dialects whose models do not see or keep
    them.
    """
    first = FIRST_LINE[dialect]
    goal = _Goal(before, after, dialect)
    lines, new_lines = goal.lines, _lines(after, dialect)
    costs = EDIT_COSTS[dialect]
    if lines == new_lines:
        return Program((Keep(),))
    if not after or not new_lines:
        whole = RemoveLines(first, first + len(lines) - 1)
        return Program((RemoveAll() if DIALECTS[dialect].compacts else whole,))
    pairs = align_lines(lines, new_lines, costs)
    if pairs is None:
        return NoProgram(f"too large: {len(lines)} lines and {len(new_lines)}; use windows")
    if not pairs:
        return NoProgram("no line of the first text remains")
    text = AlignedText(lines, pairs)
    removals = goal.removals(text.removed)
    hunks = text_hunks(text, lines, new_lines, pairs, appends=dialect != "ultrax")
    added = _added_lines(goal, new_lines, pairs) if dialect == "ultrax" else ()
    candidates, reason = list[Program](), ""
    # Hunks this close are also tried as one: copying half a call may be cheaper than a second one.
    for gap in (0, costs.replace // 2):
        edits = _edits(text, joined_hunks(hunks, text.text, gap), goal)
        if isinstance(edits, NoProgram):
            reason = edits.reason
        else:
            candidates.append(Program((*removals, *edits, *added)))
    candidates.sort(key=lambda program: len(str(program)))
    for program in chain(candidates, _line_removals(goal, new_lines)):
        reason = goal.problem(program)
        if not reason:
            return program
    return NoProgram(reason)


def _lines(text: str, dialect: Dialect) -> list[str]:
    """Return the lines of a text that matter in a dialect."""
    return [line for line in text.split("\n") if _matters(line, dialect)]


def _matters(line: str, dialect: Dialect) -> bool:
    """Return False for a blank line whose removal takes no statement."""
    if dialect == "rescraper":
        return bool(line.strip())
    return bool(line) or dialect != "ultrax"


class _Goal:
    """A window, the text that a program must make of it, and the numbers of the window's lines."""

    def __init__(self, before: str, after: str, dialect: Dialect) -> None:
        self.before, self.after, self.dialect = before, after, dialect
        first, lines = FIRST_LINE[dialect], before.split("\n")
        matter = [number for number, line in enumerate(lines) if _matters(line, dialect)]
        self.lines = [lines[number] for number in matter]
        numbered = matter if dialect == "rescraper" else None
        self.window = WindowLines(0, len(lines), first, (0, len(lines)), numbered)
        self.numbers = [first + number for number in (range(len(matter)) if numbered else matter)]

    def removals(self, ranges: Iterable[Range]) -> list[Statement]:
        """Return the statements that remove ranges [a, b) of `lines`."""
        return [RemoveLines(self.numbers[a], self.numbers[b - 1]) for a, b in ranges]

    def problem(self, program: Program) -> str:
        """Execute a candidate and return why it is not a solution, or ""."""
        edits = program_edits(program, self.dialect, self.window, {})
        changes = execute(self.before, line_starts(self.before), [edits], _POLICY)
        result = apply_changes(self.before, changes)
        if _lines(result, self.dialect) != _lines(self.after, self.dialect):
            return "the only candidate has another effect"
        if edits.rejected:
            return f"the only candidate is rejected: {', '.join(edits.rejected)}"
        return ""


def _line_removals(goal: _Goal, new_lines: list[str]) -> Iterator[Program]:
    """Yield a program that only removes lines, if the new lines are some of the old in order.

    The cheapest alignment may replace a blank line where this is enough.
    """
    removed, at = list[Range](), 0
    for line in (*new_lines, None):
        try:
            match = len(goal.lines) if line is None else goal.lines.index(line, at)
        except ValueError:
            return
        if match > at:
            removed.append((at, match))
        at = match + 1
    yield Program(tuple(goal.removals(removed)))


def _added_lines(goal: _Goal, new_lines: list[str], pairs: LinePairs) -> list[Statement]:
    statements: list[Statement] = []
    bases = [(goal.window.first - 1, -1), *((goal.numbers[old], new) for old, new in pairs)]
    for (base, after), (_, before) in pairwise([*bases, (0, len(new_lines))]):
        for order, line in enumerate(new_lines[after + 1 : before], 1):
            statements.append(AddLine(base, order, Quoted.of(line)))
    return statements


def _edits(text: AlignedText, hunks: list[Hunk], goal: _Goal) -> list[Statement] | NoProgram:
    search = _Search(text, hunks, deletes=goal.dialect in ("refinex", "rescraper"))
    statements: list[Statement] = []
    for number, hunk in enumerate(hunks):
        if search.done[number]:
            continue
        if len(statements) == _POLICY.max_strings:
            return NoProgram(f"more than {len(statements)} different strings to edit")
        line = text.line_at(hunk.start)
        edit = search.find(number, None if goal.dialect == "prox" else line)
        if edit is None:
            label = goal.numbers[line]
            return NoProgram(f"line {label}: no string was found that matches only there")
        source, target = map(Quoted.of, edit)
        if goal.dialect == "prox":
            statements.append(Normalize(source, target))
        elif goal.dialect == "ultrax":
            statements.append(ReplaceStr(goal.numbers[line], source, target))
        else:
            statements.append(RemoveStr(goal.numbers[line], source))
    return statements


class _Search:
    """Searches for strings around hunks, and records which hunks are done."""

    def __init__(self, text: AlignedText, hunks: list[Hunk], *, deletes: bool) -> None:
        """With `deletes`, statements only delete."""
        self.text, self.hunks, self.deletes = text, hunks, deletes
        self.done = [False] * len(hunks)
        self._starts = [hunk.start for hunk in hunks]
        self._replaced: list[tuple[int, int]] = []  # ranges that statements replace, ascending

    def find(self, number: int, line: int | None) -> tuple[str, str] | None:
        """Return the first string around a hunk that can be replaced, and its replacement.

        The string is replaced everywhere in the text or, if `line` is given, where it occurs once
        on that line.
        """
        text = self.text.text
        low, high = 0, len(text)
        if line is not None:
            low, high = self.text.starts[line], self.text.starts[line + 1] - 1
        for start, stop in self._candidates(number, low, high):
            source, target = text[start:stop], self._target(start, stop)
            if target is None or not source.strip() or SURROGATE.search(source + target):
                continue
            matches = find_literal(text, low, high, source, _POLICY, only=line is not None)
            if isinstance(matches, str):
                continue
            if len(matches) * (len(target) - len(source)) > _POLICY.max_growth:
                continue
            if self._accept([(begin, end, target) for begin, end in matches]):
                return source, target
        return None

    def _candidates(self, number: int, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Yield ranges within [low, high) that contain a hunk, or have the same effect deleted."""
        hunk = self.hunks[number]
        if not self.deletes:
            yield from _candidates(self.text.text, hunk, low, high)
        elif not hunk.new:
            text, start, stop = self.text.text, hunk.start, hunk.stop
            limit = min([high, *self._starts[number + 1 : number + 2], stop + _MAX_CANDIDATES])
            yield start, stop
            while stop < limit and text[start] == text[stop]:
                start, stop = start + 1, stop + 1
                self.hunks[number], self._starts[number] = Hunk(start, stop, ""), start
                yield start, stop

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
        index = bisect_left(self._replaced, (start, stop))
        neighbors = self._replaced[max(0, index - 1) : index + 1]
        return any(low < stop and start < high for low, high in neighbors)

    def _hunks_in(self, start: int, stop: int) -> range:
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
    before = TOKEN.findall(text[max(low, hunk.start - _MAX_CONTEXT) : hunk.start])
    after = TOKEN.findall(text[hunk.stop : min(high, hunk.stop + _MAX_CONTEXT)])
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

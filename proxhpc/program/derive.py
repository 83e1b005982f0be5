"""The inverse of execution: the program that turns one text into another.

It builds training targets out of text pairs, whoever made the second text. Lines are aligned so
that the program gets the fewest characters. What differs within lines are hunks, tokens that
become others; each gets the shortest string around it that hits what it should and nothing else.
What comes out was executed, and made the second text.
"""

import heapq
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate, groupby

from proxhpc.program.align import MAX_CELLS, LinePairs, Prices, align, shared
from proxhpc.program.edits import edits_of
from proxhpc.program.execute import (
    UNSPACED,
    SpanChange,
    apply,
    execute,
    only_place,
    outside,
    word_places,
)
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

PRICES: dict[Dialect, Prices] = {"prox": Prices(30, 40), "line": Prices(20, 20)}
CANDIDATES = 60  # strings that are tried for one hunk, from the shortest, before its whole line
REACH = 400  # characters to each side of a hunk that they may take in
_TOKEN = re.compile(rf"{UNSPACED.pattern}|(?:(?!{UNSPACED.pattern})\w)+|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class NoProgram:
    """No program was found that makes the second text, for `reason`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Hunk:
    """Characters [start, stop) of the first text are to become `new`."""

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

    Line removals come first, then strings. `first_line` is the number of the window's first line
    (the dialect's own). `policy` gives the limits on single statements, not those on documents.
    """
    policy = policy or Policy()
    first = FIRST_LINE[dialect] if first_line is None else first_line
    lines = before.split("\n")
    if before == after:
        return Program((Keep("untouch_doc" if dialect == "prox" else "keep_all"),))
    if not after:
        return Program((RemoveLines(first, first + len(lines) - 1),))
    wanted = after.split("\n")
    pairs = align(lines, wanted, PRICES[dialect])
    if pairs is None:
        return NoProgram(f"too large: {len(lines)} lines against {len(wanted)}; take windows")
    if not pairs:
        return NoProgram("no line of the first text stays")
    text = _Text(before, lines, pairs, policy)
    removals = [RemoveLines(a + first, b + first - 1) for a, b in text.removed]
    hunks = _hunks(text, lines, wanted, pairs)
    found: list[Program] = []
    problem = NoProgram("")
    for gap in (0, PRICES[dialect].replace // 2):  # copying that much costs as much as a call
        edits = _edits(text, _joined(hunks, before, gap), dialect, first)
        if isinstance(edits, NoProgram):
            problem = edits
        else:
            found.append(Program((*removals, *edits)))
    for program in sorted(found, key=lambda program: len(str(program))):
        window = edits_of(program, 0, len(lines), first)
        if apply(before, execute(before, len(lines), [window], policy)) != after:
            problem = NoProgram("the only candidate has another effect")
        elif window.rejected:
            problem = NoProgram(f"the only candidate is rejected: {', '.join(window.rejected)}")
        else:
            return program
    return problem


class _Text:
    """The first text: where its lines stand, and which of them go."""

    def __init__(self, text: str, lines: Sequence[str], pairs: LinePairs, policy: Policy) -> None:
        self.text, self.policy = text, policy
        self.starts = [0, *accumulate(len(line) + 1 for line in lines)]
        gone = sorted(set(range(len(lines))) - {place for place, _ in pairs})
        groups = groupby(enumerate(gone), key=lambda item: item[1] - item[0])
        runs = [[place for _, place in group] for _, group in groups]
        self.removed = [(run[0], run[-1] + 1) for run in runs]
        self.holes = [(self.starts[a], self.starts[b], "") for a, b in self.removed]

    def line_of(self, at: int) -> int:
        """The line that character `at` belongs to."""
        return bisect_right(self.starts, at) - 1


def _hunks(
    text: _Text, lines: Sequence[str], wanted: Sequence[str], pairs: LinePairs
) -> list[Hunk]:
    """What must become what, ascending and disjoint; each replaces a character at least."""
    hunks: list[Hunk] = []
    made = 0
    for number, (place, goal) in enumerate(pairs):
        # Lines put in belong to the line before them, those at the head to the first.
        stop = pairs[number + 1][1] if number + 1 < len(pairs) else len(wanted)
        new = "\n".join(wanted[made if number == 0 else goal : stop])
        made = stop
        if lines[place]:
            hunks += _line_hunks(lines[place], new, text.starts[place])
        elif new:
            # A blank line has nothing to hold on to but its own end, or the last its start.
            at = text.starts[place]
            behind = at < len(text.text)
            hunks.append(Hunk(at, at + 1, f"{new}\n") if behind else Hunk(at - 1, at, f"\n{new}"))
    return hunks


def _line_hunks(old: str, new: str, start: int) -> Iterator[Hunk]:
    """What differs between two lines, of which the old one begins at character `start`."""
    if old == new:
        return
    a, b = _TOKEN.findall(old), _TOKEN.findall(new)
    if len(a) * len(b) > MAX_CELLS:
        head, tail = shared(old, new)
        a = [old[:head], old[head : len(old) - tail], old[len(old) - tail :]]
        b = [new[:head], new[head : len(new) - tail], new[len(new) - tail :]]
    at = list(accumulate(map(len, a), initial=0))
    done = 0
    for kind, low, high, goal, stop in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        begin, end, made = at[low], at[high], "".join(b[goal:stop])
        if kind == "insert":  # on the back of a token that stays
            begin, end = (at[low - 1], at[low]) if low else (0, at[1])
            made = old[begin:end] + made if low else made + old[begin:end]
        elif (
            kind == "delete"
        ):  # as far to the left as it is the same, so that equal ones look alike
            while begin > done and old[begin - 1] == old[end - 1]:
                begin, end = begin - 1, end - 1
        yield Hunk(start + begin, start + end, made)
        done = end


def _joined(hunks: Sequence[Hunk], text: str, gap: int) -> list[Hunk]:
    """Hunks with less than `gap` characters of a line between them made one."""
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
    text: _Text, hunks: list[Hunk], dialect: Dialect, first: int
) -> list[Statement] | NoProgram:
    """Statements that make all hunks, in their order."""
    search = _Search(text, hunks)
    statements: list[Statement] = []
    for number, hunk in enumerate(hunks):
        if search.done[number]:
            continue
        if len(statements) == text.policy.max_strings:
            return NoProgram(f"more than {len(statements)} different strings to edit")
        line = text.line_of(hunk.start)
        found = search.take(number, line if dialect == "line" else None)
        if found is None:
            return NoProgram(f"line {line + first}: no string was found that hits it alone")
        source, target = map(Quoted.of, found)
        if dialect == "prox":
            statements.append(Normalize(source, target))
        elif found[1]:
            statements.append(ReplaceStr(line + first, source, target))
        else:
            statements.append(RemoveStr(line + first, source))
    return statements


class _Search:
    """Finds strings around hunks, and knows which hunks are done."""

    def __init__(self, text: _Text, hunks: list[Hunk]) -> None:
        self.text, self.hunks = text, hunks
        self.done = [False] * len(hunks)
        self._starts = [hunk.start for hunk in hunks]
        self._taken: list[tuple[int, int]] = []  # what statements replace, ascending

    def take(self, number: int, line: int | None) -> tuple[str, str] | None:
        """The first string around a hunk that can be replaced, and by what; None without one.

        Wherever the text has it, or if a line is given, the only one on it.
        """
        text, policy = self.text.text, self.text.policy
        low, high = 0, len(text)
        if line is not None:
            low, high = self.text.starts[line], self.text.starts[line + 1] - 1
        for start, stop in _spans(text, self.hunks[number], low, high):
            source, target = text[start:stop], self._image(start, stop)
            if target is None or not source.strip() or SURROGATE.search(source + target):
                continue
            if line is None:
                places = word_places(text, low, high, source, policy)
            else:
                places = only_place(text, low, high, source)
            if isinstance(places, str):
                continue
            if len(places) * (len(target) - len(source)) > policy.max_growth:
                continue
            if self._replace([(at, at + len(source), target) for at in places]):
                return source, target
        return None

    def _replace(self, changes: list[SpanChange]) -> bool:
        """Take these changes if they do what the hunks say; those in lines that go do not count."""
        found = outside(changes, self.text.holes)
        if isinstance(found, str):
            return False
        for start, stop, target in found:
            if self._image(start, stop) != target or self._meets(start, stop):
                return False
        for start, stop, _ in found:
            self._taken.insert(bisect_left(self._taken, (start, stop)), (start, stop))
            for number in self._within(start, stop):
                self.done[number] = True
        return bool(found)

    def _meets(self, start: int, stop: int) -> bool:
        """Whether characters [start, stop) share one with what is taken."""
        place = bisect_left(self._taken, (start, stop))
        near = self._taken[max(0, place - 1) : place + 1]
        return any(low < stop and start < high for low, high in near)

    def _within(self, start: int, stop: int) -> range:
        """Numbers of the hunks that share a character with [start, stop)."""
        first = bisect_right(self._starts, start)
        if first and self.hunks[first - 1].stop > start:
            first -= 1
        return range(first, bisect_left(self._starts, stop))

    def _image(self, start: int, stop: int) -> str | None:
        """What characters [start, stop) are to become; None if a hunk is only partly among them."""
        pieces: list[str] = []
        at = start
        for number in self._within(start, stop):
            hunk = self.hunks[number]
            if hunk.start < start or hunk.stop > stop:
                return None
            pieces += self.text.text[at : hunk.start], hunk.new
            at = hunk.stop
        return "".join([*pieces, self.text.text[at:stop]])


def _spans(text: str, hunk: Hunk, low: int, high: int) -> Iterator[tuple[int, int]]:
    """A hunk's characters, then wider within [low, high), by tokens, the shortest first."""
    before = _TOKEN.findall(text[max(low, hunk.start - REACH) : hunk.start])
    behind = _TOKEN.findall(text[hunk.stop : min(high, hunk.stop + REACH)])
    lefts = list(accumulate(map(len, reversed(before)), initial=0))
    rights = list(accumulate(map(len, behind), initial=0))
    cost_left = list(accumulate(map(_printed, reversed(before)), initial=0))
    cost_right = list(accumulate(map(_printed, behind), initial=0))
    queue, seen = [(0, 0, 0)], {(0, 0)}
    for _ in range(CANDIDATES):
        if not queue:
            return
        _, left, right = heapq.heappop(queue)
        yield hunk.start - lefts[left], hunk.stop + rights[right]
        for a, b in ((left + 1, right), (left, right + 1)):
            if a < len(lefts) and b < len(rights) and (a, b) not in seen:
                seen.add((a, b))
                heapq.heappush(queue, (cost_left[a] + cost_right[b], a, b))
    start = text.rfind("\n", low, hunk.start) + 1
    stop = text.find("\n", hunk.stop, high)
    yield max(start, low), stop if stop >= 0 else high


def _printed(token: str) -> int:
    """Characters that a token takes in a program; a newline may be a whole escape."""
    return len(token) + 5 * token.count("\n")

"""The inverse of execution: the program that turns one text into another.

It builds training targets out of text pairs, whoever made the second text. Lines are aligned so
that the program gets the fewest characters; an edited line becomes the shortest replacement that
hits what it should and nothing else. What comes out was executed, and made the second text.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise

from proxhpc.program.edits import window_of
from proxhpc.program.execute import apply, execute, only_place, word_places
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

MAX_CELLS = 250_000
"""Pairs of lines that one alignment looks at; above, lines unique to both texts anchor it."""

Pairs = list[tuple[int, int]]
_RANGE: dict[Dialect, int] = {"prox": 30, "line": 20}  # characters of a call that removes lines
_STRING: dict[Dialect, int] = {"prox": 40, "line": 20}  # characters of a call around its strings
_NEVER = 1 << 60


@dataclass(frozen=True, slots=True)
class NoProgram:
    """No program of the dialect makes the second text, for `reason`."""

    reason: str


def derive(
    before: str,
    after: str,
    dialect: Dialect = "prox",
    *,
    first_line: int | None = None,
    policy: Policy | None = None,
) -> Program | NoProgram:
    """Return the shortest program that turns `before`, a window, into `after`.

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
    pairs = _align(lines, wanted, dialect)
    if isinstance(pairs, NoProgram):
        return pairs
    removed = _ranges(sorted(set(range(len(lines))) - {place for place, _ in pairs}))
    statements: list[Statement] = [RemoveLines(a + first, b + first) for a, b in removed]
    target = [(place, lines[place], wanted[goal]) for place, goal in pairs]
    edits = _edit_all(target, dialect, first, policy)
    if isinstance(edits, NoProgram):
        return edits
    program = Program((*statements, *edits))
    window = window_of(program, 0, len(lines), first)
    results = execute(before, len(lines), [window], policy)
    if window.rejected or apply(before, results) != after:
        reasons = ", ".join(window.rejected) or "its effect differs"
        return NoProgram(f"the only candidate is not executed: {reasons}")
    return program


def _ranges(places: list[int]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers as pairs of their first and last."""
    groups = groupby(enumerate(places), key=lambda item: item[1] - item[0])
    runs = [[place for _, place in group] for _, group in groups]
    return [(run[0], run[-1]) for run in runs]


def _align(lines: Sequence[str], wanted: Sequence[str], dialect: Dialect) -> Pairs | NoProgram:
    """Which line becomes which, ascending in both, at the least cost."""
    if len(wanted) > len(lines):
        return NoProgram("it has more lines")
    anchors = [(-1, -1)]
    if len(lines) * len(wanted) > MAX_CELLS:
        anchors += _anchors(lines, wanted)
    anchors.append((len(lines), len(wanted)))
    pairs: Pairs = []
    for (low, goal_low), (high, goal_high) in pairwise(anchors):
        part, goal = lines[low + 1 : high], wanted[goal_low + 1 : goal_high]
        if len(goal) > len(part):
            return NoProgram("it has lines put in")
        if len(part) * len(goal) > MAX_CELLS:
            return NoProgram(f"too large: {len(part)} lines against {len(goal)}; take windows")
        found = _cheapest(part, goal, dialect)
        if found is None:
            return NoProgram("it has text on a line that was blank")
        pairs += [(a + low + 1, b + goal_low + 1) for a, b in found]
        pairs.append((high, goal_high))
    return pairs[:-1]


def _anchors(lines: Sequence[str], wanted: Sequence[str]) -> Pairs:
    """Lines that both texts have once, in the longest run ascending in both."""
    often, sought = Counter(lines), Counter(wanted)
    places = {line: place for place, line in enumerate(lines) if often[line] == 1}
    common = [(places[w], g) for g, w in enumerate(wanted) if sought[w] == 1 and w in places]
    tails: list[int] = []
    ends: list[int] = []
    previous: list[int] = []
    for index, (place, _) in enumerate(common):
        rank = bisect_left(tails, place)
        previous.append(ends[rank - 1] if rank else -1)
        tails[rank:] = [place, *tails[rank + 1 :]]
        ends[rank:] = [index, *ends[rank + 1 :]]
    chain: Pairs = []
    index = ends[-1] if ends else -1
    while index >= 0:
        chain.append(common[index])
        index = previous[index]
    return chain[::-1]


def _cheapest(lines: Sequence[str], wanted: Sequence[str], dialect: Dialect) -> Pairs | None:
    """Align by dynamic programming: cost[kept][goal], of the lines so far.

    `kept` says whether the last line stayed, for only the first line of a range costs.
    """
    rows, opening = len(wanted), _RANGE[dialect]
    kept = [0, *[_NEVER] * rows]
    gone = [_NEVER] * (rows + 1)
    steps: list[list[int]] = []  # per line and goal: 2 bits that say how each state was reached
    for line in lines:
        new_kept, new_gone, step = [_NEVER], [], [0] * (rows + 1)
        for goal in range(rows + 1):
            new_gone.append(min(gone[goal], kept[goal] + opening))
            step[goal] |= gone[goal] <= kept[goal] + opening
            if goal:
                cost = min(kept[goal - 1], gone[goal - 1])
                step[goal] |= 2 * (gone[goal - 1] < kept[goal - 1])
                if cost < _NEVER:
                    cost += _price(line, wanted[goal - 1], dialect)
                new_kept.append(min(cost, _NEVER))
        kept, gone = new_kept, new_gone
        steps.append(step)
    if min(kept[rows], gone[rows]) >= _NEVER:
        return None
    pairs: Pairs = []
    stays, goal = kept[rows] <= gone[rows], rows
    for place in range(len(lines) - 1, -1, -1):
        step_here = steps[place][goal]
        if stays:
            goal -= 1
            pairs.append((place, goal))
            stays = not step_here & 2
        else:
            stays = not step_here & 1
    return pairs[::-1]


def _price(line: str, wanted: str, dialect: Dialect) -> int:
    if line == wanted:
        return 0
    if not line.strip():
        return _NEVER
    head, tail = _same(line, wanted)
    return _STRING[dialect] + len(line) + len(wanted) - 2 * (head + tail)


def _same(old: str, new: str) -> tuple[int, int]:
    """How many characters two lines share at the head, and behind it at the tail."""
    most = min(len(old), len(new))
    head = next((i for i in range(most) if old[i] != new[i]), most)
    rest = most - head
    return head, next((i for i in range(rest) if old[-1 - i] != new[-1 - i]), rest)


Goal = tuple[int, str, str]


def _edit_all(
    goals: list[Goal], dialect: Dialect, first: int, policy: Policy
) -> list[Statement] | NoProgram:
    """Statements that make every line that stays what it should be."""
    statements: list[Statement] = []
    whole = _Kept(goals, policy)
    for place, old, new in goals:
        if old == new or place in whole.done:
            continue
        found = None
        for source, target in _candidates(old, new):
            if dialect == "line":
                if isinstance(only_place(old, 0, len(old), source), list):
                    found = _on_line(place + first, source, target)
                    break
            elif whole.take(source, target):
                found = Normalize(Quoted.of(source), Quoted.of(target))
                break
        if found is None:
            return NoProgram(f"line {place + first} cannot be edited without another")
        statements.append(found)
    return statements


def _on_line(number: int, source: str, target: str) -> Statement:
    if target:
        return ReplaceStr(number, Quoted.of(source), Quoted.of(target))
    return RemoveStr(number, Quoted.of(source))


def _candidates(old: str, new: str) -> list[tuple[str, str]]:
    """Replacements that turn `old` into `new`, from the shortest to that of the whole line."""
    head, tail = _same(old, new)
    low, high = head, len(old) - tail
    spans = [(low, high)]
    while (low, high) != (0, len(old)):
        low, high = _wider(old, low, high)
        spans.append((low, high))
    end = len(new) - len(old)
    pairs = [(old[a:b], new[a : b + end]) for a, b in spans]
    return [pair for pair in pairs if pair[0].strip()]


def _wider(line: str, low: int, high: int) -> tuple[int, int]:
    """Return the span widened to whole words, or if it is that, by one word to each side."""
    start, stop = low, high
    while start and not line[start - 1].isspace():
        start -= 1
    while stop < len(line) and not line[stop].isspace():
        stop += 1
    if (start, stop) != (low, high):
        return start, stop
    while start and line[start - 1].isspace():
        start -= 1
    while stop < len(line) and line[stop].isspace():
        stop += 1
    return start, stop


class _Kept:
    """The lines that stay, in which a `normalize` finds more than the one place meant."""

    def __init__(self, goals: list[Goal], policy: Policy) -> None:
        self.goals = goals
        self.policy = policy
        self.done: set[int] = set()

    def take(self, source: str, target: str) -> bool:
        """Whether a replacement makes of every line that has `source` what it should be."""
        places = partial(word_places, source=source, policy=self.policy)
        explained = []
        for place, old, new in self.goals:
            found = places(old, 0, len(old)) if source in old else "not_found"
            if found == "too_many_matches":
                return False
            if isinstance(found, list):
                made = self._made(old, found, len(source), target)
                if made != new or place in self.done:
                    return False
                explained.append(place)
        self.done.update(explained)
        return bool(explained)

    def _made(self, old: str, places: list[int], size: int, target: str) -> str:
        stops = [0, *(place + size for place in places)]
        return target.join(old[a:b] for a, b in zip(stops, [*places, len(old)], strict=True))

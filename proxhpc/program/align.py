"""Aligns the lines of two texts: which line becomes which, which go, which are put in.

By dynamic programming over what a program would have to say, in characters.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

MAX_CELLS = 250_000
"""Pairs of lines that one alignment looks at; above, lines unique to both texts anchor it."""

_CONTEXT = 20
"""Characters that a replacement needs around a place that is blank."""

LinePairs = list[tuple[int, int]]
_TOKEN = re.compile(r"\w+|[^\w\s]")
KEPT, GONE, PUT = range(3)  # what was last done: a line became one, went, or one was put in
_STATES = (KEPT, GONE, PUT)
_NEVER = 1 << 60


class AlignedLine:
    """A line and the different words and signs in it."""

    __slots__ = ("text", "tokens")

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = frozenset(_TOKEN.findall(text))


@dataclass(frozen=True, slots=True)
class Prices:
    """Characters of a call that removes lines, and of one that replaces strings, without them."""

    remove: int
    replace: int

    def change(self, old: "AlignedLine", new: "AlignedLine") -> int:
        """Cost of a line that becomes another: of one replacement, or of two if that is less."""
        if old.text == new.text:
            return 0
        if not old.tokens:
            return self.put(new.text)
        apart = sum(map(len, old.tokens ^ new.tokens))
        spanned = len(old.text) + len(new.text) - 2 * sum(shared(old.text, new.text))
        return self.replace + min(spanned, apart + self.replace)

    def put(self, new: str) -> int:
        """Cost of a line that is put in."""
        return self.replace + _CONTEXT + len(new)


def align(lines: Sequence[str], wanted: Sequence[str], prices: Prices) -> LinePairs | None:
    """Which line becomes which, ascending in both, at the least cost; None if it is too large.

    Lines in no pair go; wanted lines in no pair are to be put in.
    """
    anchors = [(-1, -1)]
    if len(lines) * len(wanted) > MAX_CELLS:
        anchors += _anchors(lines, wanted)
    anchors.append((len(lines), len(wanted)))
    pairs: LinePairs = []
    for (low, goal_low), (high, goal_high) in pairwise(anchors):
        part, goal = lines[low + 1 : high], wanted[goal_low + 1 : goal_high]
        if len(part) * len(goal) > MAX_CELLS:
            return None
        pairs += [(a + low + 1, b + goal_low + 1) for a, b in _cheapest(part, goal, prices)]
        pairs.append((high, goal_high))
    return pairs[:-1]


def shared(old: str, new: str) -> tuple[int, int]:
    """How many characters two strings share at the head, and behind it at the tail."""
    most = min(len(old), len(new))
    head = _common(most, lambda low, high: old[low:high] == new[low:high])
    a, b = len(old), len(new)
    rest = most - head
    tail = _common(rest, lambda low, high: old[a - high : a - low] == new[b - high : b - low])
    return head, tail


def _common(most: int, same: Callable[[int, int], bool]) -> int:
    """The largest n up to `most` such that all of [0, n) is the same, compared in halves."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if same(low, middle):
            low = middle
        else:
            high = middle - 1
    return low


def _anchors(lines: Sequence[str], wanted: Sequence[str]) -> LinePairs:
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
        tails[rank : rank + 1] = [place]
        ends[rank : rank + 1] = [index]
    chain: LinePairs = []
    index = ends[-1] if ends else -1
    while index >= 0:
        chain.append(common[index])
        index = previous[index]
    return chain[::-1]


Costs = list[list[int]]  # by state and number of wanted lines made so far
_Steps = list[bytearray]  # and from which state each was reached


def _cheapest(lines: Sequence[str], wanted: Sequence[str], prices: Prices) -> LinePairs:
    """Align everything."""
    width = len(wanted) + 1
    puts = [prices.put(line) for line in wanted]
    old, new = list(map(AlignedLine, lines)), list(map(AlignedLine, wanted))
    cost = [[_NEVER] * width for _ in _STATES]
    cost[KEPT][0] = 0
    came: list[_Steps] = [[bytearray(width) for _ in _STATES]]
    for goal in range(1, width):
        _reach(cost, came[0], PUT, goal, _before(cost, goal - 1, puts[goal - 1]))
    for line in old:
        above, cost = cost, [[_NEVER] * width for _ in _STATES]
        steps = [bytearray(width) for _ in _STATES]
        for goal in range(width):
            if goal:
                price = prices.change(line, new[goal - 1])
                _reach(cost, steps, KEPT, goal, _before(above, goal - 1, price))
                _reach(cost, steps, PUT, goal, _before(cost, goal - 1, puts[goal - 1]))
            kept, gone, put = above[KEPT][goal], above[GONE][goal], above[PUT][goal]
            opened = (kept + prices.remove, gone, put + prices.remove)
            _reach(cost, steps, GONE, goal, opened)
        came.append(steps)
    return _trace(cost, came)


def _before(cost: Costs, goal: int, price: int) -> tuple[int, int, int]:
    return cost[KEPT][goal] + price, cost[GONE][goal] + price, cost[PUT][goal] + price


def _reach(cost: Costs, steps: _Steps, state: int, goal: int, ways: tuple[int, int, int]) -> None:
    best = min(ways)
    cost[state][goal] = best
    steps[state][goal] = ways.index(best)


def _trace(cost: Costs, came: list[_Steps]) -> LinePairs:
    pairs: LinePairs = []
    place, goal = len(came) - 1, len(cost[KEPT]) - 1
    state = min(_STATES, key=lambda state: cost[state][goal])
    while place or goal:
        before = came[place][state][goal]
        place -= state != PUT
        goal -= state != GONE
        if state == KEPT:
            pairs.append((place, goal))
        state = before
    return pairs[::-1]

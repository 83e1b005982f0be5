"""Aligns the lines of two texts: which lines match, which are removed and which are inserted.

Dynamic programming finds the alignment whose program is shortest, in characters.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from proxhpc.program.words import common_ends

EXACT_CELLS = 4096
"""Pairs of lines of texts that are compared as a whole; larger ones are split, if possible."""
MAX_CELLS = 250_000
"""Pairs of lines that may be compared where a text cannot be split."""

LinePairs = list[tuple[int, int]]
_TOKEN = re.compile(r"\w+|[^\w\s]")
_MATCHED, _REMOVED, _INSERTED = _STATES = range(3)  # what happened to the last line
_INFINITE = 1 << 60


class TokenizedLine:
    """A line and its distinct words and punctuation marks."""

    __slots__ = ("text", "tokens")

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = frozenset(_TOKEN.findall(text))


@dataclass(frozen=True, slots=True)
class EditCosts:
    """Characters of a call that removes lines, replaces a string or inserts a line, without it."""

    remove: int
    replace: int
    insert: int

    def of_pair(self, old: TokenizedLine, new: TokenizedLine) -> int:
        """Cost of changing one line into another, by one replacement or by two if that is less."""
        if old.text == new.text:
            return 0
        if not old.tokens:
            return self.of_insertion(new.text)
        two_edits = sum(map(len, old.tokens ^ new.tokens)) + self.replace
        one_edit = len(old.text) + len(new.text) - 2 * sum(common_ends(old.text, new.text))
        return self.replace + min(one_edit, two_edits)

    def of_insertion(self, new: str) -> int:
        """Cost of inserting a line."""
        return self.insert + len(new)


def align_lines(old: Sequence[str], new: Sequence[str], costs: EditCosts) -> LinePairs | None:
    """Return matching lines, ascending in both texts, at the least cost; None if it is too large.

    Old lines in no pair are removed; new lines in no pair are inserted. Texts of many lines are
    split at lines that are unique in both.
    """
    pairs: LinePairs = []
    parts = [((0, 0), (len(old), len(new)))]
    while parts:
        (i, j), (old_stop, new_stop) = parts.pop()
        old_part, new_part = old[i:old_stop], new[j:new_stop]
        cells = len(old_part) * len(new_part)
        anchors = _anchors(old_part, new_part) if cells > EXACT_CELLS else []
        if anchors:
            anchors = [(i + m, j + n) for m, n in anchors]
            starts = [(i, j), *((m + 1, n + 1) for m, n in anchors)]
            parts += zip(starts, [*anchors, (old_stop, new_stop)], strict=True)
            pairs += anchors
        elif cells > MAX_CELLS:
            return None
        else:
            pairs += [(i + m, j + n) for m, n in _align_part(old_part, new_part, costs)]
    return sorted(pairs)


def _anchors(old: Sequence[str], new: Sequence[str]) -> LinePairs:
    """Return the longest ascending sequence of lines that occur once in both texts."""
    old_counts, new_counts = Counter(old), Counter(new)
    unique = {line: i for i, line in enumerate(old) if old_counts[line] == 1}
    common = [(unique[w], j) for j, w in enumerate(new) if new_counts[w] == 1 and w in unique]
    tails: list[int] = []
    ends: list[int] = []
    previous: list[int] = []
    for index, (i, _) in enumerate(common):
        rank = bisect_left(tails, i)
        previous.append(ends[rank - 1] if rank else -1)
        tails[rank : rank + 1] = [i]
        ends[rank : rank + 1] = [index]
    chain: LinePairs = []
    index = ends[-1] if ends else -1
    while index >= 0:
        chain.append(common[index])
        index = previous[index]
    return chain[::-1]


_Costs = list[list[int]]  # by state and number of new lines produced
_Steps = list[bytearray]  # the state from which each was reached


def _align_part(old: Sequence[str], new: Sequence[str], costs: EditCosts) -> LinePairs:
    width = len(new) + 1
    insertions = [costs.of_insertion(line) for line in new]
    old_lines, new_lines = list(map(TokenizedLine, old)), list(map(TokenizedLine, new))
    row = [[_INFINITE] * width for _ in _STATES]
    row[_MATCHED][0] = 0
    history: list[_Steps] = [[bytearray(width) for _ in _STATES]]
    for j in range(1, width):
        _set_cheapest(row, history[0], _INSERTED, j, _plus(row, j - 1, insertions[j - 1]))
    for line in old_lines:
        above, row = row, [[_INFINITE] * width for _ in _STATES]
        steps = [bytearray(width) for _ in _STATES]
        for j in range(width):
            if j:
                cost = costs.of_pair(line, new_lines[j - 1])
                _set_cheapest(row, steps, _MATCHED, j, _plus(above, j - 1, cost))
                _set_cheapest(row, steps, _INSERTED, j, _plus(row, j - 1, insertions[j - 1]))
            matched, removed, inserted = above[_MATCHED][j], above[_REMOVED][j], above[_INSERTED][j]
            removals = (matched + costs.remove, removed, inserted + costs.remove)
            _set_cheapest(row, steps, _REMOVED, j, removals)
        history.append(steps)
    return _trace_back(row, history)


def _plus(row: _Costs, j: int, cost: int) -> tuple[int, int, int]:
    return row[_MATCHED][j] + cost, row[_REMOVED][j] + cost, row[_INSERTED][j] + cost


def _set_cheapest(
    row: _Costs, steps: _Steps, state: int, j: int, costs: tuple[int, int, int]
) -> None:
    row[state][j] = cheapest = min(costs)
    steps[state][j] = costs.index(cheapest)


def _trace_back(row: _Costs, history: list[_Steps]) -> LinePairs:
    pairs: LinePairs = []
    i, j = len(history) - 1, len(row[_MATCHED]) - 1
    state = min(_STATES, key=lambda state: row[state][j])
    while i or j:
        previous = history[i][state][j]
        i -= state != _INSERTED
        j -= state != _REMOVED
        if state == _MATCHED:
            pairs.append((i, j))
        state = previous
    return pairs[::-1]

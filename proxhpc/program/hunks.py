"""Differences of two texts, as characters of the first that must become others."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate

from proxhpc.program.align import MAX_CELLS, LinePairs
from proxhpc.program.execute import UNSPACED
from proxhpc.program.lines import runs
from proxhpc.program.words import common_ends

TOKEN = re.compile(rf"{UNSPACED.pattern}|(?:(?!{UNSPACED.pattern})\w)+|.", re.DOTALL)
"""A word, a character of a script without spaces, or another character."""


@dataclass(frozen=True, slots=True)
class Hunk:
    """Characters [start, stop) of the old text must become `new`."""

    start: int
    stop: int
    new: str


class AlignedText:
    """The old text, the offsets of its lines, and the ranges of lines to remove."""

    def __init__(self, lines: Sequence[str], pairs: LinePairs) -> None:
        self.text = "\n".join(lines)
        self.starts = [0, *accumulate(len(line) + 1 for line in lines)]
        unmatched = sorted(set(range(len(lines))) - {old for old, _ in pairs})
        self.removed = [*runs(unmatched)]
        self.holes = [(self.starts[a], self.starts[b], "") for a, b in self.removed]

    def line_at(self, offset: int) -> int:
        """Return the number of the line with the character at `offset`."""
        return bisect_right(self.starts, offset) - 1


def text_hunks(
    text: AlignedText,
    lines: Sequence[str],
    new_lines: Sequence[str],
    pairs: LinePairs,
    *,
    appends: bool,
) -> list[Hunk]:
    """Return the differences, ascending and disjoint; each replaces at least one character.

    Inserted lines are part of them if `appends`.
    """
    hunks: list[Hunk] = []
    done = 0
    for number, (old, new) in enumerate(pairs):
        # Inserted lines are appended to the line before them, or else prepended to the first.
        stop = pairs[number + 1][1] if number + 1 < len(pairs) else len(new_lines)
        first = done if number == 0 else new
        target = "\n".join(new_lines[first:stop]) if appends else new_lines[new]
        done = stop
        if lines[old]:
            hunks += _line_hunks(lines[old], target, text.starts[old])
        elif target:
            # A blank line has no characters to replace but a newline next to it.
            at = text.starts[old]
            if at < len(text.text):
                hunks.append(Hunk(at, at + 1, f"{target}\n"))
            else:
                hunks.append(Hunk(at - 1, at, f"\n{target}"))
    return hunks


def _line_hunks(old: str, new: str, start: int) -> Iterator[Hunk]:
    """Yield the differences of two lines; the old one starts at offset `start`."""
    if old == new:
        return
    a, b = TOKEN.findall(old), TOKEN.findall(new)
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


def joined_hunks(hunks: Sequence[Hunk], text: str, gap: int) -> list[Hunk]:
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

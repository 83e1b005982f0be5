"""A document before and after, line by line, with what changed within a line."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from operator import itemgetter
from typing import Literal

from proxhpc.program.words import common_ends

_MAX_EXACT_LINES = 2000  # longer texts are compared roughly, to stay quick
_MAX_PAIRS = 2500  # pairs of lines compared within one replaced block
_MAX_WORD_PAIRS = 250_000  # pairs of words compared within a line; longer lines have one change
_MIN_SIMILARITY = 0.5  # share of common words from which a line counts as edited
Kind = Literal["same", "removed", "added"]
_WORDS = re.compile(r"[A-Za-z0-9]+|.", re.DOTALL)  # other scripts and signs: each character


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a line; `changed` if the other version does not have it."""

    text: str
    changed: bool = False


@dataclass(frozen=True, slots=True)
class LineChange:
    """One line. `number` is its number in the text before, from 0; -1 for an added line."""

    kind: Kind
    number: int
    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """The whole line."""
        return "".join(piece.text for piece in self.pieces)


def diff_lines(before: Sequence[str], after: Sequence[str]) -> Iterator[LineChange]:
    """Every line of both versions, in order; an edited line is removed, then added."""
    head, tail = common_ends(before, after)
    yield from _whole_lines("same", before[:head], 0)
    old, new = before[head : len(before) - tail], after[head : len(after) - tail]
    rough = max(len(old), len(new)) > _MAX_EXACT_LINES
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=rough).get_opcodes():
        if kind == "equal":
            yield from _whole_lines("same", old[a:b], head + a)
        else:
            yield from _block(old[a:b], new[c:d], head + a)
    end = len(before) - tail
    yield from _whole_lines("same", before[end:], end)


def hunks(changes: Sequence[LineChange], context: int) -> Iterator[LineChange | int]:
    """The changes with `context` lines around them; lines left out come as their number."""
    near = bytearray(len(changes))
    for position, change in enumerate(changes):
        if change.kind != "same":
            start, stop = max(0, position - context), min(len(changes), position + context + 1)
            near[start:stop] = b"\1" * (stop - start)
    for is_near, group in groupby(zip(near, changes, strict=True), key=itemgetter(0)):
        lines = [change for _, change in group]
        if is_near:
            yield from lines
        else:
            yield len(lines)


def diff_excerpt(
    before: str, after: str | None, context: int, max_lines: int | None
) -> list[LineChange | int]:
    """The hunks of a difference, or all lines as removed if `after` is None.

    Lines beyond `max_lines` come as their number, too.
    """
    lines = before.split("\n")
    changes: list[LineChange | int]
    if after is None:
        changes = [*_whole_lines("removed", lines, 0)]
    else:
        changes = [*hunks([*diff_lines(lines, after.split("\n"))], context)]
    excerpt = changes[:max_lines]
    rest = sum(change if isinstance(change, int) else 1 for change in changes[len(excerpt) :])
    return [*excerpt, rest] if rest else excerpt


def _whole_lines(kind: Kind, lines: Sequence[str], first: int) -> Iterator[LineChange]:
    return (LineChange(kind, number, (Piece(line),)) for number, line in enumerate(lines, first))


def _block(old: Sequence[str], new: Sequence[str], first: int) -> Iterator[LineChange]:
    """Lines replaced by others: each new line is paired with the next old line similar to it."""
    position = 0
    is_small = len(old) * len(new) <= _MAX_PAIRS
    bags = [Counter(_WORDS.findall(line)) for line in old] if is_small else []
    for line in new:
        partner = _partner(bags, position, Counter(_WORDS.findall(line))) if is_small else None
        if partner is None:
            yield LineChange("added", -1, (Piece(line, changed=True),))
            continue
        yield from _whole_lines("removed", old[position:partner], first + position)
        removed, added = _within(old[partner], line)
        yield LineChange("removed", first + partner, removed)
        yield LineChange("added", -1, added)
        position = partner + 1
    yield from _whole_lines("removed", old[position:], first + position)


def _partner(bags: Sequence[Counter[str]], start: int, bag: Counter[str]) -> int | None:
    """The first line from `start` with enough words in common with `bag`."""
    for position in range(start, len(bags)):
        other = bags[position]
        if 2 * (bag & other).total() >= _MIN_SIMILARITY * (bag.total() + other.total()):
            return position
    return None


def _within(old: str, new: str) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """Both versions of an edited line in pieces."""
    head, tail = common_ends(old, new)
    middle = old[head : len(old) - tail], new[head : len(new) - tail]
    words = [_WORDS.findall(text) for text in middle]
    removed, added = [Piece(old[:head])], [Piece(new[:head])]
    if len(words[0]) * len(words[1]) > _MAX_WORD_PAIRS:
        removed.append(Piece(middle[0], True))
        added.append(Piece(middle[1], True))
    else:
        matcher = SequenceMatcher(None, words[0], words[1], autojunk=False)
        for kind, a, b, c, d in matcher.get_opcodes():
            removed.append(Piece("".join(words[0][a:b]), kind != "equal"))
            added.append(Piece("".join(words[1][c:d]), kind != "equal"))
    removed.append(Piece(old[len(old) - tail :]))
    added.append(Piece(new[len(new) - tail :]))
    return _not_empty(removed), _not_empty(added)


def _not_empty(pieces: list[Piece]) -> tuple[Piece, ...]:
    return tuple(piece for piece in pieces if piece.text)

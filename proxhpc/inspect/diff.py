"""A document before and after, line by line, with what changed within a line."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

LONG = 2000  # lines above which the comparison may be rough, to stay quick
_MAX_PAIRS = 2500  # pairs of lines to compare within one replaced block
MATCHES = 250_000  # pairs of words to compare within a line; a longer one has one change in all
ALIKE = 0.5  # share of words in common from which a line counts as an edited one
_WORDS = re.compile(r"[A-Za-z0-9]+|.", re.DOTALL)  # in other scripts, and of signs, each character


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a line, and whether it is in the other version as well."""

    text: str
    changed: bool = False


@dataclass(frozen=True, slots=True)
class LineChange:
    """One line. `number` counts the lines of the text before, from 0; -1 for an added line."""

    kind: Literal["same", "removed", "added"]
    number: int
    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """The whole line."""
        return "".join(piece.text for piece in self.pieces)


def diff_lines(before: Sequence[str], after: Sequence[str]) -> Iterator[LineChange]:
    """Every line of both versions, in order; an edited line comes as removed and then added."""
    head = _common(before, after)
    tail = _common(before[head:][::-1], after[head:][::-1])
    yield from _same(before, 0, head)
    old, new = before[head : len(before) - tail], after[head : len(after) - tail]
    rough = max(len(old), len(new)) > LONG
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=rough).get_opcodes():
        if kind == "equal":
            yield from _same(before, head + a, head + b)
        else:
            yield from _block(old[a:b], new[c:d], head + a)
    yield from _same(before, len(before) - tail, len(before))


def hunks(changes: Sequence[LineChange], context: int) -> Iterator[LineChange | int]:
    """The changes with `context` lines around them; for lines left out, how many they are."""
    near = bytearray(len(changes))
    for place, change in enumerate(changes):
        if change.kind != "same":
            for at in range(max(0, place - context), min(len(changes), place + context + 1)):
                near[at] = 1
    skipped = 0
    for place, change in enumerate(changes):
        if near[place]:
            if skipped:
                yield skipped
            skipped = 0
            yield change
        else:
            skipped += 1
    if skipped:
        yield skipped


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    pairs = zip(a, b, strict=False)
    return next((n for n, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def _same(lines: Sequence[str], start: int, stop: int) -> Iterator[LineChange]:
    return (LineChange("same", n, (Piece(lines[n]),)) for n in range(start, stop))


def _block(old: Sequence[str], new: Sequence[str], first: int) -> Iterator[LineChange]:
    """Lines in place of others: each new line goes with the first old one that is like it."""
    at = 0
    few = len(old) * len(new) <= _MAX_PAIRS
    bags = [Counter(_WORDS.findall(line)) for line in old] if few else []
    for line in new:
        partner = _partner(bags, at, Counter(_WORDS.findall(line))) if few else None
        if partner is None:
            yield LineChange("added", -1, (Piece(line, changed=True),))
            continue
        yield from _removed(old, at, partner, first)
        gone, come = _within(old[partner], line)
        yield LineChange("removed", first + partner, gone)
        yield LineChange("added", -1, come)
        at = partner + 1
    yield from _removed(old, at, len(old), first)


def _removed(old: Sequence[str], start: int, stop: int, first: int) -> Iterator[LineChange]:
    return (LineChange("removed", first + n, (Piece(old[n]),)) for n in range(start, stop))


def _partner(bags: Sequence[Counter[str]], start: int, bag: Counter[str]) -> int | None:
    """The first line from `start` on that has enough words in common with `bag`."""
    for place in range(start, len(bags)):
        other = bags[place]
        if 2 * (bag & other).total() >= ALIKE * (bag.total() + other.total()):
            return place
    return None


def _within(old: str, new: str) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """Both versions of a line in pieces."""
    head = _common(old, new)
    tail = _common(old[head:][::-1], new[head:][::-1])
    middle = old[head : len(old) - tail], new[head : len(new) - tail]
    words = [_WORDS.findall(text) for text in middle]
    gone, come = [Piece(old[:head])], [Piece(new[:head])]
    if len(words[0]) * len(words[1]) > MATCHES:
        gone.append(Piece(middle[0], True))
        come.append(Piece(middle[1], True))
    else:
        for kind, a, b, c, d in SequenceMatcher(
            None, words[0], words[1], autojunk=False
        ).get_opcodes():
            gone.append(Piece("".join(words[0][a:b]), kind != "equal"))
            come.append(Piece("".join(words[1][c:d]), kind != "equal"))
    gone.append(Piece(old[len(old) - tail :]))
    come.append(Piece(new[len(new) - tail :]))
    return _filled(gone), _filled(come)


def _filled(pieces: list[Piece]) -> tuple[Piece, ...]:
    return tuple(piece for piece in pieces if piece.text)

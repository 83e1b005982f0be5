"""What a walk is taught on: documents in the model's tokens, and windows drawn from them at random.

A window begins anywhere. Some documents lose stretches or get the head or foot of another one, so
that a few thousand documents are as good as many more.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np

from proxhpc.annotate.examples import DROPPED, UNKNOWN
from proxhpc.refine.walk import REACH, WINDOW_LINES, WINDOW_TOKENS, Ids, Walk, WalkPage
from proxhpc.spec.recipe import WalkOptions
from proxhpc.train.rows import ExampleRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

MOST_WORDS = 120  # a line weighs as so many at most
UNSURE = 0.3  # a line without a label weighs so much less
MIXED, HOLES = 0.25, 0.4  # shares of windows from documents with another's end, and with gaps
SMALL = (WINDOW_TOKENS, WINDOW_TOKENS, WINDOW_TOKENS, 300, 150)  # tokens of windows, by lot


@dataclass(frozen=True, slots=True)
class WalkExamples:
    """Lines of a document: what the model reads of each, the chance it should go, its weight."""

    ids: list[Ids]
    drop: "Floats"
    weight: "Floats"

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, stop: int) -> "WalkExamples":
        """Lines [start, stop)."""
        return WalkExamples(self.ids[start:stop], self.drop[start:stop], self.weight[start:stop])

    def followed_by(self, other: "WalkExamples") -> "WalkExamples":
        """These lines, then those."""
        return WalkExamples(
            self.ids + other.ids,
            np.concatenate([self.drop, other.drop]),
            np.concatenate([self.weight, other.weight]),
        )

    def without(self, start: int, stop: int) -> "WalkExamples":
        """All lines but [start, stop)."""
        return self.part(0, start).followed_by(self.part(stop, len(self)))

    @property
    def first(self) -> int:
        """The first line that is rather kept; 0 where none is."""
        kept = np.flatnonzero(self.drop < 0.5)
        return int(kept[0]) if len(kept) else 0

    @property
    def end(self) -> int:
        """The line behind the last that is rather kept; all lines where none is."""
        kept = np.flatnonzero(self.drop < 0.5)
        return int(kept[-1]) + 1 if len(kept) else len(self)


@dataclass(frozen=True, slots=True)
class WalkItem:
    """A prompt, and the answer's tokens to be learnt.

    `choices` (steps, 2) are the ids that keep and drop, `drop` and `weight` (steps,) the chance
    and the weight of each; `numbers` are the places in the prompt of the lines' numbers, if any.
    """

    prompt: list[int]
    choices: "NDArray[np.int64]"
    drop: "Floats"
    weight: "Floats"
    numbers: list[int]

    @property
    def size(self) -> int:
        """Tokens of prompt and answer, but for the end."""
        return len(self.prompt) + len(self.drop)


def walk_examples(row: ExampleRow, walk: Walk, course: WalkOptions) -> WalkExamples:
    """A window's lines as they are taught. A document as a whole weighs by its root only."""
    drop, sure = targets(row, course.trust)
    words = np.array([len(line.split()) for line in row.lines], np.float32)
    weight = np.clip(words, 1, MOST_WORDS) ** course.word_power * np.where(sure, 1, UNSURE)
    weight *= row.weight / np.sqrt(max(len(row.lines), 16))
    return WalkExamples(list(walk.page(row.lines).ids), drop, weight.astype(np.float32))


def targets(row: ExampleRow, trust: float) -> tuple["Floats", "NDArray[np.bool_]"]:
    """Of each line, or of the document, the chance that it should go, and whether that is sure.

    Where lines have labels those without are not; where none has any, a teacher is believed.
    """
    marks = np.array(list(row.marks or UNKNOWN * len(row.chances or ())))
    known = marks != UNKNOWN
    label = (marks == DROPPED).astype(np.float32)
    if row.chances is None:
        return np.where(known, label, 0.5).astype(np.float32), known
    chances = np.array(row.chances, np.float32)
    if not known.any():
        return chances, np.ones(len(chances), bool)
    mixed = (1 - trust) * label + trust * chances
    return np.where(known, mixed, chances).astype(np.float32), known


class WalkPages:
    """Documents that windows are drawn from."""

    def __init__(self, pages: Sequence[WalkExamples], walk: Walk, course: WalkOptions) -> None:
        """A document is drawn by its lines to the power of 0.75."""
        self._pages, self._walk, self._course = pages, walk, course
        self._sums = np.cumsum([len(page) ** 0.75 for page in pages])

    def draw(self, chance: np.random.Generator) -> WalkItem:
        """A window at random."""
        page = self._changed(self._one(chance), chance)
        budget = int(chance.choice(SMALL))
        start = 0 if chance.random() < 0.2 else int(chance.integers(len(page)))
        start = max(0, start - int(chance.integers(31)))
        stop = _fill(page, start, budget)
        if chance.random() < 0.7:
            page = self._thinned(page, start, stop, chance)
        return window(self._walk, page, start, stop)

    def _one(self, chance: np.random.Generator) -> WalkExamples:
        return self._pages[int(np.searchsorted(self._sums, chance.random() * self._sums[-1]))]

    def _changed(self, page: WalkExamples, chance: np.random.Generator) -> WalkExamples:
        if chance.random() < MIXED and len(page) > 30:
            other, lines = self._one(chance), int(chance.integers(5, 41))
            if chance.random() < 0.5:
                head = other.part(max(0, other.first - lines), other.first)
                page = head.followed_by(page.part(page.first, len(page)))
            else:
                foot = other.part(other.end, other.end + lines)
                page = page.part(0, page.end).followed_by(foot)
        if chance.random() < HOLES:
            for _ in range(int(chance.integers(1, 5))):
                start, lines = int(chance.integers(len(page))), int(chance.integers(1, 21))
                if len(page) - lines > 6:
                    page = page.without(start, start + lines)
        return page

    def _thinned(
        self, page: WalkExamples, start: int, stop: int, chance: np.random.Generator
    ) -> WalkExamples:
        """The page with some tokens of the lines in and around a window left out."""
        ids, share = page.ids.copy(), self._course.token_dropout
        for line in range(max(0, start - REACH), min(stop + REACH, len(ids))):
            if len(ids[line]) > 2:
                stay = chance.random(len(ids[line])) >= share
                if not stay.all():
                    ids[line] = array("I", compress(ids[line], stay.tolist()))
        return WalkExamples(ids, page.drop, page.weight)


def window(walk: Walk, page: WalkExamples, start: int, stop: int) -> WalkItem:
    """The question about lines [start, stop), and what is to be answered."""
    prompt = walk.prompt(WalkPage((), page.ids), start, stop)
    steps = np.array(walk.steps(stop - start)[:-1], np.int64).reshape(-1, 2)
    return WalkItem(
        prompt, steps, page.drop[start:stop], page.weight[start:stop], walk.places(prompt)
    )


def verdict_item(row: ExampleRow, walk: Walk, course: WalkOptions) -> WalkItem:
    """The question about a document, and what is to be answered."""
    drop, _ = targets(row, course.trust)
    steps = np.array(walk.verdict_steps[:-1], np.int64).reshape(-1, 2)
    weight = np.array([row.weight], np.float32)
    return WalkItem(walk.judge(row.lines), steps, drop, weight, [])


def _fill(page: WalkExamples, start: int, budget: int) -> int:
    """Where a window from `start` on ends."""
    stop, tokens = start, 0
    while stop < len(page) and stop - start < WINDOW_LINES:
        tokens += len(page.ids[stop]) + 1
        if tokens > budget and stop > start:
            break
        stop += 1
    return stop

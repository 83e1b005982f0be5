"""The training examples of a walk: documents in the model's tokens, and random windows of them.

A window starts at any line. Some documents lose lines or get the head or foot of another one, so
that a few thousand documents go further.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np

from proxhpc.annotate.examples import DROPPED, EDITED_WITHIN, UNKNOWN
from proxhpc.evaluate.metrics import tokens
from proxhpc.refine.walk import REACH, WINDOW_LINES, WINDOW_TOKENS, Ids, Walk, WalkPage
from proxhpc.spec.recipe import WalkOptions
from proxhpc.train.rows import ExampleRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

PAGE_POWER = 0.75  # of its lines, to which a document's probability of being drawn is proportional
MAX_LINE_WORDS = 120  # more words in a line do not add to its weight
UNLABELED_WEIGHT = 0.3  # factor for lines with a teacher's probability but no label
SPLICE_PROBABILITY = 0.25  # of a window from a document with another one's head or foot
GAP_PROBABILITY = 0.4  # of a window from a document with gaps
WINDOW_SIZES = (WINDOW_TOKENS, WINDOW_TOKENS, WINDOW_TOKENS, 300, 150)  # tokens, chosen at random


@dataclass(frozen=True, slots=True)
class TrainingPage:
    """A document's lines: token ids, probability that each is dropped, weight.

    `rate` is how often the document is drawn, relative to others of its size.
    """

    ids: list[Ids]
    drop: "Floats"
    weight: "Floats"
    rate: float = 1.0

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, stop: int) -> "TrainingPage":
        """Lines [start, stop)."""
        return TrainingPage(self.ids[start:stop], self.drop[start:stop], self.weight[start:stop])

    def followed_by(self, other: "TrainingPage") -> "TrainingPage":
        """These lines, then those of `other`."""
        return TrainingPage(
            self.ids + other.ids,
            np.concatenate([self.drop, other.drop]),
            np.concatenate([self.weight, other.weight]),
        )

    def without(self, start: int, stop: int) -> "TrainingPage":
        """All lines but [start, stop)."""
        return self.part(0, start).followed_by(self.part(stop, len(self)))

    def text_span(self) -> tuple[int, int]:
        """From the first line that is probably kept to the last; all lines if there is none."""
        kept = np.flatnonzero(self.drop < 0.5)
        return (int(kept[0]), int(kept[-1]) + 1) if len(kept) else (0, len(self))


@dataclass(frozen=True, slots=True)
class WalkItem:
    """A prompt and its answer of S steps.

    `choices` (S, 2) are the ids that keep and drop; `drop` and `weight` (S,) are each step's
    probability of dropping and its weight. `numbers` are the positions of the lines' numbers in
    the prompt; a verdict's prompt has none.
    """

    prompt: list[int]
    choices: "NDArray[np.int64]"
    drop: "Floats"
    weight: "Floats"
    numbers: list[int]

    @property
    def size(self) -> int:
        """Tokens of prompt and answer without the end."""
        return len(self.prompt) + len(self.drop)


def training_page(row: ExampleRow, walk: Walk, options: WalkOptions) -> TrainingPage:
    """An example's lines. Longer documents weigh more, by the square root of their lines."""
    drop, is_certain = drop_targets(row, options.trust)
    words = np.array([len(tokens(line)) for line in row.lines], np.float32)
    unlabeled_weight = 0 if row.drop_probabilities is None else UNLABELED_WEIGHT
    factor = np.where(is_certain, 1, unlabeled_weight)
    weight = np.clip(words, 1, MAX_LINE_WORDS) ** options.word_power * factor
    weight /= np.sqrt(max(len(row.lines), 16))
    ids = list(walk.page(row.lines).ids)
    return TrainingPage(ids, drop, weight.astype(np.float32), row.weight)


def drop_targets(row: ExampleRow, trust: float) -> tuple["Floats", "NDArray[np.bool_]"]:
    """Each line's (or the document's) probability of being dropped, and whether it is certain.

    A label is mixed with the teacher's probability, of which `trust` is the share. If some lines
    have labels, those without are uncertain; if none has, the teacher's probabilities count.
    """
    labels = np.array(list(row.line_labels or UNKNOWN * len(row.drop_probabilities or ())))
    is_labeled = (labels != UNKNOWN) & (labels != EDITED_WITHIN)
    label = (labels == DROPPED).astype(np.float32)
    if row.drop_probabilities is None:
        return np.where(is_labeled, label, 0.5).astype(np.float32), is_labeled
    probabilities = np.array(row.drop_probabilities, np.float32)
    if not is_labeled.any():
        return probabilities, np.ones(len(probabilities), bool)
    mixed = (1 - trust) * label + trust * probabilities
    return np.where(is_labeled, mixed, probabilities).astype(np.float32), is_labeled


class WalkPages:
    """Documents from which random windows are drawn."""

    def __init__(self, pages: Sequence[TrainingPage], walk: Walk, options: WalkOptions) -> None:
        self.pages, self._walk, self._options = pages, walk, options
        self.cumulative = np.cumsum([page.rate * len(page) ** PAGE_POWER for page in pages])

    def draw(self, rng: np.random.Generator) -> WalkItem:
        """A random window."""
        page = self._augmented(self._random_page(rng), rng)
        max_tokens = int(rng.choice(WINDOW_SIZES))
        start = 0 if rng.random() < 0.2 else int(rng.integers(len(page)))
        start = max(0, start - int(rng.integers(31)))
        stop = _window_stop(page, start, max_tokens)
        if rng.random() < 0.7:
            page = self._with_token_dropout(page, start, stop, rng)
        return window_item(self._walk, page, start, stop)

    def _random_page(self, rng: np.random.Generator) -> TrainingPage:
        return self.pages[random_index(self.cumulative, rng)]

    def _augmented(self, page: TrainingPage, rng: np.random.Generator) -> TrainingPage:
        """The page, sometimes with the head or foot of another one, sometimes with gaps."""
        if rng.random() < SPLICE_PROBABILITY and len(page) > 30:
            other, lines = self._random_page(rng), int(rng.integers(5, 41))
            (start, stop), (other_start, other_stop) = page.text_span(), other.text_span()
            if rng.random() < 0.5:
                head = other.part(max(0, other_start - lines), other_start)
                page = head.followed_by(page.part(start, len(page)))
            else:
                foot = other.part(other_stop, other_stop + lines)
                page = page.part(0, stop).followed_by(foot)
        if rng.random() < GAP_PROBABILITY:
            for _ in range(int(rng.integers(1, 5))):
                start, lines = int(rng.integers(len(page))), int(rng.integers(1, 21))
                if len(page) - lines > 6:
                    page = page.without(start, start + lines)
        return page

    def _with_token_dropout(
        self, page: TrainingPage, start: int, stop: int, rng: np.random.Generator
    ) -> TrainingPage:
        """The page without some random tokens of the lines in and around a window."""
        ids, dropout = page.ids.copy(), self._options.token_dropout
        for line in range(max(0, start - REACH), min(stop + REACH, len(ids))):
            if len(ids[line]) > 2:
                is_kept = rng.random(len(ids[line])) >= dropout
                if not is_kept.all():
                    ids[line] = array("I", compress(ids[line], is_kept.tolist()))
        return TrainingPage(ids, page.drop, page.weight)


def random_index(cumulative: "NDArray[np.floating]", rng: np.random.Generator) -> int:
    """A random index, given the cumulative sums of what its probability is proportional to."""
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1]))


def window_item(walk: Walk, page: TrainingPage, start: int, stop: int) -> WalkItem:
    """The prompt and answer for lines [start, stop)."""
    prompt = walk.prompt(WalkPage((), page.ids), start, stop)
    choices = np.array(walk.allowed_steps(stop - start)[:-1], np.int64).reshape(-1, 2)
    return WalkItem(
        prompt,
        choices,
        page.drop[start:stop],
        page.weight[start:stop],
        walk.number_positions(prompt),
    )


def verdict_item(row: ExampleRow, walk: Walk, options: WalkOptions) -> WalkItem:
    """The prompt and answer for a document. The answer is the end if nothing tells its verdict."""
    drop, _ = drop_targets(row, options.trust)
    keep_id, drop_id = walk.verdict_ids
    if row.line_labels == UNKNOWN and row.drop_probabilities is None:
        keep_id, drop = walk.end, np.zeros(1, np.float32)
    choices = np.array([[keep_id, drop_id]], np.int64)
    return WalkItem(walk.verdict_prompt(row.lines), choices, drop, np.ones(1, np.float32), [])


def _window_stop(page: TrainingPage, start: int, max_tokens: int) -> int:
    """The end of the window that starts at line `start`; it has one line at least."""
    stop, tokens = start, 0
    while stop < len(page) and stop - start < WINDOW_LINES:
        tokens += len(page.ids[stop]) + 1
        if tokens > max_tokens and stop > start:
            break
        stop += 1
    return stop

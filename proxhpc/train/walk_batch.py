"""Batches of a walk's prompts and answers, whose earlier answers are partly false."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from proxhpc.train.distributed import Ranks
from proxhpc.train.task import Cursor, own_turns, packed
from proxhpc.train.walk_pages import WalkItem, WalkPages

if TYPE_CHECKING:
    from numpy.typing import NDArray

_POOL = 96  # items that batches of like sizes are made of
_MIN_ITEMS = 3  # items of a batch
BACK = 3  # a line's number is to tell the labels of so many lines, back from its own
TEXT_SHARE = 0.15  # of a prompt's tokens that are foretold


@dataclass(frozen=True, slots=True)
class WalkBatch:
    """Tensors of a step; S answers to be learnt, N lines, of B items.

    `inputs` (B, width), padded on the right. Answer s is foretold at `rows[s]`, `places[s]`, is
    one of `choices[s]`, the second with chance `drop[s]`, and counts `weight[s]`; `verdict` says
    whether it is of a whole document. `ends` (B, 2) are rows and places where the end is foretold.
    Lines are told at `number_rows[n]`, `number_places[n]` and are the answers `number_steps[n]`,
    each with `back[n]` lines before it in its window. `text` (T, 2) are rows and places where the
    next token of a prompt is foretold.
    """

    inputs: Any
    rows: Any
    places: Any
    choices: Any
    drop: Any
    weight: Any
    verdict: Any
    ends: Any
    number_rows: Any
    number_places: Any
    number_steps: Any
    back: Any
    text: Any


def collate_walks(
    items: Sequence[WalkItem],
    histories: "Sequence[NDArray[np.bool_]]",
    pad: int,
    chance: np.random.Generator | None = None,
) -> WalkBatch:
    """One batch; `histories` say of each item which of its answers so far were to drop.

    With `chance` some tokens of the prompts are to be foretold as well.
    """
    import torch

    width = max(item.size for item in items)
    inputs = np.full((len(items), width), pad)
    for row, (item, history) in enumerate(zip(items, histories, strict=True)):
        size = len(item.prompt)
        inputs[row, :size] = item.prompt
        steps = np.arange(len(item.drop))
        inputs[row, size : item.size] = item.choices[steps, history.astype(int)]
    sizes = np.array([len(item.drop) for item in items])
    starts = np.array([len(item.prompt) for item in items]) - 1
    rows = np.repeat(np.arange(len(items)), sizes)
    within = np.concatenate([np.arange(size) for size in sizes])
    lined = np.array([bool(item.numbers) for item in items])[rows]
    text = np.empty((0, 2), int)
    if chance is not None:
        # Of text only: the ids of markers come behind those of text, the end's first.
        inside = (np.arange(width - 1) < starts[:, None]) & (inputs[:, 1:] < pad)
        text = np.argwhere(inside & (chance.random(inside.shape) < TEXT_SHARE))
    arrays = (
        *(inputs, rows, starts[rows] + within, np.concatenate([i.choices for i in items])),
        *(np.concatenate([i.drop for i in items]), np.concatenate([i.weight for i in items])),
        *(~lined, np.column_stack([np.arange(len(items)), starts + sizes])),
        *(rows[lined], np.array([place for item in items for place in item.numbers], int)),
        *(np.flatnonzero(lined), within[lined], text),
    )
    return WalkBatch(*map(torch.as_tensor, arrays))


class Sampler:
    """Batches at random, each a function of the seed and its cursor alone: pool and turn in it."""

    def __init__(self, pages: WalkPages, verdicts: Sequence[WalkItem], pad: int, seed: int) -> None:
        """`verdicts` are drawn evenly."""
        self._pages, self._verdicts, self._pad, self._seed = pages, verdicts, pad, seed

    def batches(
        self, cursor: Cursor, ranks: Ranks, tokens: int, history: float, documents: float
    ) -> Iterator[tuple[Cursor, WalkBatch]]:
        """Batches of at most so many tokens, from the cursor on, each with that of the next."""
        pool, first = cursor
        while True:
            chance = np.random.default_rng([self._seed, pool])
            groups = self._grouped(chance, tokens, documents if self._verdicts else 0.0)
            for turn, number in own_turns(len(groups), first, ranks):
                own = np.random.default_rng([self._seed, pool, number])
                histories = [own.random(len(item.drop)) < history for item in groups[number]]
                yield (pool, turn + 1), collate_walks(groups[number], histories, self._pad, own)
            pool, first = pool + 1, 0

    def _grouped(
        self, chance: np.random.Generator, tokens: int, documents: float
    ) -> list[list[WalkItem]]:
        drawn: list[WalkItem] = []
        for _ in range(_POOL):
            if chance.random() < documents:
                drawn.append(self._verdicts[int(chance.integers(len(self._verdicts)))])
            else:
                drawn.append(self._pages.draw(chance))
        groups = packed(sorted(drawn, key=lambda item: item.size), tokens)
        groups = [group for group in groups if len(group) >= _MIN_ITEMS] or groups
        order = chance.permutation(len(groups))
        return [groups[number] for number in order]

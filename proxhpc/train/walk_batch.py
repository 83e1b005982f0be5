"""Random batches of a walk's prompts and answers, with random answers as history."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from proxhpc.spec.recipe import Recipe
from proxhpc.train.distributed import TrainingRanks
from proxhpc.train.task import Batch, BatchPosition, pack_batches, rank_batches
from proxhpc.train.walk_pages import WalkItem, WalkPages

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

_POOL = 96  # random items that are sorted by size and packed into batches together
_MIN_ITEMS = 3  # of a batch
TEXT_SHARE = 0.15  # of a prompt's tokens that the text loss counts


@dataclass(frozen=True, slots=True)
class WalkBatch(Batch):
    """A batch of B items with S answer steps and N numbered lines in all.

    Step s is predicted at `rows[s]`, `columns[s]` of the inputs: one of `choices[s]`, the second
    with probability `drop[s]`. It has `weight[s]`; `is_verdict[s]` is true for documents. `ends`
    (B, 2) are rows and columns at which the answers' ends are predicted. Line n has its number at
    `number_rows[n]`, `number_columns[n]` and its answer at step `number_steps[n]`; its window has
    `lines_before[n]` lines before it. `text` (T, 2) are rows and columns at which the next token
    of the prompt is predicted.
    """

    rows: "torch.Tensor"
    columns: "torch.Tensor"
    choices: "torch.Tensor"
    drop: "torch.Tensor"
    weight: "torch.Tensor"
    is_verdict: "torch.Tensor"
    ends: "torch.Tensor"
    number_rows: "torch.Tensor"
    number_columns: "torch.Tensor"
    number_steps: "torch.Tensor"
    lines_before: "torch.Tensor"
    text: "torch.Tensor"


def collate_walks(
    items: Sequence[WalkItem],
    histories: "Sequence[NDArray[np.bool_]]",
    pad: int,
    rng: np.random.Generator | None = None,
) -> WalkBatch:
    """Items as one batch; `histories` say which of the answers that the model reads drop.

    With `rng` a random share of the prompts' tokens is predicted as well.
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
    step_numbers = np.concatenate([np.arange(size) for size in sizes])
    is_line = np.array([bool(item.numbers) for item in items])[rows]
    text = np.empty((0, 2), int)
    if rng is not None:
        # Only text: the ids of markers come after those of text, that of the end first.
        is_text = (np.arange(width - 1) < starts[:, None]) & (inputs[:, 1:] < pad)
        text = np.argwhere(is_text & (rng.random(is_text.shape) < TEXT_SHARE))
    arrays = {
        "inputs": inputs,
        "rows": rows,
        "columns": starts[rows] + step_numbers,
        "choices": np.concatenate([item.choices for item in items]),
        "drop": np.concatenate([item.drop for item in items]),
        "weight": np.concatenate([item.weight for item in items]),
        "is_verdict": ~is_line,
        "ends": np.column_stack([np.arange(len(items)), starts + sizes]),
        "number_rows": rows[is_line],
        "number_columns": np.array([column for item in items for column in item.numbers], int),
        "number_steps": np.flatnonzero(is_line),
        "lines_before": step_numbers[is_line],
        "text": text,
    }
    return WalkBatch(**{name: torch.as_tensor(values) for name, values in arrays.items()})


class WalkSampler:
    """Random batches; each depends only on the recipe's seed, its epoch and its index.

    An epoch is a pool of 96 random items.
    """

    def __init__(
        self, pages: WalkPages, verdicts: Sequence[WalkItem], pad: int, recipe: Recipe
    ) -> None:
        self._pages, self._verdicts, self._pad, self._recipe = pages, verdicts, pad, recipe

    def batches(
        self, position: BatchPosition, ranks: TrainingRanks
    ) -> Iterator[tuple[BatchPosition, WalkBatch]]:
        """Batches of a rank from `position` on, each with the position after it."""
        epoch, consumed = position
        seed, drop_share = self._recipe.seed, self._recipe.walk.history
        while True:
            groups = self._grouped(np.random.default_rng([seed, epoch]))
            for after, index in rank_batches(len(groups), consumed, ranks):
                rng = np.random.default_rng([seed, epoch, index])
                # Random answers, not the right ones: the next is too often equal to the last.
                histories = [rng.random(len(item.drop)) < drop_share for item in groups[index]]
                yield (epoch, after), collate_walks(groups[index], histories, self._pad, rng)
            epoch, consumed = epoch + 1, 0

    def _grouped(self, rng: np.random.Generator) -> list[list[WalkItem]]:
        """The batches of an epoch."""
        items: list[WalkItem] = []
        for _ in range(_POOL):
            verdict_share = self._recipe.walk.documents if self._verdicts else 0.0
            if rng.random() < verdict_share:
                items.append(self._verdicts[int(rng.integers(len(self._verdicts)))])
            else:
                items.append(self._pages.draw(rng))
        items.sort(key=lambda item: item.size)
        groups = pack_batches(items, self._recipe.batch_tokens)
        groups = [group for group in groups if len(group) >= _MIN_ITEMS] or groups
        return [groups[index] for index in rng.permutation(len(groups)).tolist()]

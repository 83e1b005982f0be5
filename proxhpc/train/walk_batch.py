"""Batches of a walk's prompts and answers, with other answers as history."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from proxhpc.train.task import Batch
from proxhpc.train.walk_pages import WalkItem

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

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
    """Items as one batch; `histories` say for each earlier answer whether it is 'drop'.

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

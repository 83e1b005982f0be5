"""Answers whose tokens are restricted step by step, on the level of logits."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

AllowedSteps = tuple[tuple[int, ...], ...]
"""For each token of an answer, in order, the ids that it may be."""

# vLLM loads this class by name in its core process; a request's steps are under this key.
STEP_PROCESSOR = "proxhpc.engines.vllm_steps:StepProcessor"
STEPS_KEY = "proxhpc_steps"
BIAS_KEY = "proxhpc_bias"  # what to add to the logit of each of their ids


def step_biases(
    steps: Iterable[Sequence[int]], bias: Iterable[tuple[int, float]]
) -> list[list[float]]:
    """Return what to add to the logit of each allowed id of each step."""
    by_id = dict(bias)
    return [[by_id.get(number, 0.0) for number in ids] for ids in steps]


def restrict(
    logits: Any,
    rows: Sequence[int],
    allowed: Sequence[Sequence[int]],
    ends: Sequence[int] | None = None,
    biases: Sequence[Sequence[float]] | None = None,
) -> None:
    """Set the logits of all but the allowed ids to -inf, in place, in these rows.

    `logits` is [requests, vocabulary]. All rows take one operation: there may be a thousand of
    them at every token. With `ends`, a row whose logits are not numbers allows only its id of them.
    `biases`, one for each allowed id, are added to their logits.
    """
    import torch

    columns = torch.tensor(_padded(allowed), device=logits.device)
    index = torch.tensor(rows, device=logits.device)
    values = logits[index[:, None], columns]
    if biases is not None:
        values += torch.tensor(_padded(biases), device=logits.device, dtype=values.dtype)
    logits[index] = float("-inf")
    logits[index[:, None], columns] = values
    if ends is not None:
        broken = values.isnan().any(dim=1)
        values = values.masked_fill(broken[:, None], float("-inf"))
        logits[index[:, None], columns] = values
        last = torch.tensor(ends, device=logits.device)
        logits[index, last] = logits[index, last].masked_fill(broken, 0.0)


def _padded(rows: Sequence[Sequence[T]]) -> list[Sequence[T]]:
    """Return the rows at the length of the longest, with copies of their first elements."""
    width = max(map(len, rows))
    return [row if len(row) == width else [*row, *[row[0]] * (width - len(row))] for row in rows]


def log_odds(logits: Any, odds: Sequence[tuple[int, int] | None]) -> list[float | None]:
    """Logit of the second id minus that of the first, in each row; None for a row without ids.

    `logits` is [requests, vocabulary]. A row with logits that are not numbers scores NaN.
    """
    import torch

    broken = logits.isnan().any(dim=1).tolist()
    scores: list[float | None] = [math.nan if is_broken else None for is_broken in broken]
    rows = [row for row, ids in enumerate(odds) if ids is not None and not broken[row]]
    if not rows:
        return scores
    columns = torch.tensor([odds[row] for row in rows], device=logits.device)
    pairs = logits[torch.tensor(rows, device=logits.device)[:, None], columns].float()
    for row, value in zip(rows, (pairs[:, 1] - pairs[:, 0]).tolist(), strict=True):
        scores[row] = value
    return scores

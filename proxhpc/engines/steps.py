"""Answers of which each token is one of a few: what engines do to logits, and read from them."""

from collections.abc import Sequence
from typing import Any

AllowedSteps = tuple[tuple[int, ...], ...]
"""Of each token of an answer, in order, the ids that it may be."""

# What vLLM's core loads by name, and the key of a request's arguments that is for it.
STEP_PROCESSOR = "proxhpc.engines.vllm_steps:StepProcessor"
STEPS_KEY = "proxhpc_steps"


def restrict(logits: Any, rows: Sequence[int], allowed: Sequence[Sequence[int]]) -> None:
    """Leave in each of these rows of `logits` [requests, vocabulary] the allowed ids alone.

    One operation for all rows: there may be a thousand, at every token.
    """
    import torch

    width = max(map(len, allowed))
    padded = [[*ids, *[ids[0]] * (width - len(ids))] for ids in allowed]
    ids = torch.tensor(padded, device=logits.device)
    at = torch.tensor(rows, device=logits.device)
    kept = logits[at[:, None], ids]
    logits[at] = float("-inf")
    logits[at[:, None], ids] = kept


def log_odds(logits: Any, odds: Sequence[tuple[int, int] | None]) -> list[float | None]:
    """Of each row of `logits` [requests, vocabulary] that of its second id less that of its first.

    None for a row without ids.
    """
    import torch

    rows = [row for row, ids in enumerate(odds) if ids is not None]
    found: list[float | None] = [None] * len(odds)
    if not rows:
        return found
    ids = torch.tensor([odds[row] for row in rows], device=logits.device)
    pairs = logits[torch.tensor(rows, device=logits.device)[:, None], ids].float()
    for row, value in zip(rows, (pairs[:, 1] - pairs[:, 0]).tolist(), strict=True):
        found[row] = value
    return found

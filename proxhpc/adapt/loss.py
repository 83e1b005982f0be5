"""What a step costs, and what that is made of."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Losses:
    """The loss to follow, and its parts and signs of progress as numbers."""

    total: Any
    parts: dict[str, float]


def weighted_mean(costs: Any, weight: Any) -> Any:
    """The weighted mean of tensors; 0 of nothing."""
    return (costs * weight).sum() / weight.sum().clamp(min=1e-9)

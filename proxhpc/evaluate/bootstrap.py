"""Confidence intervals by resampling documents, the same resamplings for whatever is compared."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Table = NDArray[np.float64]

TAILS = (2.5, 97.5)
"""Percentiles between which the interval lies."""
_CELLS = 1 << 22  # weights drawn at a time


@dataclass(frozen=True, slots=True)
class Score:
    """A value and the 95 % interval of its bootstrap; None is unknown."""

    value: float | None
    low: float | None = None
    high: float | None = None


def weights(documents: int, rounds: int, seed: int) -> "Iterator[Table]":
    """How often each resampling takes each document, in blocks (resamplings, documents)."""
    import numpy as np

    generator = np.random.default_rng(seed)
    step = max(1, _CELLS // max(1, documents))
    for start in range(0, rounds, step):
        size = min(step, rounds - start)
        drawn = generator.integers(documents, size=(size, documents))
        drawn += np.arange(size)[:, None] * documents
        counted = np.bincount(drawn.ravel(), minlength=size * documents)
        yield counted.reshape(size, documents).astype(float)


def resample(
    tables: "list[Table]", metrics: "Callable[[Table], Table]", rounds: int, seed: int
) -> "list[Table]":
    """The metrics (rounds, metrics) of each table's resamplings, drawn alike for all of them."""
    import numpy as np

    drawn = [
        [metrics(block @ one) for one in tables] for block in weights(len(tables[0]), rounds, seed)
    ]
    return [np.concatenate(parts) for parts in zip(*drawn, strict=True)]


def score(value: float, drawn: "Table | None" = None) -> Score:
    """A value with the interval of its resamplings (rounds,); NaN is unknown.

    No interval where some resampling has no value: the documents are too few.
    """
    import numpy as np

    if np.isnan(value):
        return Score(None)
    if drawn is None or np.isnan(drawn).any():
        return Score(float(value))
    low, high = np.percentile(drawn, TAILS)
    return Score(float(value), float(low), float(high))

"""Bootstrap confidence intervals: documents are resampled, the same way for all systems."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from proxhpc.outputs import OutputModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Table = NDArray[np.float64]

PERCENTILES = (2.5, 97.5)
"""The ends of the interval."""
_BLOCK_CELLS = 1 << 22  # counts that are drawn at a time


class Score(OutputModel):
    """A value with its 95 % bootstrap interval."""

    value: float | None
    """The value; null if it is undefined, as a share of nothing."""
    low: float | None = None
    """The interval's lower end; null if there is no interval."""
    high: float | None = None
    """The interval's upper end; null if there is no interval."""


def resampling_counts(documents: int, rounds: int, seed: int) -> "Iterator[Table]":
    """How often each resampling contains each document, in blocks (resamplings, documents)."""
    import numpy as np

    generator = np.random.default_rng(seed)
    step = max(1, _BLOCK_CELLS // max(1, documents))
    for start in range(0, rounds, step):
        size = min(step, rounds - start)
        drawn = generator.integers(documents, size=(size, documents))
        drawn += np.arange(size)[:, None] * documents
        counts = np.bincount(drawn.ravel(), minlength=size * documents)
        yield counts.reshape(size, documents).astype(float)


def resample(
    tables: "list[Table]", metrics: "Callable[[Table], Table]", rounds: int, seed: int
) -> "list[Table]":
    """Each table's metrics (rounds, metrics), on the same resamplings of the documents."""
    import numpy as np

    blocks = [[metrics(table[:0]) for table in tables]]  # no rounds: (0, metrics)
    for counts in resampling_counts(len(tables[0]), rounds, seed):
        blocks.append([metrics(counts @ table) for table in tables])
    return [np.concatenate(parts) for parts in zip(*blocks, strict=True)]


def score(value: float, resampled: "Table") -> Score:
    """A value with the interval of its resamplings (rounds,); NaN is an undefined value.

    There is no interval without resamplings, or if the value is undefined in one of them: the
    documents are too few.
    """
    import numpy as np

    if np.isnan(value):
        return Score(value=None)
    if not len(resampled) or np.isnan(resampled).any():
        return Score(value=float(value))
    low, high = np.percentile(resampled, PERCENTILES)
    return Score(value=float(value), low=float(low), high=float(high))

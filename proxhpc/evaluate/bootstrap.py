"""Bootstrap confidence intervals: documents are resampled, the same way for all systems.

The area under the ROC curve, which is no ratio of sums, has its own resampling.
"""

from collections.abc import Callable, Iterator, Sequence
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


def auc(positive: Sequence[bool], scores: Sequence[float]) -> float | None:
    """The probability that a positive scores higher than a negative; ties count half.

    None unless there are both.
    """
    return auc_score(positive, scores, rounds=0, seed=0).value


def auc_score(positive: Sequence[bool], scores: Sequence[float], rounds: int, seed: int) -> Score:
    """The AUC with the interval of `rounds` resamplings of the documents; 0 for no interval.

    There is no interval if some resampling lacks positives or negatives. ValueError for a NaN.
    """
    import numpy as np

    flags, values = np.asarray(positive, bool), np.asarray(scores, float)
    if np.isnan(values).any():
        raise ValueError("a score is not a number")
    if not len(values):
        return Score(value=None)
    area = _areas(flags, values, np.ones((1, len(values))))[0]
    blocks = [_areas(flags, values, c) for c in resampling_counts(len(values), rounds, seed)]
    return score(area, np.concatenate([np.empty(0), *blocks]))


def _areas(flags: "NDArray[np.bool_]", values: "Table", counts: "Table") -> "Table":
    """AUCs (resamplings,) for counts of documents (resamplings, documents); NaN if undefined."""
    import numpy as np

    order = np.argsort(values, kind="stable")
    ranked = values[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # of runs of equal scores
    positives, negatives = (
        np.add.reduceat((counts * is_class)[:, order], starts, axis=1)
        for is_class in (flags, ~flags)
    )
    # For each run of scores: negatives with a lower score, and half of those with an equal one.
    below = negatives.cumsum(axis=1) - negatives / 2
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    areas: Table = np.full(len(counts), np.nan)
    np.divide((positives * below).sum(axis=1), pairs, out=areas, where=pairs > 0)
    return areas

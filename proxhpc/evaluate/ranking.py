"""The area under the ROC curve: how well scores separate two classes of documents."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxhpc.evaluate.bootstrap import Score, resampling_counts, score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from proxhpc.evaluate.bootstrap import Table


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

"""How well scores put documents in order: the area under the ROC curve, and its interval."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxhpc.evaluate.bootstrap import Score, score, weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Table = NDArray[np.float64]


def auc(positive: Sequence[bool], scores: Sequence[float]) -> float | None:
    """How often a positive has a higher score than a negative, ties half; None without both."""
    return auc_score(positive, scores, rounds=0, seed=0).value


def auc_score(positive: Sequence[bool], scores: Sequence[float], rounds: int, seed: int) -> Score:
    """The AUC with the interval of `rounds` resamplings of the documents; 0 for none.

    No interval where some resampling lacks positives or negatives. ValueError for a NaN.
    """
    import numpy as np

    flags, values = np.asarray(positive, bool), np.asarray(scores, float)
    if np.isnan(values).any():
        raise ValueError("a score is not a number")
    if not len(values):
        return Score(None)
    whole = _areas(flags, values, np.ones((1, len(values))))[0]
    if not rounds:
        return score(whole)
    drawn = [_areas(flags, values, block) for block in weights(len(values), rounds, seed)]
    return score(whole, np.concatenate(drawn))


def _areas(flags: "NDArray[np.bool_]", values: "Table", taken: "Table") -> "Table":
    """AUCs (resamplings,) of documents taken so often (resamplings, documents); NaN for 0/0."""
    import numpy as np

    order = np.argsort(values, kind="stable")
    ranked = values[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # of runs of equal scores
    ones, zeros = (
        np.add.reduceat((taken * of)[:, order], starts, axis=1) for of in (flags, ~flags)
    )
    below = zeros.cumsum(axis=1) - zeros / 2  # negatives of a lower score, and half the equal ones
    pairs = ones.sum(axis=1) * zeros.sum(axis=1)
    areas: Table = np.full(len(taken), np.nan)
    np.divide((ones * below).sum(axis=1), pairs, out=areas, where=pairs > 0)
    return areas

"""Paired differences between two arms, over seeds and documents, with intervals and tests.

A difference is bits per byte of one arm less those of another, on the same document after
trainings with the same seed. Seeds and hosts are random: the interval is one for other seeds and
other hosts. Documents of a host are not independent, so hosts are resampled.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from proxhpc.evaluate.bootstrap import resampling_counts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_CONFIDENCE, _POWER = 0.95, 0.8
_TRIM = 0.1  # share of the documents left out at each end
_ROUNDS = 1000
REACH = 4.0  # how far a learning curve is continued, as a factor of its tokens
_NODES = 200  # of the quadrature; the error of a probability is below 1e-9
_MAX_DF = 1e4  # practically a normal distribution


class Effect(NamedTuple):
    """A mean difference. Without at least two seeds and two hosts there is no interval."""

    mean: float
    by_seed: tuple[float, ...]
    error: float | None = None
    """Standard error."""
    half_width: float | None = None
    """Half the width of the 95 % interval."""
    p_value: float | None = None
    """Probability of a mean at least as far from 0 if there is no difference."""
    detectable: float | None = None
    """The smallest true difference that such an experiment finds 8 times out of 10."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval."""
        if self.half_width is None:
            return None
        return self.mean - self.half_width, self.mean + self.half_width


class _Source(NamedTuple):
    """A source of error: the variance of the mean, and its degrees of freedom."""

    variance: float
    df: float


def paired_effects(
    differences: "Array", hosts: Sequence[str] = (), rounds: int = _ROUNDS, seed: int = 0
) -> list[Effect]:
    """The effect of each arm in differences to the baseline (arms, seeds, documents).

    A document without a host is a host itself. A seed's mean is trimmed, and the mean is that of
    the seeds. Its variance is that between seeds, plus that between resampled hosts, less what both
    contain: the noise of single trainings on single hosts. The degrees of freedom are
    Satterthwaite's. Since they are too many if few seeds happen to agree, the interval is at least
    that of the seeds alone.
    """
    import numpy as np

    names = hosts or [""] * differences.shape[2]
    names = [host or f"\0{index}" for index, host in enumerate(names)]
    groups, sizes = np.unique(names, return_inverse=True, return_counts=True)[1:]
    means = np.array([[trimmed_mean(row) for row in arm] for arm in differences])
    equal_hosts = float(sizes.sum() ** 2 / (sizes**2).sum())  # as many of equal size say as much
    if means.shape[1] < 2 or equal_hosts < 2:
        return [Effect(float(row.mean()), tuple(row.tolist())) for row in means]
    of_seeds, effects = _seed_noise(means), []
    for arm, of_arm in zip(differences, means, strict=True):
        blocks = [
            np.stack([trimmed_means(row, counts[:, groups]) for row in arm], axis=1)
            for counts in resampling_counts(len(sizes), rounds, seed)
        ]
        effects.append(_effect(of_arm, np.concatenate(blocks), of_seeds, equal_hosts))
    return effects


def _seed_noise(means: "Array") -> _Source:
    """How much trainings vary, from the differences of all arms (arms, seeds).

    It is the residual of an analysis of variance whose blocks are seeds: models of the same size,
    trained alike, vary alike. With one arm beside the baseline it is the variance of the
    differences, as in a paired t-test.
    """
    import numpy as np

    table = np.vstack([np.zeros(means.shape[1]), means])  # first the baseline's
    residuals = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    df = means.shape[0] * (means.shape[1] - 1)
    return _Source(2 * float((residuals**2).sum()) / df / means.shape[1], df)


def _effect(by_seed: "Array", resampled: "Array", of_seeds: _Source, hosts: float) -> Effect:
    """An effect from a seed's means, and from those of resampled hosts (rounds, seeds)."""
    correction = hosts / (hosts - 1)  # resampling n values has the variance of n - 1
    of_hosts = _Source(float(resampled.mean(axis=1).var()) * correction, hosts - 1)
    both = float(resampled.var(axis=0).mean()) * correction - of_hosts.variance
    both = max(0.0, both / (len(by_seed) - 1))
    own = max(0.0, of_seeds.variance - both)
    total = own + of_hosts.variance
    parts = sum(source.variance**2 / source.df for source in (of_seeds, of_hosts))
    df = min(max(total**2 / parts, 1.0), _MAX_DF) if parts else _MAX_DF
    sources = (_Source(total, df), _Source(own, of_seeds.df))
    half_width = max(_half_width(source, _CONFIDENCE) for source in sources)
    mean = float(by_seed.mean())
    return Effect(
        mean,
        tuple(by_seed.tolist()),
        error=math.sqrt(total),
        half_width=half_width,
        p_value=max(_p_value(mean, source) for source in sources),
        detectable=half_width + _half_width(sources[0], 2 * _POWER - 1),
    )


def _half_width(source: _Source, confidence: float) -> float:
    return math.sqrt(source.variance) * t_quantile(confidence, source.df)


def _p_value(mean: float, source: _Source) -> float:
    if not source.variance:
        return float(mean == 0)
    return 1 - t_central(abs(mean) / math.sqrt(source.variance), source.df)


def trimmed_mean(values: "Array") -> float:
    """The mean of values without the highest and the lowest tenth."""
    import numpy as np

    return float(trimmed_means(values, np.ones((1, len(values))))[0])


def trimmed_means(values: "Array", counts: "Array") -> "Array":
    """Trimmed means (rounds,) of values (n,) that occur `counts` times (rounds, n)."""
    import numpy as np

    order = np.argsort(values, kind="stable")
    ends = np.cumsum(counts[:, order], axis=1)
    total = ends[:, -1:]
    low, high = _TRIM * total, (1 - _TRIM) * total
    inside = np.clip(ends, low, high)
    weights = np.diff(inside, axis=1, prepend=low)
    # Not a matrix product, whose last bits depend on the number of threads.
    means: Array = (weights * values[order]).sum(axis=1) / (high - low)[:, 0]
    return means


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for their number (Holm 1979), in the same order."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


@cache
def _quadrature() -> "tuple[Array, Array]":
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return nodes, weights


def t_central(t: float, df: float) -> float:
    """Probability that Student's t lies between -t and t."""
    import numpy as np

    # With t = sqrt(df) tan(angle) the density is proportional to cos(angle)^(df - 1).
    nodes, weights = _quadrature()
    angle = math.atan(t / math.sqrt(df))
    area = float(weights @ np.cos(angle * (nodes + 1) / 2) ** (df - 1)) * angle / 2
    scale = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - math.log(math.pi) / 2
    return min(1.0, 2 * math.exp(scale) * area)


def t_quantile(central: float, df: float) -> float:
    """The t for which Student's t lies between -t and t with this probability."""
    low, high = 0.0, 1.0
    while t_central(high, df) < central:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_central(middle, df) < central else (low, middle)
    return high


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """Loss of an arm after numbers of tokens, which ascend; two points at least.

    Between points, loss is linear in the logarithm of the tokens, and so it is for a factor of
    `REACH` beyond the last one.
    """

    tokens: tuple[int, ...]
    losses: tuple[float, ...]

    def loss_at(self, tokens: float) -> float | None:
        """The loss after that many tokens; None if they are out of reach."""
        if not self.tokens[0] <= tokens <= REACH * self.tokens[-1]:
            return None
        last = len(self.tokens) - 2
        index = next((i for i in range(last) if tokens <= self.tokens[i + 1]), last)
        part = math.log(tokens / self.tokens[index]) / self._step(index)
        return self.losses[index] + part * (self.losses[index + 1] - self.losses[index])

    def tokens_at(self, loss: float) -> float | None:
        """The tokens after which the loss is first at most this; None if that is out of reach."""
        if loss > self.losses[0]:
            return None
        last = len(self.tokens) - 2
        index = next((i for i in range(last) if loss >= self.losses[i + 1]), last)
        fall = self.losses[index] - self.losses[index + 1]
        if fall <= 0:
            return None
        part = (self.losses[index] - loss) / fall
        steps = part * self._step(index)
        if steps > math.log(REACH * self.tokens[-1] / self.tokens[index]):
            return None
        return self.tokens[index] * math.exp(steps)

    def _step(self, index: int) -> float:
        return math.log(self.tokens[index + 1] / self.tokens[index])

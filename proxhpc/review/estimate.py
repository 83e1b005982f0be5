"""Estimates from marks, for the whole run: shares with 95 % intervals.

Each stratum is a random sample, so its totals are scaled to its size in the run. The interval of a
share within a stratum is Wilson's. Lines of one document are alike, so they count as fewer
independent observations, as many as explain how much documents differ (the design effect). The
intervals of strata are combined by the squares of their distances (MOVER: Zou and Donner 2008; for
ratios Donner and Zou 2012).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from proxhpc.outputs import OutputModel
from proxhpc.review.document import Stratum
from proxhpc.review.marks import Mark

_Z = 1.959964  # of the normal distribution, for 95 %
_CORRELATION = 0.4  # of lines of one document, at least; 0.38 was measured on web pages
_OUTCOMES = ("edited", "dropped", "kept", "quarantined")


class Estimate(OutputModel):
    """A share with its 95 % interval."""

    right: int
    """Marked lines or documents that count."""
    of: int
    """Marked lines or documents among which they are."""
    value: float | None
    """The share, with strata weighted by their sizes in the run; null without marks."""
    low: float | None = None
    """The interval's lower end."""
    high: float | None = None
    """The interval's upper end."""


class StratumEstimates(OutputModel):
    """The marks of documents with the same outcome and reason."""

    outcome: str
    """`edited`, `dropped`, `kept` or `quarantined`."""
    reason: str
    """Why they were dropped or quarantined."""
    documents: int
    """Documents of the run; 0 if it is unknown."""
    marked: int
    """Documents that are marked, without those named with --id."""
    right: Estimate
    """Documents with which everything was done right."""


class ReviewSummary(OutputModel):
    """What the marks of a review say about a run or a file."""

    format: Literal["proxhpc.review/1"] = "proxhpc.review/1"
    """Kind and version of this document."""
    marks: str
    """The file of marks."""
    marked: int
    """Documents that are marked."""
    named: int
    """Those of them that were named with --id. They are gold, but no random sample: no estimate
    counts them."""
    strata: tuple[StratumEstimates, ...]
    """Documents by outcome and reason."""
    estimates: dict[str, Estimate]
    """Estimates by name. `documents_right`: documents with which everything was done right.
    `removed_lines_right`: removed lines that are rightly removed (precision). `lines_found`: lines
    to remove that are removed (recall). `changed_lines_right`: lines rightly changed.
    `drops_right`: dropped documents that are rightly dropped (precision). `drops_found`: documents
    to drop that are dropped (recall)."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A stratum's total of some unit, `size`, and the share of them that counts."""

    right: int
    of: int
    size: float
    value: float
    low: float
    high: float


_Pair = tuple[str, str]
"""Names of two counts: what counts, and among what."""


def summarize(path: str, marks: Sequence[Mark], sizes: Mapping[Stratum, int]) -> ReviewSummary:
    """All estimates from the marks in the file `path`."""
    counts: dict[Stratum, list[Counter[str]]] = {stratum: [] for stratum in sizes}
    for mark in marks:
        if mark.sampled:
            counts.setdefault(mark.stratum, []).append(mark.counts())

    def parts(pair: _Pair, *strata: Stratum) -> list[_Part]:
        found = (_part(counts[stratum], pair, sizes.get(stratum, 0)) for stratum in strata)
        return [part for part in found if part]

    strata = sorted(counts, key=stratum_order)
    edited, left_out, unchanged = (
        [stratum for stratum in strata if stratum.outcome == outcome]
        for outcome in ("edited", "dropped", "kept")
    )
    removed = parts(("removed_right", "removed"), *edited)
    dropped = parts(("to_drop", "documents"), *left_out)
    right = ("documents_right", "documents")
    return ReviewSummary(
        marks=path,
        marked=len(marks),
        named=sum(not mark.sampled for mark in marks),
        strata=tuple(
            StratumEstimates(
                outcome=stratum.outcome,
                reason=stratum.reason,
                documents=sizes.get(stratum, 0),
                marked=len(counts[stratum]),
                right=_share(parts(right, stratum)),
            )
            for stratum in strata
        ),
        estimates={
            "documents_right": _share(parts(right, *strata)),
            "removed_lines_right": _share(removed),
            "lines_found": _found(
                parts(("removed_right", "to_remove"), *edited),
                parts(("missed", "stayed"), *unchanged),
                is_all=True,
            ),
            "changed_lines_right": _share(parts(("changed_right", "changed"), *edited)),
            "drops_right": _share(dropped),
            "drops_found": _found(
                dropped, parts(("to_drop", "documents"), *edited, *unchanged), is_all=False
            ),
        },
    )


def stratum_order(stratum: Stratum) -> tuple[int, str]:
    """Sorts strata: those with edits and drops first."""
    return _OUTCOMES.index(stratum.outcome) if stratum.outcome in _OUTCOMES else 9, stratum.reason


def _part(counts: Sequence[Counter[str]], pair: _Pair, documents: int) -> _Part | None:
    """A sample's share with its interval; None if nothing counts.

    `documents` is the size of the stratum; 0 if it is unknown.
    """
    pairs = [(one[pair[0]], one[pair[1]]) for one in counts if one[pair[1]]]
    right, of = (sum(column) for column in zip(*pairs, strict=True)) if pairs else (0, 0)
    if not of:
        return None
    value = right / of
    size = of * max(documents / len(counts), 1.0)
    left_out = 1 - len(counts) / documents if documents > len(counts) else float(not documents)
    alike = sum(m * m for _, m in pairs) / of  # the size of a line's document, on average
    effect = 1 + (alike - 1) * _CORRELATION
    if 0 < right < of:
        variance = sum((y - value * m) ** 2 for y, m in pairs) / of**2
        effect = max(effect, variance * of / (value * (1 - value)))
    low, high = _wilson(value, of / effect, left_out)
    return _Part(right, of, size, value, low, high)


def _wilson(value: float, number: float, left_out: float) -> tuple[float, float]:
    """The interval of a share of `number` draws; `left_out` is the share that was not drawn."""
    z = _Z * _Z * left_out / number
    middle = (value + z / 2) / (1 + z)
    half = math.sqrt(z * value * (1 - value) + z * z / 4) / (1 + z)
    return max(0.0, middle - half), min(1.0, middle + half)


def _total(parts: Sequence[_Part]) -> tuple[float, float, float]:
    """How many count in all strata together, with its interval."""
    value = sum(part.size * part.value for part in parts)
    below = math.hypot(*(part.size * (part.value - part.low) for part in parts))
    above = math.hypot(*(part.size * (part.high - part.value) for part in parts))
    return value, value - below, value + above


def _share(parts: Sequence[_Part]) -> Estimate:
    right, of, size = (
        sum(getattr(part, name) for part in parts) for name in ("right", "of", "size")
    )
    if not of:
        return Estimate(right=0, of=0, value=None)
    value, low, high = (total / size for total in _total(parts))
    return Estimate(right=right, of=of, value=value, low=low, high=high)


def _found(found: Sequence[_Part], missed: Sequence[_Part], *, is_all: bool) -> Estimate:
    """The share that was found of what was found or missed.

    `missed` are in other strata than `found`, whose shares are of all that there was to find if
    `is_all`, and else of anything that was found, rightly or not.
    """
    right, wrong = (sum(part.right for part in parts) for parts in (found, missed))
    of = wrong + (sum(part.of for part in found) if is_all else right)
    rest = sum(part.size for part in found) if is_all else 0.0
    (a, a_low, a_high), (b, b_low, b_high) = _total(found), _total(missed)
    whole = b + (rest if is_all else a)
    if not whole:
        return Estimate(right=0, of=0, value=None)

    def end(outside: float, a_end: float, b_end: float) -> float:
        """The share furthest from the value for which `a - share * whole` may still be 0."""
        inside = a / whole
        for _ in range(40):
            share = (inside + outside) / 2
            weight = 1.0 if is_all else 1 - share
            gap = abs(weight * a - share * (b + rest))
            if gap <= math.hypot(weight * (a - a_end), share * (b - b_end)):
                inside = share
            else:
                outside = share
        return inside

    low, high = end(0.0, a_low, b_high), end(1.0, a_high, b_low)
    return Estimate(right=right, of=of, value=a / whole, low=low, high=high)

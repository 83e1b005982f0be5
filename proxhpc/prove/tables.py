"""Tables of a verdict, for the page and for the terminal: rows of cells, the header first."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from proxhpc.evaluate.bootstrap import Score
from proxhpc.prove.model import HeldOutLosses, ProveVerdict, SetComparison
from proxhpc.report.text import power
from proxhpc.status.terminal import safe, short, whole

_KINDS = {"better": "kept", "worse": "dropped", "not shown": "in"}  # classes of the style sheet


class IntervalBar(NamedTuple):
    """A line of a drawing: an interval with its mean and single values, from 0 to 1 across."""

    label: str
    text: str
    low: float
    mean: float
    high: float
    points: tuple[float, ...]
    kind: str


def signed(value: float | None) -> str:
    """`+0.012`, or `-` without a value."""
    return "-" if value is None else f"{value:+.3f}"


def interval(score: Score) -> str:
    """`-0.027 (-0.041 to -0.013)`."""
    if score.low is None:
        return signed(score.value)
    return f"{signed(score.value)} ({signed(score.low)} to {signed(score.high)})"


def difference_table(verdict: ProveVerdict) -> list[list[str]]:
    """The differences of all arms on all held-out sets."""
    head = ["arm", "held-out set", "answer", "bits per byte", "p", "detectable", "× data"]
    rows = [[*head, "at equal FLOPs"]]
    controls = {each.name for each in verdict.held_out if each.is_control}
    for comparison in verdict.comparisons:
        for one in comparison.sets:
            name = f"{one.name} (control)" if one.name in controls else one.name
            rows.append([safe(comparison.arm), safe(name), *_cells(one)])
            factor = one.data_factor
            rows[-1] += ["-" if factor is None else f"{factor:.2f}", signed(one.at_equal_flops)]
    return rows


def _cells(one: SetComparison) -> list[str]:
    """ComparisonAnswer, difference, p value and detectable difference."""
    p_value, detectable = one.adjusted_p_value, one.detectable
    return [
        one.answer,
        interval(one.difference),
        "-" if p_value is None else f"{p_value:.3f}" if p_value >= 0.0005 else "< 0.001",
        "-" if detectable is None else f"{detectable:.3f}",
    ]


def task_table(verdict: ProveVerdict) -> list[list[str]]:
    """The scores of all arms in all tasks, and the differences in bits per byte."""
    rows = [["task", "arm", "bits per byte", "accuracy", "per character", "answer", "difference"]]
    compared = {(c.arm, one.name): one for c in verdict.comparisons for one in c.tasks}
    for task in verdict.tasks:
        for scores in task.scores:
            shares = (scores.accuracy, scores.accuracy_per_char)
            one = compared.get((scores.arm, task.name))
            rows.append([safe(task.name), safe(scores.arm), f"{scores.bits_per_byte:.3f}"])
            rows[-1] += ["-" if share is None else f"{100 * share:.1f} %" for share in shares]
            rows[-1] += ["", ""] if one is None else [one.answer, interval(one.difference)]
    return rows


def arm_table(verdict: ProveVerdict) -> list[list[str]]:
    """What the arms were trained on, and FLOPs."""
    head = ["arm", "documents", "their tokens", "tokens trained on", "epochs"]
    rows = [[*head, "training FLOPs", "refining FLOPs"]]
    for arm in verdict.arms:
        sizes = [whole(arm.documents), short(arm.pool_tokens), short(arm.tokens)]
        flops = [power(arm.training_flops), power(arm.refining_flops)]
        rows.append([safe(arm.name), *sizes, f"{arm.epochs:.2f}", *flops])
    return rows


def account_text(verdict: ProveVerdict) -> Iterator[str]:
    """What refining cost for each arm that was refined by models, and when it pays."""
    for comparison in verdict.comparisons:
        account = comparison.account
        if not account.refining_flops:
            continue
        text = (
            f"{safe(comparison.arm)}: refining took {power(account.refining_flops)} FLOPs, as many "
            f"as training this model on {short(account.refining_as_tokens)} more tokens"
        )
        if account.flops_per_raw_token is not None:
            ratio = account.flops_per_raw_token / account.paper_flops_per_raw_token
            text += (
                f"; that is {short(account.flops_per_raw_token)} for each raw token, "
                f"{ratio:.2g} times the ProX paper's {short(account.paper_flops_per_raw_token)}"
            )
        if account.break_even_parameters is None:
            yield f"{text}. It is not known from which size on it pays."
        else:
            yield (
                f"{text}. It pays for models of {short(account.break_even_parameters)} parameters "
                f"or more, which one trains on about {short(account.break_even_tokens)} tokens, if "
                "it is worth as much there."
            )


def difference_bars(verdict: ProveVerdict) -> tuple[list[IntervalBar], float]:
    """A bar for each arm and held-out set, and where 0 is."""
    found = [(c.arm, one) for c in verdict.comparisons for one in c.sets]
    ends = [
        v for _, one in found for v in (one.difference.low, one.difference.high) if v is not None
    ]
    ends += [value for _, one in found for value in one.by_seed]
    scale = _Scale([0.0, *ends])
    bars = [
        scale.bar(
            f"{safe(arm)}, {safe(one.name)}", signed(one.difference.value), one.difference
        )._replace(points=tuple(map(scale, one.by_seed)), kind=_KINDS[one.answer])
        for arm, one in found
    ]
    return bars, scale(0.0)


def loss_bars(held_out: HeldOutLosses) -> list[IntervalBar]:
    """A bar for each arm: the range of the seeds."""
    scale = _Scale([value for loss in held_out.losses for value in loss.by_seed])
    return [
        scale.bar(
            safe(loss.arm),
            f"{loss.mean:.3f}",
            Score(value=loss.mean, low=min(loss.by_seed), high=max(loss.by_seed)),
        )._replace(points=tuple(map(scale, loss.by_seed)))
        for loss in held_out.losses
    ]


class _Scale:
    """Maps values to 0 to 1 across a drawing."""

    def __init__(self, values: Sequence[float]) -> None:
        self._low, high = min(values), max(values)
        self._span = (high - self._low) or 1.0

    def __call__(self, value: float) -> float:
        return (value - self._low) / self._span

    def bar(self, label: str, text: str, score: Score) -> IntervalBar:
        value = score.value or 0.0
        low = value if score.low is None else score.low
        high = value if score.high is None else score.high
        return IntervalBar(label, text, self(low), self(value), self(high), (), "edited")

"""The answer about an arm in a sentence, and what limits the conclusion."""

from collections.abc import Sequence

from proxhpc.prove.model import (
    ArmComparison,
    ComparisonAnswer,
    HeldOutLosses,
    ProveArm,
    SetComparison,
)
from proxhpc.spec.prove import Prove

_MAX_EPOCHS = 4  # up to here, repeated text is about as good as new (Muennighoff et al. 2023)
_MIN_HOSTS = 20


def answer_sentence(arm: str, baseline: str, answer: ComparisonAnswer, main: SetComparison) -> str:
    """The answer with the main set's difference."""
    value, low, high = (main.difference.value or 0.0, main.difference.low, main.difference.high)
    if answer == "not shown":
        text = (
            f"It is not shown that models trained on {arm} text are better or worse than models "
            f"trained on {baseline} text: on {main.name}, the difference is {value:+.3f} bits per "
            "byte"
        )
        if low is not None and high is not None:
            text += f" (95 %: {low:+.3f} to {high:+.3f})"
        if main.detectable is not None:
            text += f"; one of {main.detectable:.3f} would probably have been found"
        return f"{text}."
    more = "fewer" if value < 0 else "more"
    text = (
        f"Models trained on {arm} text are {answer} than models trained on {baseline} text: on "
        f"{main.name}, they need {abs(value):.3f} bits per byte {more}"
    )
    if low is not None and high is not None:
        text += f" (95 %: {min(abs(low), abs(high)):.3f} to {max(abs(low), abs(high)):.3f})"
    if answer == "better" and main.data_factor is not None:
        text += f", as with {main.data_factor:.1f} times the tokens of {baseline} text"
    return f"{text}."


def find_warnings(
    section: Prove,
    arms: Sequence[ProveArm],
    comparisons: Sequence[ArmComparison],
    held_out: Sequence[HeldOutLosses],
) -> list[str]:
    """What limits the conclusion, in sentences."""
    warnings = []
    if len(section.seeds) == 1:
        warnings.append(
            "One seed cannot show how much seeds differ, so there is no interval; use three."
        )
    warnings += [
        f"The text of {arm.name} was read {arm.epochs:.1f} times; after {_MAX_EPOCHS} times, "
        "repeated text teaches less than new text."
        for arm in arms
        if arm.epochs > _MAX_EPOCHS
    ]
    warnings += [
        f"The set {each.name} has documents of only {each.hosts} hosts."
        for each in held_out
        if each.hosts < _MIN_HOSTS
    ]
    controls = {each.name for each in held_out if each.is_control}
    warnings += [
        f"{one.arm} is better on the control set {result.name}, too, so cleaner text may not be "
        "the reason."
        for one in comparisons
        for result in one.sets
        if result.name in controls and result.answer == "better"
    ]
    for one in comparisons:
        answers = {result.answer for result in one.sets if result.name not in controls}
        if {"better", "worse"} <= answers:
            warnings.append(f"{one.arm} is better on some held-out sets and worse on others.")
    return warnings

"""Arms compared with the baseline: from the files of a prove directory to the verdict's parts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from proxhpc.evaluate.bootstrap import Score
from proxhpc.prove.layout import ArmReceipt, TrainingReceipt
from proxhpc.prove.model import (
    ArmComparison,
    ArmLoss,
    ComparisonAccount,
    ComparisonAnswer,
    CurvePoint,
    HeldOutLosses,
    ProveArm,
    SetComparison,
    TaskResult,
    TaskScores,
)
from proxhpc.prove.sentences import answer_sentence
from proxhpc.prove.statistics import Effect, LearningCurve, holm, paired_effects, trimmed_mean
from proxhpc.spec.prove import HeldOut, Prove

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

SIGNIFICANCE = 0.05
PAPER_FLOPS_PER_TOKEN = 5e19 / 60e9  # refining with the ProX paper's two models of 0.35B parameters
TOKENS_PER_PARAMETER = 20  # of compute-optimal training (Hoffmann et al. 2022)


@dataclass(frozen=True, slots=True)
class Measurements:
    """What was measured: files of a prove directory, read.

    `losses` have the rows of LOSS_FIELDS by arm, seed, set and step, which is None for the final
    weights; `tasks` those of TASK_FIELDS by arm, seed and task.
    """

    section: Prove
    arms: Mapping[str, ArmReceipt]  # the baseline first
    trainings: Mapping[tuple[str, int], TrainingReceipt]
    hosts: Mapping[str, Sequence[str]]  # of the documents, by set
    losses: "Mapping[tuple[str, int, str, int | None], NDArray[np.void]]"
    tasks: "Mapping[tuple[str, int, str], NDArray[np.void]]"

    @property
    def baseline(self) -> str:
        """The arm that the others are compared with."""
        return self.section.baseline.name

    def final(self, arm: str) -> TrainingReceipt:
        """The first seed's training of an arm; steps, tokens and FLOPs are those of all."""
        return self.trainings[arm, self.section.seeds[0]]

    def bits_per_byte(self, arm: str, held_out: str, step: int | None = None) -> "Values":
        """Bits per byte of each document (seeds, documents)."""
        import numpy as np

        rows = [self.losses[arm, seed, held_out, step] for seed in self.section.seeds]
        return np.stack([row["bits"] / row["bytes"] for row in rows])

    def task_names(self) -> list[str]:
        """The names of the tasks, sorted."""
        return sorted({task for _, _, task in self.tasks})

    def gold_bits_per_byte(self, arm: str, task: str) -> "Values":
        """Bits per byte of each gold answer (seeds, questions)."""
        import numpy as np

        rows = [self.tasks[arm, seed, task] for seed in self.section.seeds]
        return np.stack([row["gold_bits"] / row["gold_bytes"] for row in rows])

    def refining_flops(self, arm: str) -> int:
        """FLOPs of refining an arm's text, for the share of its output that was used."""
        receipt = self.arms[arm]
        used = min(self.final(arm).tokens, receipt.tokens)
        return receipt.refining_flops * used // receipt.tokens


def describe_arm(measured: Measurements, arm: str) -> ProveArm:
    """An arm and its trainings."""
    receipt, final = measured.arms[arm], measured.final(arm)
    return ProveArm(
        name=arm,
        documents=receipt.documents,
        pool_tokens=receipt.tokens,
        tokens=final.tokens,
        epochs=max(measured.trainings[arm, seed].epochs for seed in measured.section.seeds),
        training_flops=final.flops,
        refining_flops=measured.refining_flops(arm),
    )


def held_out_losses(measured: Measurements, held_out: HeldOut) -> HeldOutLosses:
    """Losses by arm on a held-out set."""
    losses = []
    for arm in measured.arms:
        by_seed = [trimmed_mean(row) for row in measured.bits_per_byte(arm, held_out.name)]
        mean = math.fsum(by_seed) / len(by_seed)
        losses.append(ArmLoss(arm=arm, mean=mean, by_seed=tuple(by_seed)))
    curve = _learning_curve(measured, held_out.name)
    rows = measured.losses[measured.baseline, measured.section.seeds[0], held_out.name, None]
    hosts = measured.hosts[held_out.name]
    return HeldOutLosses(
        name=held_out.name,
        is_control=held_out.control,
        documents=len(hosts),
        hosts=len(set(hosts) - {""}) + sum(host == "" for host in hosts),
        text_bytes=int(rows["bytes"].sum()),
        losses=tuple(losses),
        curve=tuple(
            CurvePoint(tokens=tokens, loss=losses[0].mean + change)
            for tokens, change in zip(curve.tokens, curve.losses, strict=True)
        )
        if curve
        else (),
    )


def _learning_curve(measured: Measurements, held_out: str) -> LearningCurve | None:
    """The baseline's losses at its milestones less the final one; None without milestones.

    It is cautious where the learning rate decays, since then loss falls faster than it would with
    more text.
    """
    final = measured.final(measured.baseline)
    at_end = measured.bits_per_byte(measured.baseline, held_out)
    points = {final.tokens: 0.0}
    for milestone in final.milestones:
        before = measured.bits_per_byte(measured.baseline, held_out, milestone.step)
        changes = [trimmed_mean(row) for row in before - at_end]
        points[milestone.tokens] = math.fsum(changes) / len(changes)
    points[final.tokens] = 0.0
    tokens = tuple(sorted(points))
    return LearningCurve(tokens, tuple(points[one] for one in tokens)) if len(tokens) > 1 else None


def compare_arms(measured: Measurements) -> list[ArmComparison]:
    """The other arms against the baseline, on all held-out sets and tasks."""
    of_sets = [
        _effects(measured, partial(measured.bits_per_byte, held_out=each.name), each.name)
        for each in measured.section.held_out
    ]
    of_tasks = {
        task: _effects(measured, partial(measured.gold_bits_per_byte, task=task))
        for task in measured.task_names()
    }
    return [
        _compare_arm(
            measured,
            arm,
            [effects[arm] for effects in of_sets],
            {task: effects[arm] for task, effects in of_tasks.items()},
        )
        for arm in measured.arms
        if arm != measured.baseline
    ]


def _effects(
    measured: Measurements, values: "Callable[[str], Values]", held_out: str = ""
) -> dict[str, Effect]:
    """The effect of each arm but the baseline on what `values` returns for an arm."""
    import numpy as np

    arms = [arm for arm in measured.arms if arm != measured.baseline]
    base = values(measured.baseline)
    differences = np.stack([values(arm) - base for arm in arms])
    hosts = measured.hosts[held_out] if held_out else ()
    return dict(zip(arms, paired_effects(differences, hosts), strict=True))


def _compare_arm(
    measured: Measurements, arm: str, effects: Sequence[Effect], tasks: Mapping[str, Effect]
) -> ArmComparison:
    sets = measured.section.held_out
    adjusted = iter(
        _adjusted([e for e, each in zip(effects, sets, strict=True) if not each.control])
    )
    compared = []
    for each, effect in zip(sets, effects, strict=True):
        p_value = effect.p_value if each.control else next(adjusted)
        result = _comparison(each.name, effect, p_value)
        compared.append(result.model_copy(update=_worth(measured, arm, each.name, effect.mean)))
    relevant = [one for one, each in zip(compared, sets, strict=True) if not each.control]
    shown = {one.answer for one in relevant} - {"not shown"}
    answer = shown.pop() if len(shown) == 1 else "not shown"
    main = next((one for one in relevant if one.answer == answer), relevant[0])
    return ArmComparison(
        arm=arm,
        answer=answer,
        sentence=answer_sentence(arm, measured.baseline, answer, main),
        main_set=main.name,
        sets=tuple(compared),
        tasks=tuple(
            _comparison(*each)
            for each in zip(tasks, tasks.values(), _adjusted(list(tasks.values())), strict=True)
        ),
        account=_account(measured, arm, main.data_factor if answer == "better" else None),
    )


def _adjusted(effects: Sequence[Effect]) -> list[float | None]:
    known = [effect.p_value for effect in effects if effect.p_value is not None]
    return [*holm(known)] if len(known) == len(effects) else [None] * len(effects)


def _comparison(name: str, effect: Effect, p_value: float | None) -> SetComparison:
    answer: ComparisonAnswer = "not shown"
    if p_value is not None and p_value < SIGNIFICANCE:
        answer = "better" if effect.mean < 0 else "worse"
    low, high = effect.interval or (None, None)
    return SetComparison(
        name=name,
        answer=answer,
        difference=Score(value=effect.mean, low=low, high=high),
        by_seed=effect.by_seed,
        p_value=effect.p_value,
        adjusted_p_value=p_value,
        detectable=effect.detectable,
    )


def _worth(measured: Measurements, arm: str, held_out: str, mean: float) -> dict[str, Any]:
    """Keys of a comparison that follow from the baseline's learning curve."""
    curve = _learning_curve(measured, held_out)
    if curve is None:
        return {}
    final, base = measured.final(arm), measured.final(measured.baseline)
    tokens = curve.tokens_at(mean)
    refining = [measured.refining_flops(name) for name in (arm, measured.baseline)]
    change = None
    if base.flops:
        total = final.flops + refining[0] - refining[1]
        change = curve.loss_at(base.tokens * total / base.flops)
    return {
        "data_factor": None if tokens is None else tokens / final.tokens,
        "at_equal_flops": None if change is None else mean - change,
    }


def _account(measured: Measurements, arm: str, data_factor: float | None) -> ComparisonAccount:
    refining, final = measured.refining_flops(arm), measured.final(arm)
    parameters = None
    if refining and data_factor is not None and data_factor > 1:
        parameters = math.ceil(refining / (6 * (data_factor - 1) * final.tokens))
    base, receipt = measured.arms[measured.baseline], measured.arms[arm]
    raw_tokens = receipt.raw_bytes * base.tokens / base.bytes
    is_known = receipt.refining_flops and raw_tokens
    return ComparisonAccount(
        refining_flops=refining,
        refining_as_tokens=refining * final.tokens // final.flops if final.flops else 0,
        flops_per_raw_token=receipt.refining_flops / raw_tokens if is_known else None,
        paper_flops_per_raw_token=PAPER_FLOPS_PER_TOKEN,
        break_even_parameters=parameters,
        break_even_tokens=None if parameters is None else TOKENS_PER_PARAMETER * parameters,
    )


def task_result(measured: Measurements, task: str) -> TaskResult:
    """The scores of all arms in a task."""
    scores = []
    for arm in measured.arms:
        rows = [measured.tasks[arm, seed, task] for seed in measured.section.seeds]
        means = [trimmed_mean(row) for row in measured.gold_bits_per_byte(arm, task)]
        has_choices = bool((rows[0]["choices"] > 1).all())
        accuracy, per_char = (
            math.fsum(float(row[name].mean()) for row in rows) / len(rows)
            for name in ("right", "right_per_char")
        )
        scores.append(
            TaskScores(
                arm=arm,
                bits_per_byte=math.fsum(means) / len(means),
                accuracy=accuracy if has_choices else None,
                accuracy_per_char=per_char if has_choices else None,
            )
        )
    return TaskResult(name=task, questions=len(rows[0]), scores=tuple(scores))

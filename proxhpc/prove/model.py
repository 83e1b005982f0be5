"""The typed document verdict.json."""

from typing import Literal

from proxhpc.evaluate.bootstrap import Score
from proxhpc.outputs import OutputModel

ComparisonAnswer = Literal["better", "worse", "not shown"]


class ArmLoss(OutputModel):
    """The loss of an arm's models on a held-out set."""

    arm: str
    """Name of the arm."""
    mean: float
    """Bits per byte: the mean of the seeds' trimmed means over the documents."""
    by_seed: tuple[float, ...]
    """The trimmed mean for each seed."""


class CurvePoint(OutputModel):
    """The loss of the baseline after some tokens."""

    tokens: int
    """Tokens trained on."""
    loss: float
    """Bits per byte."""


class HeldOutLosses(OutputModel):
    """A held-out set and the losses on it."""

    name: str
    """Name of the set."""
    is_control: bool
    """Whether a better corpus should not help on it."""
    documents: int
    """Documents."""
    hosts: int
    """Hosts of the documents; a document without a host counts as one."""
    text_bytes: int
    """UTF-8 bytes of the texts."""
    losses: tuple[ArmLoss, ...]
    """Losses by arm, the baseline first."""
    curve: tuple[CurvePoint, ...]
    """The learning curve of the baseline, up to its last token; empty without milestones."""


class SetComparison(OutputModel):
    """An arm and the baseline on a held-out set or on the gold answers of a task."""

    name: str
    """Name of the set or task."""
    answer: ComparisonAnswer
    """Whether the arm is better, by the adjusted p value."""
    difference: Score
    """Bits per byte of the arm less those of the baseline, with the 95 % interval for other seeds
    and other hosts; below 0 the arm is better."""
    by_seed: tuple[float, ...]
    """The difference for each seed."""
    p_value: float | None
    """Probability of a difference at least as large if there were none; null with one seed."""
    adjusted_p_value: float | None
    """The p value adjusted for the number of sets or tasks (Holm); a control set's is not."""
    detectable: float | None
    """The smallest true difference that such an experiment finds 8 times out of 10."""
    data_factor: float | None = None
    """How many times the arm's tokens the baseline needs for the same loss, by its learning curve;
    null for tasks, and where that is out of the curve's reach."""
    at_equal_flops: float | None = None
    """The difference if the baseline were trained with the FLOPs that refining took, too; null
    where that is out of the curve's reach."""


class ComparisonAccount(OutputModel):
    """What refining an arm's text cost, and when it pays."""

    refining_flops: int
    """FLOPs of refining, for the share of its output that was used."""
    refining_as_tokens: int
    """Training tokens of this model that cost as much."""
    flops_per_raw_token: float | None
    """FLOPs of refining per raw token; null if nothing was refined."""
    paper_flops_per_raw_token: float
    """The same in the ProX paper: 5e19 FLOPs for 60B tokens."""
    break_even_parameters: int | None
    """The model size from which refining costs less than the training that it saves, if the data
    factor is the same at all sizes; null if nothing was refined by a model, if the arm is not
    better, and if the data factor is unknown."""
    break_even_tokens: int | None
    """The tokens from which it pays: 20 per parameter of such a model."""


class TaskScores(OutputModel):
    """The scores of an arm's models in a task, as means of the seeds."""

    arm: str
    """Name of the arm."""
    bits_per_byte: float
    """Bits per byte of the gold answers: the trimmed mean over the questions."""
    accuracy: float | None
    """Share of the questions whose gold answer is the most probable; null without choices."""
    accuracy_per_char: float | None
    """The same by probability per character, which is lm-eval's `acc_norm`."""


class TaskResult(OutputModel):
    """A task and the scores in it."""

    name: str
    """Name of the task."""
    questions: int
    """Questions."""
    scores: tuple[TaskScores, ...]
    """Scores by arm, the baseline first."""


class ProveArm(OutputModel):
    """An arm and its trainings."""

    name: str
    """Name of the arm."""
    documents: int
    """Documents to train on."""
    pool_tokens: int
    """Their tokens."""
    tokens: int
    """Tokens that each model was trained on."""
    epochs: float
    """How often the documents were read, at most."""
    training_flops: int
    """FLOPs of one training."""
    refining_flops: int
    """FLOPs of refining, for the share of its output that was used."""


class ArmComparison(OutputModel):
    """An arm compared with the baseline."""

    arm: str
    """Name of the arm."""
    answer: ComparisonAnswer
    """`better` if it is better on a held-out set and worse on none, `worse` if the reverse."""
    sentence: str
    """The answer with the main set's difference."""
    main_set: str
    """The held-out set that the sentence is about."""
    sets: tuple[SetComparison, ...]
    """By held-out set."""
    tasks: tuple[SetComparison, ...]
    """By task: bits per byte of the gold answers."""
    account: ComparisonAccount
    """Costs."""


class ProveVerdict(OutputModel):
    """The result of `proxhpc prove`."""

    format: Literal["proxhpc.prove/1"] = "proxhpc.prove/1"
    """Kind and version of this document."""
    name: str
    """Name of the manifest."""
    sentence: str
    """That of the main arm's comparison."""
    main_arm: str
    """The arm that the sentence is about: the first one with the refined corpus."""
    baseline: str
    """The arm that the others are compared with."""
    parameters: int
    """Weights of a trained model."""
    context: int
    """Tokens of a training sequence."""
    equal: Literal["tokens", "flops", "pool"]
    """What is equal in all arms."""
    seeds: tuple[int, ...]
    """The seeds."""
    arms: tuple[ProveArm, ...]
    """The arms, the baseline first."""
    comparisons: tuple[ArmComparison, ...]
    """The other arms against the baseline."""
    held_out: tuple[HeldOutLosses, ...]
    """Losses by held-out set."""
    tasks: tuple[TaskResult, ...]
    """Scores by task."""
    warnings: tuple[str, ...]
    """What limits the conclusion."""

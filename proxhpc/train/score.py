"""How well a refiner does on the validation split of its examples, while it is taught.

The text wanted is what the examples' programs make, not a gold text of its own: these scores
choose among checkpoints. `proxhpc evaluate` judges refiners.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from proxhpc.annotate.examples import DROPPED
from proxhpc.evaluate.metrics import token_f1
from proxhpc.evaluate.ranking import auc
from proxhpc.program.edits import read_window
from proxhpc.program.execute import apply, execute
from proxhpc.program.policy import Policy
from proxhpc.program.replay import Emitted, doc_verdict
from proxhpc.program.syntax import FIRST_LINE
from proxhpc.train.rows import ExampleRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

ValidationScores = dict[str, float]
"""By name; `f1` is what checkpoints are chosen by."""
_POLICY = Policy()
BIASES = (0.0, 0.25, -0.25, 0.5, -0.5, -0.75, -1.0, -1.5, -2.0)
VERDICT_BIASES = (0.0, *(sign * quarter / 4 for quarter in range(1, 9) for sign in (-1, 1)))
ENOUGH = 30  # verdicts to choose a bias by


@dataclass(frozen=True, slots=True)
class Decision:
    """Lines of a document: whether each is to go, and the log-odds that the refiner drops it."""

    lines: list[str]
    wanted: "NDArray[np.bool_]"
    margin: "NDArray[np.float32]"


def best_bias(decisions: Sequence[Decision]) -> ValidationScores:
    """The scores at the bias nearest to 0 of those that are about as good as the best one.

    That is: whose mean token F1 of documents is less than a standard error lower.
    """
    found = [line_scores(decisions, bias) for bias in BIASES]
    best = max(found, key=lambda scores: scores["f1"])
    return next(s for s in found if s["f1"] >= best["f1"] - best["f1_error"])


def line_scores(decisions: Sequence[Decision], bias: float) -> ValidationScores:
    """Mean token F1 of documents and its standard error, precision and recall of dropped lines."""
    f1: list[float] = []
    right = dropped = wanted = 0
    for one in decisions:
        drop = one.margin + bias > 0
        f1.append(token_f1(_text(one.lines, drop), _text(one.lines, one.wanted)))
        right += int((drop & one.wanted).sum())
        dropped += int(drop.sum())
        wanted += int(one.wanted.sum())
    return {
        "f1": float(np.mean(f1)),
        "f1_error": float(np.std(f1) / len(f1) ** 0.5),
        "line_precision": right / max(1, dropped),
        "line_recall": right / max(1, wanted),
        "bias": bias,
        "documents": len(decisions),
    }


def verdict_scores(wanted: Sequence[bool], margin: "NDArray[np.float32]") -> ValidationScores:
    """Accuracy and AUC of verdicts: whether each document is to go, the log-odds that it does.

    The accuracy is that at the bias nearest to 0 of those that are as good as the best one but for
    a standard error; 0 for a few verdicts.
    """

    def accuracy(bias: float) -> float:
        return float(((margin + bias > 0) == np.array(wanted)).mean())

    bias = 0.0
    if len(wanted) >= ENOUGH:
        best = max(map(accuracy, VERDICT_BIASES))
        least = best - (best * (1 - best) / len(wanted)) ** 0.5
        bias = next(bias for bias in VERDICT_BIASES if accuracy(bias) >= least)
    scores = {"verdict_accuracy": accuracy(bias), "verdict_bias": bias}
    scores["verdicts"] = float(len(wanted))
    area = auc(wanted, margin.tolist())
    return scores if area is None else scores | {"verdict_auc": area}


def program_scores(rows: Sequence[ExampleRow], written: Sequence[str]) -> ValidationScores:
    """Scores of programs written for examples, each beside the example's own.

    `f1` is the mean token F1 of the texts they make; a verdict counts 1 where it is right.
    """
    valid = 0
    f1: list[float] = []
    right: list[bool] = []
    for row, program in zip(rows, written, strict=True):
        if row.level == "doc":
            found = doc_verdict(Emitted(program, "stop"), _POLICY)
            valid += not found.rejected
            right.append(found.action == doc_verdict(Emitted(row.program, "stop"), _POLICY).action)
        else:
            made, sound = _made(row, program)
            valid += sound
            f1.append(token_f1(made, _made(row, row.program)[0]))
    scores = {"valid": valid / max(1, len(rows)), "examples": float(len(rows))}
    if f1:
        scores["line_f1"] = sum(f1) / len(f1)
    if right:
        scores["verdict_accuracy"] = sum(right) / len(right)
    scores["f1"] = sum([*f1, *right]) / max(1, len(rows))
    return scores


def well_formed(row: ExampleRow) -> bool:
    """Whether a window's program, in the dialect prox, removes the lines that are marked so."""
    window = read_window(row.program, "prox", "stop", 0, len(row.lines), FIRST_LINE["prox"])
    gone = {line for start, stop in window.removed for line in range(start, stop)}
    wanted = gone if row.marks is None else {n for n, m in enumerate(row.marks) if m == DROPPED}
    return not window.rejected and not window.cut and gone == wanted


def _made(row: ExampleRow, program: str) -> tuple[str, bool]:
    """What a program makes of a window, and whether all of it is well formed and inside."""
    text, total = "\n".join(row.lines), len(row.lines)
    window = read_window(program, "prox", "stop", 0, total, FIRST_LINE["prox"])
    sound = not window.rejected and not window.cut
    return apply(text, execute(text, total, [window], _POLICY)), sound


def _text(lines: Sequence[str], drop: "NDArray[np.bool_]") -> str:
    return "\n".join(line for line, gone in zip(lines, drop, strict=True) if not gone)

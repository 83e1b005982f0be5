"""Validation scores of a refiner in training; they choose among its checkpoints.

Texts are compared with what the examples' own programs make, not with gold texts. To compare
refiners, use `proxhpc evaluate`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np

from proxhpc.annotate.examples import DROPPED, EDITED_WITHIN
from proxhpc.evaluate.bootstrap import auc
from proxhpc.evaluate.metrics import f1, token_f1
from proxhpc.program.edits import WindowEdits, WindowLines, read_window
from proxhpc.program.execute import apply_changes, execute
from proxhpc.program.lines import line_starts
from proxhpc.program.policy import Policy
from proxhpc.program.replay import ModelOutput, doc_verdict
from proxhpc.program.syntax import FIRST_LINE
from proxhpc.train.rows import ExampleRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

ValidationScores = dict[str, float]
"""Scores by name; the checkpoint with the highest `f1` is the best."""
_POLICY = Policy()
BIASES = (0.0, 0.25, -0.25, 0.5, -0.5, -0.75, -1.0, -1.5, -2.0)  # the smallest first
VERDICT_BIASES = (0.0, *(sign * quarter / 4 for quarter in range(1, 9) for sign in (-1, 1)))
MIN_VERDICTS = 30  # with fewer, the bias stays 0


@dataclass(frozen=True, slots=True)
class LineDecisions:
    """A document's lines: which are to be dropped, and the model's log-odds of dropping each."""

    lines: list[str]
    dropped: "NDArray[np.bool_]"
    log_odds: "NDArray[np.float32]"


def best_bias(documents: Sequence[LineDecisions]) -> ValidationScores:
    """The scores at the smallest bias whose mean F1 is within one standard error of the best."""
    candidates = [line_scores(documents, bias) for bias in BIASES]
    best = max(candidates, key=lambda scores: scores["f1"])
    min_f1 = best["f1"] - best["f1_error"]
    return next(scores for scores in candidates if scores["f1"] >= min_f1)


def line_scores(documents: Sequence[LineDecisions], bias: float) -> ValidationScores:
    """Mean token F1 of documents with its standard error; precision and recall of dropped lines."""
    token_f1s: list[float] = []
    correct = predicted = expected = 0
    for document in documents:
        drop = document.log_odds + bias > 0
        text, expected_text = (
            "\n".join(compress(document.lines, ~dropped)) for dropped in (drop, document.dropped)
        )
        token_f1s.append(token_f1(text, expected_text))
        correct += int((drop & document.dropped).sum())
        predicted += int(drop.sum())
        expected += int(document.dropped.sum())
    return {
        "f1": float(np.mean(token_f1s)),
        "f1_error": float(np.std(token_f1s) / len(token_f1s) ** 0.5),
        "line_precision": correct / max(1, predicted),
        "line_recall": correct / max(1, expected),
        "removed_line_f1": f1(correct, predicted, expected),
        "bias": bias,
        "documents": len(documents),
    }


def verdict_scores(dropped: Sequence[bool], log_odds: "NDArray[np.float32]") -> ValidationScores:
    """Accuracy and AUC of verdicts, given which documents are to be dropped.

    The accuracy is that of the smallest bias within one standard error of the best.
    """

    def accuracy(bias: float) -> float:
        return float(((log_odds + bias > 0) == np.array(dropped)).mean())

    bias = 0.0
    if len(dropped) >= MIN_VERDICTS:
        best = max(map(accuracy, VERDICT_BIASES))
        min_accuracy = best - (best * (1 - best) / len(dropped)) ** 0.5
        bias = next(bias for bias in VERDICT_BIASES if accuracy(bias) >= min_accuracy)
    scores = {"verdict_accuracy": accuracy(bias), "verdict_bias": bias}
    scores["verdicts"] = float(len(dropped))
    scores["doc_f1"] = _kept_f1(~np.array(dropped), log_odds + bias <= 0)
    area = auc(dropped, log_odds.tolist())
    return scores if area is None else scores | {"verdict_auc": area}


def program_scores(rows: Sequence[ExampleRow], programs: Sequence[str]) -> ValidationScores:
    """Scores of a model's programs, compared with the examples' own.

    `f1` is the mean over all: token F1 for windows, 1 or 0 for verdicts. `removed_line_f1` and
    `doc_f1` are those of the ProX paper: of the sets of removed lines, and of documents to keep.
    """
    valid = 0
    token_f1s: list[float] = []
    kept: list[tuple[bool, bool]] = []  # expected and predicted
    lines = np.zeros(3, int)  # removed: correctly, in all, expected
    for row, program in zip(rows, programs, strict=True):
        if row.level == "doc":
            verdict = doc_verdict(ModelOutput(program, "stop"), _POLICY)
            expected = doc_verdict(ModelOutput(row.program, "stop"), _POLICY)
            valid += not verdict.rejected
            kept.append((expected.action != "drop", verdict.action != "drop"))
        else:
            text, is_valid = _execute(row, program)
            valid += is_valid
            token_f1s.append(token_f1(text, _execute(row, row.program)[0]))
            removed, right = _removed(row, program), _removed(row, row.program)
            lines += (len(removed & right), len(removed), len(right))
    correct = [expected == predicted for expected, predicted in kept]
    scores = {"valid": valid / max(1, len(rows)), "examples": float(len(rows))}
    if token_f1s:
        scores["line_f1"] = sum(token_f1s) / len(token_f1s)
        scores["removed_line_f1"] = f1(*map(int, lines))
    if kept:
        scores["verdict_accuracy"] = sum(correct) / len(correct)
        scores["doc_f1"] = _kept_f1(*np.array(kept).T)
    scores["f1"] = sum([*token_f1s, *correct]) / max(1, len(rows))
    return scores


def _kept_f1(expected: "NDArray[np.bool_]", predicted: "NDArray[np.bool_]") -> float:
    """F1 of the documents to keep."""
    return f1(int((expected & predicted).sum()), int(predicted.sum()), int(expected.sum()))


def _removed(row: ExampleRow, program: str) -> set[int]:
    """The lines that a program removes from a window."""
    window, _ = _read(row, program)
    return {line for start, stop in window.removed for line in range(start, stop)}


def matches_labels(row: ExampleRow) -> bool:
    """Whether a window's program is valid in the dialect prox and removes the lines labelled so.

    A program that edits strings may remove another one of two equal lines.
    """
    _, is_valid = _read(row, row.program)
    labels = row.line_labels
    if labels is None or EDITED_WITHIN in labels:
        return is_valid
    return is_valid and _removed(row, row.program) == {
        n for n, label in enumerate(labels) if label == DROPPED
    }


def _read(row: ExampleRow, program: str) -> tuple[WindowEdits, bool]:
    """The edits of a program for a window, and whether all of the program is valid."""
    lines = WindowLines(0, len(row.lines), FIRST_LINE["prox"], (0, len(row.lines)))
    window = read_window(program, "prox", "stop", lines)
    return window, not window.rejected and not window.truncated


def _execute(row: ExampleRow, program: str) -> tuple[str, bool]:
    """The text that a program makes of a window, and whether all of the program is valid."""
    window, is_valid = _read(row, program)
    text = "\n".join(row.lines)
    return apply_changes(text, execute(text, line_starts(text), [window], _POLICY)), is_valid

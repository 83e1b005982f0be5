"""Multiple-choice tasks from local request files: how well a model finds the gold answer.

Files are JSON lines as OLMES writes them (`requests.jsonl.gz`), a line for each choice, or as
lm-eval writes them with `--log_samples`, a line for each question.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from proxhpc.errors import UserError
from proxhpc.evaluate.gold import iter_objects

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from proxhpc.prove.heldout import TextScorer

_UNCONDITIONAL = 1_000_000  # OLMES: from this doc_id on, contexts are "Answer:" without a question
TASK_FIELDS = [
    ("gold_bits", "<f8"),
    ("gold_bytes", "<i8"),
    ("choices", "<i8"),
    ("right", "<i8"),
    ("right_per_char", "<i8"),
]
"""numpy's dtype of a question's scores; the last two are 1 if the gold choice is the best one."""


class Question(NamedTuple):
    """A context and a continuation for each choice; `gold` is the number of the right one."""

    choices: tuple[tuple[str, str], ...]
    gold: int


def task_name(path: Path) -> str:
    """The name of a task: that of its file, or of two folders above a `requests.jsonl`."""
    name = path.name.partition(".")[0]
    if name == "requests":
        name = ".".join(path.parent.parts[-2:])
    return re.sub(r"[^A-Za-z0-9._]", "_", name).strip("._") or "task"


def read_questions(path: Path) -> list[Question]:
    """The questions of a request file. UserError names the first line that is not a request."""
    choices: dict[object, list[tuple[str, str]]] = {}
    gold: dict[object, int] = {}
    for location, row in iter_objects(path):
        try:
            if "arguments" in row:
                key, pairs = row["doc_id"], list(_sample_choices(row["arguments"]))
            elif row["doc_id"] >= _UNCONDITIONAL:
                continue
            else:
                key, pairs = row["doc_id"], [_pair(row["request"])]
            choices.setdefault(key, []).extend(pairs)
            gold[key] = _gold(row["target"] if "arguments" in row else row["label"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(
                f"{location}: not a request of a multiple-choice task: {error!r}",
                hint="give `requests.jsonl.gz` of OLMES, or samples that lm-eval logged",
            ) from None
    for key, pairs in choices.items():
        if not 0 <= gold[key] < len(pairs):
            raise UserError(f"{path}: question {key!r} has no choice number {gold[key]}")
    if not choices:
        raise UserError(f"{path} has no question")
    return [Question(tuple(pairs), gold[key]) for key, pairs in choices.items()]


def _sample_choices(arguments: Any) -> Iterator[tuple[str, str]]:
    """Context and continuation of each choice: a list of pairs, or `gen_args_0: {arg_0, …}`."""
    for choice in arguments.values() if isinstance(arguments, dict) else arguments:
        context, continuation = choice.values() if isinstance(choice, dict) else choice
        yield _pair({"context": context, "continuation": continuation})


def _pair(request: Any) -> tuple[str, str]:
    context, continuation = request["context"], request["continuation"]
    if not (isinstance(context, str) and isinstance(continuation, str) and continuation):
        raise ValueError("context and continuation are texts")
    return context, continuation


def _gold(label: Any) -> int:
    """The number of the gold choice; a list of answers belongs to requests with only that one."""
    return 0 if isinstance(label, list) or label is None else int(label)


def score_questions(scorer: "TextScorer", questions: Iterable[Question]) -> "NDArray[np.void]":
    """A row of TASK_FIELDS for each question; per character as in lm-eval's `acc_norm`."""
    import numpy as np

    questions = list(questions)
    bits = scorer.score_continuations([pair for one in questions for pair in one.choices])
    rows, start = [], 0
    for choices, gold in questions:
        of_choices = bits[start : start + len(choices)]
        start += len(choices)
        # Without the space before the answer; of equally good choices, the first counts.
        lengths = [len(continuation.removeprefix(" ")) or 1 for _, continuation in choices]
        best, best_per_char = np.argmin(of_choices), np.argmin(of_choices / lengths)
        size = len(choices[gold][1].encode("utf-8", "surrogatepass"))
        rows.append((of_choices[gold], size, len(choices), best == gold, best_per_char == gold))
    return np.array(rows, TASK_FIELDS)

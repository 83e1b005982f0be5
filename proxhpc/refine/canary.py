"""The canary: stops a run whose model gives mostly answers that cannot be used.

Usually the prompt style or the dialect is wrong for the model, or its weights are damaged. That
shows within the first answers, before the run burns its allocation.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from proxhpc.account.quantity import quantity
from proxhpc.account.reasons import reason_text
from proxhpc.engines.base import NotANumberError, RequestError
from proxhpc.errors import StopError
from proxhpc.program.policy import AnyPolicy, Policy
from proxhpc.program.replay import ProgramFormat, doc_verdict, read_window_program
from proxhpc.run.ledger import Call
from proxhpc.run.models import short_name
from proxhpc.spec.sections import Level, Stage
from proxhpc.spec.yaml_lines import quoted

FIRST_ANSWERS = 256  # of each stage in a worker
MAX_DOCUMENTS_IN_A_ROW = 100
MAX_REFUSED_IN_A_ROW = 20  # documents: no text is the cause of so many refusals
MIN_REFUSED = 5  # answers that are worth stopping a small run for
UNUSABLE_FLAG = "unusable_answer"
REFUSAL_REASONS = (RequestError.reason, NotANumberError.reason)  # of quarantined documents
_EXAMPLES = 3
_HINT = (
    "are prompt, dialect and numbering of this stage those that the model was trained with? "
    "`proxhpc refine FILE --diff` shows its answers to a few documents. Fix the manifest and start "
    "a new run; if such answers are expected, set engine.max_unusable: 1.0 and launch again"
)


def why_unusable(stage: Stage, call: Call, policy: AnyPolicy, program_format: ProgramFormat) -> str:
    """Return the reason if no verdict or statement can be read from an answer, otherwise ""."""
    limits = policy if isinstance(policy, Policy) else Policy()
    if stage.level == "doc":
        return next(iter(doc_verdict(call.output, limits).rejected), "")
    if not call.program.strip():  # a walk that removes no line
        return "" if stage.prompt == "walk" else "no_program"
    edits = read_window_program(call.window, program_format, strict=limits.strict)
    edits.rejected.pop("other_window", None)
    if edits.statements > sum(edits.rejected.values()):
        return "rewrite" if edits.rewrites else ""
    return next(iter(edits.rejected), "truncated_call" if edits.truncated else "")


@dataclass(slots=True)
class StageAnswers:
    """A stage's answers so far: their number, the unusable ones by reason, and examples of these.

    `in_a_row` are the latest documents all of whose answers are unusable, and `refused_in_a_row`
    those of which every answer was refused or not a number.
    """

    stage: Stage
    answers: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    in_a_row: set[int] = field(default_factory=set)
    refused_in_a_row: set[int] = field(default_factory=set)

    @property
    def share(self) -> float | None:
        """The share of unusable answers; None without answers."""
        return self.unusable.total() / self.answers if self.answers else None

    def describe(self, when: str = "") -> str:
        """Return what is wrong, in a line, followed by the reasons and examples."""
        stage, prompt = self.stage, self.stage.prompt
        numbers = f"{self.unusable.total():,} of {quantity(self.answers, 'answer')}"
        model = quoted(short_name(stage.model or "the rules"))[1:-1]
        name = prompt if isinstance(prompt, str) else prompt.name
        reasons = [f"{reason_text(code)}: {n:,}" for code, n in self.unusable.most_common()]
        what = f"the {stage.level} stage cannot use {numbers} of {model} (prompt: {name}){when}"
        return "\n  ".join([what, "; ".join(reasons), *self.examples])


class Canary:
    """Counts the usable and unusable answers of each stage; StopError if too many are unusable.

    These are more than the share `max_unusable` of the first answers or, at any time, all answers
    to many documents in a row, or to fewer if the engine refuses them. With a share of 1 it never
    stops.
    """

    def __init__(self, stages: Sequence[Stage], max_unusable: float) -> None:
        self.max_unusable = max_unusable
        self.stages: dict[Level, StageAnswers] = {s.level: StageAnswers(s) for s in stages}
        self._error: StopError | None = None

    def add(self, level: Level, document: int, reason: str, answer: str) -> None:
        """Count an answer, unusable if there is a `reason`. StopError if that is one too many."""
        seen = self.stages[level]
        seen.answers += 1
        if reason not in REFUSAL_REASONS:
            seen.refused_in_a_row.clear()
        if not reason:
            seen.in_a_row.clear()
            return
        seen.unusable[reason] += 1
        example = f"{reason_text(reason)}: {quoted(answer, 160)}"
        if len(seen.examples) < _EXAMPLES and example not in seen.examples:
            seen.examples.append(example)
        if self.max_unusable >= 1:
            return
        seen.in_a_row.add(document)
        if reason in REFUSAL_REASONS:
            seen.refused_in_a_row.add(document)
        few = seen.answers <= FIRST_ANSWERS
        if few and seen.unusable.total() > self.max_unusable * FIRST_ANSWERS:
            self._error = self._error or StopError(seen.describe(), hint=_HINT)
        elif (
            len(seen.in_a_row) >= MAX_DOCUMENTS_IN_A_ROW
            or len(seen.refused_in_a_row) >= MAX_REFUSED_IN_A_ROW
        ):
            when = f", among them all answers to the last {len(seen.in_a_row)} documents"
            self._error = self._error or StopError(seen.describe(when), hint=_HINT)
        if self._error:  # many answers arrive at the same time: the error has the first counts
            raise self._error

    def check_refusals(self) -> None:
        """Raise StopError if the engine has refused most of the few answers of a small run."""
        for seen in self.stages.values():
            refused = sum(seen.unusable[reason] for reason in REFUSAL_REASONS)
            if refused >= MIN_REFUSED and refused > self.max_unusable * seen.answers:
                raise StopError(seen.describe(), hint=_HINT)

    def warnings(self) -> list[str]:
        """Return a text for each stage more than half of whose answers are unusable."""
        return [seen.describe() for seen in self.stages.values() if (seen.share or 0) > 0.5]

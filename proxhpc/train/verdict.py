"""Whether a trained refiner is worth using: compared with the rules and with the raw text."""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from proxhpc.account.quantity import quantity
from proxhpc.evaluate.bootstrap import Score
from proxhpc.evaluate.gold import read_gold
from proxhpc.evaluate.result import Evaluation, evaluate
from proxhpc.preview import RefinerChoice

Advice = Literal["use it", "use the rules", "keep the text as it is"]
METRIC = "token_f1"


@dataclass(frozen=True, slots=True)
class RefinerVerdict:
    """The advice, the evaluation that it follows from, and the reason in a sentence."""

    advice: Advice
    evaluation: Evaluation
    reason: str


def evaluate_refiner(model: Path, gold: Path, log: Callable[[str], None]) -> RefinerVerdict:
    """The verdict about a model directory, on the gold records of a file."""
    records = read_gold([gold])
    evaluation = evaluate([RefinerChoice(model=str(model)).open()], records, [gold], log=log)
    of_rules = evaluate([RefinerChoice().open()], records, [gold], log=log)
    over_raw, over_rules = _lead(evaluation, "keep all"), _lead(evaluation, "rules")
    rules_over_raw = _lead(of_rules, "keep all")
    reason = (
        f"on {quantity(len(records), 'page')} that it has not seen, its lead in token F1 is "
        f"{_interval(over_raw)} over the raw text and {_interval(over_rules)} over the rules, "
        f"whose lead over the raw text is {_interval(rules_over_raw)} (95 % intervals)"
    )
    return RefinerVerdict(choose(over_raw, over_rules, rules_over_raw), evaluation, reason)


def choose(over_raw: Score, over_rules: Score, rules_over_raw: Score) -> Advice:
    """The advice by three leads: a lead counts if all of its interval is above 0.

    The rules cost less than a model. So they win where both are better than the raw text and the
    model is not better than the rules.
    """
    if _counts(over_raw) and (_counts(over_rules) or not _counts(rules_over_raw)):
        return "use it"
    return "use the rules" if _counts(rules_over_raw) else "keep the text as it is"


def usage(verdict: RefinerVerdict, model: Path) -> str:
    """How to follow the advice, or to look at the model in spite of it."""
    trial = f"proxhpc refine --diff --model {shlex.quote(str(model))} PAGE.txt"
    longer = (
        "more pages may change the verdict, or a longer training: the same command with more "
        f"--minutes; to see what the model would do:\n  {trial}"
    )
    if verdict.advice == "keep the text as it is":
        return longer
    if verdict.advice == "use the rules":
        rules = (
            "try them:\n  proxhpc refine --diff PAGE.txt\nin a manifest:\n  engine: {name: rules}"
        )
        return f"{rules}\n{longer}"
    stage = f"  stages:\n    - level: chunk\n      model: {json.dumps(str(model.absolute()))}"
    return f"try it:\n  {trial}\nin a manifest:\n{stage}"


def _counts(lead: Score) -> bool:
    return lead.low is not None and lead.low > 0


def _lead(evaluation: Evaluation, name: str) -> Score:
    """The refiner's lead over a system on all records."""
    group = next(g for g in evaluation.groups if (g.level, g.name) == ("chunk", "all"))
    return next(system for system in group.systems if system.name == name).lead[METRIC]


def _interval(lead: Score) -> str:
    if lead.value is None or lead.low is None or lead.high is None:
        return "unknown"
    return f"{lead.value:+.3f} [{lead.low:+.3f}, {lead.high:+.3f}]"

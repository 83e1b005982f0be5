"""What to do next with a run: commands, chosen by its numbers."""

import shlex
from collections.abc import Iterator, Mapping
from typing import NamedTuple, get_args

from proxhpc.account.reasons import reason_text
from proxhpc.program.syntax import ParseReason
from proxhpc.report.model import AccountBase, Report
from proxhpc.report.text import remaining
from proxhpc.status.terminal import percentage
from proxhpc.status.totals import unusable_warning

_MAX_WARNINGS = 3
# Shares above which a number deserves a look: of documents, of statements, of answers.
MANY_DROPPED, MANY_LIMITED, MANY_QUARANTINED, MANY_DUPLICATES = 0.3, 0.05, 0.02, 0.3
MANY_UNEXECUTED = 0.1
MANY_UNFINISHED = 0.05
_LIMITS = ("removed_share", "emptied", "short", "error_budget")
_PROMPT = "the stage's prompt or dialect may not be the model's"


class NextStep(NamedTuple):
    """Why to run a command, and the command."""

    why: str
    command: str


def next_steps(report: AccountBase) -> list[NextStep]:
    """What the numbers suggest first, then what always makes sense."""
    run, corpus = (shlex.quote(path) for path in (report.execution.run, report.execution.corpus))
    inspect = f"proxhpc inspect {run} --sample 10"
    steps = [NextStep(f"{why}: look at some answers.", inspect) for why in _prompt_warnings(report)]
    if not isinstance(report, Report):
        resume = NextStep("See its progress, and how to resume it.", f"proxhpc status {run}")
        look = [NextStep("Look at some documents.", inspect)] if report.documents.read else []
        return [resume, *steps, *look]
    steps += [
        NextStep(f"{why}: look at some.", f"{inspect} --outcome {outcome}")
        for outcome, why in _document_warnings(report)
    ]
    limited = {reason: n for reason, n in report.documents.dropped.items() if reason in _LIMITS}
    if (number := sum(limited.values())) > MANY_LIMITED * report.documents.read:
        why = f"A limit of the policy dropped {_share(report, number)} ({_main(limited)})"
        variant = f"proxhpc merge {run} --out CORPUS --policy POLICY.yaml"
        steps.append(NextStep(f"{why}: try another policy, which needs no GPU.", variant))
    if not steps:
        outcome = "edited" if report.documents.edited else "dropped"
        steps = [NextStep(f"Look at some {outcome} documents.", f"{inspect} --outcome {outcome}")]
    why = "Mark edits as right or wrong to see the precision."
    steps[_MAX_WARNINGS:] = [NextStep(why, f"proxhpc review {run}")]
    if report.documents.written:
        why = f"Check every checksum, then publish {corpus}, which has a dataset card."
        steps.append(NextStep(why, f"proxhpc verify {run}"))
    evaluate = f"proxhpc evaluate {run}/review.jsonl --manifest {run}/manifest.yaml"
    why = "Score the refiner, and simple rules, on what you marked or other gold records."
    steps.append(NextStep(why, evaluate))
    return steps


def _document_warnings(report: Report) -> Iterator[tuple[str, str]]:
    """Outcomes that too many documents have."""
    documents = report.documents
    if (number := documents.dropped.get("doc_program", 0)) > MANY_DROPPED * documents.read:
        yield "dropped", f"The doc stage dropped {_share(report, number)}"
    if (number := sum(documents.quarantined.values())) > MANY_QUARANTINED * documents.read:
        main = _main(documents.quarantined)
        yield "quarantined", f"{_share(report, number)} could not be refined ({main})"
    if (number := documents.duplicates or 0) > MANY_DUPLICATES * documents.read:
        yield "duplicate", f"{_share(report, number)} are duplicates"
    if documents.read and remaining(report) == (documents.read, report.tokens.read):
        yield "kept", "Nothing was removed"


def _prompt_warnings(report: AccountBase) -> Iterator[str]:
    """Signs that the models are not asked as they were trained."""
    if warning := unusable_warning(report.documents, report.edits):
        yield f"A{warning.partition(':')[0][1:]}"
    programs = report.programs.values() if isinstance(report, Report) else ()
    rejected = report.edits.rejected
    calls = sum(sum(totals.calls.values()) for totals in programs)
    calls += sum(number for code, number in rejected.items() if code in get_args(ParseReason))
    if programs and (number := sum(rejected.values())) > MANY_UNEXECUTED * calls:
        part = percentage(number, max(calls, number))
        yield f"{part} of the statements were not executed ({_main(rejected)}); {_PROMPT}"
    answers = sum(sum(totals.finishes.values()) for totals in programs)
    number = answers - sum(totals.finishes.get("stop", 0) for totals in programs)
    if number > MANY_UNFINISHED * answers:
        part = percentage(number, answers)
        yield f"{part} of the answers have no end; max_new_tokens may be too small, or {_PROMPT}"


def _share(report: AccountBase, number: int) -> str:
    return f"{percentage(number, report.documents.read)} of the documents"


def _main(reasons: Mapping[str, int]) -> str:
    return f"mostly: {reason_text(max(reasons, key=lambda reason: reasons[reason]))}"

"""Turns a document and the programs that models wrote for it into its outcome.

A pure function: the worker that counts, the merge that writes and a person who inspects all get
the same answer from a ledger row, without a model.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Literal, NamedTuple

from proxhpc.errors import ShardError
from proxhpc.program import reference
from proxhpc.program.edits import Range, WindowEdits, read_window
from proxhpc.program.execute import UNSPACED, apply, execute
from proxhpc.program.parse import parse_doc
from proxhpc.program.policy import Action, AnyPolicy, Policy
from proxhpc.program.syntax import FIRST_LINE, Dialect, ProgramEnd, Verdict

Outcome = Literal["kept", "edited", "dropped", "quarantined"]


@dataclass(frozen=True, slots=True)
class Emitted:
    """What a model wrote for one request, and why it stopped."""

    program: str
    finish: ProgramEnd


@dataclass(frozen=True, slots=True)
class WindowProgram:
    """What a model wrote for the lines [start, stop) of a text split at newlines."""

    start: int
    stop: int
    emitted: Emitted


@dataclass(frozen=True, slots=True)
class Style:
    """How to read programs: their dialect, and whether lines count from the window's first."""

    dialect: Dialect = "prox"
    numbering: Literal["document", "window"] = "document"


@dataclass(frozen=True, slots=True)
class DocVerdict:
    """What a doc-level program comes to. `rejected` counts what was unclear in it, by reason."""

    action: Literal["keep", "drop"]
    reason: str = ""
    rejected: dict[str, int] = field(default_factory=dict)


class ReplayResult(NamedTuple):
    """What becomes of a document.

    `text` is empty when it was dropped or quarantined, for `reason`. `rejected` counts by reason
    the statements and windows that were not executed, and limits that kept the original.
    `removed` are the ranges [a, b) of lines that went.
    """

    status: Outcome
    text: str
    rejected: dict[str, int]
    reason: str = ""
    lines_removed: int = 0
    strings_replaced: int = 0
    removed: Sequence[Range] = ()


def doc_verdict(emitted: Emitted, policy: AnyPolicy) -> DocVerdict:
    """Whether a doc-level program keeps or drops; what is unclear keeps."""
    if policy == "reference":
        drop = reference.drops(emitted.program)
        return DocVerdict("drop", "doc_program") if drop else DocVerdict("keep")
    program = parse_doc(emitted.program, emitted.finish)
    verdicts = {s.drop for s in program.statements if isinstance(s, Verdict)}
    if len(verdicts) == 1 and not program.rejected:
        return DocVerdict("drop", "doc_program") if verdicts.pop() else DocVerdict("keep")
    rejected = Counter[str](item.reason for item in program.rejected)
    rejected["cut"] += program.cut
    rejected["unclear_verdict"] += 1
    return DocVerdict("keep", rejected=dict(+rejected))


def replay(
    text: str,
    doc: Emitted | None,
    windows: Sequence[WindowProgram],
    policy: AnyPolicy,
    style: Style,
) -> ReplayResult:
    """Apply a document's programs to it.

    ShardError: the windows are not ascending, disjoint ranges of the text's lines.
    """
    rejected: dict[str, int] = {}
    if doc is not None:
        verdict = doc_verdict(doc, policy)
        if verdict.action == "drop":
            return ReplayResult("dropped", "", {}, verdict.reason)
        rejected = dict(verdict.rejected)
    if not windows:
        return ReplayResult("kept", text, rejected)
    if isinstance(policy, Policy):
        return _replay_windows(text, windows, policy, style, rejected)
    return _replay_reference(text, windows)


def _replay_reference(text: str, windows: Sequence[WindowProgram]) -> ReplayResult:
    program = reference.merge_programs(window.emitted.program for window in windows)
    try:
        result = reference.run_chunk(text, program)
    except reference.ReferenceRunError as error:
        return ReplayResult("quarantined", "", {}, error.reason)
    rejected = {"reference_errors": result.errors} if result.errors else {}
    if not result.text:
        return ReplayResult("dropped", "", rejected, result.reason)
    status: Outcome = "kept" if result.text == text else "edited"
    counts = (result.lines_removed, result.strings_replaced)
    return ReplayResult(status, result.text, rejected, "", *counts, result.removed)


def _replay_windows(
    text: str,
    windows: Sequence[WindowProgram],
    policy: Policy,
    style: Style,
    rejected: dict[str, int],
) -> ReplayResult:
    total = text.count("\n") + 1
    placed = _placed(total, windows, style, rejected)
    accepted = []
    removed: list[Range] = []
    replaced = 0
    for window, result in zip(placed, execute(text, total, placed, policy), strict=True):
        if window.rejected:
            _add(rejected, window.rejected)
            if sum(window.rejected.values()) > policy.max_errors:
                if policy.on_errors != "keep":
                    return _at_limit(policy.on_errors, "error_budget", text, rejected)
                _add(rejected, {"error_budget": 1})
                continue
        accepted.append(result)
        removed += window.removed
        replaced += result[1]
    after = apply(text, accepted) if removed or replaced else text
    return _judged(text, after, policy, removed, replaced, rejected)


def read_placed(window: WindowProgram, style: Style) -> WindowEdits:
    """Return what a window's program asks for, in lines of its document."""
    start, stop, emitted = window.start, window.stop, window.emitted
    base = FIRST_LINE[style.dialect]
    first = base + start if style.numbering == "document" else base
    return read_window(emitted.program, style.dialect, emitted.finish, start, stop, first)


def _placed(
    total: int, windows: Sequence[WindowProgram], style: Style, rejected: dict[str, int]
) -> list[WindowEdits]:
    """Return what programs ask for. ShardError: a window does not fit a text of `total` lines."""
    placed, at = [], 0
    for window in windows:
        if not at <= window.start < window.stop <= total:
            raise ShardError(
                f"window of lines {window.start} to {window.stop} does not fit: lines up to {at}"
                f" are taken and the text has {total}",
                hint="the input changed after its programs were written; refine the shard again",
            )
        at = window.stop
        read = read_placed(window, style)
        if read.cut:
            _add(rejected, {"cut": 1})
        placed.append(read)
    return placed


def _add(total: dict[str, int], more: dict[str, int]) -> None:
    for reason, count in more.items():
        total[reason] = total.get(reason, 0) + count


def _judged(
    before: str,
    after: str,
    policy: Policy,
    removed: Sequence[Range],
    replaced: int,
    rejected: dict[str, int],
) -> ReplayResult:
    """Apply the limits of a whole document."""
    counts = (sum(stop - start for start, stop in removed), replaced)
    if after == before:
        return ReplayResult("kept", before, rejected, "", *counts, removed)
    if len(before) - len(after) > policy.max_removed_share * len(before):
        return _at_limit(policy.on_removed_share, "removed_share", before, rejected)
    if is_short(after, policy) and not is_short(before, policy):
        return _at_limit(policy.on_short, "short", before, rejected)
    return ReplayResult("edited", after, rejected, "", *counts, removed)


def _at_limit(action: Action, reason: str, text: str, rejected: dict[str, int]) -> ReplayResult:
    if action == "drop":
        return ReplayResult("dropped", "", rejected, reason)
    if action == "quarantine":
        return ReplayResult("quarantined", "", rejected, reason)
    _add(rejected, {reason: 1})
    return ReplayResult("kept", text, rejected)


def is_short(text: str, policy: Policy) -> bool:
    """Whether `text` has fewer words, and fewer characters of unspaced scripts, than allowed."""
    if _enough_words(policy.min_kept_words).match(text):
        return False
    chars = islice(UNSPACED.finditer(text), policy.min_kept_chars)
    return sum(1 for _ in chars) < policy.min_kept_chars


@lru_cache(maxsize=16)
def _enough_words(count: int) -> re.Pattern[str]:
    return re.compile(rf"\s*+(?:\S++\s++){{{count - 1}}}\S" if count else "")

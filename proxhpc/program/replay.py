"""Applies the programs of a document to it and returns its outcome.

Replay is a pure function and needs no model: workers, merges and `proxhpc inspect` get the same
result from the same ledger row.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Literal, NamedTuple

from proxhpc.errors import ShardError
from proxhpc.program import reference
from proxhpc.program.edits import WindowEdits, WindowLines, read_window
from proxhpc.program.envelope import add_count, unwrap_verdict
from proxhpc.program.execute import UNSPACED, change_text, execute, join_changes
from proxhpc.program.lines import CHANGED_INPUT, Range, line_starts
from proxhpc.program.match import SpanChange
from proxhpc.program.parse import parse_doc
from proxhpc.program.policy import Action, AnyPolicy, Policy
from proxhpc.program.syntax import DIALECTS, FIRST_LINE, Dialect, ProgramEnd, Verdict

Outcome = Literal["kept", "edited", "dropped", "quarantined"]
HARMLESS = frozenset({"not_found", "ambiguous", "inside_word", "no_such_line", "other_window"})
"""Reasons for which a statement is skipped without counting as an error of its program."""
_WORD = re.compile(r"\S+")
_DENSE = re.compile(f"{UNSPACED.pattern}|[\uac00-\ud7a3]")
_CHARS_PER_WORD, _DENSE_PER_WORD = 6, 1.5
_MAX_LINES = 1_000_000_000  # numbers in programs have up to nine digits


class ModelOutput(NamedTuple):
    """The text that a model generated for one request, and why generation ended."""

    program: str
    finish: ProgramEnd


class WindowProgram(NamedTuple):
    """The output of a model for the lines [start, stop) of a text.

    `shown` are the lines that the model saw, if it saw more than those that it may edit.
    """

    start: int
    stop: int
    output: ModelOutput
    shown: Range | None = None


@dataclass(frozen=True, slots=True)
class ProgramFormat:
    """The dialect of programs, and how lines are numbered.

    Numbers start at the document or the window; blank lines may have none.
    """

    dialect: Dialect = "prox"
    numbering: Literal["document", "window"] = "document"
    blank_lines: Literal["numbered", "skipped"] = "numbered"


@dataclass(frozen=True, slots=True)
class DocVerdict:
    """The verdict of a doc-level program.

    `rejected` counts its rejected parts by reason, `lenient` the leniencies that it needed by name.
    """

    action: Literal["keep", "drop"]
    reason: str = ""
    rejected: dict[str, int] = field(default_factory=dict)
    lenient: dict[str, int] = field(default_factory=dict)


class ReplayResult(NamedTuple):
    """The outcome of a document, and its refined text.

    A dropped or quarantined document has a `reason` and no text. `rejected` counts by reason the
    statements and windows that were not executed, and the limits that kept the original text.
    `lenient` counts by name what was overlooked to read and execute the programs. `removed` are
    ranges [a, b) of removed lines. `changes` are those of an edited text, if they are known.
    `lines` is how many the original text has, if that is known and none was split, else 0.
    """

    outcome: Outcome
    text: str
    rejected: dict[str, int]
    reason: str = ""
    lines_removed: int = 0
    strings_replaced: int = 0
    removed: Sequence[Range] = ()
    lenient: Mapping[str, int] = MappingProxyType({})
    changes: Sequence[SpanChange] = ()
    lines: int = 0


def doc_verdict(emitted: ModelOutput, policy: AnyPolicy) -> DocVerdict:
    """Return the verdict of a doc-level program; if it is unclear, the document is kept."""
    if policy == "none":
        return DocVerdict("keep")
    if policy == "reference":
        drop = reference.drops_document(emitted.program)
        return DocVerdict("drop", "doc_program") if drop else DocVerdict("keep")
    text, lenient = emitted.program, dict[str, int]()
    if not policy.strict:
        text, lenient = unwrap_verdict(text, is_whole=emitted.finish == "stop")
    program = parse_doc(text, emitted.finish)
    verdicts = {s.drop for s in program.statements if isinstance(s, Verdict)}
    if len(verdicts) == 1 and not program.rejected:
        if verdicts.pop():
            return DocVerdict("drop", "doc_program", lenient=lenient)
        return DocVerdict("keep", lenient=lenient)
    rejected = Counter[str](item.reason for item in program.rejected)
    rejected["truncated_call"] += program.truncated
    rejected["unclear_verdict"] += 1
    return DocVerdict("keep", rejected=dict(+rejected), lenient=lenient)


def replay(
    text: str,
    doc: ModelOutput | None,
    windows: Sequence[WindowProgram],
    policy: AnyPolicy,
    program_format: ProgramFormat,
    cuts: Sequence[int] = (),
) -> ReplayResult:
    """Apply a document's programs to it.

    Lines are separated by newlines, and begin at the characters `cuts` too, where lines longer than
    a window were split. ShardError: these do not fit the text, or the windows are not ascending,
    disjoint ranges of its lines.
    """
    rejected: dict[str, int] = {}
    lenient: dict[str, int] = {}
    if doc is not None:
        verdict = doc_verdict(doc, policy)
        rejected, lenient = dict(verdict.rejected), dict(verdict.lenient)
        if verdict.action == "drop":
            return ReplayResult("dropped", "", {}, verdict.reason, lenient=lenient)
    if not windows or policy == "none":
        return ReplayResult("kept", text, rejected, lenient=lenient)
    if not isinstance(policy, Policy):
        if cuts:
            return ReplayResult("quarantined", "", {}, "reference_split_line")
        return _replay_reference(text, windows)
    result = _replay_windows(text, windows, policy, program_format, cuts, rejected, lenient)
    return result._replace(lenient=lenient) if lenient else result


def _replay_reference(text: str, windows: Sequence[WindowProgram]) -> ReplayResult:
    program = reference.merge_programs(window.output.program for window in windows)
    try:
        result = reference.run_chunk(text, program)
    except reference.ReferenceRunError as error:
        return ReplayResult("quarantined", "", {}, error.reason)
    rejected = {"reference_errors": result.errors} if result.errors else {}
    if not result.text:
        return ReplayResult("dropped", "", rejected, result.reason)
    outcome: Outcome = "kept" if result.text == text else "edited"
    counts = (result.lines_removed, result.strings_replaced)
    return ReplayResult(outcome, result.text, rejected, "", *counts, result.removed)


def _replay_windows(
    text: str,
    windows: Sequence[WindowProgram],
    policy: Policy,
    program_format: ProgramFormat,
    cuts: Sequence[int],
    rejected: dict[str, int],
    lenient: dict[str, int],
) -> ReplayResult:
    """Apply a document's chunk programs to it, adding to the counts `rejected` and `lenient`."""
    starts = line_starts(text, cuts)
    edits = read_windows(text, windows, program_format, starts, strict=policy.strict)
    accepted = []
    removed: list[Range] = []
    replaced = 0
    for window, result in zip(edits, execute(text, starts, edits, policy), strict=True):
        if window.rewrites:
            return ReplayResult("quarantined", "", rejected, "rewrite")
        if window.truncated:
            add_count(rejected, "truncated_call")
        for name, number in window.lenient.items():
            add_count(lenient, name, number)
        if window.rejected:
            for reason, number in window.rejected.items():
                add_count(rejected, reason, number)
            if _errors(window, policy) > policy.max_error_share * window.statements:
                if policy.on_errors != "keep":
                    return _at_limit(policy.on_errors, "error_budget", text, rejected)
                if result[0]:  # edits that are not made
                    add_count(rejected, "error_budget")
                continue
        accepted.append(result)
        removed += window.removed
        replaced += result[1]
    changes = join_changes(text, accepted, starts if cuts else ()) if removed or replaced else []
    limited = _apply_limits(text, changes, policy, removed, replaced, rejected)
    return limited if cuts else limited._replace(lines=len(starts) - 1)


def _errors(window: WindowEdits, policy: Policy) -> int:
    """Return how many of a window's statements are errors."""
    harmless: Set[str] = HARMLESS
    if DIALECTS[window.dialect].skips_prose and not policy.strict:
        harmless = HARMLESS | {"not_a_call"}
    return sum(number for reason, number in window.rejected.items() if reason not in harmless)


def read_windows(
    text: str,
    windows: Sequence[WindowProgram],
    program_format: ProgramFormat,
    starts: Sequence[int],
    *,
    strict: bool = False,
) -> list[WindowEdits]:
    """Return the edits of all windows, before they are executed.

    `starts` are the `line_starts` of the text. ShardError if a window does not fit.
    """
    dialect = program_format.dialect
    edits = []
    for window, lines in window_lines(text, windows, program_format, starts):
        output = window.output
        edits.append(read_window(output.program, dialect, output.finish, lines, strict=strict))
    return edits


def read_window_program(
    window: WindowProgram, program_format: ProgramFormat, *, strict: bool = False
) -> WindowEdits:
    """Return the edits of a window's program whose document is not at hand.

    If blank lines have no numbers, it is not known which lines are edited.
    """
    if program_format.blank_lines == "skipped":
        window = WindowProgram(0, _MAX_LINES, window.output)
        program_format = ProgramFormat(program_format.dialect)
    (edits,) = read_windows("", [window], program_format, range(_MAX_LINES + 1), strict=strict)
    return edits


def window_lines(
    text: str,
    windows: Sequence[WindowProgram],
    program_format: ProgramFormat,
    starts: Sequence[int],
) -> list[tuple[WindowProgram, WindowLines]]:
    """Return each window and the lines that the numbers in its program mean, as `read_windows`."""
    numbered: list[int] | None = None
    if program_format.blank_lines == "skipped":
        numbered = [n for n, (a, b) in enumerate(pairwise(starts)) if text[a:b].strip()]
    total = len(starts) - 1
    base, in_document = FIRST_LINE[program_format.dialect], program_format.numbering == "document"
    seen: list[int] | None = None
    pairs, at = [], 0
    for window in windows:
        start, stop, _, shown = window
        low, high = shown = shown or (start, stop)
        if not (at <= start < stop <= total and 0 <= low <= start and stop <= high <= total):
            saw = f", which shows lines {low} to {high}," if window.shown else ""
            raise ShardError(
                f"window of lines {start} to {stop}{saw} does not fit: the text has"
                f" {total} lines and the window before it ends at {at}",
                hint=CHANGED_INPUT,
            )
        at = stop
        if numbered is not None:
            low, high = bisect_left(numbered, low), bisect_left(numbered, high)
            seen = numbered[low:high]
        first = base + low if in_document else base
        pairs.append((window, WindowLines(start, stop, first, shown, seen)))
    return pairs


def _apply_limits(
    before: str,
    changes: Sequence[SpanChange],
    policy: Policy,
    removed: Sequence[Range],
    replaced: int,
    rejected: dict[str, int],
) -> ReplayResult:
    """Change a whole document, within the limits."""
    after = change_text(before, changes) if changes else before
    counts = (sum(stop - start for start, stop in removed), replaced)
    if after == before:
        return ReplayResult("kept", before, rejected, "", *counts, removed)
    if not after or after.isspace():
        return ReplayResult("dropped", "", rejected, "emptied")
    lost = len(before) - len(after)
    if lost > policy.max_removed_share * len(before):
        return _at_limit(policy.on_removed_share, "removed_share", before, rejected)
    if lost > policy.short_loss * len(before) and is_short(after, policy):
        return _at_limit(policy.on_short, "short", before, rejected)
    return ReplayResult("edited", after, rejected, "", *counts, removed, changes=changes)


def _at_limit(action: Action, reason: str, text: str, rejected: dict[str, int]) -> ReplayResult:
    if action == "drop":
        return ReplayResult("dropped", "", rejected, reason)
    if action == "quarantine":
        return ReplayResult("quarantined", "", rejected, reason)
    add_count(rejected, reason)
    return ReplayResult("kept", text, rejected)


def is_short(text: str, policy: Policy) -> bool:
    """Return True if `text` has fewer words than `min_kept_words`, in units that fit its script."""
    least = policy.min_kept_words
    if len(text.split(None, least)) >= least:  # each word counts for one at least
        return False
    words = 0.0
    for match in _WORD.finditer(text):
        string = match.group()
        dense = 0 if string.isascii() else len(_DENSE.findall(string))
        words += max(1, (len(string) - dense) // _CHARS_PER_WORD + dense / _DENSE_PER_WORD)
        if words >= least:
            return False
    return words < least

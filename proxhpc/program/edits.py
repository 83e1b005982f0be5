"""The edits of a window's program: ranges of lines and strings, ready to be executed.

`read_window` has a fast path for the form of nearly all programs: one call a line, as refiners are
trained to write it, or with a comment, as the rules engine writes it. All other programs are
parsed, with the same result.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

from proxhpc.program.envelope import add_count, unwrap
from proxhpc.program.lines import Range
from proxhpc.program.parse import SURROGATE, parse_chunk
from proxhpc.program.syntax import (
    DIALECTS,
    NO_EDIT,
    AddLine,
    Dialect,
    Normalize,
    Program,
    ProgramEnd,
    Quoted,
    RemoveAll,
    RemoveLines,
    RemoveStr,
    ReplaceStr,
    Rewrite,
    Statement,
)

# The last group matches anything else; the program is then parsed.
_USUAL = re.compile(
    r"""remove_lines\([ ]?start=([0-9]{1,9}),[ ]end=([0-9]{1,9})\)(?:[ ]*+\#[^\n]*+)?+(?:\n++|\Z)
    |normalize\(source_str="([^"\\]*+)"(?:,[ ]?target_str="([^"\\]*+)")?\)(?:\n++|\Z)
    |((?s:.)++)""",
    re.VERBOSE,
)
_NO_EDIT_CALLS = frozenset(f"{name}()" for name in NO_EDIT)


StringEdit = tuple[int | None, str, str, tuple[str, str] | None]
"""(line, source, target, verbatim): replace `source` by `target`.

`line` is the line of the document on which `source` must occur once; if it is None, all occurrences
in the window are replaced. `verbatim` is (source, target) without decoding escapes, or None if that
is the same.
"""
Insertion = tuple[int, int, str]
"""(line, order, text): insert `text` before a line, after insertions there of lower order."""


class WindowLines(NamedTuple):
    """The lines that the numbers in a window's program mean.

    A program may edit the lines [start, stop) of a document. The model saw the lines `shown`, the
    first of which has the number `first`; `numbered` are those of them with a number, if not all.
    """

    start: int
    stop: int
    first: int
    shown: Range
    numbered: list[int] | None = None

    def line(self, number: int) -> int:
        """Return the line of the document with this number; outside of `shown` if there is none."""
        at = number - self.first
        if self.numbered is None or at < 0:
            return self.shown[0] + at
        known = len(self.numbered)
        return self.numbered[at] if at < known else self.shown[1] + at - known

    def number(self, line: int) -> int | None:
        """Return the number of a line that was shown, if it has one."""
        if self.numbered is None:
            return self.first + line - self.shown[0]
        at = bisect_left(self.numbered, line)
        return self.first + at if self.numbered[at : at + 1] == [line] else None

    def problem(self, line: int) -> str:
        """Why a program may not edit a line of the document, or ""."""
        if self.start <= line < self.stop:
            return ""
        return "other_window" if self.shown[0] <= line < self.shown[1] else "no_such_line"

    def removal(self, low: int, high: int, *, clips: bool) -> tuple[Range, str]:
        """Return those of the lines [low, high) that a program may remove, or why there are none.

        With `clips`, some of the lines may not have been shown.
        """
        start, stop = self.shown
        problem = ""
        if low >= high:
            problem = "reversed_range"
        elif low >= stop:
            problem = "no_such_line"
        elif not clips and (low < start or high > stop):
            problem = "outside_window"
        elif low >= self.stop or high <= self.start:
            problem = "other_window" if high > start else "no_such_line"
        return (max(low, self.start), min(high, self.stop)), problem


class _UsualCalls(NamedTuple):
    """The calls of a usual program: numbers of `removals` and lines [a, b), as they are numbered.

    `removed` is None if a range is reversed. `rest` is what follows the calls.
    """

    removals: int
    removed: Sequence[Range] | None
    strings: Sequence[StringEdit]
    rest: str


@lru_cache(maxsize=64)  # the merge executes the programs of a document, then counts their calls
def _usual_calls(stripped: str) -> _UsualCalls:
    ranges: list[Range] = []
    strings: list[StringEdit] = []
    rest = ""
    is_ordered = is_joined = True
    end = -1
    for first, last, source, target, other in _USUAL.findall(stripped):
        if first:
            low, high = int(first), int(last) + 1
            is_ordered &= low < high
            is_joined &= end < low
            ranges.append((low, end := high))
        elif other:
            rest = other
        else:
            strings.append((None, source, target, None))
    number = len(ranges)
    if not is_joined:
        ranges = joined_ranges(ranges)
    return _UsualCalls(number, ranges if is_ordered else None, strings, rest)


def count_usual_calls(text: str) -> dict[str, int] | None:
    """Return the calls of a usual program in ProX's dialect by name; None for other programs."""
    stripped = text.strip()
    if not stripped.isascii():
        return None
    calls = _usual_calls(stripped)
    if calls.rest:
        return None
    counts = {"remove_lines": calls.removals, "normalize": len(calls.strings)}
    return {name: number for name, number in counts.items() if number}


class WindowEdits(NamedTuple):
    """The edits that a program makes in the lines [start, stop) of a document.

    `removed` are ascending ranges [a, b) of lines that neither overlap nor touch. `rejected` counts
    rejected statements by reason, `lenient` by name what was overlooked to read the program.
    `truncated` means that the token limit broke off the last call. `statements` is the number of
    different statements, rejected ones included. `inserted` is ascending. With `rewrites`, the
    model wrote a text in place of a program.
    """

    start: int
    stop: int
    removed: list[Range]
    strings: list[StringEdit]
    rejected: dict[str, int]
    lenient: dict[str, int]
    truncated: bool
    statements: int
    inserted: Sequence[Insertion] = ()
    rewrites: bool = False
    dialect: Dialect = "prox"


def read_window(
    text: str, dialect: Dialect, finish: ProgramEnd, lines: WindowLines, *, strict: bool = False
) -> WindowEdits:
    """Return the edits of a program's text.

    With `strict`, only well-formed programs are read. Never raises; linear in `text`.
    """
    stripped = text.strip()
    start, stop, first_line, (shown, _), numbered = lines
    if stripped in _NO_EDIT_CALLS and dialect != "rescraper":
        return WindowEdits(start, stop, [], [], {}, {}, False, 1, dialect=dialect)
    if (
        dialect == "prox"
        and numbered is None
        and (stripped.isascii() or not SURROGATE.search(stripped))
    ):
        removals, removed, strings, rest = _usual_calls(stripped)
        if removed is not None and rest in ("", "untouch_doc()"):
            shift = shown - first_line
            ranges = [(a + shift, b + shift) for a, b in removed] if shift else [*removed]
            if not ranges or (start <= ranges[0][0] and ranges[-1][1] <= stop):
                number = removals + len(strings)
                return WindowEdits(start, stop, ranges, [*strings], {}, {}, False, number)
    lenient: dict[str, int] = {}
    if not strict:
        text, lenient = unwrap(text, dialect)
    program = parse_chunk(text, dialect, finish)
    return program_edits(program, dialect, lines, lenient, strict=strict)


def program_edits(
    program: Program,
    dialect: Dialect,
    lines: WindowLines,
    lenient: dict[str, int],
    *,
    strict: bool = False,
) -> WindowEdits:
    """Return the edits of a parsed program.

    Repeated statements count once. Leniencies are added to `lenient`; `strict` allows none.
    """
    distinct = dict.fromkeys(program.statements)
    edits = WindowEdits(
        *lines[:2],
        removed=[],
        strings=[],
        rejected={},
        lenient=lenient,
        truncated=program.truncated,
        statements=len(distinct) + len(program.rejected),
        rewrites=any(isinstance(statement, Rewrite) for statement in distinct),
        dialect=dialect,
    )
    for item in program.rejected:
        add_count(edits.rejected, item.reason)
    inserted: list[Insertion] = []
    for statement in distinct:
        if problem := _add(statement, edits, inserted, lines, strict=strict):
            add_count(edits.rejected, problem)
    inserted.sort(key=itemgetter(0, 1))
    return edits._replace(removed=joined_ranges(edits.removed), inserted=inserted)


def _add(
    statement: Statement,
    edits: WindowEdits,
    inserted: list[Insertion],
    lines: WindowLines,
    *,
    strict: bool,
) -> str:
    """Add what a statement edits, or return why it is rejected."""
    problem = ""
    match statement:
        case RemoveLines(first, last):
            clips = DIALECTS[edits.dialect].clips
            low, high = lines.line(first), lines.line(last) + 1
            if high == lines.shown[1] + 1 and low < high - 1 and not (clips or strict):
                high -= 1  # models count a last line that is not there
                add_count(edits.lenient, "clipped_range")
            removal, problem = lines.removal(low, high, clips=clips)
            if not problem:
                edits.removed.append(removal)
        case RemoveAll():
            edits.removed.append((lines.start, lines.stop))
        case Normalize(source, target):
            edits.strings.append(_string_edit(None, source, target, edits.dialect))
        case RemoveStr(number) | ReplaceStr(number):
            target = statement.target if isinstance(statement, ReplaceStr) else Quoted("")
            line = lines.line(number)
            problem = lines.problem(line)
            if not problem:
                edits.strings.append(_string_edit(line, statement.source, target, edits.dialect))
        case AddLine(base, order, text):
            line = lines.line(base)
            if line != lines.start - 1 or lines.shown[0] < lines.start:
                problem = lines.problem(line)  # else the text comes before the first line
            if not problem:
                inserted.append((line + 1, order, text.value))
    return problem


def _string_edit(line: int | None, source: Quoted, target: Quoted, dialect: Dialect) -> StringEdit:
    value = source.value
    ambiguous = value != source.body or target.is_ambiguous
    if not ambiguous or DIALECTS[dialect].escaped:
        return line, value, target.value, None
    return line, value, target.value, (source.body, target.body)


def joined_ranges(ranges: list[Range]) -> list[Range]:
    """Return sorted ranges that neither overlap nor touch, of the same lines."""
    if len(ranges) < 2:
        return ranges
    ranges.sort()
    joined = []
    first, end = ranges[0]
    for start, stop in ranges:
        if start > end:
            joined.append((first, end))
            first, end = start, stop
        elif stop > end:
            end = stop
    joined.append((first, end))
    return joined

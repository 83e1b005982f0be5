"""The edits of a window's program: ranges of lines and strings, ready to be executed.

`read_window` has a fast path for the form of nearly all programs: one call a line, as refiners are
trained to write it, or with a comment, as the rules engine writes it. All other programs are
parsed, with the same result.
"""

import re
from typing import NamedTuple

from proxhpc.program.envelope import add_count, unwrap
from proxhpc.program.parse import SURROGATE, parse_chunk
from proxhpc.program.syntax import (
    Dialect,
    Normalize,
    Program,
    ProgramEnd,
    Quoted,
    RemoveAll,
    RemoveLines,
    RemoveStr,
    ReplaceStr,
)

# The last group matches anything else; the program is then parsed.
_USUAL = re.compile(
    r"""remove_lines\([ ]?start=([0-9]{1,9}),[ ]end=([0-9]{1,9})\)(?:[ ]*+\#[^\n]*+)?+(?:\n++|\Z)
    |normalize\(source_str="([^"\\]*+)"(?:,[ ]?target_str="([^"\\]*+)")?\)(?:\n++|\Z)
    |((?s:.)++)""",
    re.VERBOSE,
)


Range = tuple[int, int]
StringEdit = tuple[int | None, str, str, tuple[str, str] | None]
"""(line, source, target, verbatim): replace `source` by `target`.

`line` is the line of the document on which `source` must occur once; if it is None, all occurrences
in the window are replaced. `verbatim` is (source, target) without decoding escapes, or None if that
is the same.
"""


class WindowEdits(NamedTuple):
    """The edits that a program makes in the lines [start, stop) of a document.

    `removed` are ascending ranges [a, b) of lines that neither overlap nor touch. `rejected` counts
    rejected statements by reason, `lenient` by name what was overlooked to read the program.
    `truncated` means that the token limit broke off the last call. `statements` is the number of
    different statements, rejected ones included.
    """

    start: int
    stop: int
    removed: list[Range]
    strings: list[StringEdit]
    rejected: dict[str, int]
    lenient: dict[str, int]
    truncated: bool
    statements: int


def read_window(
    text: str,
    dialect: Dialect,
    finish: ProgramEnd,
    start: int,
    stop: int,
    first_line: int,
    *,
    strict: bool = False,
) -> WindowEdits:
    """Return the edits of a program's text in the lines [start, stop) of a document.

    The program numbers the first of these lines `first_line`. With `strict`, only well-formed
    programs are read. Never raises; linear in `text`.
    """
    stripped = text.strip()
    if dialect == "prox" and (stripped.isascii() or not SURROGATE.search(stripped)):
        shift = start - first_line
        ranges: list[Range] = []
        strings: list[StringEdit] = []
        for first, last, source, target, other in _USUAL.findall(stripped):
            if first:
                low, high = int(first) + shift, int(last) + shift + 1
                if not start <= low < high <= stop:
                    break
                ranges.append((low, high))
            elif not other:
                strings.append((None, source, target, None))
            elif other != "untouch_doc()":
                break
        else:
            number = len(ranges) + len(strings)
            return WindowEdits(start, stop, _joined(ranges), strings, {}, {}, False, number)
    lenient: dict[str, int] = {}
    if not strict:
        text, lenient = unwrap(text)
    program = parse_chunk(text, dialect, finish)
    return program_edits(program, start, stop, first_line, lenient, strict=strict)


def program_edits(
    program: Program,
    start: int,
    stop: int,
    first_line: int,
    lenient: dict[str, int],
    *,
    strict: bool = False,
) -> WindowEdits:
    """Return the edits of a parsed program in the lines [start, stop) of a document.

    Repeated statements count once. Leniencies are added to `lenient`; `strict` allows none.
    """
    shift = start - first_line
    ranges: list[Range] = []
    strings: list[StringEdit] = []
    rejected: dict[str, int] = {}
    for item in program.rejected:
        add_count(rejected, item.reason)
    distinct = dict.fromkeys(program.statements)
    for statement in distinct:
        match statement:
            case RemoveLines(first, last):
                low, high = first + shift, last + shift + 1
                if high == stop + 1 and low < stop and not strict:
                    high = stop  # models count a last line that is not there
                    add_count(lenient, "clipped_range")
                if reason := _range_problem(low, high, start, stop):
                    add_count(rejected, reason)
                    continue
                ranges.append((low, high))
            case RemoveAll():
                ranges.append((start, stop))
            case Normalize(source, target):
                strings.append(_string_edit(None, source, target))
            case RemoveStr(line) | ReplaceStr(line):
                target = statement.target if isinstance(statement, ReplaceStr) else Quoted("")
                if start <= line + shift < stop:
                    strings.append(_string_edit(line + shift, statement.source, target))
                else:
                    add_count(rejected, "no_such_line")
    number = len(distinct) + len(program.rejected)
    removed, truncated = _joined(ranges), program.truncated
    return WindowEdits(start, stop, removed, strings, rejected, lenient, truncated, number)


def _range_problem(low: int, high: int, start: int, stop: int) -> str:
    """Why lines [low, high) cannot be removed from the window [start, stop), or ""."""
    if low >= high:
        return "reversed_range"
    if low >= stop:
        return "no_such_line"
    return "outside_window" if low < start or high > stop else ""


def _string_edit(line: int | None, source: Quoted, target: Quoted) -> StringEdit:
    value = source.value
    ambiguous = value != source.body or target.is_ambiguous
    return line, value, target.value, (source.body, target.body) if ambiguous else None


def _joined(ranges: list[Range]) -> list[Range]:
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

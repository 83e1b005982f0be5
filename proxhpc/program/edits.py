"""What a program asks for in its window: ranges and strings to edit, ready to be executed.

`read_window` takes a short way for the form in which refiners write nearly all of their programs,
a call a line as they were trained on, and our rules, which say behind it why; every other program
is parsed. Both ways agree.
"""

import re
from typing import NamedTuple

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

# The other group takes whatever is no such call: the program then goes the long way.
_USUAL = re.compile(
    r"""remove_lines\([ ]?start=([0-9]{1,9}),[ ]end=([0-9]{1,9})\)(?:[ ]*+\#[^\n]*+)?+(?:\n++|\Z)
    |normalize\(source_str="([^"\\]*+)"(?:,[ ]?target_str="([^"\\]*+)")?\)(?:\n++|\Z)
    |((?s:.)++)""",
    re.VERBOSE,
)


Range = tuple[int, int]
StringEdit = tuple[int | None, str, str, tuple[str, str] | None]
"""(line, source, target, verbatim): replace `source` by `target`, the only one on a line of the
document, or all in the window if None. `verbatim` holds both as written, escapes undecoded, where
that is another reading of either.
"""


class WindowEdits(NamedTuple):
    """The lines [start, stop) of a document and what a program asks for there.

    `removed` are its lines that go, as disjoint ascending ranges [a, b) none next to another.
    `rejected` counts statements by reason; `cut` says that the token limit broke a call off.
    """

    start: int
    stop: int
    removed: list[Range]
    strings: list[StringEdit]
    rejected: dict[str, int]
    cut: bool


def read_window(
    text: str, dialect: Dialect, finish: ProgramEnd, start: int, stop: int, first_line: int
) -> WindowEdits:
    """Return what a program's text asks for in the lines [start, stop) of a document.

    The first of them it knows as `first_line`. Never raises; linear in `text`.
    """
    usual = text.strip()
    if dialect == "prox" and (usual.isascii() or not SURROGATE.search(usual)):
        shift = start - first_line
        ranges: list[Range] = []
        strings: list[StringEdit] = []
        for first, last, source, target, other in _USUAL.findall(usual):
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
            return WindowEdits(start, stop, _joined(ranges), strings, {}, False)
    return edits_of(parse_chunk(text, dialect, finish), start, stop, first_line)


def edits_of(program: Program, start: int, stop: int, first_line: int) -> WindowEdits:
    """Return what a parsed program asks for in the lines [start, stop) of a document.

    Statements that are repeated count once.
    """
    shift = start - first_line
    ranges: list[Range] = []
    strings: list[StringEdit] = []
    rejected: dict[str, int] = {}
    for item in program.rejected:
        count(rejected, item.reason)
    for statement in dict.fromkeys(program.statements):
        match statement:
            case RemoveLines(first, last):
                low, high = first + shift, last + shift + 1
                if low >= high:
                    count(rejected, "reversed_range")
                elif low < start or high > stop:
                    count(rejected, "outside_window")
                else:
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
                    count(rejected, "outside_window")
    return WindowEdits(start, stop, _joined(ranges), strings, rejected, program.cut)


def count(rejected: dict[str, int], reason: str, number: int = 1) -> None:
    """Count statements that are rejected for a reason."""
    rejected[reason] = rejected.get(reason, 0) + number


def _string_edit(line: int | None, source: Quoted, target: Quoted) -> StringEdit:
    value = source.value
    two = value != source.body or target.is_ambiguous
    return line, value, target.value, (source.body, target.body) if two else None


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

"""What a program asks for in its window: ranges and strings to edit, ready to be executed.

`read_window` takes a short way for the form in which refiners write nearly all of their programs,
a call a line as they were trained on; every other program is parsed. Both ways agree.
"""

import re
from typing import NamedTuple

from proxhpc.program.parse import SURROGATE, parse_chunk
from proxhpc.program.syntax import (
    Dialect,
    Finish,
    Normalize,
    Program,
    Quoted,
    RemoveAll,
    RemoveLines,
    RemoveStr,
    ReplaceStr,
)

# The other group takes whatever is no such call: the program then goes the long way.
_USUAL = re.compile(
    r"""remove_lines\([ ]?start=([0-9]{1,9}),[ ]end=([0-9]{1,9})\)(?:\n++|\Z)
    |normalize\(source_str="([^"\\]*+)"(?:,[ ]?target_str="([^"\\]*+)")?\)(?:\n++|\Z)
    |((?s:.)++)""",
    re.VERBOSE,
)


Range = tuple[int, int]
StringEdit = tuple[int | None, str, str, tuple[str, str] | None]
"""(line, source, target, verbatim): replace `source` by `target`, the only one on a line of the
document, or all in the window if None. `verbatim` holds both as written, escapes undecoded, where
that is another reading.
"""


class Window(NamedTuple):
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
    text: str, dialect: Dialect, finish: Finish, start: int, stop: int, first_line: int
) -> Window:
    """Return what a program's text asks for in the lines [start, stop) of a document.

    The first of them it knows as `first_line`. Never raises; linear in `text`.
    """
    usual = text.strip()
    if dialect != "prox" or not (usual.isascii() or not SURROGATE.search(usual)):
        return window_of(parse_chunk(text, dialect, finish), start, stop, first_line)
    shift = start - first_line
    ranges: list[Range] = []
    strings: list[StringEdit] = []
    rejected: dict[str, int] = {}
    for first, last, source, target, other in _USUAL.findall(usual):
        if first:
            low, high = int(first) + shift, int(last) + shift + 1
            if start <= low < high <= stop:
                ranges.append((low, high))
            else:
                _refuse(rejected, low, high)
        elif not other:
            strings.append((None, source, target, None))
        elif other != "untouch_doc()":
            return window_of(parse_chunk(text, dialect, finish), start, stop, first_line)
    if len(ranges) > 1:
        ranges = _joined(ranges)
    return Window(start, stop, ranges, strings, rejected, False)


def window_of(program: Program, start: int, stop: int, first_line: int) -> Window:
    """Return what a parsed program asks for in the lines [start, stop) of a document."""
    shift = start - first_line
    ranges: list[Range] = []
    strings: list[StringEdit] = []
    rejected: dict[str, int] = {}
    for item in program.rejected:
        count(rejected, item.reason)
    for statement in program.statements:
        match statement:
            case RemoveLines(first, last):
                low, high = first + shift, last + shift + 1
                if start <= low < high <= stop:
                    ranges.append((low, high))
                else:
                    _refuse(rejected, low, high)
            case RemoveAll():
                ranges.append((start, stop))
            case Normalize(source, target):
                strings.append(_string_edit(None, source, target))
            case RemoveStr(line, source) | ReplaceStr(line, source):
                target = statement.target if isinstance(statement, ReplaceStr) else Quoted("")
                if start <= line + shift < stop:
                    strings.append(_string_edit(line + shift, source, target))
                else:
                    count(rejected, "outside_window")
    return Window(start, stop, _joined(ranges), strings, rejected, program.cut)


def count(rejected: dict[str, int], reason: str, number: int = 1) -> None:
    """Count statements that are rejected for a reason."""
    rejected[reason] = rejected.get(reason, 0) + number


def _refuse(rejected: dict[str, int], low: int, high: int) -> None:
    count(rejected, "reversed_range" if low >= high else "outside_window")


def _string_edit(line: int | None, source: Quoted, target: Quoted) -> StringEdit:
    value = source.value
    verbatim = None if value == source.body else (source.body, target.body)
    return line, value, target.value, verbatim


def _joined(ranges: list[Range]) -> list[Range]:
    if not ranges:
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

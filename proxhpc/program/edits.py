"""What a program comes to: ranges and strings to edit, ready to be executed.

`read_edits` takes a short way for the form in which refiners write nearly all of their programs,
a call a line as they were trained on; every other program is parsed. Both ways agree.
"""

import re
from collections import Counter
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


class StringEdit(NamedTuple):
    """Replace `source` by `target`: the only one on `line`, or all in the window if None.

    `verbatim` holds both as written, escapes undecoded, where that is another reading.
    """

    line: int | None
    source: str
    target: str
    verbatim: tuple[str, str] | None = None


def _string_edit(line: int | None, source: Quoted, target: Quoted) -> StringEdit:
    value = source.value
    verbatim = None if value == source.body else (source.body, target.body)
    return StringEdit(line, value, target.value, verbatim)


class Edits(NamedTuple):
    """The effects that a program asks for, in numbers and strings as it wrote them.

    `ranges` are lines, both ends included. `rejected` counts statements by reason.
    """

    ranges: list[tuple[int, int]]
    strings: list[StringEdit]
    everything: bool
    rejected: dict[str, int]
    cut: bool


def lower(program: Program) -> Edits:
    """Return what a parsed program asks for."""
    ranges: list[tuple[int, int]] = []
    strings: list[StringEdit] = []
    everything = False
    for statement in program.statements:
        match statement:
            case RemoveLines(first, last):
                ranges.append((first, last))
            case RemoveAll():
                everything = True
            case Normalize(source, target):
                strings.append(_string_edit(None, source, target))
            case RemoveStr(line, source):
                strings.append(_string_edit(line, source, Quoted("")))
            case ReplaceStr(line, source, target):
                strings.append(_string_edit(line, source, target))
    rejected = Counter[str](item.reason for item in program.rejected)
    return Edits(ranges, strings, everything, dict(rejected), program.cut)


def read_edits(text: str, dialect: Dialect, finish: Finish) -> Edits:
    """Return what a program's text asks for. Never raises; linear in `text`."""
    ranges: list[tuple[int, int]] = []
    strings: list[StringEdit] = []
    usual = text.strip()
    if dialect == "prox" and (usual.isascii() or not SURROGATE.search(usual)):
        for first, last, source, target, other in _USUAL.findall(usual):
            if first:
                ranges.append((int(first), int(last)))
            elif not other:
                strings.append(StringEdit(None, source, target))
            elif other != "untouch_doc()":
                break
        else:
            return Edits(ranges, strings, False, {}, False)
    return lower(parse_chunk(text, dialect, finish))

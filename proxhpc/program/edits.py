"""What a program comes to: ranges and strings to edit, ready to be executed.

`read_edits` takes a short way for the form in which refiners write nearly all of their programs,
a call a line as they were trained on; every other program is parsed. Both ways agree.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
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
    """Replace `source` by `target`: the only one on `line`, or all in the window if None."""

    line: int | None
    source: Quoted
    target: Quoted


@dataclass(slots=True)
class Edits:
    """The effects that a program asks for, in numbers and strings as it wrote them.

    `ranges` are lines, both ends included. `rejected` counts statements by reason.
    """

    ranges: list[tuple[int, int]] = field(default_factory=list)
    strings: list[StringEdit] = field(default_factory=list)
    everything: bool = False
    rejected: dict[str, int] = field(default_factory=dict)
    cut: bool = False


def lower(program: Program) -> Edits:
    """Return what a parsed program asks for."""
    edits = Edits(rejected=dict(Counter(r.reason for r in program.rejected)), cut=program.cut)
    for statement in program.statements:
        match statement:
            case RemoveLines(first, last):
                edits.ranges.append((first, last))
            case RemoveAll():
                edits.everything = True
            case Normalize(source, target):
                edits.strings.append(StringEdit(None, source, target))
            case RemoveStr(line, source):
                edits.strings.append(StringEdit(line, source, Quoted("")))
            case ReplaceStr(line, source, target):
                edits.strings.append(StringEdit(line, source, target))
    return edits


def read_edits(text: str, dialect: Dialect, finish: Finish) -> Edits:
    """Return what a program's text asks for. Never raises; linear in `text`."""
    edits = Edits()
    usual = text.strip()
    if usual == "untouch_doc()":
        return edits
    if dialect == "prox" and (usual.isascii() or not SURROGATE.search(usual)):
        for first, last, source, target, other in _USUAL.findall(usual):
            if first:
                edits.ranges.append((int(first), int(last)))
            elif not other:
                edits.strings.append(StringEdit(None, Quoted(source), Quoted(target)))
            else:
                break
        else:
            return edits
    return lower(parse_chunk(text, dialect, finish))

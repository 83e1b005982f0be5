"""Parses the programs of ReScraper: lines under tags, without calls.

A decision comes first, and again after the lines to remove: `<keep>`, `<edit>`, `<delete>` or
`<rewrite>`. The first one counts. `<delete>` removes all lines. `<rewrite>` is followed by a text
in place of the document, and so may `<edit>` be.
"""

import json
import re

from proxhpc.program.syntax import (
    Keep,
    Program,
    ProgramEnd,
    Quoted,
    Rejected,
    RemoveAll,
    RemoveLines,
    RemoveStr,
    Rewrite,
    Statement,
)

_LINE = re.compile(r"[^\n]++")
_TAG = re.compile(r"<(extract|keep|edit|delete|rewrite)>")
_REMOVE = re.compile(r"rm[ \t]++([0-9]{1,9})(?:[ \t]*+-[ \t]*+([0-9]{1,9}))?+")
_STRING = re.compile(r"sub[ \t]++([0-9]{1,9})[ \t]*+:[ \t]*+(.*+)")
_BEGUN = re.compile(r"r|rm\b.*+|s|su|sub\b.*+|<.*+")
_CLOSED_STRING = re.compile(r'sub[^"]*+"(?:[^"\\]|\\.)*+"')

# What a decision means if no line says more; an edit without one is a text in place of lines.
_DECISIONS: dict[str, type[Statement]] = {
    "keep": Keep,
    "edit": Rewrite,
    "delete": RemoveAll,
    "rewrite": Rewrite,
}


def parse_tagged(text: str, finish: ProgramEnd = "stop") -> Program:
    """Parse a program of the dialect `rescraper`. Never raises; linear in `text`."""
    statements: list[Statement] = []
    rejected: dict[str, Rejected] = {}
    decision: Statement | None = None
    in_section = [0, 0]  # statements and other lines since the last tag
    truncated = False
    for match in _LINE.finditer(text):
        line, (start, stop) = match.group().strip(), match.span()
        if not line:
            continue
        if tag := _TAG.fullmatch(line):
            in_section = [0, 0]
            if decision is None and tag[1] in _DECISIONS:
                decision = _DECISIONS[tag[1]](start=start, stop=stop)
                if tag[1] in ("delete", "rewrite"):
                    return Program((decision,))
            continue
        if finish == "length" and stop == len(text) and not _CLOSED_STRING.fullmatch(line):
            truncated = True  # `rm 1` may be the start of `rm 15`
            in_section[1] += not _BEGUN.fullmatch(line)
            continue
        statement = _statement(line, start, stop)
        in_section[statement is None] += 1
        if statement is not None:
            statements.append(statement)
        else:
            rejected.setdefault(line, Rejected("not_a_call", start, stop))
    is_text = isinstance(decision, Rewrite) and in_section[0] == 0 < in_section[1]
    if decision is not None and (is_text or (isinstance(decision, Keep) and not statements)):
        statements = [decision]
    return Program(tuple(statements), () if is_text else tuple(rejected.values()), truncated)


def _statement(line: str, start: int, stop: int) -> Statement | None:
    at = {"start": start, "stop": stop}
    if removal := _REMOVE.fullmatch(line):
        first = int(removal[1])
        return RemoveLines(first, int(removal[2] or first), **at)
    if string := _STRING.fullmatch(line):
        return RemoveStr(int(string[1]), Quoted.of(_unquoted(string[2])), **at)
    return None


def _unquoted(literal: str) -> str:
    """Return the value of a JSON string, or what is between its quotes if it is malformed."""
    try:
        return str(json.loads(literal)) if literal.startswith('"') else literal
    except ValueError:
        return literal.removeprefix('"').removesuffix('"')

"""Regular expressions for structured decoding; no program that they match is rejected.

They use only literals, groups, alternation, classes and bounded repetition, which all engines for
structured decoding support. Line numbers are those of the window and ranges are never reversed.
Strings, if the lines are given, are deletions of consecutive whole words of a line.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from itertools import pairwise

from proxhpc.program.match import find_literal
from proxhpc.program.policy import Policy
from proxhpc.program.syntax import DIALECTS, FIRST_LINE, Dialect

DOC_GRAMMAR = r"(?:keep_doc|drop_doc)\(\)"
"""The two programs of the doc level."""

# By dialect: the call that removes lines %d to %s, and the one that deletes a string %s of line %d.
_REMOVE: dict[Dialect, str] = {
    "prox": r"remove_lines\(start=%d, end=%s\)",
    "refinex": r"remove_lines\(%d, %s\)",
    "ultrax": r"remove_lines\(%d, %s\)",
    "rescraper": "rm %d-%s",
}
_DELETE = {
    "refinex": r'remove_str\(%d, "%s"\)',
    "ultrax": r"replace_str\(%d, '%s', ''\)",
    "rescraper": 'sub %d: "%s"',
}
_SPECIAL = re.compile(r"[.^$*+?()\[\]{}|\\]")
_WORD = re.compile(r"\S+")
_MAX_WORDS, _MAX_CALLS = 8, 24


def chunk_grammar(
    dialect: Dialect,
    first: int,
    last: int,
    *,
    lines: Sequence[str] = (),
    policy: Policy | None = None,
) -> str:
    """Return an expression of the programs for a window with lines numbered `first` to `last`.

    With `lines`, the window's text, programs may also delete up to eight consecutive words of a
    line; the expression then grows with the text. Programs have up to 24 calls, which ends
    repetition loops, and with `lines` no more than the policy's `max_strings`. ValueError if the
    arguments are inconsistent.
    """
    policy = policy or Policy()
    if not FIRST_LINE[dialect] <= first <= last:
        raise ValueError(f"no lines {first} to {last} in dialect {dialect}")
    if lines and len(lines) != last - first + 1:
        raise ValueError(f"{len(lines)} texts for the lines {first} to {last}")
    removal, max_calls = _removal(dialect, first, last), _MAX_CALLS
    calls = [removal]
    if lines and policy.max_strings:
        calls += _strings(dialect, first, lines, policy)
        max_calls = min(max_calls, policy.max_strings)
    if dialect == "rescraper":
        extract = rf"\n<extract>(?:\n{removal}){{0,{max_calls}}}\n"
        edits = rf"(?:\n{_alternatives(calls)}){{1,{max_calls}}}"
        return f"(?:<delete>|<keep>{extract}<keep>|<edit>{extract}<edit>{edits})"
    no_edit = _literal(DIALECTS[dialect].no_edit)
    return rf"(?:{no_edit}|(?:{_alternatives(calls)}\n?){{1,{max_calls}}})"


def _removal(dialect: Dialect, first: int, last: int) -> str:
    """Return an expression of the calls that remove a range that is not reversed."""
    name, _, arguments = _REMOVE[dialect].partition("%d")
    ranges = (f"{start}{arguments % number_range(start, last)}" for start in range(first, last + 1))
    return name + _alternatives(ranges)


def number_range(low: int, high: int) -> str:
    """Return an expression of the decimal numbers `low` to `high`, without leading zeros."""
    parts = []
    while low <= high:
        step = 1  # size of the largest block of 10^k numbers from `low` with the same prefix
        while low % (step * 10) == 0 and low + step * 10 - 1 <= high and low >= step * 10:
            step *= 10
        digit, prefix = low // step % 10, low // step // 10
        last = min(9, digit + (high - low + 1) // step - 1)
        digits = str(digit) if digit == last else f"[{digit}-{last}]"
        parts.append(f"{prefix or ''}{digits}" + "[0-9]" * (len(str(step)) - 1))
        low += (last - digit + 1) * step
    return _alternatives(parts)


def _strings(dialect: Dialect, first: int, lines: Sequence[str], policy: Policy) -> list[str]:
    """Return expressions of the calls that delete words, if the text has suitable words."""
    if dialect != "prox":
        quote = "'" if dialect == "ultrax" else '"'
        return [
            _DELETE[dialect] % (number, _alternatives(spans))
            for number, line in enumerate(lines, first)
            if (spans := _spans(line, partial(_occurs_once, line), quote))
        ]
    text = "\n".join(lines)

    @cache
    def is_found(source: str) -> bool:
        return isinstance(find_literal(text, 0, len(text), source, policy, only=False), list)

    words = dict.fromkeys(span for line in lines for span in _spans(line, is_found, '"'))
    return [rf'normalize\(source_str="{_alternatives(words)}", target_str=""\)'] if words else []


def _occurs_once(line: str, source: str) -> bool:
    return line.find(source) == line.rfind(source) >= 0


def _spans(line: str, is_suitable: Callable[[str], bool], quote: str) -> list[str]:
    """Return an expression for each word of `line`, of it and up to seven words after it.

    Each matches the spans longer than the longest one from the same word that is not suitable.
    """
    words = [(match.start(), match.end()) for match in _WORD.finditer(line)]
    spans = []
    for index, (start, _) in enumerate(words):
        tail: list[tuple[int, int]] = []
        shortest = None
        for begin, stop in words[index : index + _MAX_WORDS]:
            if not _is_plain(line[start:stop], quote):
                break
            tail.append((begin, stop))
            if not is_suitable(line[start:stop]):
                shortest = None
            elif shortest is None:
                shortest = len(tail)
        if shortest is not None:
            spans.append(_nested(line, tail, shortest))
    return spans


def _nested(line: str, words: list[tuple[int, int]], shortest: int) -> str:
    """Return an expression of the first `shortest` or more of the words, which are consecutive."""
    span = _literal(line[words[0][0] : words[shortest - 1][1]])
    rest = [_literal(line[a[1] : b[1]]) for a, b in pairwise(words[shortest - 1 :])]
    return span + "".join(f"(?:{word}" for word in rest) + ")?" * len(rest)


def _is_plain(span: str, quote: str) -> bool:
    return span.isprintable() and quote not in span and "\\" not in span


def _literal(text: str) -> str:
    return _SPECIAL.sub(r"\\\g<0>", text)


def _alternatives(parts: Iterable[str]) -> str:
    return f"(?:{'|'.join(parts)})"

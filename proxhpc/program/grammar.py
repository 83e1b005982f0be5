"""Regular expressions for structured decoding: all that they admit is executed.

They use literals, groups, alternation, classes and bounded repetition only, which every engine
for structured decoding knows. Numbers are those of the window, ranges never run backwards, and
strings, where lines are given, are runs of whole words of one line, to be deleted.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise

from proxhpc.program.execute import only_place, word_places
from proxhpc.program.policy import Policy
from proxhpc.program.syntax import FIRST_LINE, Dialect

DOC_GRAMMAR = r"(?:keep_doc|drop_doc)\(\)"
"""Both programs of the doc level."""

_NO_EDIT: dict[Dialect, str] = {"prox": r"untouch_doc\(\)", "line": r"keep_all\(\)"}
_SPECIAL = re.compile(r"[.^$*+?()\[\]{}|\\]")
_WORD = re.compile(r"\S+")
_MAX_WORDS = 8


def chunk_grammar(
    dialect: Dialect,
    first: int,
    last: int,
    *,
    lines: Sequence[str] = (),
    policy: Policy | None = None,
    max_calls: int = 24,
) -> str:
    """Return what a model may write for a window with lines numbered `first` to `last`.

    With `lines`, the window's text, it may also delete up to eight words of a line; the
    expression then grows with the text, and the calls are no more than the policy allows strings.
    `max_calls` ends repetition loops. ValueError: an empty window, a number below the dialect's
    first line, no calls, or `lines` that are not the window's.
    """
    policy = policy or Policy()
    if not FIRST_LINE[dialect] <= first <= last:
        raise ValueError(f"no lines {first} to {last} in dialect {dialect}")
    if lines and len(lines) != last - first + 1:
        raise ValueError(f"{len(lines)} lines given for lines {first} to {last}")
    if max_calls < 1:
        raise ValueError("no calls: a program has one at least")
    calls = [_remove(dialect, first, last)]
    if lines and policy.max_strings:
        calls += _strings(dialect, first, lines, policy)
        max_calls = min(max_calls, policy.max_strings)
    return rf"(?:{_NO_EDIT[dialect]}|(?:{_any(calls)}\n?){{1,{max_calls}}})"


def _remove(dialect: Dialect, first: int, last: int) -> str:
    """Return the calls that remove a range, `start` never above `end`."""
    form = r"start=%d, end=%s" if dialect == "prox" else r"%d, %s"
    ranges = (form % (start, number_range(start, last)) for start in range(first, last + 1))
    return rf"remove_lines\({_any(ranges)}\)"


def number_range(low: int, high: int) -> str:
    """Return an expression of the decimal numbers `low` to `high`, without leading zeros."""
    parts = []
    while low <= high:
        step = 1  # the widest block of 10^k numbers that starts at `low` and shares its head
        while low % (step * 10) == 0 and low + step * 10 - 1 <= high and low >= step * 10:
            step *= 10
        most = min(9, low // step % 10 + (high - low + 1) // step - 1)
        digit, head = low // step % 10, low // step // 10
        digits = str(digit) if digit == most else f"[{digit}-{most}]"
        zeros = len(str(step)) - 1
        parts.append(f"{head or ''}{digits}" + "[0-9]" * zeros)
        low += (most - digit + 1) * step
    return _any(parts)


def _strings(dialect: Dialect, first: int, lines: Sequence[str], policy: Policy) -> list[str]:
    """Return the calls that delete words; none where the text offers no fitting ones."""
    if dialect == "line":
        return [
            rf'remove_str\({number}, "{_any(spans)}"\)'
            for number, line in enumerate(lines, first)
            if (spans := _spans(line, partial(_once, line)))
        ]
    text = "\n".join(lines)
    fits: dict[str, bool] = {}

    def everywhere(source: str) -> bool:
        if source not in fits:
            fits[source] = isinstance(word_places(text, 0, len(text), source, policy), list)
        return fits[source]

    words = dict.fromkeys(span for line in lines for span in _spans(line, everywhere))
    return [rf'normalize\(source_str="{_any(words)}", target_str=""\)'] if words else []


def _once(line: str, source: str) -> bool:
    return isinstance(only_place(line, 0, len(line), source), list)


def _spans(line: str, fits: Callable[[str], bool]) -> list[str]:
    """Return one expression for each word of `line`: it and up to seven words behind it.

    Runs that do not fit are left out, and with them the shorter ones from the same word.
    """
    words = [(match.start(), match.end()) for match in _WORD.finditer(line)]
    spans = []
    for place, (start, _) in enumerate(words):
        tail: list[tuple[int, int]] = []
        shortest = None
        for begin, stop in words[place : place + _MAX_WORDS]:
            if not _printable(line[start:stop]):
                break
            tail.append((begin, stop))
            if not fits(line[start:stop]):
                shortest = None
            elif shortest is None:
                shortest = len(tail)
        if shortest is not None:
            spans.append(_nested(line, tail, shortest))
    return spans


def _nested(line: str, words: list[tuple[int, int]], shortest: int) -> str:
    """Return an expression of the first `shortest` or more of consecutive words."""
    span = _literal(line[words[0][0] : words[shortest - 1][1]])
    rest = [_literal(line[a[1] : b[1]]) for a, b in pairwise(words[shortest - 1 :])]
    return span + "".join(f"(?:{word}" for word in rest) + ")?" * len(rest)


def _printable(span: str) -> bool:
    return span.isprintable() and '"' not in span and "\\" not in span


def _literal(text: str) -> str:
    return _SPECIAL.sub(r"\\\g<0>", text)


def _any(parts: Iterable[str]) -> str:
    return f"(?:{'|'.join(parts)})"

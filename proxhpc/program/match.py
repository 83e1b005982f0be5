"""Finds the text that a string edit is about, in its window or on its line."""

import re
from collections.abc import Iterator

from proxhpc.program.edits import StringEdit, count_rejected as count
from proxhpc.program.policy import Policy
from proxhpc.program.words import find_folded, folded, has_zero_width, splits_word

SpanChange = tuple[int, int, str]
"""Replace the characters [start, stop) of a document by the string."""

_ECHO = re.compile(r"(?:\[\d{1,6}\]|<lid:\d{1,6}>[ ]?)")
_ANCHOR = re.compile(r"[A-Za-z0-9]{2,}")
_ODD_BLANKS = ("  ", "\t", "\r", "\x0b", "\x0c")
_MARGIN = 16  # characters beside a string in which its equivalent may be longer
_ESCAPED_SIGN = re.compile(r"\\([^\w\s\\])")
_LATEX = re.compile(r"\\[A-Za-z]+|\$")


class TextRange:
    """Characters [low, high) of a document."""

    def __init__(self, text: str, low: int, high: int) -> None:
        self.text, self.low, self.high = text, low, high

    def find_equivalent(self, source: str, zero_width: str, limit: int) -> list[tuple[int, int]]:
        """Return up to `limit` ranges that are equivalent to `source`.

        Only surroundings of the longest ASCII word of `source` are folded, where it has one.
        """
        wanted = folded(source, zero_width=zero_width)
        if not wanted.strip():
            return []
        if self.text.isascii():
            text, low, high = self.text, self.low, self.high
            if wanted == source and not any(text.find(sign, low, high) >= 0 for sign in _ODD_BLANKS):
                return []
        anchor = max(_ANCHOR.findall(wanted), key=len, default="")
        if not anchor:
            return self._find_folded(self.low, self.high, wanted, zero_width, limit)
        before = 4 * wanted.index(anchor) + _MARGIN
        after = 4 * (len(wanted) - wanted.index(anchor)) + _MARGIN
        spans: list[tuple[int, int]] = []
        at = self.text.find(anchor, self.low, self.high)
        for _ in range(limit):
            if at < 0:
                break
            low, high = max(self.low, at - before), min(self.high, at + after)
            spans += [
                span
                for span in self._find_folded(low, high, wanted, zero_width, limit)
                if not spans or span[0] >= spans[-1][1]
            ]
            at = self.text.find(anchor, at + len(anchor), self.high)
        return spans

    def _find_folded(
        self, low: int, high: int, wanted: str, zero_width: str, limit: int
    ) -> list[tuple[int, int]]:
        if wanted not in folded(self.text[low:high], zero_width=zero_width):
            return []
        return find_folded(self.text, low, high, wanted, zero_width, limit)

    def __contains__(self, source: str) -> bool:
        return self.text.find(source, self.low, self.high) >= 0


def find_edit(
    where: TextRange, edit: StringEdit, policy: Policy, lenient: dict[str, int]
) -> list[SpanChange] | str:
    """Return the changes of one statement, or the reason for its rejection.

    Leniencies that were needed are added to `lenient`.
    """
    reading = _reading(where, edit)
    if isinstance(reading, str):
        return reading
    source, target = reading
    if not source or source.isspace():
        return "blank_source"
    only = edit[0] is not None
    matches = _literal(where, source, policy, only=only)
    if matches == "not_found" and not policy.strict:
        for name, spans, new_target in _lenient_matches(where, source, target, policy):
            if spans:
                matches, target = _checked(where, spans, source, policy, only=only), new_target
                if not isinstance(matches, str):
                    count(lenient, name)
                break
    if isinstance(matches, str):
        return matches
    if sum(len(target) - (stop - start) for start, stop in matches) > policy.max_growth:
        return "growth"
    return [(start, stop, target) for start, stop in matches]


def _literal(
    where: TextRange, source: str, policy: Policy, *, only: bool
) -> list[tuple[int, int]] | str:
    text, high, size = where.text, where.high, len(source)
    at = text.find(source, where.low, high)
    if at < 0:
        return "not_found"
    if only:
        # Occurrences may overlap: `aa` occurs twice in `aaa`.
        if text.find(source, at + 1, high) >= 0:
            return "ambiguous"
        return [(at, at + size)]
    spans = []
    while at >= 0:
        spans.append((at, at + size))
        at = text.find(source, at + size, high)
    return _checked(where, spans, source, policy, only=False)


def _checked(
    where: TextRange, spans: list[tuple[int, int]], source: str, policy: Policy, *, only: bool
) -> list[tuple[int, int]] | str:
    """Return the spans that are whole words, or the reason for a rejection."""
    if only:
        return spans if len(spans) == 1 else "ambiguous"
    text, whole_words = where.text, policy.whole_words
    whole = [
        span for span in spans if not splits_word(text, *span, whole_words=whole_words)
    ]
    if not whole:
        return "inside_word"
    if len(whole) > policy.max_matches:
        return "too_many_matches"
    if whole_words and len(whole) > 1 and len(source.strip()) == 1 and source.strip().isalnum():
        return "ambiguous"  # a letter or digit in several places says nothing of which is meant
    return whole


def _lenient_matches(
    where: TextRange, source: str, target: str, policy: Policy
) -> Iterator[tuple[str, list[tuple[int, int]], str]]:
    """Yield the name of each leniency, what it finds, and the replacement."""
    limit = 2 * policy.max_matches + 1
    if echo := _ECHO.match(source):
        without = source[echo.end() :]
        new = target[len(echo[0]) :] if target.startswith(echo[0]) else target
        if without.strip() and not (new and target == new and _ECHO.match(source)):
            yield "line_number_echo", _find_all(where, without, limit), new
    if "\\" in source:
        plain = _ESCAPED_SIGN.sub(r"\1", source)
        if plain != source:
            new = _ESCAPED_SIGN.sub(r"\1", target)
            yield "escaped_punctuation", _find_all(where, plain, limit), new
    for zero_width in ("", " ") if has_zero_width(where.text, where.low, where.high) else ("",):
        yield "equivalent_text", where.find_equivalent(source, zero_width, limit), target


def _find_all(where: TextRange, source: str, limit: int) -> list[tuple[int, int]]:
    spans = []
    at = where.text.find(source, where.low, where.high)
    while at >= 0 and len(spans) < limit:
        spans.append((at, at + len(source)))
        at = where.text.find(source, at + len(source), where.high)
    return spans


def _reading(where: TextRange, edit: StringEdit) -> tuple[str, str] | str:
    r"""Return (source, target) as the text decides whether `\theta` is a tab or a LaTeX command."""
    _, source, target, verbatim = edit
    if verbatim is None:
        return source, target
    raw_source, raw_target = verbatim
    if raw_source == source:  # only the target has two readings
        if raw_target.replace("\\", "", 1) == source or _LATEX.search(source):
            return source, raw_target
        return "ambiguous"
    if raw_source in where:
        # Two backslashes hold one: where the longer string occurs, it is the one that was meant.
        if source in where and not _only_within(where, source, raw_source):
            return "ambiguous"
        return raw_source, raw_target
    if source in where:
        return source, target
    quotes = raw_source.replace('\\"', '"').replace("\\'", "'")
    if quotes in where:
        return quotes, raw_target.replace('\\"', '"').replace("\\'", "'")
    return source, target


def _only_within(where: TextRange, source: str, longer: str) -> bool:
    """Return True if each `source` in the range is part of a `longer`."""
    inside = longer.count(source)
    text, low, high = where.text, where.low, where.high
    return inside > 0 and text.count(source, low, high) == inside * text.count(longer, low, high)

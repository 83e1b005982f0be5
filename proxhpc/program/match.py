"""Finds the text that a string edit is about, in its window or on its line."""

import re
from collections.abc import Iterator

from proxhpc.program.edits import StringEdit, count_rejected as count
from proxhpc.program.policy import Policy
from proxhpc.program.words import FoldedText, fold, fold_source, splits_word

SpanChange = tuple[int, int, str]
"""Replace the characters [start, stop) of a document by the string."""

_ECHO = re.compile(r"(?:\[\d{1,6}\]|<lid:\d{1,6}>[ ]?)")
_ESCAPED_SIGN = re.compile(r"\\([^\w\s\\])")
_LATEX = re.compile(r"\\[A-Za-z]+|\$")


class TextRange:
    """Characters [low, high) of a document, folded when that is first asked for."""

    def __init__(self, text: str, low: int, high: int) -> None:
        self.text, self.low, self.high = text, low, high
        self._folded: dict[str, FoldedText] = {}

    def folded(self, zero_width: str) -> FoldedText:
        """Return the folded text of this range."""
        if zero_width not in self._folded:
            self._folded[zero_width] = fold(self.text, self.low, self.high, zero_width=zero_width)
        return self._folded[zero_width]

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
    for zero_width in ("", " "):
        folded = fold_source(source, zero_width=zero_width)
        if folded.strip():
            yield "equivalent_text", where.folded(zero_width).find(folded, limit), target


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

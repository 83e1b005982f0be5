"""Finds the text that a string edit is about, in its window or on its line."""

import re
from collections.abc import Iterator

from proxhpc.program.edits import StringEdit
from proxhpc.program.envelope import add_count
from proxhpc.program.policy import Policy
from proxhpc.program.words import (
    equivalent_length,
    find_folded,
    folded,
    has_other_spelling,
    has_zero_width,
    splits_word,
    stable_run,
    with_newlines,
)

SpanChange = tuple[int, int, str]
"""Replace the characters [start, stop) of a document by the string."""
Span = tuple[int, int]

_ECHO = re.compile(r"(?:\[\d{1,6}\]|<lid:\d{1,6}>[ ]?)")
_BLOCK = 1000  # characters in which matches are located one by one
_MAX_ATTEMPTS = 256  # occurrences of a word whose surroundings are compared
_MARGIN = 16  # characters beside a string in which its equivalent may be longer
_ESCAPED_SIGN = re.compile(r"\\([^\w\s\\])")
_LATEX = re.compile(r"\\[A-Za-z]+|\$")


def find_equivalent(text: str, low: int, high: int, source: str, limit: int) -> list[Span]:
    """Return up to `limit` ranges of `text` in [low, high) that a reader takes for `source`.

    Only the surroundings of the longest word of `source` are compared, unless `text` has this word
    in another spelling, or so often that comparing all is cheaper.
    """
    source = with_newlines(source)
    anchor = stable_run(source)
    if text.find(anchor, low, high) < 0:
        if text.isascii() or not has_other_spelling(text[low:high], anchor):
            return []
        return _find_folded(text, low, high, source, limit)
    spans = _find_near(text, low, high, source, anchor, limit) if anchor else None
    return _find_folded(text, low, high, source, limit) if spans is None else spans


def _find_near(
    text: str, low: int, high: int, source: str, anchor: str, limit: int
) -> list[Span] | None:
    """Compare the surroundings of each `anchor`; return None if comparing all is cheaper."""
    first = source.find(anchor)
    prefix, suffix = source[:first][::-1], source[first + len(anchor) :]
    before, after = 4 * first + _MARGIN, 4 * (len(source) - first) + _MARGIN
    budget = high - low + 2 * before + 2 * after
    spans: list[Span] = []
    end = low
    for _ in range(_MAX_ATTEMPTS):
        at = text.find(anchor, end, high)
        if at < 0 or len(spans) == limit:
            break
        end = at + len(anchor)
        if _differs(text[at - 1 : at], prefix[:1]) or _differs(text[end : end + 1], suffix[:1]):
            continue
        budget -= before + after
        if budget < 0:
            return None
        start, stop = max(low, at - before), min(high, at + after)
        back = equivalent_length(text[start:at][::-1], prefix)
        on = -1 if back == -1 else equivalent_length(text[end:stop], suffix)
        if back is None or on is None:
            matches = _find_folded(text, start, stop, source, limit)
        else:
            matches = [] if on < 0 else [(at - back, end + on)]
        spans += [span for span in matches if not spans or span[0] >= spans[-1][1]]
    return spans


def _differs(char: str, wanted: str) -> bool:
    """Return True if a visible ASCII character is not the wanted one, which is ASCII, too."""
    return "!" <= char <= "~" and char != wanted and wanted != "" and wanted.isascii()


def _find_folded(text: str, low: int, high: int, source: str, limit: int) -> list[Span]:
    spans: list[Span] = []
    for zero_width in ("", " ") if has_zero_width(text[low:high]) else ("",):
        wanted = folded(source, zero_width=zero_width)
        if not wanted.strip():
            continue
        for start, stop in _blocks(text, low, high, size=high - low if "\n" in wanted else _BLOCK):
            if wanted in folded(text[start:stop], zero_width=zero_width):
                more = limit - len(spans)
                spans += find_folded(text, start, stop, wanted, zero_width, more)
        if spans:
            break
    return spans


def _blocks(text: str, low: int, high: int, size: int) -> Iterator[Span]:
    """Yield ranges of whole lines with at least `size` characters each, but the last."""
    while low < high:
        stop = text.find("\n", min(low + size, high), high) + 1 or high
        yield low, stop
        low = stop


def find_edit(
    text: str,
    low: int,
    high: int,
    edit: StringEdit,
    policy: Policy,
    lenient: dict[str, int],
) -> list[SpanChange] | str:
    """Return the changes of one statement in characters [low, high), or why it is rejected.

    Leniencies that were needed are added to `lenient`.
    """
    line, source, target, verbatim = edit
    if verbatim is not None:
        reading = _reading(text, low, high, edit)
        if isinstance(reading, str):
            return reading
        source, target = reading
    if not source or source.isspace():
        return "blank_source"
    spans = find_literal(text, low, high, source, policy, only=line is not None)
    if isinstance(spans, str):
        if spans == "not_found" and not policy.strict:
            return _find_leniently(text, low, high, (line, source, target), policy, lenient)
        return spans
    if (len(target) - len(source)) * len(spans) > policy.max_growth:
        return "growth"
    return [(start, stop, target) for start, stop in spans]


def find_literal(
    text: str, low: int, high: int, source: str, policy: Policy, *, only: bool
) -> list[Span] | str:
    """Return where `source` occurs in characters [low, high), or the reason for a rejection.

    With `only`, that must be one place. Otherwise matches do not overlap and are whole words, if
    the policy asks for it.
    """
    size = len(source)
    at = text.find(source, low, high)
    if at < 0:
        return "not_found"
    if only:
        # Occurrences may overlap: `aa` occurs twice in `aaa`.
        return "ambiguous" if text.find(source, at + 1, high) >= 0 else [(at, at + size)]
    spans = []
    while at >= 0:
        spans.append((at, at + size))
        at = text.find(source, at + size, high)
    return _whole_words(text, spans, source, policy)


def _find_leniently(
    text: str,
    low: int,
    high: int,
    edit: tuple[int | None, str, str],
    policy: Policy,
    lenient: dict[str, int],
) -> list[SpanChange] | str:
    """Look for what a reader takes for `source`."""
    line, source, target = edit
    limit = 2 * policy.max_matches + 1
    for name, spans, new_target in _lenient_matches(text, low, high, source, target, limit):
        if not spans:
            continue
        whole: list[Span] | str = spans
        if line is None:
            whole = _whole_words(text, spans, source, policy)
        elif len(spans) > 1:
            whole = "ambiguous"
        if isinstance(whole, str):
            return whole
        if sum(len(new_target) - (stop - start) for start, stop in whole) > policy.max_growth:
            return "growth"
        add_count(lenient, name)
        return [(start, stop, new_target) for start, stop in whole]
    return "not_found"


def _whole_words(text: str, spans: list[Span], source: str, policy: Policy) -> list[Span] | str:
    """Return the spans that are whole words, or the reason for a rejection."""
    whole_words = policy.whole_words
    last = len(text)
    whole = [
        (start, stop)
        for start, stop in spans
        if ((start == 0 or text[start - 1].isspace()) and (stop == last or text[stop].isspace()))
        or not splits_word(text, start, stop, whole_words=whole_words)
    ]
    if not whole:
        return "inside_word"
    if len(whole) > 1:
        if len(whole) > policy.max_matches:
            return "too_many_matches"
        if whole_words and len(source.strip()) == 1 and source.strip().isalnum():
            return "ambiguous"  # one of several single letters or digits: which is not said
    return whole


def _lenient_matches(
    text: str, low: int, high: int, source: str, target: str, limit: int
) -> Iterator[tuple[str, list[Span], str]]:
    """Yield the name of each leniency, what it finds, and the replacement."""
    if source[0] in "[<" and (echo := _ECHO.match(source)):
        found = _find_all(text, low, high, source[echo.end() :], limit)
        yield "line_number_echo", found, target.removeprefix(echo[0])
    if "\\" in source:
        plain = _ESCAPED_SIGN.sub(r"\1", source)
        found = _find_all(text, low, high, plain, limit)
        yield "escaped_punctuation", found, _ESCAPED_SIGN.sub(r"\1", target)
    yield "equivalent_text", find_equivalent(text, low, high, source, limit), target


def _find_all(text: str, low: int, high: int, source: str, limit: int) -> list[Span]:
    spans: list[Span] = []
    at = text.find(source, low, high) if source.strip() else -1
    while at >= 0 and len(spans) < limit:
        spans.append((at, at + len(source)))
        at = text.find(source, at + len(source), high)
    return spans


def _reading(text: str, low: int, high: int, edit: StringEdit) -> tuple[str, str] | str:
    r"""Return (source, target) as the text decides whether `\theta` is a tab or a LaTeX command."""
    _, source, target, verbatim = edit
    assert verbatim is not None
    raw_source, raw_target = verbatim
    if raw_source == source:  # only the target has two readings
        if raw_target.replace("\\", "", 1) == source or _LATEX.search(source):
            return source, raw_target
        return "ambiguous"
    if text.find(raw_source, low, high) >= 0:
        # Two backslashes hold one: where the longer string occurs, it is the one that was meant.
        if text.find(source, low, high) >= 0 and not _only_within(
            text, low, high, source, raw_source
        ):
            return "ambiguous"
        return raw_source, raw_target
    if text.find(source, low, high) >= 0:
        return source, target
    quotes = raw_source.replace('\\"', '"').replace("\\'", "'")
    if text.find(quotes, low, high) >= 0:
        return quotes, raw_target.replace('\\"', '"').replace("\\'", "'")
    return source, target


def _only_within(text: str, low: int, high: int, source: str, longer: str) -> bool:
    """Return True if each `source` in the range is part of a `longer`."""
    inside = longer.count(source)
    return inside > 0 and text.count(source, low, high) == inside * text.count(longer, low, high)

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
_Span = tuple[int, int]

_ECHO = re.compile(r"(?:\[\d{1,6}\]|<lid:\d{1,6}>[ ]?)")
_BLOCK = 1000  # characters in which matches are located one by one
_MAX_ATTEMPTS = 256  # occurrences of a word whose surroundings are compared
_MARGIN = 16  # characters beside a string in which its equivalent may be longer
_ESCAPED_SIGN = re.compile(r"\\([^\w\s\\])")
_LATEX = re.compile(r"\\[A-Za-z]+|\$")


def find_equivalent(text: str, low: int, high: int, source: str, limit: int) -> list[_Span]:
    """Return up to `limit` ranges of `text` in [low, high) that a reader takes for `source`.

    Only the surroundings of the longest word of `source` are compared, unless `text` has this word
    in another spelling, or so often that comparing all is cheaper.
    """
    source = with_newlines(source)
    anchor = stable_run(source)
    if text.find(anchor, low, high) < 0:
        return _find_respelled(text, low, high, source, anchor, limit)
    spans = _find_near(text, low, high, source, anchor, limit) if anchor else None
    return _find_folded(text, low, high, source, limit) if spans is None else spans


def _find_respelled(
    text: str, low: int, high: int, source: str, anchor: str, limit: int
) -> list[_Span]:
    """Find `source` in a text without its longest word, `anchor`, in the usual spelling."""
    if text.isascii() or not has_other_spelling(text[low:high], anchor):
        return []
    return _find_folded(text, low, high, source, limit)


def _find_near(
    text: str, low: int, high: int, source: str, anchor: str, limit: int
) -> list[_Span] | None:
    """Compare the surroundings of each `anchor`; return None if comparing all is cheaper."""
    first = source.find(anchor)
    prefix, suffix = source[:first][::-1], source[first + len(anchor) :]
    before, after = 4 * first + _MARGIN, 4 * (len(source) - first) + _MARGIN
    budget = high - low + 2 * before + 2 * after
    left, right = _next_visible(prefix), _next_visible(suffix)
    spans: list[_Span] = []
    end = low
    for _ in range(_MAX_ATTEMPTS):
        at = text.find(anchor, end, high)
        if at < 0 or len(spans) == limit:
            break
        end = at + len(anchor)
        # Nearly all occurrences of the word are ruled out by the visible characters beside it.
        if right and (char := text[end : end + 1]) != right:
            if "!" <= char <= "~":
                continue
            if char == " " and "!" <= (char := text[end + 1 : end + 2]) <= "~" and char != right:
                continue
        if left and (char := text[at - 1 : at]) != left:
            if "!" <= char <= "~":
                continue
            if char == " " and "!" <= (char := text[at - 2 : at - 1]) <= "~" and char != left:
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


def _next_visible(string: str) -> str:
    """Return the first character of `string`, or the one after a blank; "" outside ASCII."""
    if string[:1] in (" ", "\t"):
        return string[1:2] if "!" <= string[1:2] <= "~" else " "
    return string[:1] if string[:1].isascii() else ""


def _find_folded(text: str, low: int, high: int, source: str, limit: int) -> list[_Span]:
    spans: list[_Span] = []
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


def _blocks(text: str, low: int, high: int, size: int) -> Iterator[_Span]:
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
    if not source or (line is None and source.isspace()):
        return "blank_source"
    at = text.find(source, low, high)
    if at < 0:
        if policy.strict:
            return "not_found"
        return _find_leniently(text, low, high, (line, source, target), policy, lenient)
    spans = _literal_spans(text, at, high, source, policy, only=line is not None)
    if isinstance(spans, str):
        return spans
    if (len(target) - len(source)) * len(spans) > policy.max_growth:
        return "growth"
    return [(start, stop, target) for start, stop in spans]


def find_literal(
    text: str, low: int, high: int, source: str, policy: Policy, *, only: bool
) -> list[_Span] | str:
    """Return where `source` occurs in characters [low, high), or the reason for a rejection.

    With `only`, that must be one place. Otherwise matches do not overlap and are whole words, if
    the policy asks for it.
    """
    at = text.find(source, low, high)
    return "not_found" if at < 0 else _literal_spans(text, at, high, source, policy, only=only)


def _literal_spans(
    text: str, at: int, high: int, source: str, policy: Policy, *, only: bool
) -> list[_Span] | str:
    """Return what `find_literal` returns, where the first occurrence is at character `at`."""
    stop = at + len(source)
    if only:
        # Occurrences may overlap: `aa` occurs twice in `aaa`.
        return "ambiguous" if text.find(source, at + 1, high) >= 0 else [(at, stop)]
    spans: list[_Span] = []
    while at >= 0:
        if _is_whole(text, at, stop, policy):
            spans.append((at, stop))
            if len(spans) > policy.max_matches:
                return "too_many_matches"
        at = text.find(source, stop, high)
        stop = at + len(source)
    return _usable(spans, source, policy)


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
    name = "equivalent_text"
    spans: list[_Span] = []
    if source[0] in "[<" or "\\" in source:
        name, spans, target = _find_rewritten(text, low, high, source, target, limit)
    if not spans and source.isalnum() and source.isascii():
        spans = _find_respelled(text, low, high, source, source, limit)
    elif not spans:
        spans = find_equivalent(text, low, high, source, limit)
    if not spans:
        return "not_found"
    usable: list[_Span] | str
    if line is None:
        whole = [span for span in spans if _is_whole(text, *span, policy)]
        usable = _usable(whole, source, policy)
    else:
        usable = "ambiguous" if len(spans) > 1 else spans
    if isinstance(usable, str):
        return usable
    if sum(len(target) - (stop - start) for start, stop in usable) > policy.max_growth:
        return "growth"
    add_count(lenient, name)
    return [(start, stop, target) for start, stop in usable]


def _is_whole(text: str, start: int, stop: int, policy: Policy) -> bool:
    """Return True if characters [start, stop) are whole words, or need not be."""
    if (start == 0 or text[start - 1].isspace()) and (stop == len(text) or text[stop].isspace()):
        return True
    return not splits_word(text, start, stop, whole_words=policy.whole_words)


def _usable(spans: list[_Span], source: str, policy: Policy) -> list[_Span] | str:
    """Return the spans, which are whole words, or the reason for a rejection."""
    if not spans:
        return "inside_word"
    if len(spans) > 1:
        if len(spans) > policy.max_matches:
            return "too_many_matches"
        if policy.whole_words and len(source.strip()) == 1 and source.strip().isalnum():
            return "ambiguous"  # one of several single letters or digits: which is not said
    return spans


def _find_rewritten(
    text: str, low: int, high: int, source: str, target: str, limit: int
) -> tuple[str, list[_Span], str]:
    """Return the name of a leniency, what `source` without a line number or escapes finds, target.

    If nothing is found, these are the name of the last leniency and the target as it is.
    """
    if source[0] in "[<" and (echo := _ECHO.match(source)):
        spans = _find_all(text, low, high, source[echo.end() :], limit)
        if spans:
            return "line_number_echo", spans, target.removeprefix(echo[0])
    if "\\" in source:
        plain = _ESCAPED_SIGN.sub(r"\1", source)
        spans = _find_all(text, low, high, plain, limit)
        if spans:
            return "escaped_punctuation", spans, _ESCAPED_SIGN.sub(r"\1", target)
    return "equivalent_text", [], target


def _find_all(text: str, low: int, high: int, source: str, limit: int) -> list[_Span]:
    spans: list[_Span] = []
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

"""What counts as part of a word, and which strings are equal to a reader, in any script.

Words and graphemes are those of Unicode (UAX #29), by the library `regex`, which is imported only
for text outside ASCII. Thai and Lao words need a dictionary; there only syllables are safe.
"""

import unicodedata
from functools import lru_cache
from typing import Any, NamedTuple

_LOOK_BACK = 64  # characters before a position in which its grapheme must begin
_JOINS_AFTER = frozenset("\u0e40\u0e41\u0e42\u0e43\u0e44\u0ec0\u0ec1\u0ec2\u0ec3\u0ec4\u17d2\u1039")
_JOINS_BEFORE = frozenset("\u0e30\u0e32\u0e33\u0e45\u0eb0\u0eb2\u0eb3\u17d2\u1039")
_ZERO_WIDTH = frozenset("\u200b\u2060\ufeff\u00ad")
_SELECTORS = str.maketrans("", "", "\ufe0e\ufe0f\u200b\u2060\ufeff\u00ad")


def splits_word(text: str, start: int, stop: int, *, whole_words: bool) -> bool:
    """Return True if taking characters [start, stop) out of `text` would split a word or grapheme.

    Without `whole_words`, only graphemes count.
    """
    for at, edge in ((start, start), (stop, stop - 1)):
        if not 0 < at < len(text):
            continue
        left, right = text[at - 1], text[at]
        if left.isspace() or right.isspace():
            continue
        if left.isascii() and right.isascii():
            if whole_words and _is_word(text[edge]) and _joined_ascii(text, at, left, right):
                return True
        elif _joined(text, at, whole_words=whole_words and _is_word(text[edge])):
            return True
    return False


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_" or unicodedata.category(char)[0] == "M"


def _joined_ascii(text: str, at: int, left: str, right: str) -> bool:
    """Return True if two ASCII characters around `at` belong to one word."""
    if right.isalnum() or right == "_":
        if left.isalnum() or left == "_":
            return True
        return at > 1 and _bridges(text[at - 2], left, right)
    return at + 1 < len(text) and _bridges(left, right, text[at + 1])


def _bridges(before: str, sign: str, after: str) -> bool:
    """Return True for `don't`, `example.com` and `3.14`, not for two sentences without a blank."""
    if sign in ".'":
        if before.isalpha() and after.isalpha():
            return not (sign == "." and before.islower() and after.isupper())
        return before.isdigit() and after.isdigit()
    return sign == "," and before.isdigit() and after.isdigit()


def _joined(text: str, at: int, *, whole_words: bool) -> bool:
    """Return True if the characters around `at` belong to one grapheme or one word."""
    if text[at - 1] in _JOINS_AFTER or text[at] in _JOINS_BEFORE:
        return True
    boundary, grapheme = _patterns()
    if whole_words:
        return boundary.match(text, at) is None
    first = at - 1
    while first > 0 and at - first < _LOOK_BACK and not text[first - 1].isspace():
        first -= 1
    return all(match.end() != at for match in grapheme.finditer(text, first, at + _LOOK_BACK))


@lru_cache(maxsize=1)
def _patterns() -> tuple[Any, Any]:
    import regex  # a dozen milliseconds that ASCII text does not need

    return regex.compile(r"(?w)\b"), regex.compile(r"\X")


class FoldedText(NamedTuple):
    """Text in which equivalent characters are the same, and where each came from.

    Character n stands for characters [starts[n], stops[n]) of the original.
    """

    text: str
    starts: list[int]
    stops: list[int]

    def find(self, source: str, limit: int) -> list[tuple[int, int]]:
        """Return up to `limit` occurrences of a folded string, as ranges of the original."""
        found: list[tuple[int, int]] = []
        at = self.text.find(source) if source.strip() else -1
        while at >= 0 and len(found) < limit:
            stop = at + len(source)
            start_splits = at > 0 and self.starts[at - 1] == self.starts[at]
            stop_splits = stop < len(self.text) and self.starts[stop] == self.starts[stop - 1]
            if start_splits or stop_splits:
                at = self.text.find(source, at + 1)
                continue
            found.append((self.starts[at], self.stops[stop - 1]))
            at = self.text.find(source, stop)
        return found


def fold(text: str, low: int, high: int, *, zero_width: str) -> FoldedText:
    """Fold characters [low, high) of `text`: NFKC by grapheme, white space as one blank.

    Characters without width become `zero_width`: nothing, or a blank.
    """
    chars: list[str] = []
    starts: list[int] = []
    stops: list[int] = []
    for start, stop, folded in _folded_graphemes(text, low, high, zero_width):
        if folded == " " and chars and chars[-1] == " ":
            stops[-1] = stop
            continue
        chars += folded
        starts += [start] * len(folded)
        stops += [stop] * len(folded)
    return FoldedText("".join(chars), starts, stops)


def _folded_graphemes(text: str, low: int, high: int, zero_width: str) -> Any:
    if text.isascii():
        spans = [(at, at + 1) for at in range(low, high)]
    else:
        spans = [match.span() for match in _patterns()[1].finditer(text, low, high)]
    previous_return = False
    for start, stop in spans:
        char = text[start:stop]
        if char == "\n" and previous_return:
            previous_return = False
            continue
        previous_return = char == "\r"
        if char in ("\n", "\r", "\r\n", "\u2028", "\x85"):
            yield start, stop, "\n"
        elif char.isspace():
            yield start, stop, " "
        elif all(c in _ZERO_WIDTH for c in char):
            if zero_width:
                yield start, stop, zero_width
        else:
            yield start, stop, unicodedata.normalize("NFKC", char.translate(_SELECTORS))


def fold_source(source: str, *, zero_width: str) -> str:
    """Return `source` as `fold` would write it."""
    return fold(source, 0, len(source), zero_width=zero_width).text

"""What counts as part of a word, and which strings are equal to a reader, in any script.

Words and graphemes are those of Unicode (UAX #29), by the library `regex`, which is imported only
for text outside ASCII. Thai and Lao words need a dictionary; there only syllables are safe.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

_LOOK_BACK = 64  # characters before a position in which its grapheme must begin
_JOINS_AFTER = frozenset("\u0e40\u0e41\u0e42\u0e43\u0e44\u0ec0\u0ec1\u0ec2\u0ec3\u0ec4\u17d2\u1039")
_JOINS_BEFORE = frozenset("\u0e30\u0e32\u0e33\u0e45\u0eb0\u0eb2\u0eb3\u17d2\u1039")
_ZERO_WIDTH = re.compile("[\u200b\u2060\ufeff\u00ad]")
_SELECTOR = re.compile("[\ufe0e\ufe0f]")
_INVISIBLE = "\u200b\u2060\ufeff\u00ad\ufe0e\ufe0f"
_WIDE = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
_LIGATURES = {"ffi": "ﬃ", "ffl": "ﬄ", "ff": "ﬀ", "fi": "ﬁ", "fl": "ﬂ"}
_LIGATURE = re.compile("|".join(_LIGATURES))
_ODD_SPACE = re.compile(r"[^\S\n ]|  ")
_ASCII_WORD = re.compile(r"[A-Za-z0-9]+")
_BLANKS = re.compile(r"[^\S\n]+")
_LINE_END = re.compile("\r\n?|[\u2028\x85]")
# Combining marks belong to the character before them, so a run ends one character before these.
_PIECE = re.compile(
    r"[!-~]+(?=[\x00-\x7f]|\Z)|[!-~]+(?=[!-~])|\r\n|[ \t\r\n\x0b\x0c](?=[\x00-\x7f]|\Z)"
)


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


def has_zero_width(text: str) -> bool:
    """Return True if `text` has characters without width."""
    return not text.isascii() and _ZERO_WIDTH.search(text) is not None


def has_other_spelling(text: str, word: str) -> bool:
    """Return True if `text` has `word` with invisible characters, ligatures or wide letters."""
    plain = text
    for char in _INVISIBLE:
        if char in plain:
            plain = plain.replace(char, "")
    if plain is not text and word in plain:
        return True
    forms = {word.translate(_WIDE)}
    if not word.isascii():
        forms.add(unicodedata.normalize("NFD", word))
    if "f" in word:
        forms.add(_LIGATURE.sub(lambda match: _LIGATURES[match.group()], word))
    return any(form in text for form in forms)


def stable_run(text: str) -> str:
    """Return the longest run of letters and digits that equal only themselves; may be empty."""
    if text.isascii():
        return max(_ASCII_WORD.findall(text), key=len, default="")
    stable = "".join(
        char if char.isalnum() and not unicodedata.decomposition(char) else " " for char in text
    )
    for at, char in enumerate(text):
        if at and unicodedata.combining(char):  # it may be composed with the letter before it
            stable = f"{stable[: at - 1]} {stable[at:]}"
    return max(stable.split(), key=len, default="")


def equivalent_length(text: str, start: str) -> int | None:
    """Return how many characters at the start of `text` are equivalent to `start`.

    -1 if it starts otherwise; None if characters outside ASCII decide: both must be folded. Both
    may be reversed; lines of `start` end with newlines only.
    """
    at, stop = 0, len(text)
    blank_before = False
    for char in start:
        if char in " \t":
            if not blank_before and not (at < stop and text[at] in " \t"):
                return None if at < stop and not text[at].isascii() else -1
            while at < stop and text[at] in " \t":
                at += 1
            blank_before = True
            continue
        blank_before = False
        if char == "\n":
            while at < stop and text[at] == "\r":
                at += 1
        if at == stop:
            return -1
        if text[at] != char:
            return -1 if text[at].isascii() and char.isascii() else None
        at += 1
        if char == "\n" and at < stop and text[at] == "\r":
            at += 1
    return at


def with_newlines(text: str) -> str:
    """Return `text` with a newline at each line end."""
    return _LINE_END.sub("\n", text)


def folded(text: str, *, zero_width: str) -> str:
    """Return `text` with equivalent characters made the same.

    That is NFKC, each run of blanks as one, and line ends as newlines. Characters without width
    become `zero_width`: nothing, or a blank.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _ZERO_WIDTH.sub(zero_width, _SELECTOR.sub("", text)))
    if _ODD_SPACE.search(text):
        text = _BLANKS.sub(" ", with_newlines(text))
    return text


def find_folded(
    text: str, low: int, high: int, source: str, zero_width: str, limit: int
) -> list[tuple[int, int]]:
    """Return up to `limit` ranges of `text` in [low, high) that fold to `source`, itself folded."""
    chars: list[str] = []
    starts: list[int] = []
    stops: list[int] = []
    for start, stop in _pieces(text, low, high):
        piece = folded(text[start:stop], zero_width=zero_width)
        if piece == " " and chars and chars[-1] == " ":
            stops[-1] = stop
        elif len(piece) == stop - start and piece.isascii():
            chars += piece
            starts += range(start, stop)
            stops += range(start + 1, stop + 1)
        else:
            chars += piece
            starts += [start] * len(piece)
            stops += [stop] * len(piece)
    spans: list[tuple[int, int]] = []
    joined = "".join(chars)
    at = joined.find(source)
    while at >= 0 and len(spans) < limit:
        end = at + len(source)
        splits = (at > 0 and starts[at - 1] == starts[at]) or (
            end < len(joined) and starts[end] == starts[end - 1]
        )
        if not splits:
            spans.append((starts[at], stops[end - 1]))
        at = joined.find(source, at + 1 if splits else end)
    return spans


def _pieces(text: str, low: int, high: int) -> Iterator[tuple[int, int]]:
    """Yield runs of visible ASCII, line ends, blanks, and single graphemes of other text."""
    at = low
    while at < high:
        match = _PIECE.match(text, at, high) or _patterns()[1].match(text, at, high)
        assert match is not None  # a grapheme has at least one character
        yield at, match.end()
        at = match.end()


def common_ends(old: Sequence[str], new: Sequence[str]) -> tuple[int, int]:
    """Return the lengths of the common prefix, and of the common suffix of the rest."""
    shorter = min(len(old), len(new))
    head = _largest(shorter, lambda low, high: old[low:high] == new[low:high])
    a, b = len(old), len(new)
    rest = shorter - head
    tail = _largest(rest, lambda low, high: old[a - high : a - low] == new[b - high : b - low])
    return head, tail


def _largest(limit: int, is_same: Callable[[int, int], bool]) -> int:
    """Return the largest n up to `limit` for which [0, n) is the same, by bisection."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if is_same(low, middle):
            low = middle
        else:
            high = middle - 1
    return low

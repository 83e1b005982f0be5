"""Splits a long line into pieces: sentences, as Unicode finds them (UAX #29), or parts of them."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

_CLOSING = r"[\p{Pe}\p{Pf}\"']*+"
# No piece begins with a character that belongs to the grapheme before it.
_BEGIN = r"(?![\p{GCB=EX}\p{GCB=SM}\p{GCB=ZWJ}])"
# Ends of pieces, the best first. Each run of signs is read once, so that all take linear time.
_ENDS = (
    # Control characters that end lines; a stop and a blank, but not before a small letter, where it
    # ends an abbreviation; stops that need no blank.
    rf"(?:[\r\v\f\x85\u2028\u2029]|(?<![.!?…])[.!?…]++{_CLOSING}\s++(?!\p{{Ll}})"
    rf"|(?<!(?=[^!?])\p{{SB=ST}})(?:(?=[^!?])\p{{SB=ST}})++{_CLOSING}\s*+){_BEGIN}",
    rf"(?:\s[|•·»–—-]\s++|[,;:]{_CLOSING}\s++|[、，；：،؛]{_CLOSING}\s*+){_BEGIN}",
    rf"(?<!\s)\s++{_BEGIN}",
    r"\X",
)


@lru_cache(maxsize=1)
def _patterns() -> list[Any]:
    import regex

    return [regex.compile(pattern) for pattern in _ENDS]


def split_line(line: str, joined: int, longest: int) -> list[str]:
    """Split a line into sentences. Short ones are joined to pieces of up to `joined` characters.

    A sentence of more than `longest` characters is split where clauses or words end, and a word of
    that length between graphemes; these parts are joined likewise.
    """
    return list(_split(line, joined, longest, 0))


def _split(text: str, joined: int, longest: int, rank: int) -> Iterator[str]:
    ends = [match.end() for match in _patterns()[rank].finditer(text)]
    start = last = 0
    for end in (*ends, len(text)):
        if end - start > joined and last > start:
            yield from _refine(text[start:last], joined, longest, rank)
            start = last
        last = end
    if start < len(text):
        yield from _refine(text[start:], joined, longest, rank)


def _refine(piece: str, joined: int, longest: int, rank: int) -> Iterator[str]:
    """Split a piece again if it is too long and consists of more than a grapheme."""
    if len(piece) <= longest or rank + 1 == len(_ENDS):
        yield piece
    else:
        yield from _split(piece, joined, longest, rank + 1)

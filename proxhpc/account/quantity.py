"""Numbers for people: with nouns that agree, or with two digits that count."""

from collections.abc import Sequence
from math import floor, log10

SHOWN = 8  # files in a message
_DIGITS = 2  # of an estimate


def quantity(number: int, noun: str, plural: str = "") -> str:
    """Return `1 document`, `2,500 documents`; `plural` is needed if it is not the noun and `s`."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def shorten(lines: Sequence[str], shown: int = SHOWN) -> list[str]:
    """Return the first lines, each about a file, and how many more there are."""
    more = len(lines) - shown
    return [*lines] if more <= 0 else [*lines[:shown], f"and {quantity(more, 'more file')}"]


def rounded(number: float) -> str:
    """Return a number with two digits that count: `2,100`, `5.5`, `0.031`."""
    if not number:
        return "0"
    decimals = _DIGITS - 1 - floor(log10(abs(number)))
    value = round(number, decimals)
    return f"{value:,.{max(0, decimals)}f}"


def memory_size(number: float) -> str:
    """Return bytes in the largest unit: `120 B`, `5.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1000:
            return f"{rounded(number)} {unit}"
        number /= 1024
    return f"{rounded(number)} TiB"

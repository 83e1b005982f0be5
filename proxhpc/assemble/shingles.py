"""Shingles: a text's n-grams of words as 64-bit hashes, on arrays, with no string for any of them.

A word is a run of letters, digits and marks; in scripts that write no spaces between words each
character is one. Its hash is a polynomial over its characters modulo 2^64, taken from prefix sums
over the whole text, so that a text costs a handful of passes in numpy however many words it has.
"""

import functools
import re

import numpy as np
import numpy.typing as npt

from proxhpc.program.execute import UNSPACED

Hashes = npt.NDArray[np.uint64]

BLOCK = 1 << 16  # characters at a time; a longer word is cut
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_SEPARATOR, _WORD, _ALONE = 0, 1, 2
_LAST = 0x110000
_WORD_RUN = re.compile(r"[\w\u0300-\u036f]+")


def shingles(text: str, size: int) -> Hashes:
    """Hashes of the runs of `size` words, in their order, repeats included.

    A text of fewer words is one shingle, one of none has none.
    """
    words = word_hashes(text)
    size = min(size, len(words))
    if not size:
        return words
    count = len(words) - size + 1
    out = np.zeros(count, np.uint64)
    for place in range(size):
        out = out * np.uint64(_BASE) + words[place : place + count]
    return mixed(out)


def word_hashes(text: str) -> Hashes:
    """A hash of each word, in their order; case and what stands between words do not matter."""
    text = text.lower()
    if len(text) <= BLOCK:
        return _block(text)
    blocks = []
    start = 0
    while start < len(text):
        stop = start + BLOCK
        if stop < len(text) and (cut := max(text.rfind(sep, start, stop) for sep in " \n")) > 0:
            stop = cut + 1
        blocks.append(_block(text[start:stop]))
        start = stop
    return np.concatenate(blocks)


def _block(text: str) -> Hashes:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kinds()[codes]
    alone = kinds == _ALONE
    word = np.zeros(len(kinds) + 2, np.bool_)
    word[1:-1] = kinds == _WORD
    starts = np.flatnonzero((word[1:-1] & ~word[:-2]) | alone)
    stops = np.flatnonzero((word[1:-1] & ~word[2:]) | alone) + 1
    powers, inverses = _powers()
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(mixed(codes.astype(np.uint64)) * powers[: len(codes)], out=sums[1:])
    # The sum over a word, shifted back to where it would stand at the text's beginning.
    return mixed((sums[stops] - sums[starts]) * inverses[starts])


@functools.cache
def _powers() -> tuple[Hashes, Hashes]:
    """Powers of the base and of its inverse, modulo 2^64."""
    out = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        powers = np.full(BLOCK, base, np.uint64)
        powers[0] = 1
        out.append(np.cumprod(powers))
    return out[0], out[1]


@functools.cache
def _kinds() -> npt.NDArray[np.uint8]:
    """For each code point, whether it parts words, belongs to one or is one."""
    kinds = np.zeros(_LAST, np.uint8)
    every = "".join(map(chr, range(_LAST)))
    for kind, pattern in ((_WORD, _WORD_RUN), (_ALONE, UNSPACED)):
        for match in pattern.finditer(every):
            kinds[match.start() : match.end()] = kind
    return kinds


def mixed(values: Hashes) -> Hashes:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the value."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values

"""Shingles: a text's n-grams of words as 64-bit hashes, on arrays, with no string for any of them.

A word is a run of letters, digits and marks; in scripts that write no spaces between words each
character is one. Its hash is a polynomial over its characters modulo 2^64, taken from prefix sums
over the whole text, so that a text costs a handful of passes in numpy however many words it has.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from proxhpc.program.execute import UNSPACED

Hashes = npt.NDArray[np.uint64]

BLOCK = 1 << 16  # characters at a time, of many short texts, too; a longer word is cut
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_WORD, _ALONE = 1, 2  # 0: what parts words
_LAST = 0x110000
_WORD_RUN = re.compile(r"[\w\u0300-\u036f]+")


def fold(text: str) -> str:
    """A text as it is compared: composed (NFC) and in lower case."""
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).lower()


def shingles(folded: str, size: int) -> Hashes:
    """Hashes of the runs of `size` words of a folded text, in their order, repeats included.

    A text of fewer words is one shingle, one of none has none.
    """
    return _runs(word_hashes(folded), size)


def shingles_of_each(texts: Sequence[str], size: int) -> list[Hashes]:
    """The shingles of each of some folded texts, short ones for little more than their length."""
    joined = "\n".join(texts)
    if len(joined) > BLOCK:
        return [shingles(text, size) for text in texts]
    starts, words = _block(joined)
    edges = np.searchsorted(starts, np.cumsum([0, *(len(text) + 1 for text in texts)])).tolist()
    runs = _runs(words, size)
    return [
        runs[first : last - size + 1] if last - first >= size else _runs(words[first:last], size)
        for first, last in pairwise(edges)
    ]


def _runs(words: Hashes, size: int) -> Hashes:
    """Hashes of the runs of so many words, or of all where there are fewer."""
    size = min(size, len(words))
    if not size:
        return words
    count = len(words) - size + 1
    out = words[:count].copy()
    for place in range(1, size):
        out *= np.uint64(_BASE)
        out += words[place : place + count]
    return mix_bits(out)


def word_hashes(folded: str) -> Hashes:
    """A hash of each word, in their order; what stands between words does not matter."""
    if len(folded) <= BLOCK:
        return _block(folded)[1]
    blocks = []
    start = 0
    while start < len(folded):
        stop = start + BLOCK
        if stop < len(folded) and (cut := max(folded.rfind(s, start, stop) for s in " \n")) > 0:
            stop = cut + 1
        blocks.append(_block(folded[start:stop])[1])
        start = stop
    return np.concatenate(blocks)


def _block(text: str) -> tuple[npt.NDArray[np.int64], Hashes]:
    """Where each word of a short text begins, and its hash."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    if not len(codes):
        return np.empty(0, np.int64), np.empty(0, np.uint64)
    kinds, values = _tables(int(codes.max()).bit_length())
    kinds = kinds.take(codes)
    word = np.zeros(len(kinds) + 2, np.bool_)
    np.equal(kinds, _WORD, out=word[1:-1])
    edges = np.flatnonzero(word[1:] != word[:-1])
    starts, stops = edges[::2], edges[1::2]
    alone = np.flatnonzero(kinds == _ALONE)
    if len(alone):
        starts = np.sort(np.concatenate([starts, alone]))
        stops = np.sort(np.concatenate([stops, alone + 1]))
    powers, inverses = _powers()
    sums = np.zeros(len(codes) + 1, np.uint64)
    placed = values.take(codes)
    placed *= powers[: len(codes)]
    np.cumsum(placed, out=sums[1:])
    # The sum over a word, shifted back to where it would stand at the text's beginning.
    hashes = sums[stops]
    hashes -= sums[starts]
    hashes *= inverses[starts]
    return starts, mix_bits(hashes)


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
def _tables(bits: int) -> tuple[npt.NDArray[np.uint8], Hashes]:
    """For each code point of so many bits: what it is for words, and the number it stands for.

    Most texts need few bits; a table of all code points would take as long as thousands of them.
    """
    count = min(1 << bits, _LAST)
    kinds = np.zeros(count, np.uint8)
    every = np.arange(count, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    for kind, pattern in ((_WORD, _WORD_RUN), (_ALONE, UNSPACED)):
        for match in pattern.finditer(every):
            kinds[match.start() : match.end()] = kind
    return kinds, mix_bits(np.arange(count, dtype=np.uint64))


def mix_bits(values: Hashes) -> Hashes:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the value."""
    shifted = values >> np.uint64(30)
    values = values ^ shifted
    values *= np.uint64(0xBF58476D1CE4E5B9)
    np.right_shift(values, np.uint64(27), out=shifted)
    values ^= shifted
    values *= np.uint64(0x94D049BB133111EB)
    np.right_shift(values, np.uint64(31), out=shifted)
    values ^= shifted
    return values

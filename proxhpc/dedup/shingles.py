"""Shingles: a text's n-grams of words as 64-bit hashes, computed on arrays without strings.

A word is a run of letters, digits and marks; in scripts without spaces between words, each
character is a word. A word's hash is a polynomial over its characters modulo 2^64. It is taken from
prefix sums over the whole text, so a text costs a fixed number of numpy passes.
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

BLOCK = 1 << 16  # characters hashed at a time, of one text or several; a longer word is split
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_WORD, _WHOLE_WORD = 1, 2  # a character of a word, one that is a word alone; 0: a separator
_CODE_POINTS = 0x110000
_WORD_RUN = re.compile(r"[\w\u0300-\u036f]+")


def fold(text: str) -> str:
    """The form of a text that is compared: composed (NFC) and in lower case."""
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).lower()


def shingles(folded: str, size: int) -> Hashes:
    """Hashes of the runs of `size` words of a folded text, in text order, with repeats.

    A text with fewer words has one shingle, a text without words none.
    """
    return _hash_runs(word_hashes(folded), size)


def shingles_of_each(texts: Sequence[str], size: int) -> list[Hashes]:
    """The shingles of each of several folded texts; short texts are hashed together."""
    joined = "\n".join(texts)
    if len(joined) > BLOCK:
        return [shingles(text, size) for text in texts]
    starts, words = _hash_block(joined)
    edges = np.searchsorted(starts, np.cumsum([0, *(len(text) + 1 for text in texts)])).tolist()
    runs = _hash_runs(words, size)
    return [
        runs[a : b - size + 1] if b - a >= size else _hash_runs(words[a:b], size)
        for a, b in pairwise(edges)
    ]


def _hash_runs(words: Hashes, size: int) -> Hashes:
    """Hashes of the runs of `size` words, or of all words if there are fewer."""
    size = min(size, len(words))
    if not size:
        return words
    count = len(words) - size + 1
    out = words[:count].copy()
    for offset in range(1, size):
        out *= np.uint64(_BASE)
        out += words[offset : offset + count]
    return mix_bits(out)


def word_hashes(folded: str) -> Hashes:
    """A hash of each word, in text order; separators between words do not matter."""
    if len(folded) <= BLOCK:
        return _hash_block(folded)[1]
    blocks = []
    start = 0
    while start < len(folded):
        stop = start + BLOCK
        if stop < len(folded):
            blank = max(folded.rfind(char, start, stop) for char in " \n")
            stop = blank + 1 if blank > 0 else stop
        blocks.append(_hash_block(folded[start:stop])[1])
        start = stop
    return np.concatenate(blocks)


def _hash_block(text: str) -> tuple[npt.NDArray[np.int64], Hashes]:
    """Start and hash of each word of a text of at most BLOCK characters."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    if not len(codes):
        return np.empty(0, np.int64), np.empty(0, np.uint64)
    kinds, values = _tables(int(codes.max()).bit_length())
    kinds = kinds.take(codes)
    in_word = np.zeros(len(kinds) + 2, np.bool_)
    np.equal(kinds, _WORD, out=in_word[1:-1])
    edges = np.flatnonzero(in_word[1:] != in_word[:-1])
    starts, stops = edges[::2], edges[1::2]
    whole_words = np.flatnonzero(kinds == _WHOLE_WORD)
    if len(whole_words):
        starts = np.sort(np.concatenate([starts, whole_words]))
        stops = np.sort(np.concatenate([stops, whole_words + 1]))
    powers, inverses = _powers()
    terms = values.take(codes)
    terms *= powers[: len(codes)]
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(terms, out=sums[1:])
    # The sum over a word, shifted to what it would be at the beginning of the text.
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
    """For each code point below 2^bits: its kind for words, and its number in hashes.

    Most texts need few bits, and a table of all code points costs as much as thousands of texts.
    """
    count = min(1 << bits, _CODE_POINTS)
    kinds = np.zeros(count, np.uint8)
    every = np.arange(count, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    for kind, pattern in ((_WORD, _WORD_RUN), (_WHOLE_WORD, UNSPACED)):
        for match in pattern.finditer(every):
            kinds[match.start() : match.end()] = kind
    return kinds, mix_bits(np.arange(count, dtype=np.uint64))


def mix_bits(values: Hashes) -> Hashes:
    """SplitMix64's finalizer: every bit of the result depends on every bit of the value."""
    shifted = values >> np.uint64(30)
    values = values ^ shifted
    values *= np.uint64(0xBF58476D1CE4E5B9)
    np.right_shift(values, np.uint64(27), out=shifted)
    values ^= shifted
    values *= np.uint64(0x94D049BB133111EB)
    np.right_shift(values, np.uint64(31), out=shifted)
    values ^= shifted
    return values

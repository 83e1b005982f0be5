"""Shingles: a text's n-grams of words as 64-bit hashes, computed on arrays without strings.

A word is a run of letters, digits and marks; in scripts without spaces between words, each
character is a word. A word's hash is a polynomial over its characters modulo 2^64. It is taken from
prefix sums over the whole text, so a text costs a fixed number of numpy passes.
"""

import functools
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from proxhpc.program.execute import UNSPACED

Hashes = npt.NDArray[np.uint64]
Folded = npt.NDArray[np.uint32] | npt.NDArray[np.uint8]
"""A folded text: 8 bits of each character if all are ASCII, else 32 bits."""

BLOCK = 1 << 16  # characters hashed at a time, of one text or several; a longer word is split
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_CODE_POINTS = 0x110000
_BLANK = 0x20
_ASCII = range(0x80)
_WHOLE_WORD = 1 << 63  # set in the number of a character that is a word alone


def fold(text: str) -> Folded:
    """The form of a text that is compared, as code points.

    It is composed (NFC) and in lower case, with each run of white space as one blank, and none at
    the ends. So texts that differ in nothing else are equal.
    """
    folded: Folded
    if text.isascii():
        folded = np.frombuffer(text.encode().translate(_ascii_table()), np.uint8)
    else:
        folded = _fold_codes(text)
        if folded.max() < len(_ASCII):
            folded = folded.astype(np.uint8)
    blanks = folded == _BLANK
    repeated = np.zeros(len(blanks), np.bool_)
    np.logical_and(blanks[1:], blanks[:-1], out=repeated[1:])
    if repeated.any():
        folded = folded[~repeated]
    first, last = folded[:1].tolist(), folded[1:][-1:].tolist()
    return folded[first.count(_BLANK) : len(folded) - last.count(_BLANK)]


def _fold_codes(text: str) -> npt.NDArray[np.uint32]:
    table, values = _tables()
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    folded = table.take(codes)
    if folded.min() > 0:
        return folded.view(np.uint32)
    if len(new := np.unique(codes[folded == 0])):
        chars = new.tobytes().decode("utf-32-le", "surrogatepass")
        others = [*map(_fold_char, chars)]
        numbers = np.array([*map(ord, others)])
        table[new] = np.where([*map(_may_compose, chars)], -numbers, numbers)
        values[numbers] = _values(others)
        folded = table.take(codes)
    composed = unicodedata.normalize("NFC", text) if folded.min() < 0 else text
    if composed != text:
        return _fold_codes(composed)
    return np.abs(folded).view(np.uint32)


def _may_compose(char: str) -> bool:
    """Whether a text with this character may not be in NFC: a mark, a jamo, or another form."""
    return (
        unicodedata.category(char)[0] == "M"
        or "\u1100" <= char <= "\u11ff"
        or not unicodedata.is_normalized("NFC", char)
    )


def _fold_char(char: str) -> str:
    """Return a character in lower case; a blank for white space and NUL."""
    if char.isspace() or char == "\0":
        return " "
    return char.replace("\u03c2", "\u03c3").lower()[0]  # the final form of sigma


def _values(chars: Sequence[str]) -> Hashes:
    """Return the numbers of folded characters in hashes; 0 for one that separates words."""
    mixed = mix_bits(np.array([*map(ord, chars)], np.uint64))
    alone = np.array([UNSPACED.match(char) is not None for char in chars], np.bool_)
    kinds = [char == "_" or unicodedata.category(char)[0] in "LNM" for char in chars]
    in_word = np.array(kinds, np.bool_)
    top = np.where(alone, mixed | np.uint64(_WHOLE_WORD), mixed & ~np.uint64(_WHOLE_WORD))
    return np.where(alone | in_word, top | np.uint64(1), np.uint64(0))


@functools.cache
def _ascii_table() -> bytes:
    return bytes(ord(_fold_char(chr(code))) for code in _ASCII) + bytes(range(0x80, 0x100))


@functools.cache
def _tables() -> tuple[npt.NDArray[np.int32], Hashes]:
    """For each code point: its folded form, and, if it is folded, its number in hashes.

    The form is negative if a text with the character may not be composed. Both are 0 for a code
    point outside ASCII that no text has had: few are ever needed.
    """
    folded, values = np.zeros(_CODE_POINTS, np.int32), np.zeros(_CODE_POINTS, np.uint64)
    ascii_table = _ascii_table()[: len(_ASCII)]
    folded[: len(_ASCII)] = [*ascii_table]
    values[: len(_ASCII)] = _values([*map(chr, _ASCII)])
    return folded, values


def shingles(folded: Folded, size: int) -> Hashes:
    """Hashes of the runs of `size` words of a folded text, in text order, with repeats.

    A text with fewer words has one shingle, a text without words none.
    """
    return _hash_runs(word_hashes(folded), size)


def shingles_of_each(texts: Sequence[Folded], size: int) -> list[Hashes]:
    """The shingles of each of several folded texts; short texts are hashed together."""
    blank = np.full(1, _BLANK, np.uint8)
    joined = np.concatenate([blank, *(part for text in texts for part in (text, blank))])
    if len(joined) > BLOCK:
        return [shingles(text, size) for text in texts]
    starts, words = _hash_block(joined)
    edges = np.searchsorted(starts, np.cumsum([1, *(len(text) + 1 for text in texts)])).tolist()
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
    out, length = words, 1
    for bit in bin(size)[3:]:  # runs of twice the length, and of one more word if the bit is 1
        out = _joined(out, out[length:], length)
        length *= 2
        if bit == "1":
            out = _joined(out, words[length:], 1)
            length += 1
    return mix_bits(out)


def _joined(left: Hashes, right: Hashes, length: int) -> Hashes:
    """Hashes, not mixed, of runs followed by the runs of `length` words right after them."""
    out = left[: len(right)] * np.uint64(pow(_BASE, length, 1 << 64))
    out += right[: len(out)]
    return out


def word_hashes(folded: Folded) -> Hashes:
    """A hash of each word, in text order; separators between words do not matter."""
    return np.concatenate(
        [np.empty(0, np.uint64), *(_hash_block(b)[1] for _, b in _blocks(folded))]
    )


def words_of(folded: Folded, first: int, count: int) -> str:
    """The text of `count` words of a folded text from its word number `first` on."""
    starts = np.concatenate([at + _hash_block(block)[0] for at, block in _blocks(folded)])
    edges = np.append(starts, len(folded)).tolist()
    piece = folded[edges[first] : edges[first + count]]
    last = np.flatnonzero(_tables()[1].take(piece))[-1]  # no separator
    return "".join(map(chr, piece[: last + 1].tolist()))


def _blocks(folded: Folded) -> Iterator[tuple[int, Folded]]:
    """Yield pieces of at most BLOCK characters that begin with a word, and where they begin."""
    start = 0
    while start < len(folded):
        block = folded[start : start + BLOCK]
        if len(block) == BLOCK and len(blanks := np.flatnonzero(block == _BLANK)):
            block = block[: int(blanks[-1]) + 1]
        yield start, block
        start += len(block)


def _hash_block(folded: Folded) -> tuple[npt.NDArray[np.int64], Hashes]:
    """Start and hash of each word of a text of at most BLOCK characters."""
    terms = _tables()[1].take(folded)
    signed = terms.view(np.int64)
    in_word = np.zeros(len(terms) + 2, np.bool_)
    np.greater(signed, 0, out=in_word[1:-1])
    edges = np.flatnonzero(in_word[1:] != in_word[:-1])
    starts, stops = edges[::2], edges[1::2]
    if signed.min(initial=0) < 0:
        whole_words = np.flatnonzero(signed < 0)
        starts = np.sort(np.concatenate([starts, whole_words]))
        stops = np.sort(np.concatenate([stops, whole_words + 1]))
    powers, inverses = _powers()
    terms *= powers[: len(terms)]
    sums = np.zeros(len(terms) + 1, np.uint64)
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

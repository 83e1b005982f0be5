"""Gopher's repetition rules: how much of a document repeats earlier text."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from proxhpc.engines.rules.heuristics import CHARACTERS_PER_WORD, ParsedDocument, duplicate_shares

_TOP_NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
_DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
_PARAGRAPH = re.compile(r"\n{2,}")

_Ids = npt.NDArray[np.int64]


def gopher_repetition(document: ParsedDocument) -> str:
    """Why Gopher's repetition rules remove this document, or "" (Rae et al. 2021, Table A1).

    A duplicate is a second or later occurrence. Characters are counted without white space, and
    those that several n-grams cover only once. In unspaced scripts n-grams consist of characters,
    two for each word.
    """
    paragraphs = [part.strip() for part in _PARAGRAPH.split(document.text.strip())]
    for name, parts in (("paragraph", paragraphs), ("line", document.lines)):
        count, characters = duplicate_shares(parts)
        if count > 0.3:
            return f"duplicate {name}s {count:.2f} > 0.3"
        if characters > 0.2:
            return f"characters in duplicate {name}s {characters:.2f} > 0.2"
    for name, share, limit in ngram_shares(document):
        if share > limit:
            return f"{name} characters {share:.2f} > {limit:.2f}"
    return ""


def ngram_shares(document: ParsedDocument) -> Iterator[tuple[str, float, float]]:
    """Name, share of characters and limit of each n-gram rule, while any n-gram repeats."""
    ids, lengths, scale = _units(document)
    total = int(lengths.sum())
    for n, ranks in _ngrams(ids, scale * max(_DUPLICATE_NGRAMS)):
        words, remainder = divmod(n, scale)
        if remainder:
            continue
        if limit := _TOP_NGRAMS.get(words):
            yield f"top {words}-gram", _top_share(ranks, lengths, n, total), limit
        if limit := _DUPLICATE_NGRAMS.get(words):
            yield f"duplicate {words}-gram", _covered(ranks, lengths, n) / total, limit


def _units(document: ParsedDocument) -> tuple[_Ids, _Ids, int]:
    """Ids and lengths of the units, words or characters, and the number of units in a word."""
    if document.script == "spaced":
        numbers: dict[str, int] = {}
        ids = np.array([numbers.setdefault(w, len(numbers)) for w in document.words], np.int64)
        return ids, np.array(list(map(len, document.words)), np.int64), 1
    raw = "".join(document.words).encode("utf-32-le", "surrogatepass")
    characters = np.frombuffer(raw, np.uint32).astype(np.int64)
    return characters, np.ones_like(characters), CHARACTERS_PER_WORD


def _ngrams(ids: _Ids, max_n: int) -> Iterator[tuple[int, _Ids]]:
    """For n = 2, 3, …, a rank for the n-gram at each position; equal n-grams have equal ranks.

    Exact, not hashed: an n-gram is the pair of its (n-1)-gram's rank and its last unit. Stops at
    the first n without repeats, because longer n-grams cannot repeat either.
    """
    width = int(ids.max(initial=0)) + 1
    ranks = ids
    for n in range(2, min(max_n, len(ids)) + 1):
        values, inverse = np.unique(ranks[:-1] * width + ids[n - 1 :], return_inverse=True)
        if len(values) == len(inverse):
            return
        ranks = inverse.astype(np.int64, copy=False)
        yield n, ranks


def _top_share(ranks: _Ids, lengths: _Ids, n: int, total: int) -> float:
    """Share of characters in the most frequent n-gram, the longest if several are."""
    counts = np.bincount(ranks)
    ends = np.concatenate(([0], np.cumsum(lengths)))
    top = np.flatnonzero(counts[ranks] == counts.max())
    longest: Any = (ends[top + n] - ends[top]).max()
    return int(longest) * int(counts.max()) / total


def _covered(ranks: _Ids, lengths: _Ids, n: int) -> int:
    """Characters in second and later occurrences of n-grams, each counted once."""
    repeated = np.ones(len(ranks), np.bool_)
    repeated[np.unique(ranks, return_index=True)[1]] = False
    starts = np.flatnonzero(repeated)
    depth = np.zeros(len(lengths) + 1, np.int64)
    depth[starts] += 1
    depth[starts + n] -= 1
    return int(lengths[np.cumsum(depth[:-1]) > 0].sum())

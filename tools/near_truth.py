"""What is truly a near-duplicate: all pairs by their exact Jaccard similarity, and planted ones.

The measure is nobody's own: sets of runs of five words, where words are runs of letters, digits
and underscores in the text's lower case.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WORDS = 5
_WORD = re.compile(r"\w+")


def planted(texts: Sequence[str], copies: int, rng: random.Random) -> list[str]:
    """The texts and, mixed among them, `copies` of some with single words changed.

    The share of changed words is even between 0 and 8 %, so that similarities lie on both sides
    of any threshold one may choose.
    """
    out = list(texts)
    long = [text for text in texts if len(_WORD.findall(text)) >= 4 * WORDS]
    for number in range(copies):
        share = 0.08 * number / max(1, copies - 1)
        words = re.split(r"(\W+)", rng.choice(long))
        for at in range(0, len(words), 2):
            if rng.random() < share:
                words[at] = f"x{rng.randrange(10**6)}"
        out.append("".join(words))
    rng.shuffle(out)
    return out


def similar(texts: Sequence[str], least: float) -> dict[tuple[int, int], float]:
    """Every pair of texts with a Jaccard similarity of `least` or more, and that."""
    numbers: dict[tuple[str, ...], int] = {}
    sets = [_shingles(text, numbers) for text in texts]
    sizes = np.array([len(each) for each in sets])
    flat = np.concatenate(sets)
    owners = np.repeat(np.arange(len(sets)), sizes)
    order = np.argsort(flat, kind="stable")
    flat, owners = flat[order], owners[order]
    common: Counter[tuple[int, int]] = Counter()
    for own in np.split(owners, np.flatnonzero(np.diff(flat)) + 1):
        if len(own) > 1:
            listed = own.tolist()
            common.update((a, b) for at, a in enumerate(listed) for b in listed[at + 1 :])
    shares = {
        pair: both / int(sizes[pair[0]] + sizes[pair[1]] - both) for pair, both in common.items()
    }
    return {pair: share for pair, share in shares.items() if share >= least}


def _shingles(text: str, numbers: dict[tuple[str, ...], int]) -> np.ndarray:
    words = _WORD.findall(text.lower())
    runs = {tuple(words[at : at + WORDS]) for at in range(max(1, len(words) - WORDS + 1))}
    return np.array(sorted(numbers.setdefault(run, len(numbers)) for run in runs if run))


@dataclass(frozen=True, slots=True)
class Quality:
    """How what was dropped compares with the truth.

    `precision`: of the dropped documents, those that are truly like another one. `recall`: of the
    documents of which one like them could stay, those that were dropped.
    """

    dropped: int
    precision: float
    recall: float


def judge(documents: int, truth: Sequence[tuple[int, int]], dropped: set[int]) -> Quality:
    """Compare dropped documents with the pairs that are truly alike."""
    roots = list(range(documents))

    def root(of: int) -> int:
        while roots[of] != of:
            roots[of] = of = roots[roots[of]]
        return of

    for left, right in truth:
        roots[root(left)] = root(right)
    members: dict[int, set[int]] = {}
    for document in {each for pair in truth for each in pair}:
        members.setdefault(root(document), set()).add(document)
    right = sum(len(each & dropped) for each in members.values())
    wanted = sum(len(each) - 1 for each in members.values())
    found = sum(min(len(each & dropped), len(each) - 1) for each in members.values())
    return Quality(len(dropped), right / max(1, len(dropped)), found / max(1, wanted))

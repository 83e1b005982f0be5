"""True near-duplicates: the exact Jaccard similarity of all pairs, and planted copies.

The similarity is that of sets of runs of five words. Words are runs of letters, digits and
underscores in the lower-cased text.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

WORDS = 5
_WORD = re.compile(r"\w+")


def plant_copies(texts: Sequence[str], copies: int, rng: random.Random) -> list[str]:
    """The texts, shuffled with `copies` of long ones in which single words are changed.

    The share of changed words runs from 0 to 8 %, so that there are similarities on both sides of
    any threshold.
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


def similar_pairs(texts: Sequence[str], threshold: float) -> dict[tuple[int, int], float]:
    """All pairs of texts with a Jaccard similarity of `threshold` or more, and their similarity."""
    numbers: dict[tuple[str, ...], int] = {}
    sets = [_shingles(text, numbers) for text in texts]
    sizes = np.array([len(shingles) for shingles in sets])
    flat = np.concatenate(sets)
    owners = np.repeat(np.arange(len(sets)), sizes)
    order = np.argsort(flat, kind="stable")
    flat, owners = flat[order], owners[order]
    common: Counter[tuple[int, int]] = Counter()
    for sharing in np.split(owners, np.flatnonzero(np.diff(flat)) + 1):
        listed = sharing.tolist()
        common.update((a, b) for at, a in enumerate(listed) for b in listed[at + 1 :])
    similarities = {
        pair: both / int(sizes[pair[0]] + sizes[pair[1]] - both) for pair, both in common.items()
    }
    return {pair: value for pair, value in similarities.items() if value >= threshold}


def _shingles(text: str, numbers: dict[tuple[str, ...], int]) -> np.ndarray:
    words = _WORD.findall(text.lower())
    runs = {tuple(words[at : at + WORDS]) for at in range(max(1, len(words) - WORDS + 1))}
    return np.array(sorted(numbers.setdefault(run, len(numbers)) for run in runs if run))


def measure(
    documents: int, pairs: Sequence[tuple[int, int]], dropped: set[int]
) -> tuple[float, float]:
    """Precision and recall of the dropped documents, given the pairs that are similar.

    Precision: the share of dropped documents that are similar to another one. Recall: of the
    documents that could be dropped while one of their set survives, the share that was.
    """
    roots = list(range(documents))

    def root(document: int) -> int:
        while roots[document] != document:
            roots[document] = document = roots[roots[document]]
        return document

    for left, right in pairs:
        roots[root(left)] = root(right)
    sets: dict[int, set[int]] = {}
    for document in {each for pair in pairs for each in pair}:
        sets.setdefault(root(document), set()).add(document)
    correct = sum(len(members & dropped) for members in sets.values())
    possible = sum(len(members) - 1 for members in sets.values())
    found = sum(min(len(members & dropped), len(members) - 1) for members in sets.values())
    return correct / max(1, len(dropped)), found / max(1, possible)

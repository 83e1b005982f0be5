"""True near-duplicates: the exact Jaccard similarity of all pairs, and planted copies.

The similarity is that of sets of runs of five words of the lower-cased text. Words are runs of
letters, digits, marks and underscores; in scripts without spaces each character is a word.

What counts is what the merge promises: a document is removed only if it is similar to one that
survives, and of two similar documents one is removed. In a chain, where the first is similar to the
second and this to the third only, the second goes and the third stays, or the first and the third.
"""

import random
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

WORDS = 5
_MARKS = "".join(c for c in map(chr, range(sys.maxunicode)) if unicodedata.category(c)[0] == "M")
_ALONE = (  # Thai to Tibetan, Burmese, Khmer, kana, Han
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_WORD = re.compile(f"[{_ALONE}]|(?:(?![{_ALONE}])[\\w{_MARKS}])+")


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
    texts: Sequence[str], pairs: Sequence[tuple[int, int]], dropped: set[int]
) -> tuple[float, float]:
    """Precision and recall of the dropped texts, given the pairs that are similar.

    Precision: the share of them that are similar to a survivor. Recall: of those and the survivors
    that should have been dropped too, the share of the former. Survivors are taken by length, the
    longest first; each should have removed all that are similar to it.
    """
    similar: defaultdict[int, set[int]] = defaultdict(set)
    for left, right in pairs:
        similar[left].add(right)
        similar[right].add(left)
    correct = sum(not similar[document] <= dropped for document in dropped)
    missed: set[int] = set()
    for document in sorted(range(len(texts)), key=lambda each: -len(" ".join(texts[each].split()))):
        if document not in dropped and document not in missed:
            missed |= similar[document] - dropped
    return correct / max(1, len(dropped)), correct / max(1, correct + len(missed))

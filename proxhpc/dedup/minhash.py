"""MinHash: signatures whose equal places estimate how alike two sets of shingles are.

Two documents of Jaccard similarity s agree in each slot with probability s. Cut into bands of
`rows` slots, they agree in a whole band, and so are compared at all, with probability
1 - (1 - s^rows)^bands (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, section 3.4).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from proxhpc.dedup.shingles import BLOCK, Hashes, mix_bits, shingles_of_each
from proxhpc.spec.sections import Near

Signatures = npt.NDArray[np.uint16]
"""One row a document; of each slot 16 bits, by which 1 in 65,536 that differ look the same."""

_BATCH = 1 << 20  # shingles that are hashed into slots together, of 4096 documents at most
_ODD = np.uint32(0x9E3779B1)
_DEVIATIONS = 3


class MinHasher:
    """Takes texts, and gives their slots, which are made for many at a time."""

    def __init__(self, near: Near) -> None:
        self._near = near
        self._texts: list[str] = []
        self._chars = 0  # of these, and what parts them
        self._waiting: list[Hashes] = []
        self._weight = 0  # of what waits
        self._slots = [np.empty((0, near.bands * near.rows), np.uint32)]
        self._any: list[bool] = []

    def add(self, folded: str) -> None:
        """Take the next text, folded."""
        if self._chars + len(folded) > BLOCK:
            self._cut()
        self._texts.append(folded)
        self._chars += len(folded) + 1

    def finish(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
        """The slots of every text, a row each, and which texts have a shingle at all."""
        self._cut()
        self._make()
        return np.concatenate(self._slots), np.array(self._any, np.bool_)

    def _cut(self) -> None:
        for own in shingles_of_each(self._texts, self._near.shingle):
            self._waiting.append(own)
            self._any.append(len(own) > 0)
            self._weight += len(own) + _BATCH // 4096
        self._texts.clear()
        self._chars = 0
        if self._weight > _BATCH:
            self._make()

    def _make(self) -> None:
        if self._waiting:
            count = self._near.bands * self._near.rows
            self._slots.append(minhash_slots(self._waiting, count, self._near.seed))
            self._waiting.clear()
            self._weight = 0


def minhash_slots(shingles: Sequence[Hashes], count: int, seed: int) -> npt.NDArray[np.uint32]:
    """The slots of each document's signature, a row each; of no use where it has no shingle."""
    from rensa import RMinHash

    ends = np.cumsum([0, *(len(each) for each in shingles)], dtype=np.uint64)
    flat = np.concatenate([np.empty(0, np.uint64), *shingles])
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, ends, count, seed)
    return np.array(matrix.to_rows(), np.uint32).reshape(len(shingles), count)


def band_keys(slots: npt.NDArray[np.uint32], bands: int) -> npt.NDArray[np.uint64]:
    """A key for each band (first axis) of each document; equal where all slots of the band are."""
    rows = slots.reshape(len(slots), bands, slots.shape[1] // bands).astype(np.uint64)
    keys = np.zeros(rows.shape[:2], np.uint64)
    for row in range(rows.shape[2]):
        keys = mix_bits(keys + rows[:, :, row])
    return keys.T


def compress_slots(slots: npt.NDArray[np.uint32]) -> Signatures:
    """What is kept of the slots to compare documents by."""
    return ((slots * _ODD) >> np.uint32(16)).astype(np.uint16)


def similarity(left: Signatures, right: Signatures) -> npt.NDArray[np.float64]:
    """Estimated Jaccard similarity of documents row by row."""
    same: npt.NDArray[Any] = (left == right).mean(axis=1)
    return same


def similarity_bounds(estimates: npt.NDArray[np.float64], slots: int) -> tuple[Any, Any]:
    """Between what the true similarities lie, but for one in 370.

    Wilson's score interval at three standard deviations (JASA 22, 1927): each slot is a trial.
    """
    weight = _DEVIATIONS**2 / slots
    middle = (estimates + weight / 2) / (1 + weight)
    spread = estimates * (1 - estimates) / slots + weight / (4 * slots)
    half = _DEVIATIONS * np.sqrt(spread) / (1 + weight)
    return middle - half, middle + half

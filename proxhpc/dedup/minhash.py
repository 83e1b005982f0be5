"""MinHash: signatures whose equal slots estimate the Jaccard similarity of two texts.

Two documents of similarity s agree in each slot with probability s. Slots are grouped into bands of
`rows`; two documents are compared if they agree in a whole band, which has the probability
1 - (1 - s^rows)^bands (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, section 3.4).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from proxhpc.dedup.shingles import BLOCK, Folded, Hashes, mix_bits, shingles_of_each
from proxhpc.spec.sections import Near

Slots = npt.NDArray[np.uint32]
"""Shape (documents, bands * rows)."""

Signatures = npt.NDArray[np.uint16]
"""16 bits of each slot; different slots look equal with probability 1 in 65,536."""

Similarities = npt.NDArray[np.float64]
_BATCH = 1 << 20  # shingles that are hashed into slots together, of 4096 documents at most
_ODD = np.uint32(0x9E3779B1)
_DEVIATIONS = 3


class MinHasher:
    """Computes the slots of texts, in batches."""

    def __init__(self, near: Near) -> None:
        self._near = near
        self._texts: list[Folded] = []
        self._chars = 0  # of these texts and the separators between them
        self._shingles: list[Hashes] = []
        self._weight = 0  # of these shingles: their number, and a constant for each document
        self._slots = [np.empty((0, near.bands * near.rows), np.uint32)]
        self._has_shingles: list[bool] = []

    def add(self, folded: Folded) -> None:
        """Add the next folded text."""
        if self._chars + len(folded) > BLOCK:
            self._hash_texts()
        self._texts.append(folded)
        self._chars += len(folded) + 1

    def take(self, *, last: bool = False) -> tuple[Slots, npt.NDArray[np.bool_]]:
        """Slots of the next texts that are hashed, and which of them have shingles.

        With `last`, those of all texts.
        """
        if last:
            self._hash_texts()
            self._hash_shingles()
        slots = np.concatenate(self._slots)
        self._slots = [slots[:0]]
        has_shingles = np.array(self._has_shingles[: len(slots)], np.bool_)
        del self._has_shingles[: len(slots)]
        return slots, has_shingles

    def _hash_texts(self) -> None:
        for hashes in shingles_of_each(self._texts, self._near.shingle):
            self._shingles.append(hashes)
            self._has_shingles.append(len(hashes) > 0)
            self._weight += len(hashes) + _BATCH // 4096
        self._texts.clear()
        self._chars = 0
        if self._weight > _BATCH:
            self._hash_shingles()

    def _hash_shingles(self) -> None:
        if self._shingles:
            count = self._near.bands * self._near.rows
            self._slots.append(minhash_slots(self._shingles, count, self._near.seed))
            self._shingles.clear()
            self._weight = 0


def minhash_slots(shingles: Sequence[Hashes], count: int, seed: int) -> Slots:
    """`count` slots of each document; they are meaningless for one without shingles."""
    from rensa import RMinHash

    ends = np.cumsum([0, *(len(hashes) for hashes in shingles)], dtype=np.uint64)
    flat = np.concatenate([np.empty(0, np.uint64), *shingles])
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, ends, count, seed)
    return np.array(matrix.to_rows(), np.uint32).reshape(len(shingles), count)


def band_keys(signatures: Signatures, bands: int) -> npt.NDArray[np.uint64]:
    """A key for each document (first axis) and band; equal if all slots of a band are equal."""
    slots = signatures.reshape(len(signatures), bands, signatures.shape[1] // bands)
    keys = np.tile(np.arange(bands, dtype=np.uint64), (len(slots), 1))
    for row in range(slots.shape[2]):
        keys = mix_bits(keys + slots[:, :, row])
    return keys


def compress_slots(slots: Slots) -> Signatures:
    """Signatures: of each slot the 16 bits that are stored and compared."""
    return ((slots * _ODD) >> np.uint32(16)).astype(np.uint16)


def similarity(left: Signatures, right: Signatures) -> Similarities:
    """Estimated Jaccard similarity of documents, row by row."""
    return np.asarray((left == right).mean(axis=1), np.float64)


def similarity_bounds(estimates: Similarities, slots: int) -> tuple[Similarities, Similarities]:
    """Lower and upper bounds of the true similarities; 1 in 370 lies outside of them.

    Wilson's score interval at three standard deviations (JASA 22, 1927): each slot is a trial.
    """
    weight = _DEVIATIONS**2 / slots
    middle = (estimates + weight / 2) / (1 + weight)
    spread = estimates * (1 - estimates) / slots + weight / (4 * slots)
    half = _DEVIATIONS * np.sqrt(spread) / (1 + weight)
    # Where all slots or none are equal, a bound is exactly 1 or 0, but for rounding.
    return np.where(estimates > 0, middle - half, 0.0), np.where(estimates < 1, middle + half, 1.0)

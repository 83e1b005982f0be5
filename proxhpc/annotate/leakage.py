"""Finds near-duplicates of evaluation documents, which must not be trained on."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from proxhpc.dedup.minhash import MinHasher, band_keys, compress_slots, minhash_slots, similarity
from proxhpc.dedup.shingles import fold, shingles
from proxhpc.spec.sections import Near

_NEAR = Near()


class NearDuplicateIndex:
    """An index of texts, of about 600 bytes each, to find near-duplicates of them.

    It compares texts that share a MinHash band by their signatures' estimate of the similarity.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        hasher = MinHasher(_NEAR)
        for text in texts:
            hasher.add(fold(text))
        slots, has_shingles = hasher.take(last=True)
        slots = slots[has_shingles]
        self._signatures = compress_slots(slots)
        keys = band_keys(self._signatures, _NEAR.bands).T
        self._order: npt.NDArray[np.int64] = np.argsort(keys, axis=1)
        self._keys = np.take_along_axis(keys, self._order, axis=1)

    def has_duplicate_of(self, text: str) -> bool:
        """Whether `text` is a near-duplicate of an indexed text."""
        hashes = shingles(fold(text), _NEAR.shingle)
        if not len(hashes) or not len(self._signatures):
            return False
        signature = compress_slots(minhash_slots([hashes], _NEAR.bands * _NEAR.rows, _NEAR.seed))
        candidates: set[int] = set()
        for band, key in enumerate(band_keys(signature, _NEAR.bands)[0]):
            low, high = (np.searchsorted(self._keys[band], key, side) for side in ("left", "right"))
            candidates.update(self._order[band, low:high].tolist())
        if not candidates:
            return False
        others = self._signatures[sorted(candidates)]
        similarities = similarity(np.broadcast_to(signature, others.shape), others)
        return bool(similarities.max() >= _NEAR.threshold)

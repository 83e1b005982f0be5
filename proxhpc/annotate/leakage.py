"""What must not be trained on: hosts and near-duplicates of what a refiner is judged by."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from proxhpc.dedup.minhash import MinHasher, band_keys, compress_slots, minhash_slots, similarity
from proxhpc.dedup.shingles import fold, shingles
from proxhpc.spec.sections import Near


class NearDuplicateIndex:
    """Texts that others are held against: whether they nearly duplicate one of these.

    It keeps some 600 bytes of a text. Of pairs as alike as `near.threshold` it misses those that
    share no band (`Near.compared`), and judges by the signatures' estimate.
    """

    def __init__(self, texts: Iterable[str], near: Near) -> None:
        signer = MinHasher(near)
        for text in texts:
            signer.add(fold(text))
        found, has_shingles = signer.finish()
        found = found[has_shingles]
        self._near = near
        self._signatures = compress_slots(found)
        keys = band_keys(found, near.bands)
        self._order: npt.NDArray[np.int64] = np.argsort(keys, axis=1)
        self._keys = np.take_along_axis(keys, self._order, axis=1)

    def has(self, text: str) -> bool:
        """Whether `text` nearly duplicates one of the texts."""
        own = shingles(fold(text), self._near.shingle)
        if not len(own) or not len(self._signatures):
            return False
        found = minhash_slots([own], self._near.bands * self._near.rows, self._near.seed)
        near: set[int] = set()
        for band, key in enumerate(band_keys(found, self._near.bands)[:, 0]):
            low, high = (np.searchsorted(self._keys[band], key, side) for side in ("left", "right"))
            near.update(self._order[band, low:high].tolist())
        if not near:
            return False
        others = self._signatures[sorted(near)]
        alike = similarity(np.broadcast_to(compress_slots(found), others.shape), others)
        return bool(alike.max() >= self._near.threshold)

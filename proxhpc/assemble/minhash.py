"""MinHash: signatures whose equal places estimate how alike two sets of shingles are.

Two documents of Jaccard similarity s agree in each slot with probability s. Cut into bands of
`rows` slots, they agree in a whole band, and so are compared at all, with probability
1 - (1 - s^rows)^bands (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, section 3.4).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from proxhpc.assemble.shingles import Hashes, mixed

Signatures = npt.NDArray[np.uint16]
"""One row a document; of each slot 16 bits, by which 1 in 65,536 that differ look the same."""

_ODD = np.uint32(0x9E3779B1)


def slots(shingles: Sequence[Hashes], count: int, seed: int) -> npt.NDArray[np.uint32]:
    """The slots of each document's signature, a row each; of no use where it has no shingle."""
    from rensa import RMinHash

    ends = np.cumsum([0, *(len(each) for each in shingles)], dtype=np.uint64)
    flat = np.concatenate([np.empty(0, np.uint64), *shingles])
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, ends, count, seed)
    return np.array(matrix.to_rows(), np.uint32).reshape(len(shingles), count)


def band_keys(slots: npt.NDArray[np.uint32], bands: int) -> npt.NDArray[np.uint64]:
    """A key for each band (first axis) of each document; equal where all slots of the band are."""
    rows = slots.reshape(len(slots), bands, -1).astype(np.uint64)
    keys = np.zeros(rows.shape[:2], np.uint64)
    for row in range(rows.shape[2]):
        keys = mixed(keys + rows[:, :, row])
    return keys.T


def signatures(slots: npt.NDArray[np.uint32]) -> Signatures:
    """What is kept of the slots to compare documents by."""
    return ((slots * _ODD) >> np.uint32(16)).astype(np.uint16)


def similarity(left: Signatures, right: Signatures) -> npt.NDArray[np.float64]:
    """Estimated Jaccard similarity of documents row by row."""
    same: npt.NDArray[Any] = (left == right).mean(axis=1)
    return same

"""The first round of the match phase: documents with the same text, found by its hash."""

import numpy as np

from proxhpc.assemble.rounds import Documents, RoundFiles, group_of
from proxhpc.dedup.hashes import EXTERNAL
from proxhpc.dedup.sorting import with_leaders


def find_copies(files: RoundFiles, unit: int) -> None:
    """Link each document to the best one with the same 128-bit hash.

    Later rounds leave out the linked ones. External documents are linked to nothing.
    """
    copies, leaders = files.writer("copies", unit), files.writer("leaders", unit)
    for rows, first in with_leaders(files.sorted("hashes", unit), 2):
        linked = (rows[:, 4] != first[:, 4]) & (rows[:, 2] != EXTERNAL)
        documents, leading = rows[linked, 4], first[linked, 4]
        copies.add(group_of(documents), _pairs(documents, leading))
        leaders.add(group_of(leading), _pairs(leading, documents))
    leaders.finish()
    copies.finish()


def _pairs(left: Documents, right: Documents) -> Documents:
    return np.stack([left, right], axis=1)

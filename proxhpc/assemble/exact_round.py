"""The first round of the match phase: documents with the same text, found by its hash."""

import numpy as np

from proxhpc.assemble.rounds import RoundFiles, group_of
from proxhpc.dedup.hashes import EXTERNAL
from proxhpc.dedup.sorting import with_leaders


def find_copies(files: RoundFiles, unit: int) -> None:
    """Link each document to the best one with the same 128-bit hash.

    Later rounds leave out the linked ones. External documents are linked to nothing.
    """
    copies, leaders = files.writer("copies", unit), files.writer("leaders", unit)
    for rows, first in with_leaders(files.sorted("hashes", unit), 2):
        linked = (rows[:, 4] != first[:, 4]) & (rows[:, 2] != EXTERNAL)
        leading, rows = first[linked, 4], rows[linked]
        copies.add(group_of(rows[:, 4]), np.column_stack([rows[:, 4], leading]))
        leaders.add(group_of(leading), np.column_stack([leading, rows[:, 2:]]))
    leaders.finish()
    copies.finish()

"""Pairs of documents that only their texts can tell, compared by the shingles themselves.

Each group's documents that are in such pairs are read once, and their distinct shingles kept in a
file until the pairs are compared: 8 bytes a shingle, for few of the documents.
"""

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from proxhpc.assemble.bands import damaged
from proxhpc.assemble.clusters import NO_PAIRS, Documents, Pairs
from proxhpc.assemble.hashed import Sketch
from proxhpc.assemble.pairs import Sketches
from proxhpc.assemble.pool import Pool
from proxhpc.assemble.replay import Refined, replay_shard
from proxhpc.assemble.shingles import Hashes, shingles
from proxhpc.assemble.sketch import against, records_against
from proxhpc.corpus.disk import temporary, writing
from proxhpc.corpus.document import Document
from proxhpc.plan import Plan
from proxhpc.rundir import RunDir

PAIRS = 1 << 14  # that are compared in one go


def compare(pool: Pool, unsure: Pairs, sketches: Sketches) -> Pairs:
    """Those of the pairs whose documents have the manifest's share of shingles in common."""
    if not len(unsure):
        return NO_PAIRS
    run = pool.run
    save_open(run, unsure)
    groups = sketches.group_of(np.load(run.compared, mmap_mode="r"))
    pool.map("read", keep_shingles, groups)
    todo = range(-(-len(unsure) // PAIRS))
    found = [pairs for _, pairs in pool.each("compare", alike, todo)]
    for group in groups:
        run.shingles(group).unlink()
    return np.concatenate([NO_PAIRS, *found])

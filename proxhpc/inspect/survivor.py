"""Which document is in the corpus in place of one that was left out as its duplicate."""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import islice
from typing import Any

from proxhpc.assemble.rows import record_source
from proxhpc.inspect.find import FoundRow
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan


@dataclass(frozen=True, slots=True)
class Survivor:
    """The document that stays, and how alike the two texts are, from 0 to 1."""

    id: str
    source: str
    similarity: float


def survivor_of(run: RunDir, plan: Plan, found: FoundRow) -> Survivor | None:
    """What is kept for a document; None for one that is no duplicate, or before the match."""
    if found.row.outcome not in ("kept", "edited") or not run.pairs.exists():
        return None
    import numpy as np  # not before there is something to look up

    from proxhpc.assemble.listings import read_names

    place = record_source(plan, found.row)
    names = enumerate(read_names(run, plan, found.shard))
    number = next(number for number, (_, where) in names if where == place)
    pairs: Any = np.load(run.pairs, mmap_mode="r")  # ascending by what is left out
    wanted = (found.shard, number)
    at = bisect_left(range(len(pairs)), wanted, key=lambda row: tuple(pairs[row, :2].tolist()))
    if at == len(pairs) or tuple(pairs[at, :2].tolist()) != wanted:
        return None
    _, _, shard, record, alike = pairs[at].tolist()
    name, where = next(islice(read_names(run, plan, shard), record, None))
    return Survivor(name, where, alike / 1000)

"""Which documents the merge left out as duplicates, and which one survives in their place."""

from bisect import bisect_left
from itertools import islice
from typing import TYPE_CHECKING

from proxhpc.inspect.model import Survivor
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    PairArray = npt.NDArray[np.uint32]


class DuplicatePairs:
    """The merge's pairs of duplicate and survivor; empty before the merge."""

    def __init__(self, run: RunDir, plan: Plan) -> None:
        self.run, self.plan = run, plan
        self._pairs: PairArray | None = None
        # Without a summary the merge is not finished, or `verify --repair` has undone it.
        if run.merge_summary.exists() and run.pairs.exists():
            import numpy as np  # not before there is something to look up

            # rows: shard and record of the duplicate, ascending, and of the survivor; similarity
            self._pairs = np.load(run.pairs, mmap_mode="r")

    def records(self, shard: int) -> set[int]:
        """Record numbers of a shard's duplicates."""
        if self._pairs is None:
            return set()
        start, stop = (_position(self._pairs, key) for key in ((shard, 0), (shard + 1, 0)))
        return set(self._pairs[start:stop, 1].tolist())

    def survivor(self, shard: int, record: int) -> Survivor | None:
        """The survivor of a record; None if it is no duplicate.

        FileNotFoundError when the survivor's ledger is gone.
        """
        if self._pairs is None:
            return None
        position = _position(self._pairs, (shard, record))
        if position == len(self._pairs):
            return None
        first, second, kept_shard, kept_record, similarity = self._pairs[position].tolist()
        if (first, second) != (shard, record):
            return None
        from proxhpc.assemble.listings import read_names

        names = read_names(self.run, self.plan, kept_shard)
        id_, source = next(islice(names, kept_record, None))
        return Survivor(id=id_, source=source, similarity=similarity / 1000)


def _position(pairs: "PairArray", key: tuple[int, int]) -> int:
    return bisect_left(range(len(pairs)), key, key=lambda row: tuple(pairs[row, :2].tolist()))

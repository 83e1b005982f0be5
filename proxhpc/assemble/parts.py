"""Which documents are in which part of the corpus.

Parts follow the documents' sort keys: (shard, record) as one number in input order, hashes in a
shuffled corpus. A part holds the documents whose rows begin within its range of bytes.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from proxhpc.dedup.hashes import Sketch
from proxhpc.spec.sections import Output

CELL_BITS = 20  # sort keys of a shuffled corpus are counted in 2^20 cells, never split by a part


@dataclass(frozen=True, slots=True)
class PartRange:
    """The documents of one part, without duplicates: their sort keys are in [first, last]."""

    documents: int
    bytes: int
    first: int
    last: int


def sort_keys(documents: Sketch, output: Output) -> npt.NDArray[np.uint64]:
    """The keys by which documents are ordered in the corpus."""
    keys: npt.NDArray[np.uint64] = documents["sort_key"].astype(np.uint64)
    if not output.shuffle:
        keys = documents["shard"].astype(np.uint64) << np.uint64(32) | documents["record"]
    return keys


def part_splitter(output: Output) -> "InputOrderSplitter | ShuffledSplitter":
    """The splitter for this output; it is given the surviving documents group by group."""
    return ShuffledSplitter(output) if output.shuffle else InputOrderSplitter(output)


class InputOrderSplitter:
    """Splits documents in input order into parts."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._part_size = np.uint64(output.part_size)
        self._bytes_before = np.uint64(0)
        # By number of their range of bytes, of which some have no document.
        self._parts: dict[int, PartRange] = {}

    def add(self, documents: Sketch) -> None:
        """Add the next documents, in input order."""
        keys, sizes = sort_keys(documents, self._output), documents["row_bytes"].astype(np.uint64)
        before = self._bytes_before + np.cumsum(sizes) - sizes
        self._bytes_before += sizes.sum()
        numbers, starts = np.unique(before // self._part_size, return_index=True)
        edges = [*starts.tolist(), len(documents)]
        for number, (start, stop) in zip(numbers.tolist(), pairwise(edges), strict=True):
            first, last, size = int(keys[start]), int(keys[stop - 1]), int(sizes[start:stop].sum())
            earlier = self._parts.get(number, PartRange(0, 0, first, last))
            count = earlier.documents + stop - start
            self._parts[number] = PartRange(count, earlier.bytes + size, earlier.first, last)

    def finish(self) -> list[PartRange]:
        """All parts."""
        return [*self._parts.values()]


class ShuffledSplitter:
    """Splits the range of all sort keys into parts of whole cells."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._documents = np.zeros(1 << CELL_BITS, np.int64)
        self._bytes = np.zeros(1 << CELL_BITS, np.int64)

    def add(self, documents: Sketch) -> None:
        """Add documents, in any order."""
        cells = (sort_keys(documents, self._output) >> np.uint64(64 - CELL_BITS)).astype(np.int64)
        np.add.at(self._documents, cells, 1)
        np.add.at(self._bytes, cells, documents["row_bytes"].astype(np.int64))

    def finish(self) -> list[PartRange]:
        """All parts."""
        used = np.flatnonzero(self._documents)
        if not len(used):
            return []
        sizes, counts = self._bytes[used], self._documents[used]
        numbers = (np.cumsum(sizes) - sizes) // self._output.part_size
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        edges = [*used[starts].tolist()[1:], 1 << CELL_BITS]
        bounds = [0, *(edge << (64 - CELL_BITS) for edge in edges)]
        return [
            PartRange(documents, size, first, stop - 1)
            for documents, size, first, stop in zip(
                np.add.reduceat(counts, starts).tolist(),
                np.add.reduceat(sizes, starts).tolist(),
                bounds[:-1],
                bounds[1:],
                strict=True,
            )
        ]


def bucket_starts(part: PartRange, size: int) -> list[int]:
    """The first sort keys of a shuffled part's equal ranges, each of about `size` bytes or less."""
    count = max(1, -(-part.bytes // size))
    width = part.last + 1 - part.first
    return [part.first + width * number // count for number in range(count)]

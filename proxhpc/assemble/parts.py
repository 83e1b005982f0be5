"""Which documents are in which part of the corpus.

Documents have places: in input order (shard, record) as one number, in a shuffled corpus their
hashes. A part holds the documents that begin in its bytes of rows, in the order of their places.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from proxhpc.dedup.hashes import Sketch
from proxhpc.spec.sections import Output

CELL_BITS = (
    20  # places of a shuffled corpus are counted in 2^20 cells, and parts made of whole ones
)


@dataclass(frozen=True, slots=True)
class PartRange:
    """Documents of one part, without duplicates: their places are in [first, last]."""

    documents: int
    bytes: int
    first: int
    last: int


def sort_keys(documents: Sketch, output: Output) -> npt.NDArray[np.uint64]:
    """Where documents stand in the corpus."""
    found: npt.NDArray[np.uint64] = documents["place"].astype(np.uint64)
    if not output.shuffle:
        found = documents["shard"].astype(np.uint64) << np.uint64(32) | documents["number"]
    return found


def part_splitter(output: Output) -> "InputOrderSplitter | ShuffledSplitter":
    """What cuts the documents that stay into parts, by and by."""
    return ShuffledSplitter(output) if output.shuffle else InputOrderSplitter(output)


class InputOrderSplitter:
    """Cuts documents in input order; a part takes those that begin in its bytes of rows."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._size = np.uint64(output.part_size)
        self._before = np.uint64(0)
        self._last = -1  # number of the latest part, if every size had documents
        self._parts: list[PartRange] = []

    def add(self, documents: Sketch) -> None:
        """Take the next documents, in input order."""
        own, sizes = sort_keys(documents, self._output), documents["size"].astype(np.uint64)
        before = self._before + np.cumsum(sizes) - sizes
        self._before += sizes.sum()
        numbers, starts = np.unique(before // self._size, return_index=True)
        stops = [*starts.tolist(), len(documents)][1:]
        for number, start, stop in zip(numbers.tolist(), starts.tolist(), stops, strict=True):
            size = int(sizes[start:stop].sum())
            part = PartRange(stop - start, size, int(own[start]), int(own[stop - 1]))
            if number == self._last:
                earlier = self._parts.pop()
                part = PartRange(
                    earlier.documents + part.documents,
                    earlier.bytes + part.bytes,
                    earlier.first,
                    part.last,
                )
            self._parts.append(part)
            self._last = number

    def finish(self) -> list[PartRange]:
        """All parts."""
        return self._parts


class ShuffledSplitter:
    """Cuts the range of all places; a part takes the cells that begin in its bytes of rows."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._documents = np.zeros(1 << CELL_BITS, np.int64)
        self._bytes = np.zeros(1 << CELL_BITS, np.int64)

    def add(self, documents: Sketch) -> None:
        """Take more documents, in any order."""
        cells = (sort_keys(documents, self._output) >> np.uint64(64 - CELL_BITS)).astype(np.int64)
        np.add.at(self._documents, cells, 1)
        np.add.at(self._bytes, cells, documents["size"].astype(np.int64))

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
            PartRange(documents, size, first, behind - 1)
            for documents, size, first, behind in zip(
                np.add.reduceat(counts, starts).tolist(),
                np.add.reduceat(sizes, starts).tolist(),
                bounds[:-1],
                bounds[1:],
                strict=True,
            )
        ]


def bucket_starts(part: PartRange, size: int) -> list[int]:
    """The first places of equal pieces of a shuffled part, each of about so many bytes or fewer."""
    count = max(1, -(-part.bytes // size))
    span = part.last + 1 - part.first
    return [part.first + span * number // count for number in range(count)]

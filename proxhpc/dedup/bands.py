"""Band files: the keys by which the documents of one group may equal others, sorted.

A file has a header of 32 bytes, then for each band the keys of all documents, ascending, then in
the same order which documents they are, by number in the group. All is fixed-width and little
endian, so that a range of keys of any band is found by bisection and read by itself: of a corpus
whose keys fill no memory, one range after the other.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from proxhpc.corpus.disk import write_atomic
from proxhpc.errors import StopError

EXACT, SHARED_ID = 0, 1  # bands: the hash of the text, and that of the id
NEAR = 2  # the first band of MinHash
BYTES_PER_KEY = 112  # at the peak of matching: keys, documents, their order, pairs, and copies

Keys = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.uint32]

_HEADER = struct.Struct("<8sII16x")
_MAGIC = b"PXBANDS\x01"


def write_bands(path: Path, bands: Sequence[tuple[Keys, Numbers]]) -> str:
    """Write the keys of each band with the documents that have them; the file's digest."""
    sizes = struct.pack(f"<{len(bands)}Q", *(len(keys) for keys, _ in bands))
    pieces = [_HEADER.pack(_MAGIC, len(bands), 0), sizes]
    for keys, numbers in bands:
        order = np.argsort(keys, kind="stable")
        pieces += [keys[order].astype("<u8").tobytes(), numbers[order].astype("<u4").tobytes()]
    data = b"".join(pieces)
    write_atomic(path, data)
    return xxhash.xxh3_128_hexdigest(data)


def damaged_file(path: Path) -> StopError:
    """Return the error that a file of the merge is not as it was written."""
    return StopError(f"{path} is damaged", hint="delete it and merge again: it is made anew")


def file_digest(path: Path) -> str:
    """Identify a file by its content, a MiB at a time."""
    state = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                state.update(chunk)
    except FileNotFoundError:
        return ""
    return state.hexdigest()


class BandFile:
    """A band file, read where it is asked for."""

    def __init__(self, path: Path) -> None:
        """StopError if it is not one."""
        self.path = path
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
            if len(head) < _HEADER.size or head[:8] != _MAGIC:
                raise damaged_file(path)
            _, count, _ = _HEADER.unpack(head)
            self.sizes: tuple[int, ...] = struct.unpack(f"<{count}Q", file.read(8 * count))
        starts = np.cumsum([_HEADER.size + 8 * count, *(12 * size for size in self.sizes)])
        self._starts: list[int] = starts.tolist()

    def read(self, band: int, low: int, high: int) -> tuple[Keys, Numbers]:
        """The keys of a band in [low, high), ascending, and whose they are."""
        size, start = self.sizes[band], self._starts[band]
        if not size:
            return np.empty(0, np.uint64), np.empty(0, np.uint32)
        keys = np.memmap(self.path, "<u8", "r", start, (size,))
        first = int(np.searchsorted(keys, np.uint64(low)))
        last = size if high >= 1 << 64 else int(np.searchsorted(keys, np.uint64(high)))
        own = np.fromfile(self.path, "<u8", last - first, offset=start + 8 * first)
        numbers = np.fromfile(self.path, "<u4", last - first, offset=start + 8 * size + 4 * first)
        return own, numbers


def key_ranges(keys: int, memory: int) -> Iterator[tuple[int, int]]:
    """Ranges of keys of which each holds few enough of so many to be matched in `memory` bytes."""
    count = max(1, -(-keys * BYTES_PER_KEY // memory))
    edges = [(1 << 64) * i // count for i in range(count + 1)]
    yield from pairwise(edges)

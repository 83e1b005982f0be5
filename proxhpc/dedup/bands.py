"""Band files: for each band, the keys of one group's documents, sorted.

Two documents with the same key in a band are compared. A file has a header of 32 bytes, the number
of keys of each band, and then, band by band, all keys ascending and, in the same order, the numbers
of their documents in the group. Every value has a fixed width and is little-endian, so a range of
keys is found by bisection and read alone: keys that do not fit into memory are matched in ranges.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from proxhpc.corpus.disk import write_atomic
from proxhpc.dedup.arrays import damaged_file

EXACT, SHARED_ID = 0, 1  # bands: the hash of the text, and that of the id
NEAR = 2  # the first MinHash band
BYTES_PER_KEY = 112  # at the peak of matching: keys, documents, their order, pairs, and copies

Keys = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.uint32]

_HEADER = struct.Struct("<8sII16x")
_MAGIC = b"PXBANDS\x01"


def write_bands(path: Path, bands: Sequence[tuple[Keys, Numbers]]) -> str:
    """Write the keys of each band and their documents; return the file's digest."""
    sizes = struct.pack(f"<{len(bands)}Q", *(len(keys) for keys, _ in bands))
    pieces = [_HEADER.pack(_MAGIC, len(bands), 0), sizes]
    for keys, numbers in bands:
        order = np.argsort(keys, kind="stable")
        pieces += [keys[order].astype("<u8").tobytes(), numbers[order].astype("<u4").tobytes()]
    data = b"".join(pieces)
    write_atomic(path, data)
    return xxhash.xxh3_128_hexdigest(data)


class BandFile:
    """A band file, of which only the requested keys are read."""

    def __init__(self, path: Path) -> None:
        """Read the header. StopError if the file is not a band file."""
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
        """The keys of a band in [low, high), ascending, and the numbers of their documents."""
        size, start = self.sizes[band], self._starts[band]
        if not size:
            return np.empty(0, np.uint64), np.empty(0, np.uint32)
        mapped = np.memmap(self.path, "<u8", "r", start, (size,))
        first = int(np.searchsorted(mapped, np.uint64(low)))
        last = size if high >= 1 << 64 else int(np.searchsorted(mapped, np.uint64(high)))
        keys = np.fromfile(self.path, "<u8", last - first, offset=start + 8 * first)
        numbers = np.fromfile(self.path, "<u4", last - first, offset=start + 8 * size + 4 * first)
        return keys, numbers


def key_ranges(keys: int, memory: int) -> Iterator[tuple[int, int]]:
    """Ranges [low, high) of all keys; matching one of them takes about `memory` bytes."""
    count = max(1, -(-keys * BYTES_PER_KEY // memory))
    edges = [(1 << 64) * i // count for i in range(count + 1)]
    yield from pairwise(edges)

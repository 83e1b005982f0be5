"""Rows of integers that one round of units writes for the units of the next.

An exchange file has a slice of rows for each receiving unit, so a unit reads one range of each file
that the round before it wrote. A header of 16 bytes a unit has where its slice begins, and the
slice's checksum. Rows have a fixed number of int64 columns and are in no order.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from proxhpc.corpus.disk import replacing
from proxhpc.dedup.arrays import damaged_file
from proxhpc.dedup.sorting import IntRows, RowBuffer, RunFile, Scratch, SortedRun

_HEADER = struct.Struct("<8sII")  # magic, number of columns, number of units
_MAGIC = b"PXEXCHG\x01"
_ENTRY = struct.Struct("<QQQ")  # start and checksum of a slice, and its end: the next one's start
_STEP = 16  # bytes from one entry to the next

Units = npt.NDArray[np.int64]
"""For each row, the unit that receives it."""


class ExchangeWriter:
    """Writes one exchange file; rows that do not fit into memory wait in a file without a name."""

    def __init__(self, path: Path, columns: int, units: int, scratch: Scratch) -> None:
        self.units = units  # that receive rows
        self._path, self._columns, self._scratch = path, columns, scratch
        # The receiving unit is one more column while rows wait.
        self._buffer = RowBuffer(scratch.max_rows(columns + 1), columns + 1)
        self._file: RunFile | None = None
        self._runs: list[tuple[SortedRun, npt.NDArray[np.int64]]] = []

    def add(self, units: Units, rows: IntRows) -> None:
        """Add rows, each for one unit."""
        for block in self._buffer.add(np.column_stack([units, rows])):
            self._spill(block)

    def finish(self) -> None:
        """Write the file, atomically."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        last = self._sorted(self._buffer.take())
        entries = bytearray(_STEP * self.units + 8)
        with replacing(self._path) as file:
            start = _HEADER.size + len(entries)
            file.seek(start)
            for unit in range(self.units):
                checksum, first = xxhash.xxh3_64(), start
                for rows in self._slices(unit, *last):
                    data = np.ascontiguousarray(rows, "<i8").data.cast("B")
                    checksum.update(data)
                    file.write(data)
                    start += data.nbytes
                checksum.update(_identity(self._columns, self.units, unit, first, start))
                _ENTRY.pack_into(entries, _STEP * unit, first, checksum.intdigest(), start)
            file.seek(0)
            file.write(_HEADER.pack(_MAGIC, self._columns, self.units) + entries)

    def _sorted(self, block: IntRows) -> tuple[IntRows, npt.NDArray[np.int64]]:
        block = block[np.argsort(block[:, 0], kind="stable")]
        return block[:, 1:], np.searchsorted(block[:, 0], np.arange(self.units + 1))

    def _spill(self, block: IntRows) -> None:
        if self._file is None:
            self._file = RunFile(self._scratch.folder, self._columns)
        rows, edges = self._sorted(block)
        self._runs.append((self._file.write([rows]), edges))

    def _slices(self, unit: int, rows: IntRows, edges: npt.NDArray[np.int64]) -> Iterator[IntRows]:
        for run, run_edges in self._runs:
            first, last = run_edges[unit : unit + 2].tolist()
            if first < last:
                yield run.file.read(run.start + first, run.start + last)
        if edges[unit] < edges[unit + 1]:
            yield rows[edges[unit] : edges[unit + 1]]


def read_slices(paths: Iterable[Path], unit: int, max_rows: int) -> Iterator[IntRows]:
    """Yield a unit's rows of all files, at most `max_rows` at a time.

    StopError naming the file if it is damaged.
    """
    for path in paths:
        try:
            yield from _read_slice(path, unit, max_rows)
        except FileNotFoundError:
            raise damaged_file(path) from None


def _read_slice(path: Path, unit: int, max_rows: int) -> Iterator[IntRows]:
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or not head.startswith(_MAGIC):
            raise damaged_file(path)
        _, columns, units = _HEADER.unpack(head)
        file.seek(_HEADER.size + unit * _STEP)
        entry = file.read(_ENTRY.size)
        if unit >= units or len(entry) < _ENTRY.size:
            raise damaged_file(path)
        first, expected, stop = _ENTRY.unpack(entry)
        if not _HEADER.size <= first <= stop <= os.fstat(file.fileno()).st_size:
            raise damaged_file(path)
        file.seek(first)
        checksum, left = xxhash.xxh3_64(), stop - first
        while left > 0:
            data = file.read(min(left, max_rows * columns * 8))
            if not data or len(data) % (columns * 8):
                raise damaged_file(path)
            checksum.update(data)
            left -= len(data)
            yield np.frombuffer(data, "<i8").reshape(-1, columns)
        checksum.update(_identity(columns, units, unit, first, stop))
        if checksum.intdigest() != expected:
            raise damaged_file(path)


def _identity(columns: int, units: int, unit: int, first: int, stop: int) -> bytes:
    """What a slice's checksum covers besides its rows."""
    return struct.pack("<IIIQQ", columns, units, unit, first, stop)


def partition_of(hashes: Units, units: int) -> Units:
    """The unit of each 64-bit hash: equal ranges of the upper 32 bits."""
    upper = hashes.view(np.uint64) >> np.uint64(32)
    return ((upper * np.uint64(units)) >> np.uint64(32)).astype(np.int64)

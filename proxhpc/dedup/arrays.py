"""Arrays as .npy files that are whole or absent."""

import io
import mmap
import os
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from proxhpc.corpus.disk import replacing, write_atomic
from proxhpc.dedup.bands import damaged_file, file_digest

WINDOW = 4 << 20  # bytes of a file that are mapped at a time


def save_array(path: Path, array: npt.NDArray[Any]) -> str:
    """Write an array; the file's digest."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getvalue())
    return xxhash.xxh3_128_hexdigest(buffer.getbuffer())


def load_array(path: Path, known: str) -> npt.NDArray[Any]:
    """Read what `save_array` wrote. StopError where its digest is not the known one."""
    if file_digest(path) != known:
        raise damaged_file(path)
    return np.load(path)  # type: ignore[no-any-return]


def save_blocks(path: Path, blocks: Iterable[npt.NDArray[Any]], kind: str, columns: int) -> None:
    """Write the rows of blocks, one behind the other, as one array of that kind."""
    with replacing(path) as file:
        _write_header(file, kind, (0, columns))
        rows = 0
        for block in blocks:
            file.write(np.ascontiguousarray(block, kind).data)
            rows += len(block)
        file.seek(0)
        _write_header(file, kind, (rows, columns))  # as long as before: numpy leaves room


def _write_header(file: BinaryIO, kind: str, shape: tuple[int, int]) -> None:
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]


def open_array(path: Path) -> npt.NDArray[Any]:
    """An array as it lies on disk: take slices, and let go of it soon. StopError if damaged."""
    try:
        return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]
    except (ValueError, EOFError) as error:
        raise damaged_file(path) from error


class RowReader:
    """Rows of an array on disk, taken from anywhere in it, again and again."""

    def __init__(self, path: Path) -> None:
        array: Any = open_array(path)
        self._path, self._start = path, array.offset
        self._kind, self._shape = array.dtype, array.shape[1:]
        self._window = max(1, WINDOW // array.strides[0])

    def take(self, places: npt.NDArray[np.int64], field: str | None = None) -> npt.NDArray[Any]:
        """Rows at ascending places, or one field of them; little of the file is held at a time."""
        windows = places // self._window
        edges = np.flatnonzero(np.diff(windows, prepend=-1, append=-1))
        return np.concatenate([self._take(places[a:b], field) for a, b in pairwise(edges)])

    def _take(self, places: npt.NDArray[np.int64], field: str | None) -> npt.NDArray[Any]:
        fd = os.open(self._path, os.O_RDONLY)
        try:
            with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as data:
                rows = np.frombuffer(data, self._kind, offset=self._start)
                rows = rows.reshape(-1, *self._shape) if self._shape else rows
                taken = (rows if field is None else rows[field])[places]
                del rows  # or the map cannot be closed
                return taken
        finally:
            os.close(fd)


_SEAL = b',"seal":"%b"}\n'
_LENGTH = len(_SEAL % bytes(32))


def add_checksum(data: bytes) -> bytes:
    """Return a JSON object on a line with the digest of that line as its last key."""
    return data.removesuffix(b"}\n") + _SEAL % _digest(data)


def read_checksummed(path: Path) -> bytes:
    """Return what was sealed. FileNotFoundError; StopError where the file is another now."""
    raw = path.read_bytes()
    data = raw[:-_LENGTH] + b"}\n"
    if raw[-_LENGTH:] != _SEAL % _digest(data):
        raise damaged_file(path)
    return data


def _digest(data: bytes) -> bytes:
    return xxhash.xxh3_128_hexdigest(data).encode()

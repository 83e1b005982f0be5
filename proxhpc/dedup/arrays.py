"""Files of the merge: .npy arrays, replaced atomically, and JSON with a checksum."""

import functools
import hashlib
import io
import mmap
import os
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import TypeAdapter

from proxhpc.corpus.disk import replacing, write_atomic
from proxhpc.errors import StopError

T = TypeVar("T")

WINDOW = 4 << 20  # bytes of a file that are mapped at a time
_CHECKSUM = b',"checksum":"%b"}\n'
_CHECKSUM_LENGTH = len(_CHECKSUM % bytes(32))


def damaged_file(path: Path) -> StopError:
    """The error for a file of the merge that is not as it was written."""
    return StopError(f"{path} is damaged", hint="delete it and merge again, which rewrites it")


def file_digest(path: Path) -> str:
    """XXH3-128 of a file's content; "" if there is no such file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
    except FileNotFoundError:
        return ""


def check_file(path: Path, digest: str) -> None:
    """Raise StopError unless the file's digest is this one."""
    if file_digest(path) != digest:
        raise damaged_file(path)


def save_array(path: Path, array: npt.NDArray[Any]) -> str:
    """Write an array and return the file's digest."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getvalue())
    return xxhash.xxh3_128_hexdigest(buffer.getbuffer())


def load_array(path: Path, digest: str) -> npt.NDArray[Any]:
    """Read what `save_array` wrote. StopError if the file's digest is another."""
    check_file(path, digest)
    return np.load(path)  # type: ignore[no-any-return]


def save_blocks(path: Path, blocks: Iterable[npt.NDArray[Any]], dtype: str, columns: int) -> None:
    """Write the rows of all blocks as one array, holding one block in memory at a time."""
    with replacing(path) as file:
        _write_header(file, dtype, (0, columns))
        rows = 0
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).data)
            rows += len(block)
        file.seek(0)
        _write_header(file, dtype, (rows, columns))  # of the same length: numpy pads headers


def _write_header(file: BinaryIO, dtype: str, shape: tuple[int, int]) -> None:
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]


def open_array(path: Path) -> npt.NDArray[Any]:
    """Map an array read-only; copy slices and drop the map soon. StopError if it is damaged."""
    try:
        return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]
    except (ValueError, EOFError) as error:
        raise damaged_file(path) from error


class RowReader:
    """Random access to the rows of an array on disk."""

    def __init__(self, path: Path) -> None:
        array: Any = open_array(path)
        self._path, self._start = path, array.offset
        self._dtype, self._shape = array.dtype, array.shape[1:]
        self._window_rows = max(1, WINDOW // array.strides[0])

    def take(self, positions: npt.NDArray[np.int64], field: str | None = None) -> npt.NDArray[Any]:
        """Rows at ascending positions, or one field of them, mapping one window at a time."""
        windows = positions // self._window_rows
        edges = np.flatnonzero(np.diff(windows, prepend=-1, append=-1))
        return np.concatenate([self._take(positions[a:b], field) for a, b in pairwise(edges)])

    def _take(self, positions: npt.NDArray[np.int64], field: str | None) -> npt.NDArray[Any]:
        fd = os.open(self._path, os.O_RDONLY)
        try:
            with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as data:
                rows = np.frombuffer(data, self._dtype, offset=self._start)
                rows = rows.reshape(-1, *self._shape) if self._shape else rows
                copy = (rows if field is None else rows[field])[positions]
                del rows  # the map cannot be closed while an array refers to it
                return copy
        finally:
            os.close(fd)


_adapter: Callable[[type], TypeAdapter[Any]] = functools.cache(TypeAdapter)


def to_json(value: object) -> bytes:
    """A dataclass as JSON."""
    return _adapter(type(value)).dump_json(value)


def from_json(data: bytes, kind: type[T]) -> T:
    """The dataclass of this kind that `to_json` encoded.

    ValueError if it is not valid JSON of this kind.
    """
    value: T = _adapter(kind).validate_json(data)
    return value


def save_json(path: Path, value: object) -> None:
    """Write a dataclass as a line of JSON; its last key is the checksum of the others."""
    data = to_json(value)
    write_atomic(path, data.removesuffix(b"}") + _CHECKSUM % _digest(data))


def load_json(path: Path, kind: type[T]) -> T | None:
    """What `save_json` wrote, None if there is no file. StopError if it is damaged."""
    try:
        raw = path.read_bytes()
        data = raw[:-_CHECKSUM_LENGTH] + b"}"
        if raw[-_CHECKSUM_LENGTH:] == _CHECKSUM % _digest(data):
            return from_json(data, kind)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise damaged_file(path) from error
    raise damaged_file(path)


def _digest(data: bytes) -> bytes:
    return xxhash.xxh3_128_hexdigest(data).encode()

"""Files of the merge: .npy arrays, read and written in blocks, footers, and checked JSON."""

import functools
import hashlib
import io
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import TypeAdapter

from proxhpc.corpus.disk import replacing, write_atomic
from proxhpc.errors import StopError

T = TypeVar("T")

_CHECKSUM = b',"checksum":"%b"}\n'
_CHECKSUM_LENGTH = len(_CHECKSUM % bytes(32))


def damaged_file(path: Path) -> StopError:
    """The error for a file of the merge that is not as it was written."""
    return StopError(f"{path} is damaged", hint="delete it and merge again, which rewrites it")


def read_footer(
    file: BinaryIO, path: Path, layout: struct.Struct, magic: bytes
) -> tuple[Sequence[Any], int]:
    """The fields of a file's footer after its magic, and where it begins. StopError if damaged."""
    start = file.seek(0, 2) - layout.size
    file.seek(max(0, start))
    tail = file.read()
    if len(tail) < layout.size or not tail.startswith(magic):
        raise damaged_file(path)
    return layout.unpack(tail)[1:], start


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
    """Write an array, in a folder that may be missing, and return the file's digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getvalue())
    return xxhash.xxh3_128_hexdigest(buffer.getbuffer())


def load_array(path: Path, digest: str) -> npt.NDArray[Any]:
    """Read what `save_array` wrote. StopError if the file's digest is another."""
    check_file(path, digest)
    return np.load(path)  # type: ignore[no-any-return]


class ArrayWriter:
    """Writes an array block by block, in a `with` statement; `digest` is that of its rows."""

    def __init__(self, path: Path, dtype: npt.DTypeLike, columns: int = 0) -> None:
        """`columns` is 0 for an array of one dimension."""
        self._stack, self._path = ExitStack(), path
        self._dtype, self._columns = np.dtype(dtype), columns
        self._hash = xxhash.xxh3_128()
        self.rows = 0

    def __enter__(self) -> Self:
        self._file = self._stack.enter_context(replacing(self._path))
        self._write_header()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._file.seek(0)
            self._write_header()  # of the same length: numpy pads headers
        self._stack.__exit__(kind, error, trace)

    def write(self, rows: npt.NDArray[Any]) -> None:
        """Append rows."""
        data = np.ascontiguousarray(rows, self._dtype).data
        self._hash.update(data)
        self._file.write(data)
        self.rows += len(rows)

    @property
    def digest(self) -> str:
        """XXH3-128 of the rows written so far."""
        return self._hash.hexdigest()

    def _write_header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self._dtype)  # type: ignore[no-untyped-call]
        shape = (self.rows, self._columns) if self._columns else (self.rows,)
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)  # type: ignore[no-untyped-call]


def read_blocks(path: Path, digest: str, max_rows: int) -> Iterator[npt.NDArray[Any]]:
    """Yield the rows of what `ArrayWriter` wrote. StopError at the end if their digest differs."""
    checksum = xxhash.xxh3_128()
    if not path.exists():
        raise damaged_file(path)
    with path.open("rb") as file:
        try:
            np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
            header = np.lib.format.read_array_header_1_0(file)  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise damaged_file(path) from error
        shape, _, dtype = header
        row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        while data := file.read(max_rows * row_bytes):
            if len(data) % row_bytes:
                raise damaged_file(path)
            checksum.update(data)
            yield np.frombuffer(data, dtype).reshape(-1, *shape[1:])
    if checksum.hexdigest() != digest:
        raise damaged_file(path)


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
    """Write a dataclass as a line of JSON; its last key is the checksum of the others.

    The folder may be missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
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

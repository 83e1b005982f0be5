"""Size, fingerprint and estimated content of input files, before they are read."""

import hashlib
import os
import socket
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from proxhpc.corpus.blocks import DamageError, FrameReader
from proxhpc.corpus.parquet import open_parquet
from proxhpc.corpus.streams import (
    Compression,
    GzipReader,
    detect_compression,
    plain_chunks,
    zstd_chunks,
)
from proxhpc.errors import RetryError, StopError, UserError

FileFormat = Literal["jsonl", "parquet", "text"]
Format = Literal["auto"] | FileFormat

_PARQUET = (".parquet", ".pq")
_JSONL = (".jsonl", ".ndjson", ".json")
_TEXT = (".txt", ".md")
_COMPRESSED = (".zst", ".zstd", ".gz")

SUFFIXES = (
    *(kind + suffix for kind in _JSONL for suffix in ("", *_COMPRESSED)),
    *_PARQUET,
    *_TEXT,
)

_SAMPLE = 4 << 20  # decompressed bytes from which the content of a file is estimated
_EDGE = 64 << 10  # bytes at each end of a file that its fingerprint covers


@dataclass(frozen=True, slots=True)
class InputInfo:
    """One input file. `name` identifies it in ids and reports, on any machine.

    `size` is in bytes on disk. `estimated_bytes` is the decompressed size: exact if the file is not
    compressed or the sample covered it, otherwise estimated from the first 4 MiB; for parquet, the
    encoded size before compression. `rows` is exact, and None (unknown) for JSON lines. A text file
    is one row. `note` describes damage found so far.
    """

    path: Path
    name: str
    format: FileFormat
    compression: Compression
    size: int
    fingerprint: str
    estimated_bytes: int
    rows: int | None = None
    estimated_records: int | None = None
    note: str = ""


def describe_input(path: Path, format: Format = "auto", *, name: str | None = None) -> InputInfo:  # noqa: A002
    """Describe a file from its first 4 MiB and its two ends. It may be empty.

    Raises UserError if the file is missing, unreadable or not a regular file. Damaged content is
    not an error: its records are quarantined when they are read.
    """
    try:
        size, fingerprint = _fingerprint(path)
        kind = detect_format(path, format)
        compression = detect_compression(path) if kind == "jsonl" else "none"
        info = InputInfo(path, name or path.name, kind, compression, size, fingerprint, size)
        if kind == "text":
            return replace(info, rows=1, estimated_records=1)
        return _describe_parquet(info) if kind == "parquet" else _describe_jsonl(info)
    except OSError as error:
        raise read_error(path, error) from error


def detect_format(path: Path, format: Format) -> FileFormat:  # noqa: A002
    """Return the format of a file; `auto` infers it from the name. UserError if it cannot."""
    if format != "auto":
        return format
    name = path.name.lower()
    if name.endswith(_PARQUET):
        return "parquet"
    if name.endswith(_JSONL + tuple(kind + suffix for kind in _JSONL for suffix in _COMPRESSED)):
        return "jsonl"
    if name.endswith(_TEXT):
        return "text"
    if path.is_dir():
        raise _irregular(path)
    raise UserError(
        f"{path}: unknown file format",
        hint="set corpus.format to jsonl, parquet or text, or correct corpus.paths; known suffixes "
        f"are {', '.join(_JSONL)}, alone or with {', '.join(_COMPRESSED)}, "
        f"{', '.join(_PARQUET)} and {', '.join(_TEXT)}",
    )


def check_unchanged(info: InputInfo) -> None:
    """Raise StopError if the file differs from its description.

    Compares the size and the first and last 64 KiB, which takes two reads regardless of size.
    RetryError if the file cannot be read here, because only this node may have the problem.
    """
    try:
        size, fingerprint = _fingerprint(info.path)
    except (UserError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise RetryError(
            f"input {info.path} cannot be read on {socket.gethostname()}: {error}",
            hint="restore it, or fix the node; every node of the run must be able to read it",
        ) from error
    except OSError as error:
        raise read_error(info.path, error) from error
    if size != info.size:
        raise _changed(info, f"its size was {info.size} bytes, now {size}")
    if fingerprint != info.fingerprint:
        raise _changed(info, "its content changed, its size did not")


def printable_path(path: Path) -> str:
    """Return a path as valid UTF-8 text, with invalid bytes replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


def read_error(path: Path, error: OSError) -> UserError | RetryError:
    """Return the error to raise for a file that cannot be opened or read."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UserError(f"no such input file: {path}", hint="check the path that names it")
    if isinstance(error, PermissionError):
        return UserError(
            f"no permission to read {path}",
            hint="every node of the run must be able to read it; see ls -l",
        )
    if isinstance(error, IsADirectoryError):
        return _irregular(path)
    return RetryError(f"cannot read {path}: {error.strerror or error}")


def _irregular(path: Path) -> UserError:
    return UserError(f"not a file: {path}", hint=f"name the files in it, such as {path}/*.zst")


def _changed(info: InputInfo, difference: str) -> StopError:
    return StopError(
        f"input changed since the plan: {info.path}: {difference}",
        hint="restore the old file, or start a new run with this one",
    )


def _fingerprint(path: Path) -> tuple[int, str]:
    """Return the size, and the BLAKE2b-128 of the size and the first and last 64 KiB."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise _irregular(path)
    digest = hashlib.blake2b(status.st_size.to_bytes(8, "little"), digest_size=16)
    with path.open("rb", buffering=0) as file:
        digest.update(file.read(_EDGE))
        file.seek(max(status.st_size - _EDGE, 0), os.SEEK_SET)
        digest.update(file.read(_EDGE))
    return status.st_size, digest.hexdigest()


def _describe_parquet(info: InputInfo) -> InputInfo:
    if info.size == 0:
        return replace(info, rows=0, estimated_records=0)
    try:
        file = open_parquet(info.path)
    except DamageError as error:
        return replace(info, note=f"corrupt: {error.detail}")
    with file:
        metadata = file.metadata
        groups = range(metadata.num_row_groups)
        content = sum(metadata.row_group(group).total_byte_size for group in groups)
        rows = metadata.num_rows
    return replace(info, estimated_bytes=content, rows=rows, estimated_records=rows)


def _describe_jsonl(info: InputInfo) -> InputInfo:
    size = lines = 0
    last = b"\n"
    note = ""
    with info.path.open("rb", buffering=_EDGE) as file:
        frames, members = FrameReader(file), GzipReader(file)
        streams = {
            "zstd": zstd_chunks(frames),
            "gzip": members.chunks(),
            "none": plain_chunks(file),
        }
        try:
            for chunk in streams[info.compression]:
                size += len(chunk)
                lines += chunk.count(b"\n")
                last = chunk[-1:]
                if size >= _SAMPLE:
                    break
        except DamageError as error:
            note = f"{error.reason}: {error.detail}"
        consumed = members.offset if info.compression == "gzip" else file.tell()
    content, records = info.size, None
    if consumed >= info.size or note:
        content = content if info.compression == "none" else size
        records = lines + (last != b"\n")
    else:
        if info.compression != "none":
            content = round(content * size / max(consumed, 1))
        if lines:  # otherwise a line is longer than the sample
            records = round(content * lines / size)
    return replace(info, estimated_bytes=content, estimated_records=records, note=note)

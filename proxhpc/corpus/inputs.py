"""What is known of an input file before it is read: size, fingerprint, how much it may hold."""

import hashlib
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from proxhpc.corpus.blocks import DamageError, FrameReader
from proxhpc.corpus.parquet import BrokenParquet, open_parquet
from proxhpc.corpus.streams import Compression, GzipReader, plain, sniff, unzstd
from proxhpc.errors import RetryError, StopError, UserError

Format = Literal["auto", "jsonl", "parquet"]

_PARQUET = (".parquet", ".pq")
_JSONL = (".jsonl", ".ndjson", ".json")
_PACKED = (".zst", ".zstd", ".gz")

_SAMPLE = 4 << 20
_EDGE = 64 << 10


@dataclass(frozen=True, slots=True)
class InputInfo:
    """One input file. `name` is what ids and reports call it, on any machine.

    `size` is in bytes on disk, `estimated_bytes` what comes out of it: exact where nothing is
    compressed or the sample covered the file, else from the ratio of the first MiB; for parquet
    the encoded size before compression. `rows` is exact, and null for JSON lines. Null is
    unknown. `note` says what is wrong with the file already.
    """

    path: Path
    name: str
    format: Literal["jsonl", "parquet"]
    compression: Compression
    size: int
    fingerprint: str
    estimated_bytes: int
    rows: int | None = None
    estimated_records: int | None = None
    note: str = ""


def describe(path: Path, format: Format = "auto", *, name: str | None = None) -> InputInfo:  # noqa: A002
    """Return what a file's first MiB and its two ends tell; an empty file is legal.

    Raises UserError naming the file where it is missing, no regular file, or not readable. A
    file with damaged content is described all the same: its records are set aside when read.
    """
    name = path.name if name is None else name
    try:
        size, fingerprint = _fingerprint(path)
        if resolve(path, format) == "parquet":
            return _parquet(path, name, size, fingerprint)
        return _jsonl(path, name, size, fingerprint)
    except OSError as error:
        raise unreadable(path, error) from error


def resolve(path: Path, format: Format) -> Literal["jsonl", "parquet"]:  # noqa: A002
    """Return the format of a file; `auto` goes by the name. UserError where that does not tell."""
    if format != "auto":
        return format
    name = path.name.lower()
    if name.endswith(_PARQUET):
        return "parquet"
    if name.endswith(_JSONL + tuple(kind + packed for kind in _JSONL for packed in _PACKED)):
        return "jsonl"
    if path.is_dir():
        raise _irregular(path)
    raise UserError(
        f"{path}: its name does not say what it holds",
        hint=f"set corpus.format to jsonl or parquet, or name other files in corpus.paths; known "
        f"are {', '.join(_JSONL)}, alone or with {', '.join(_PACKED)}, and {', '.join(_PARQUET)}",
    )


def check_unchanged(info: InputInfo) -> None:
    """Raise StopError naming the file if it is no longer the one that was described.

    RetryError if it cannot be read here, which may be this node's fault alone. Compares the size
    and the first and last 64 KiB, so it costs two reads whatever the size.
    """
    try:
        size, fingerprint = _fingerprint(info.path)
    except (UserError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise RetryError(
            f"input {info.path} cannot be read on {socket.gethostname()}: {error}",
            hint="put it back, or mend the node; every node of the run must see it",
        ) from error
    except OSError as error:
        raise unreadable(info.path, error) from error
    if size != info.size:
        raise _changed(info, f"its size was {info.size} bytes, now {size}")
    if fingerprint != info.fingerprint:
        raise _changed(info, "its content is another, at the same size")


def shown(path: Path) -> str:
    """A path as text that can be written anywhere; bytes that are no UTF-8 are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


def unreadable(path: Path, error: OSError) -> UserError | RetryError:
    """Return what to tell the user about a file that cannot be opened or read."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UserError(f"no such input file: {path}", hint="check the path that names it")
    if isinstance(error, PermissionError):
        return UserError(
            f"no permission to read {path}",
            hint="every node that works on the run must be able to read it: see ls -l",
        )
    if isinstance(error, IsADirectoryError):
        return _irregular(path)
    return RetryError(f"cannot read {path}: {error.strerror or error}")


def _irregular(path: Path) -> UserError:
    return UserError(f"not a file: {path}", hint=f"name the files in it, such as {path}/*.zst")


def _changed(info: InputInfo, what: str) -> StopError:
    return StopError(
        f"input changed since the plan: {info.path}: {what}",
        hint="put the old file back, or start a new run with this one",
    )


def _fingerprint(path: Path) -> tuple[int, str]:
    """Return size and blake2b-128 over the size, the first and the last 64 KiB."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise _irregular(path)
    digest = hashlib.blake2b(about.st_size.to_bytes(8, "little"), digest_size=16)
    with path.open("rb", buffering=0) as file:
        digest.update(file.read(_EDGE))
        file.seek(max(about.st_size - _EDGE, 0), os.SEEK_SET)
        digest.update(file.read(_EDGE))
    return about.st_size, digest.hexdigest()


def _parquet(path: Path, name: str, size: int, fingerprint: str) -> InputInfo:
    if size == 0:
        return InputInfo(path, name, "parquet", "none", 0, fingerprint, 0, 0, 0)
    file = open_parquet(path)
    if isinstance(file, BrokenParquet):
        return InputInfo(
            path, name, "parquet", "none", size, fingerprint, size, note=f"corrupt: {file.detail}"
        )
    with file:
        about = file.metadata
        groups = range(about.num_row_groups)
        content = sum(about.row_group(group).total_byte_size for group in groups)
        rows = about.num_rows
    return InputInfo(path, name, "parquet", "none", size, fingerprint, content, rows, rows)


def _jsonl(path: Path, name: str, size: int, fingerprint: str) -> InputInfo:
    compression = sniff(path)
    sample = _sample(path, compression, size)
    if compression == "none":
        content = size
    else:
        content = sample.made if sample.whole else round(size * sample.made / max(sample.used, 1))
    records: int | None = sample.lines
    if not sample.whole:
        # A record longer than the sample leaves no line end in it: then nothing is known.
        records = round(content * sample.lines / sample.made) if sample.lines else None
    return InputInfo(
        path,
        name,
        "jsonl",
        compression,
        size,
        fingerprint,
        content,
        estimated_records=records,
        note=sample.note,
    )


@dataclass(frozen=True, slots=True)
class _Sample:
    """`used` bytes of a file made `made` bytes with `lines` lines; `whole` if that is all."""

    used: int
    made: int
    lines: int
    whole: bool
    note: str


def _sample(path: Path, compression: Compression, size: int) -> _Sample:
    made = lines = 0
    last = b"\n"
    note = ""
    with path.open("rb", buffering=_EDGE) as file:
        frames, members = FrameReader(file), GzipReader(file)
        streams = {"zstd": unzstd(frames), "gzip": members.chunks(), "none": plain(file)}
        try:
            for chunk in streams[compression]:
                made += len(chunk)
                lines += chunk.count(b"\n")
                last = chunk[-1:]
                if made >= _SAMPLE:
                    break
        except DamageError as error:
            note = f"{error.reason}: {error.detail}"
        used = {"zstd": frames.offset, "gzip": members.offset, "none": file.tell()}[compression]
    whole = used >= size or bool(note)
    return _Sample(used, made, lines + (whole and last != b"\n"), whole, note)

"""Size, fingerprint and estimated content of input files, before they are read."""

import hashlib
import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from proxhpc.corpus.blocks import MAX_WINDOW, DamageError
from proxhpc.corpus.content import Content, estimate_content
from proxhpc.corpus.parquet import Table, unique_names
from proxhpc.corpus.streams import (
    COMPRESSED,
    Compression,
    detect_compression,
    name_compression,
    open_stream,
    read_chunks,
    require_lz4,
)
from proxhpc.corpus.values import holds_values
from proxhpc.corpus.wet import WARC_MAGIC
from proxhpc.errors import RetryError, StopError, UserError

FileFormat = Literal["jsonl", "json", "wet", "parquet", "arrow", "text"]
Format = Literal["auto"] | FileFormat

TABLES: dict[str, FileFormat] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_LINES = (".jsonl", ".ndjson", ".json", ".wet")
_LINE_SUFFIXES = tuple(kind + suffix for kind in _LINES for suffix in ("", *COMPRESSED))
_TEXT = (".txt", ".md")

SUFFIXES = (*_LINE_SUFFIXES, *TABLES, *_TEXT)
KNOWN_SUFFIXES = (
    f"{', '.join(_LINES)}, alone or with {', '.join(COMPRESSED)}; {', '.join((*TABLES, *_TEXT))}"
)

_THREADS = 16  # that look at files: most of the time they wait for the file system
_WINDOWS = 2 << 30  # bytes of memory of their zstd windows
_SAMPLE = 4 << 20  # decompressed bytes from which the content of a file is estimated
_HEAD = 64 << 10  # decompressed bytes from which the format is told
_EDGE = 64 << 10  # bytes at each end of a file that its fingerprint covers


@dataclass(frozen=True, slots=True)
class InputInfo:
    """One input file. `name` identifies it in ids and reports, on any machine.

    `size` is in bytes on disk. `estimated_bytes` is the decompressed size: exact if the file is not
    compressed, names its size or was covered by the sample, otherwise estimated from the first
    4 MiB; for parquet, the encoded size before compression. `rows` is exact, and None (unknown) for
    JSON and WET. A text file is one row. `enterable`: a process need not decompress the file from
    its start. `note` describes what is wrong as far as known. `source` is the URL of which the file
    is a copy, and `version` what the store calls that.
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
    enterable: bool = True
    note: str = ""
    source: str = ""
    version: str = ""


def describe_input(
    path: Path,
    format: Format = "auto",  # noqa: A002
    *,
    name: str | None = None,
    max_window: int = MAX_WINDOW,
) -> InputInfo:
    """Describe a file from its first 4 MiB and its two ends. It may be empty.

    Raises UserError if the file is missing, unreadable or not a regular file. Damaged content is
    not an error: its records are quarantined when they are read.
    """
    try:
        size, fingerprint = _fingerprint(path)
        kind = detect_format(path, format)
        by_rows = kind in ("parquet", "arrow", "text")
        compression = "none" if by_rows else detect_compression(path)
        info = InputInfo(path, name or path.name, kind, compression, size, fingerprint, size)
        if kind == "text":
            return replace(info, rows=1, estimated_records=1)
        return _describe_table(info) if by_rows else _describe_stream(info, max_window)
    except OSError as error:
        raise read_error(path, error) from error


def reading_threads(max_window: int = MAX_WINDOW) -> ThreadPoolExecutor:
    """Return threads for looking at many files, so few that their zstd windows fit into memory."""
    return ThreadPoolExecutor(max(1, min(_THREADS, _WINDOWS // max_window)))


def detect_format(path: Path, format: Format) -> FileFormat:  # noqa: A002
    """Return the format of a file; `auto` infers it from its name and, for JSON, its content.

    UserError if it cannot.
    """
    if format != "auto":
        return format
    name = path.name.lower()
    for suffix, kind in TABLES.items():
        if name.endswith(suffix):
            return kind
    if name.endswith(_LINE_SUFFIXES):
        return _content_format(path)
    if name.endswith(_TEXT):
        return "text"
    if path.is_dir():
        raise _irregular(path)
    if not path.exists():
        raise read_error(path, FileNotFoundError())
    raise UserError(
        f"{path}: unknown file format",
        hint="set corpus.format to jsonl, json, wet, parquet, arrow or text, or correct "
        f"corpus.paths; known suffixes are {KNOWN_SUFFIXES}",
    )


def _content_format(path: Path) -> FileFormat:
    if not path.is_file():
        return "jsonl"
    head = read_head(path)
    if head.startswith(WARC_MAGIC):
        return "wet"
    return "json" if holds_values(head) else "jsonl"


def read_head(path: Path) -> bytes:
    """Return the first bytes of a file, decompressed if it is compressed and not damaged there."""
    with path.open("rb") as file:
        raw = file.read(_HEAD)
    if name_compression(raw) is None:
        return raw
    head = b""
    try:
        for chunk in read_chunks(path, detect_compression(path)):
            head += chunk
            if len(head) >= _HEAD:
                break
    except DamageError:
        pass  # what was read before it tells the format
    return head[:_HEAD]


def check_unchanged(info: InputInfo) -> None:
    """Raise StopError if the file differs from its description.

    Compares the size and the first and last 64 KiB, which takes two reads regardless of size.
    RetryError if the file cannot be read here, because only this node may have the problem.
    """
    try:
        size, fingerprint = _fingerprint(info.path)
    except (UserError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise RetryError(
            f"input {info.path} cannot be read on {socket.gethostname()}: "
            f"{getattr(error, 'strerror', '') or error}",
            hint=f"{'run `proxhpc plan RUN --stage`' if info.source else 'restore it'}, or fix the "
            "node; every node of the run must be able to read it",
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


def _describe_table(info: InputInfo) -> InputInfo:
    if info.size == 0:
        return replace(info, rows=0, estimated_records=0)
    try:
        with Table(info.path, "arrow" if info.format == "arrow" else "parquet") as table:
            rows, content, names = sum(table.group_rows), table.bytes, table.names
    except DamageError as error:
        return replace(info, note=f"corrupt: {error.detail}")
    renamed = [new for new, old in zip(unique_names(names), names, strict=True) if new != old]
    note = f"columns have equal names; the later ones are read as {', '.join(renamed)}"
    return replace(
        info,
        estimated_bytes=content,
        rows=rows,
        estimated_records=rows,
        note=note if renamed else "",
    )


def _describe_stream(info: InputInfo, max_window: int) -> InputInfo:
    if info.compression == "lz4":
        require_lz4(f"reading {info.path}")
    size = lines = chunks = 0
    last = b"\n"
    note = ""
    with info.path.open("rb", buffering=_EDGE) as file:
        stream = open_stream(file, info.compression, max_window)
        try:
            for chunk in stream.chunks():
                size += len(chunk)
                chunks += 1
                lines += chunk.count(b"\n")
                last = chunk[-1:]
                if size >= _SAMPLE:
                    break
        except DamageError as error:
            note = f"{error.reason}: {error.detail}"
        if stream.offset >= info.size or note:
            content = Content(info.size if info.compression == "none" else size, True)
            records = lines + (last != b"\n")
        else:
            content = estimate_content(info.path, stream, size, chunks)
            records = round(content.size * lines / size)
    enterable = content.enterable and (info.format == "jsonl" or info.compression == "none")
    info = replace(info, estimated_bytes=content.size, enterable=enterable, note=note)
    if info.format != "jsonl" or not (lines or note or size < _SAMPLE):
        return info
    return replace(info, estimated_records=records)

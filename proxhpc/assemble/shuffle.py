"""A corpus in random order, in bounded memory: rows are scattered by where they go, then gathered.

Each group of shards writes its rows into one file, in a slice for each bucket: a range of places
whose rows of all groups fit into memory. A part is its buckets one behind the other, each sorted.

A file has zstd frames, one a slice, then for each block of rows that were in memory together where
its slices begin and the last one ends, then a footer.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import orjson
import zstandard

from proxhpc.assemble.match import MatchResult
from proxhpc.assemble.parts import bucket_starts
from proxhpc.assemble.rows import corpus_row, decode_row, sort_key
from proxhpc.assemble.sketch import shard_groups
from proxhpc.assemble.survivors import CorpusRow, load_survivors, replay_survivors, require_match
from proxhpc.corpus.disk import replacing
from proxhpc.dedup.bands import damaged_file
from proxhpc.errors import StopError
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan

BUCKET = 256 << 20  # bytes of rows that are held and sorted at a time

_RECORD = struct.Struct("<QQQII")  # place, bytes of text, tokens, file, bytes of the row
_FOOTER = struct.Struct("<8s16sII")  # magic, the match's digest, blocks, buckets
_MAGIC = b"PXROWS\x01\0"


class _Record(NamedTuple):
    """One row on its way."""

    place: int
    text_bytes: int
    tokens: int
    file: int
    line: bytes

    def encode(self) -> bytes:
        return _RECORD.pack(*self[:4], len(self.line)) + self.line


def scatter_group(run: RunDir, plan: Plan, group: int) -> None:
    """Write a group's rows by the buckets that they go to, unless that was done."""
    match, path = require_match(run), run.scattered(group)
    if _made_of(path) == match.digest:
        return
    documents = load_survivors(run, match, group)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as out:
        file = _Scattered(out, match)
        for refined in replay_survivors(run, plan, documents):
            row = refined.row
            line = orjson.dumps(corpus_row(plan, refined))
            at = sort_key(plan, row)
            file.add(_Record(at, row.bytes_out, row.tokens_out, row.file, line))
        file.finish()


def gather_part(run: RunDir, plan: Plan, match: MatchResult, part: int) -> Iterator[CorpusRow]:
    """The rows of a part, by their places; of equal ones in input order."""
    counts = [len(bucket_starts(each, BUCKET)) for each in match.parts[: part + 1]]
    for bucket in range(sum(counts[:-1]), sum(counts)):
        found = [
            record
            for group in range(len(shard_groups(plan)))
            for record in _records(run.scattered(group), match, bucket)
        ]
        for record in sorted(found, key=lambda record: record.place):
            yield CorpusRow(decode_row(record.line), record.file, record.text_bytes, record.tokens)


class _Scattered:
    """The file of a group, as it is written."""

    def __init__(self, out: BinaryIO, match: MatchResult) -> None:
        self._out, self._digest = out, match.digest
        firsts = [first for part in match.parts for first in bucket_starts(part, BUCKET)]
        self._firsts = np.array(firsts, np.uint64)
        self._held: dict[int, list[bytes]] = {}
        self._size = self._end = 0
        self._blocks: list[bytes] = []
        self._compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)

    def add(self, record: _Record) -> None:
        """Take a row; written are those that were held together."""
        at = int(np.searchsorted(self._firsts, np.uint64(record.place), "right")) - 1
        data = record.encode()
        self._held.setdefault(at, []).append(data)
        self._size += len(data)
        if self._size >= BUCKET:
            self._flush()

    def finish(self) -> None:
        """Write the rest, and where everything is."""
        self._flush()
        digest, count = bytes.fromhex(self._digest), len(self._firsts)
        footer = _FOOTER.pack(_MAGIC, digest, len(self._blocks), count)
        self._out.write(b"".join([*self._blocks, footer]))

    def _flush(self) -> None:
        sizes = np.zeros(len(self._firsts) + 1, np.uint64)
        sizes[0] = self._end
        for bucket, rows in sorted(self._held.items()):
            sizes[bucket + 1] = self._out.write(self._compressor.compress(b"".join(rows)))
        edges = np.cumsum(sizes)
        self._end = int(edges[-1])
        self._blocks.append(edges.astype("<u8").tobytes())
        self._held, self._size = {}, 0


def _made_of(path: Path) -> str:
    """Digest of the match that a scattered file was made of; "" where there is no such file."""
    try:
        with path.open("rb") as file:
            return _footer(file, path)[0]
    except (FileNotFoundError, StopError):
        return ""


def _footer(file: BinaryIO, path: Path) -> tuple[str, int, int, int]:
    """Digest of the match, blocks, buckets, and where the table of slices begins."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _FOOTER.size))
    tail = file.read()
    if len(tail) < _FOOTER.size or tail[:8] != _MAGIC:
        raise damaged_file(path)
    _, digest, blocks, count = _FOOTER.unpack(tail)
    return digest.hex(), blocks, count, size - _FOOTER.size - 8 * blocks * (count + 1)


def _records(path: Path, match: MatchResult, bucket: int) -> Iterator[_Record]:
    """The rows of one group that go to a bucket, in input order."""
    try:
        with path.open("rb") as file:
            digest, blocks, count, table = _footer(file, path)
            if digest != match.digest:
                raise damaged_file(path)
            for block in range(blocks):
                file.seek(table + 8 * (block * (count + 1) + bucket))
                start, end = struct.unpack("<QQ", file.read(16))
                file.seek(start)
                if data := file.read(end - start):
                    yield from _decoded(zstandard.ZstdDecompressor().decompress(data))
    except FileNotFoundError:
        raise StopError(f"there is no {path}", hint="merge again") from None
    except (struct.error, zstandard.ZstdError, ValueError) as error:
        raise damaged_file(path) from error


def _decoded(data: bytes) -> Iterator[_Record]:
    at = 0
    while at < len(data):
        where, text_bytes, tokens, file, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        yield _Record(where, text_bytes, tokens, file, data[at : at + length])
        at += length

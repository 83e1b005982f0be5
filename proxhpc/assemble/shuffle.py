"""A corpus in random order, in bounded memory: rows are scattered into buckets, then gathered.

A bucket is a range of sort keys whose rows, of all groups, fit into memory. Each group of shards
writes its rows into one file with a slice for each bucket. A part consists of consecutive buckets,
each sorted.

A file has the slices as zstd frames; then, for each block of rows that were in memory together,
where its slices begin and the last one ends; then a footer.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import orjson
import zstandard

from proxhpc.assemble.line_edits import replay_corpus
from proxhpc.assemble.match_result import MatchResult, load_survivors, require_match
from proxhpc.assemble.parts import bucket_starts
from proxhpc.assemble.rows import corpus_row, decode_row, sort_key
from proxhpc.corpus.disk import replacing
from proxhpc.dedup.arrays import damaged_file
from proxhpc.errors import StopError
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.shards import shard_groups

BUCKET = 256 << 20  # bytes of rows that are held and sorted at a time

# Sort key, bytes of text, tokens, removed tokens, file, bytes of the row.
_RECORD = struct.Struct("<QQQQII")
_FOOTER = struct.Struct("<8s16sII")  # magic, the match's digest, blocks, buckets
_MAGIC = b"PXROWS\x01\0"


class CorpusRow(NamedTuple):
    """A row of the corpus, the number of its input file, and the size of its text.

    `removed_tokens` were removed with repeated lines.
    """

    row: dict[str, Any]
    file: int
    text_bytes: int
    tokens: int
    removed_tokens: int


class _Record(NamedTuple):
    """A row and what is needed to sort and count it."""

    sort_key: int
    text_bytes: int
    tokens: int
    removed_tokens: int
    file: int
    line: bytes

    def encode(self) -> bytes:
        return _RECORD.pack(*self[:5], len(self.line)) + self.line


def scatter_group(run: RunDir, plan: Plan, group: int) -> None:
    """Write a group's rows by bucket, unless its file is current."""
    match, path = require_match(run), run.scattered(group)
    if _match_digest(path) == match.digest:
        return
    digests = match.flags[group], match.clusters[group]
    documents, clusters = load_survivors(run, match.digest, group, *digests)
    records = replay_corpus(run, plan, match, group, documents)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        writer = _BucketWriter(file, match)
        for record, cluster in zip(records, clusters.tolist(), strict=True):
            row, removed = record.row, record.removed_tokens
            line = orjson.dumps(corpus_row(plan, record, cluster))
            key = sort_key(plan, row)
            writer.add(_Record(key, row.bytes_out, row.tokens_out, removed, row.file, line))
        writer.finish()


def gather_part(run: RunDir, plan: Plan, match: MatchResult, part: int) -> Iterator[CorpusRow]:
    """The rows of a part by their sort keys; rows with equal keys are in input order."""
    counts = [len(bucket_starts(earlier, BUCKET)) for earlier in match.parts[: part + 1]]
    for bucket in range(sum(counts[:-1]), sum(counts)):
        records = [
            record
            for group in range(len(shard_groups(plan)))
            for record in _read_bucket(run.scattered(group), match, bucket)
        ]
        for record in sorted(records, key=lambda record: record.sort_key):
            _, text_bytes, tokens, removed, file, line = record
            yield CorpusRow(decode_row(line), file, text_bytes, tokens, removed)


class _BucketWriter:
    def __init__(self, file: BinaryIO, match: MatchResult) -> None:
        self._file, self._digest = file, match.digest
        starts = [start for part in match.parts for start in bucket_starts(part, BUCKET)]
        self._starts = np.array(starts, np.uint64)
        self._buckets: dict[int, list[bytes]] = {}
        self._size = self._end = 0
        self._blocks: list[bytes] = []
        self._compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)

    def add(self, record: _Record) -> None:
        """Add a row; a full block is written."""
        bucket = int(np.searchsorted(self._starts, np.uint64(record.sort_key), "right")) - 1
        data = record.encode()
        self._buckets.setdefault(bucket, []).append(data)
        self._size += len(data)
        if self._size >= BUCKET:
            self._flush()

    def finish(self) -> None:
        """Write the last block, the table of slices and the footer."""
        self._flush()
        digest, buckets = bytes.fromhex(self._digest), len(self._starts)
        footer = _FOOTER.pack(_MAGIC, digest, len(self._blocks), buckets)
        self._file.write(b"".join([*self._blocks, footer]))

    def _flush(self) -> None:
        sizes = np.zeros(len(self._starts) + 1, np.uint64)
        sizes[0] = self._end
        for bucket, rows in sorted(self._buckets.items()):
            sizes[bucket + 1] = self._file.write(self._compressor.compress(b"".join(rows)))
        edges = np.cumsum(sizes)
        self._end = int(edges[-1])
        self._blocks.append(edges.astype("<u8").tobytes())
        self._buckets, self._size = {}, 0


def _match_digest(path: Path) -> str:
    """Digest of the match that a file was written for; "" if there is no whole file."""
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
    _, digest, blocks, buckets = _FOOTER.unpack(tail)
    return digest.hex(), blocks, buckets, size - _FOOTER.size - 8 * blocks * (buckets + 1)


def _read_bucket(path: Path, match: MatchResult, bucket: int) -> Iterator[_Record]:
    """The rows of one group in a bucket, in input order."""
    try:
        with path.open("rb") as file:
            digest, blocks, buckets, table = _footer(file, path)
            if digest != match.digest:
                raise damaged_file(path)
            for block in range(blocks):
                file.seek(table + 8 * (block * (buckets + 1) + bucket))
                start, end = struct.unpack("<QQ", file.read(16))
                file.seek(start)
                if data := file.read(end - start):
                    yield from _decode(zstandard.ZstdDecompressor().decompress(data))
    except FileNotFoundError:
        raise StopError(f"there is no {path}", hint="merge again") from None
    except (struct.error, zstandard.ZstdError, ValueError) as error:
        raise damaged_file(path) from error


def _decode(data: bytes) -> Iterator[_Record]:
    offset = 0
    while offset < len(data):
        key, text_bytes, tokens, removed, file, length = _RECORD.unpack_from(data, offset)
        offset += _RECORD.size
        yield _Record(key, text_bytes, tokens, removed, file, data[offset : offset + length])
        offset += length

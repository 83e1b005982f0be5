"""A corpus in random order, in bounded memory: rows are scattered into buckets, then gathered.

A bucket is a range of sort keys. Each group of shards writes its rows into one file with a slice
for each bucket. A part consists of consecutive buckets. Where the rows of a bucket do not fit into
memory, its slices are read several times, for one range of keys after another.

A file has the slices as zstd frames; then, for each block of rows that were in memory together,
where its slices begin and the last one ends; then a footer.
"""

import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import zstandard

from proxhpc.assemble.corpus_rows import corpus_rows
from proxhpc.assemble.match_result import MatchResult, load_survivors, require_match
from proxhpc.assemble.parts import bucket_starts
from proxhpc.assemble.patches import CorpusRow
from proxhpc.assemble.shape import Shapes
from proxhpc.corpus.disk import replacing
from proxhpc.dedup.arrays import damaged_file, read_footer
from proxhpc.errors import StopError
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.shards import shard_groups

_BUCKET = 256 << 20  # bytes of rows
_SHARE = 4  # of memory that the lines of rows may take; the rest is for copies and objects

# Sort key, file, bytes of text, tokens, removed tokens, bytes of the row.
_RECORD = struct.Struct("<QIQQQI")
_FOOTER = struct.Struct("<8s16sII")  # magic, the match's digest, blocks, buckets
_MAGIC = b"PXROWS\x01\0"


def scatter_group(run: RunDir, plan: Plan, group: int, memory: int) -> None:
    """Write a group's rows by bucket, unless its file is current."""
    match, path = require_match(run), run.scattered(group)
    if _match_digest(path) == match.digest:
        return
    digests = match.flags[group], match.clusters[group]
    documents, clusters = load_survivors(run, match.digest, group, *digests)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        writer = _BucketWriter(file, match, memory // _SHARE)
        for row in corpus_rows(run, plan, match, group, documents, clusters):
            writer.add(row)
        writer.finish()


def gather_part(
    run: RunDir, plan: Plan, match: MatchResult, part: int, memory: int
) -> Iterator[CorpusRow]:
    """The rows of a part by their sort keys; rows with equal keys are in input order."""
    before = sum(len(bucket_starts(earlier, _BUCKET)) for earlier in match.parts[:part])
    shapes, whole = Shapes(plan.manifest.output), match.parts[part]
    buckets = np.array(bucket_starts(whole, _BUCKET), np.uint64)
    starts = bucket_starts(whole, min(_BUCKET, memory // _SHARE))
    for start, stop in pairwise([*starts, whole.last + 1]):
        # A range may begin in one bucket and end in the next.
        first, last = (
            int(np.searchsorted(buckets, np.uint64(key), "right")) - 1 for key in (start, stop - 1)
        )
        rows = [
            row
            for group in range(len(shard_groups(plan)))
            for bucket in range(before + first, before + last + 1)
            for row in _read_bucket(run.scattered(group), match, bucket)
            if start <= row.sort_key < stop
        ]
        for row in sorted(rows, key=lambda row: row.sort_key):
            yield row._replace(shape=shapes.of_line(row.line))


class _BucketWriter:
    def __init__(self, file: BinaryIO, match: MatchResult, limit: int) -> None:
        """`limit` is how many bytes of rows are held."""
        self._file, self._digest, self._limit = file, match.digest, limit
        starts = [start for part in match.parts for start in bucket_starts(part, _BUCKET)]
        self._starts = np.array(starts, np.uint64)
        self._buckets: dict[int, list[bytes]] = {}
        self._size = self._end = 0
        self._blocks: list[bytes] = []
        self._compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)

    def add(self, row: CorpusRow) -> None:
        """Add a row; a full block is written."""
        bucket = int(np.searchsorted(self._starts, np.uint64(row.sort_key), "right")) - 1
        data = _RECORD.pack(*row[1:6], len(row.line)) + row.line
        self._buckets.setdefault(bucket, []).append(data)
        self._size += len(data)
        if self._size >= self._limit:
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
    (digest, blocks, buckets), start = read_footer(file, path, _FOOTER, _MAGIC)
    table = start - 8 * blocks * (buckets + 1)
    if table < 0:
        raise damaged_file(path)
    return digest.hex(), blocks, buckets, table


def _read_bucket(path: Path, match: MatchResult, bucket: int) -> Iterator[CorpusRow]:
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


def _decode(data: bytes) -> Iterator[CorpusRow]:
    offset = 0
    while offset < len(data):
        key, file, text_bytes, tokens, removed, length = _RECORD.unpack_from(data, offset)
        offset += _RECORD.size
        line = data[offset : offset + length]
        yield CorpusRow(line, key, file, text_bytes, tokens, removed, "")
        offset += length

"""Names of documents, and listings beside the corpus: quarantined records and duplicates."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash
import zstandard

from proxhpc.assemble.rows import record_source
from proxhpc.assemble.sketch import require_receipt
from proxhpc.corpus.disk import replacing
from proxhpc.dedup.arrays import check_file, damaged_file
from proxhpc.dedup.hashes import Sketch
from proxhpc.run.ledger import read_rows
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.shards import shard_groups

DocumentName = tuple[str, str]  # id, source

_COPIED = 1 << 20  # bytes at a time


def name_documents(run: RunDir, plan: Plan, documents: Sketch) -> Iterator[DocumentName]:
    """The names of documents of one group, which are in input order."""
    for shard in np.unique(documents["shard"]).tolist():
        numbers = documents["record"][documents["shard"] == shard].tolist()
        if shard < len(plan.shards):
            for row in read_rows(run.ledger(shard), plan.digest, shard, numbers):
                yield row.id, record_source(plan, row)
            continue
        group = len(shard_groups(plan)) + shard - len(plan.shards)
        path = run.sketch_names(group)
        check_file(path, require_receipt(run, group).names)
        names, position = read_listing(path), 0
        for number in numbers:
            name = next(islice(names, number - position, None))
            position = number + 1
            yield name["id"], name["source"]


def join_listings(path: Path, pieces: Sequence[tuple[Path, str]]) -> None:
    """Join listings, with their digests, into one; there is no file if there are none.

    It is one zstd frame, since some readers stop at the end of the first. StopError if a listing is
    damaged.
    """
    if not pieces:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    compressor = zstandard.ZstdCompressor()
    with replacing(path) as file, compressor.stream_writer(file, closefd=False) as out:
        for piece, digest in pieces:
            for data in _decompressed(piece, digest):
                out.write(data)


def _decompressed(path: Path, digest: str) -> Iterator[bytes]:
    checksum, frame = xxhash.xxh3_128(), zstandard.ZstdDecompressor().decompressobj()
    with path.open("rb") as file:
        while data := file.read(_COPIED):
            checksum.update(data)
            try:
                yield frame.decompress(data)
            except zstandard.ZstdError as error:
                raise damaged_file(path) from error
    if checksum.hexdigest() != digest:
        raise damaged_file(path)


def read_listing(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .jsonl.zst file that the merge wrote."""
    with zstandard.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        yield from map(orjson.loads, lines)

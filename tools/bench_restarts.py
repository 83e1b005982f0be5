"""Measures what several processes pay for reading the shards of one compressed file.

    python tools/bench_restarts.py [--megabytes 2000] [--processes 8] [--shards 64] [--folder DIR]

It writes a file as gzip, as zstd in frames and as one zstd frame. For each it prints CPU time and
decompressed bytes, divided by those of one pass: of a first reading, in the order in which workers
lease shards, and of a second one, in the order of a merge.
"""

import gzip
import itertools
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np  # noqa: F401 (workers have it loaded)
import orjson
import zstandard

import bench
from proxhpc.corpus.blocks import FrameReader
from proxhpc.corpus.document import Span
from proxhpc.corpus.inputs import describe_input
from proxhpc.corpus.readers import Fields, read_span
from proxhpc.corpus.restarts import RestartLog
from proxhpc.corpus.streams import MemberReader

FRAME = 8 << 20
Shard = tuple[int, int | None]
Reading = tuple[float, int, int]
"""CPU seconds, decompressed bytes and records."""
decompressed = 0  # by this process

for reader in (FrameReader, MemberReader):

    def counted(self: Any, *args: Any, inner: Any = reader.chunks) -> Iterator[bytes]:
        """Decompress, and count the bytes."""
        global decompressed
        for chunk in inner(self, *args):
            decompressed += len(chunk)
            yield chunk

    reader.chunks = counted  # type: ignore[assignment]


def documents(size: int) -> Iterator[bytes]:
    """Yield lines of about this size together, in words of uneven frequency."""
    rng = random.Random(1)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(20_000)]
    weights = list(itertools.accumulate(1 / (rank + 3) for rank in range(len(words))))
    pool = [" ".join(rng.choices(words, cum_weights=weights, k=400)) for _ in range(20_000)]
    number = 0
    while size > 0:
        text = "\n".join(rng.choices(pool, k=2))
        line = orjson.dumps({"id": number, "text": text}) + b"\n"
        yield line
        size -= len(line)
        number += 1


def write(path: Path, size: int, kind: str) -> int:
    """Write the file; return its decompressed size."""
    total = 0
    compressor = zstandard.ZstdCompressor()
    with path.open("wb") as raw:
        file: Any = raw
        if kind == "gzip":
            file = gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6)
        elif kind == "one frame":
            file = compressor.stream_writer(raw, closefd=False)
        held = b""
        for line in documents(size):
            total += len(line)
            held += line
            if len(held) >= FRAME:
                file.write(compressor.compress(held) if kind == "frames" else held)
                held = b""
        file.write(compressor.compress(held) if kind == "frames" else held)
        if file is not raw:
            file.close()
    return total


@cache
def open_log(log: Path, fingerprint: str) -> RestartLog:
    """A worker's log of places where reading can begin."""
    return RestartLog(log, fingerprint, writable=True)


def read(path: Path, log: Path | None, shards: Sequence[Shard]) -> Reading:
    """Read shards, one after another."""
    info = describe_input(path)
    restarts = open_log(log, info.fingerprint) if log else None
    started, before, records = time.process_time(), decompressed, 0
    for start, stop in shards:
        span = Span(0, start, stop)
        for _ in read_span(info, info.format, span, Fields(), 1 << 26, restarts=restarts):
            records += 1
    return time.process_time() - started, decompressed - before, records - len(shards)


def read_as_workers(
    path: Path, log: Path | None, shards: Sequence[Shard], processes: int
) -> list[Reading]:
    """Read in processes at the same time, each of which takes the next shard."""
    with bench.make_children(processes) as pool:
        return list(pool.map(read, *zip(*((path, log, [shard]) for shard in shards), strict=True)))


def main() -> None:
    """Write, read and print."""
    parser = bench.make_parser(__doc__)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--kinds", nargs="*", default=["frames", "gzip", "one frame"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for kind in options.kinds:
            path = Path(name, "a.jsonl." + ("gz" if kind == "gzip" else "zst"))
            total = write(path, options.megabytes * 10**6, kind)
            starts = [total * n // options.shards for n in range(options.shards)]
            shards: list[Shard] = list(zip(starts, [*starts[1:], None], strict=True))
            seconds, size, records = bench.in_child(read, path, None, [(0, None)])
            print(f"{kind}: {path.stat().st_size} bytes, {size} decompressed, {seconds:.1f} s CPU")
            log = Path(name, "restarts", f"{kind}.log")
            used, count = log if describe_input(path).enterable else None, options.processes
            readings = {
                "first reading, together": read_as_workers(path, used, shards, count),
                "second, one after another": [
                    bench.in_child(read, path, used, shards[n::count]) for n in range(count)
                ],
            }
            for what, found in readings.items():
                cpu, read_bytes, read_records = map(sum, zip(*found, strict=True))
                assert read_records == records, (read_records, records)
                print(f"  {what}: {cpu / seconds:.2f} CPU, {read_bytes / size:.2f} bytes")
            if log.exists():
                print(f"  log: {log.stat().st_size} bytes")


if __name__ == "__main__":
    main()

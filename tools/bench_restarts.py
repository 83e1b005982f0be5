"""Measures what several processes pay for reading the shards of one compressed file.

    python tools/bench_restarts.py [--megabytes 2000] [--processes 8] [--shards 64] [--folder DIR]

It writes a file as gzip, as zstd in frames and as one zstd frame. For each it prints CPU time and
decompressed bytes, divided by those of one pass: of a first reading, in the order in which workers
lease shards, and of a second one, in the order of a merge.
"""

import argparse
import gzip
import itertools
import multiprocessing
import random
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np  # noqa: F401 (workers have it loaded)
import orjson
import zstandard

from proxhpc.corpus.blocks import FrameReader
from proxhpc.corpus.document import Span
from proxhpc.corpus.inputs import describe_input
from proxhpc.corpus.readers import Fields, read_span
from proxhpc.corpus.restarts import RestartLog
from proxhpc.corpus.streams import MemberReader

FRAME = 8 << 20
decompressed = 0


def count_decompressed() -> None:
    """Count what readers decompress in this process."""
    for reader in (FrameReader, MemberReader):

        def counted(self, *args, inner=reader.chunks) -> Iterator[bytes]:
            global decompressed
            for chunk in inner(self, *args):
                decompressed += len(chunk)
                yield chunk

        reader.chunks = counted


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
        file: BinaryIO = raw
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


def read(
    path: Path, log: Path | None, shards: list[tuple[int, int | None]], order, results
) -> None:
    """Read shards from `order`, a shared counter or a list; put CPU seconds and bytes."""
    count_decompressed()
    info = describe_input(path)
    restarts = RestartLog(log, info.fingerprint, writable=True) if log else None
    started, before = cpu(), decompressed
    records = 0
    for shard in take(order, len(shards)):
        start, stop = shards[shard]
        span = Span(0, start, stop)
        for _ in read_span(info, info.format, span, Fields(), 1 << 26, restarts=restarts):
            records += 1
    results.put((cpu() - started, decompressed - before, records))


def take(order, count: int) -> Iterator[int]:
    """Yield the shards of a list, or the next ones of a shared counter."""
    if isinstance(order, list):
        yield from order
        return
    while True:
        with order.get_lock():
            shard, order.value = order.value, order.value + 1
        if shard >= count:
            return
        yield shard


def cpu() -> float:
    """Return the CPU seconds of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run(path, log, shards, orders, *, together: bool) -> tuple[float, int, int]:
    """Read in processes; return CPU seconds, bytes and records."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    shared = context.Value("i", 0)
    arguments = [(path, log, shards, shared if o is None else o, results) for o in orders]
    processes = [context.Process(target=read, args=one) for one in arguments]
    for process in processes:
        process.start()
        if not together:
            process.join()
    found = [results.get() for _ in processes]
    seconds, size, records = (sum(column) for column in zip(*found, strict=True))
    return seconds, size, records - len(shards)


def main() -> None:
    """Write, read and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
            shards = list(zip(starts, [*starts[1:], None], strict=True))
            log = Path(name, "restarts", f"{kind}.log")
            seconds, size, records = run(path, None, [(0, None)], [[0]], together=False)
            print(f"{kind}: {path.stat().st_size} bytes, {size} decompressed, {seconds:.1f} s CPU")
            count = options.processes
            used = log if describe_input(path).enterable else None
            for what, orders, together in (
                ("first reading, together", [None] * count, True),
                (
                    "second, one after another",
                    [list(range(n, len(shards), count)) for n in range(count)],
                    False,
                ),
            ):
                got = run(path, used, shards, orders, together=together)
                assert got[2] == records, (got, records)
                print(f"  {what}: {got[0] / seconds:.2f} CPU, {got[1] / size:.2f} bytes")
            if log.exists():
                print(f"  log: {log.stat().st_size} bytes")


if __name__ == "__main__":
    main()

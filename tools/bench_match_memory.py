"""Measure the memory of matching: many synthetic documents under a small `--max-ram`, and a large.

    python tools/bench_match_memory.py [--documents 2000000] [--max-ram 64 1024]

The documents are sketches alone - hashes, signatures and band keys, as the sketch phase writes
them - in groups like those of a large run: half are copies or near-copies of others, in sets of
very different sizes, and one in a hundred has one and the same text. Each match is a process of
its own; its memory is the most that it ever held less what it held before it began to match. What
is found must be the same.
"""

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import orjson
import xxhash
import yaml

from bench_memory import peak_memory
from proxhpc.assemble.match import match_documents
from proxhpc.assemble.sketch import SketchReceipt, shard_groups, sketch_group
from proxhpc.dedup.arrays import save_array
from proxhpc.dedup.bands import write_bands
from proxhpc.dedup.hashes import SKETCH_DTYPE, SketchDigests
from proxhpc.dedup.minhash import band_keys, compress_slots
from proxhpc.dedup.shingles import mix_bits
from proxhpc.launch.launch import Run, prepare_run
from proxhpc.run.pool import open_pool
from proxhpc.spec.sections import Near
from proxhpc.worker.worker import Assignment, run_worker

ONE_GROUP = patch("proxhpc.assemble.sketch.MAX_SHARDS", 1)  # each shard is a group


def make_run(folder: Path, number: int) -> Run:
    """Return a refined run of so many groups, of one document each."""
    folder.joinpath("in").mkdir()
    for file in range(number):
        words = " ".join(f"Sentence {part} of the page that is {file}." for part in range(200))
        row = {"id": str(file), "text": words}
        (folder / "in" / f"{file:05d}.jsonl").write_bytes(orjson.dumps(row) + b"\n")
    manifest = {
        "name": "bench",
        "run_dir": str(folder / "run"),
        "corpus": {"paths": str(folder / "in" / "*.jsonl"), "id": "id"},
        "stages": [{"level": "chunk"}],
        "engine": {"name": "rules"},
        "dedup": {"exact": True, "near": {"verify": "signature"}},
        "sharding": {"tokens": 1000},
        "output": {"provenance": False},
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    (folder / "site.yaml").write_text("name: here\nkind: local\n")
    run = prepare_run(folder / "manifest.yaml", str(folder / "site.yaml"), None)
    run_worker(run.dir, Assignment(), lambda _: None)
    return run


def contents(count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return for each document the number of the one whose text it has, or nearly has."""
    numbers = np.arange(count)
    earlier = (rng.random(count) ** 3 * numbers).astype(np.int64)
    found = np.where(rng.random(count) < 0.5, numbers, earlier)
    for _ in range(64):
        found = found[found]
    found[rng.random(count) < 0.01] = 0
    return found


def write_group(run: Run, group: int, content: npt.NDArray[np.int64], first: int) -> SketchDigests:
    """Write the sketches of documents from `first` on; copies are exact or near by turns."""
    near = run.plan.manifest.dedup.near or Near()
    numbers = np.arange(first, first + len(content))
    exact = (numbers % 2 == 0) | (content == numbers) | (content == 0)
    text = mix_bits(np.where(exact, content, numbers).astype(np.uint64))
    rows = np.zeros(len(content), SKETCH_DTYPE)
    rows["high"], rows["low"] = text, mix_bits(text)
    rows["id"] = mix_bits(numbers.astype(np.uint64) + np.uint64(1 << 40))
    rows["chars"], rows["size"], rows["shard"] = 2000 + text % np.uint64(100), 2100, group
    rows["number"] = numbers - first
    count = near.bands * near.rows
    places = np.arange(count, dtype=np.uint64)
    own = mix_bits(content.astype(np.uint64)[:, None] * np.uint64(count) + places)
    changed = mix_bits(own ^ text[:, None])
    other = ~exact[:, None] & (changed % np.uint64(20) == 0)
    slots = np.where(other, changed, own).astype(np.uint32)
    who = np.arange(len(content), dtype=np.uint32)
    bands = [(rows["high"], who), (rows["id"], who)]
    bands += [(keys, who) for keys in band_keys(slots, near.bands)]
    hashes = save_group(run, group, rows)
    signed = save_array(run.dir.signatures(group), compress_slots(slots))
    return SketchDigests(hashes, write_bands(run.dir.bands(group), bands), signed)


def save_group(run: Run, group: int, rows: npt.NDArray[np.void]) -> str:
    """Write the documents of a group; the digest of their bytes."""
    save_array(run.dir.sketch(group), rows)
    return xxhash.xxh3_128_hexdigest(rows.data)


def make_sketches(run: Run, documents: int, seed: int) -> list[SketchReceipt]:
    """Return the receipts of the groups, whose files hold so many documents together."""
    number = len(shard_groups(run.plan))
    with open_pool(run.dir, run.plan, 1) as pool:
        receipts = pool.map("sketch", sketch_group, range(number))
    content = contents(documents, np.random.default_rng(seed))
    edges = [documents * group // number for group in range(number + 1)]
    out = []
    for receipt, (first, last) in zip(receipts, pairwise(edges), strict=True):
        files = write_group(run, receipt.group, content[first:last], first)
        out.append(replace(receipt, files=files, documents=last - first))
    return out


def _child(run: Run, receipts: Sequence[SketchReceipt], memory: int, out: Any) -> None:
    with ONE_GROUP, open_pool(run.dir, run.plan, 1) as pool:
        status = Path("/proc/self/status").read_text().split()
        before = int(status[status.index("VmRSS:") + 1]) * 1024
        start = time.monotonic()
        found = match_documents(pool, receipts, memory)
        out.send((found, time.monotonic() - start, peak_memory() - before))


def main() -> int:
    """Match with each amount of memory; 1 where one took more, or found something else."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=2_000_000)
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--max-ram", type=int, nargs="+", default=[64, 4096], help="MiB")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ONE_GROUP:
        run = make_run(Path(folder), options.groups)
        receipts = make_sketches(run, options.documents, options.seed)
        print(f"{options.documents} documents in {len(receipts)} groups")
        print(f"{'max-ram MiB':>11} {'peak MiB':>9} {'of it':>6} {'seconds':>8} {'duplicates':>11}")
        for allowed in options.max_ram:
            shutil.rmtree(run.dir.pairs.parent, ignore_errors=True)
            run.dir.match.unlink(missing_ok=True)
            mine, its = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(run, receipts, allowed << 20, its))
            process.start()
            its.close()
            found, seconds, peak = mine.recv()
            process.join()
            results.append((found, peak / (allowed << 20)))
            print(
                f"{allowed:11} {peak / 2**20:9.1f} {results[-1][1]:6.2f} {seconds:8.1f}"
                f" {found.duplicates:11}",
                flush=True,
            )
    same = all(found == results[0][0] for found, _ in results)
    print("the same is found" if same else "something else is found")
    return 0 if same and all(share <= 1 for _, share in results) else 1


if __name__ == "__main__":
    sys.exit(main())

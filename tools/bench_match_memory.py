"""Measure the memory of matching many synthetic documents, with small and large `--max-ram`.

    python tools/bench_match_memory.py [--documents 2000000] [--max-ram 64 4096]

The documents exist only as sketches (hashes, signatures and band keys, as the sketch phase writes
them), in groups as in a large run. Half of them are copies or near-copies of others, in duplicate
sets of very different sizes, and one in a hundred has the same text. Each match runs in a separate
process. Its memory is its peak minus what it held before the match. The exit status is 1 if that
exceeds --max-ram or the results differ.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import orjson

import bench
from proxhpc.assemble.match import MatchResult, match_documents
from proxhpc.assemble.sketch import SketchReceipt, sketch_group
from proxhpc.dedup.arrays import save_array
from proxhpc.dedup.bands import write_bands
from proxhpc.dedup.hashes import SKETCH_DTYPE, SketchDigests
from proxhpc.dedup.minhash import band_keys, compress_slots
from proxhpc.dedup.shingles import mix_bits
from proxhpc.launch.launch import Run
from proxhpc.run.pool import open_pool
from proxhpc.run.shards import shard_groups
from proxhpc.spec.sections import Near
from proxhpc.worker.worker import Assignment, run_worker

ONE_SHARD_PER_GROUP = patch("proxhpc.run.shards.MAX_GROUP_SHARDS", 1)


def make_run(folder: Path, groups: int) -> Run:
    """A refined run with one document in each group."""
    folder.joinpath("in").mkdir()
    for file in range(groups):
        text = " ".join(f"Sentence {part} of page {file}." for part in range(200))
        row = {"id": str(file), "text": text}
        (folder / "in" / f"{file:05d}.jsonl").write_bytes(orjson.dumps(row) + b"\n")
    run = bench.make_run(
        folder,
        corpus={"paths": str(folder / "in" / "*.jsonl"), "id": "id"},
        dedup={"exact": True, "near": {"verify": "signature"}},
        sharding={"tokens": 1000},
        output={"provenance": False},
    )
    run_worker(run.dir, Assignment(), lambda _: None)
    return run


def draw_originals(count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """For each document the number of the one of which it is a copy or near-copy."""
    numbers = np.arange(count)
    earlier = (rng.random(count) ** 3 * numbers).astype(np.int64)
    originals = np.where(rng.random(count) < 0.5, numbers, earlier)
    for _ in range(64):
        originals = originals[originals]
    originals[rng.random(count) < 0.01] = 0
    return originals


def write_group(
    run: Run, group: int, originals: npt.NDArray[np.int64], first: int
) -> SketchDigests:
    """Write the sketches of the documents from `first` on; odd ones are near-copies."""
    near = run.plan.manifest.dedup.near or Near()
    numbers = np.arange(first, first + len(originals))
    exact = (numbers % 2 == 0) | (originals == numbers) | (originals == 0)
    text = mix_bits(np.where(exact, originals, numbers).astype(np.uint64))
    rows = np.zeros(len(originals), SKETCH_DTYPE)
    rows["high"], rows["low"] = text, mix_bits(text)
    rows["id"] = mix_bits(numbers.astype(np.uint64) + np.uint64(1 << 40))
    rows["chars"], rows["row_bytes"], rows["shard"] = 2000 + text % np.uint64(100), 2100, group
    rows["record"] = numbers - first
    count = near.bands * near.rows
    slot_numbers = originals.astype(np.uint64)[:, None] * np.uint64(count)
    original_slots = mix_bits(slot_numbers + np.arange(count, dtype=np.uint64))
    changed_slots = mix_bits(original_slots ^ text[:, None])
    changed = ~exact[:, None] & (changed_slots % np.uint64(20) == 0)
    slots = np.where(changed, changed_slots, original_slots).astype(np.uint32)
    documents = np.arange(len(originals), dtype=np.uint32)
    bands = [(rows["high"], documents), (rows["id"], documents)]
    bands += [(keys, documents) for keys in band_keys(slots, near.bands)]
    digest = save_array(run.dir.sketch(group), rows)
    signatures = save_array(run.dir.signatures(group), compress_slots(slots))
    return SketchDigests(digest, write_bands(run.dir.bands(group), bands), signatures)


def make_sketches(run: Run, documents: int, seed: int) -> list[SketchReceipt]:
    """The receipts of the groups, after writing sketches of `documents` into them."""
    groups = len(shard_groups(run.plan))
    with open_pool(run.dir, run.plan, 1) as pool:
        receipts = pool.map("sketch", sketch_group, range(groups))
    originals = draw_originals(documents, np.random.default_rng(seed))
    edges = [documents * group // groups for group in range(groups + 1)]
    return [
        replace(
            receipt,
            files=write_group(run, receipt.group, originals[first:last], first),
            documents=last - first,
        )
        for receipt, (first, last) in zip(receipts, pairwise(edges), strict=True)
    ]


def match(
    run: Run, receipts: Sequence[SketchReceipt], memory: int
) -> tuple[MatchResult, float, int]:
    """Match in `memory` bytes: the result, the seconds and the peak memory."""
    with ONE_SHARD_PER_GROUP, open_pool(run.dir, run.plan, 1) as pool:
        status = Path("/proc/self/status").read_text().split()
        before = int(status[status.index("VmRSS:") + 1]) * 1024
        start = time.monotonic()
        result = match_documents(pool, receipts, memory)
        return result, time.monotonic() - start, bench.peak_memory() - before


def main() -> int:
    """Match with each amount of memory, and print a row for each."""
    parser = bench.make_parser(__doc__)
    parser.add_argument("--documents", type=int, default=2_000_000)
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--max-ram", type=int, nargs="+", default=[64, 4096], help="MiB")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results, table = [], []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ONE_SHARD_PER_GROUP:
        run = make_run(Path(folder), options.groups)
        receipts = make_sketches(run, options.documents, options.seed)
        for max_ram in options.max_ram:
            shutil.rmtree(run.dir.pairs.parent, ignore_errors=True)
            run.dir.match.unlink(missing_ok=True)
            result, seconds, peak = bench.in_child(match, run, receipts, max_ram << 20)
            results.append(result)
            mib = peak / 2**20
            table.append((str(max_ram), mib, mib / max_ram, seconds, result.duplicates))
    print(f"{options.documents} documents in {len(receipts)} groups")
    bench.print_table(("max-ram MiB", "peak MiB", "share", "seconds", "duplicates"), table)
    same = all(result == results[0] for result in results)
    print("the results are the same" if same else "the results differ")
    return 0 if same and all(row[2] <= 1 for row in table) else 1


if __name__ == "__main__":
    sys.exit(main())

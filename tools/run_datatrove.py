"""Run datatrove's near-deduplication, for bench_dedup.py.

    PYTHON tools/run_datatrove.py OUT --processes N FILE...

PYTHON is from the environment of `bench_dedup.py --make-env`; it need not have proxhpc. The files
are JSON lines with the fields `id` and `text`. OUT/ids gets the ids of surviving documents, and
OUT/kept their rows.

It runs the four stages (signatures, buckets, clusters, filter) with the English tokenizer, runs of
5 words, and 14 bands of 8 slots. There is no threshold, and pairs are not compared; with these
bands, most pairs with a similarity above 0.72 are found.
"""

import argparse
import json
from pathlib import Path

import zstandard
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.typeshelper import Languages

WORDS = 5
BANDS, ROWS = 14, 8


def deduplicate(files: list[Path], out: Path, processes: int) -> None:
    """Run the four stages; the third one has a single task."""
    config = MinhashConfig(n_grams=WORDS, num_buckets=BANDS, hashes_per_bucket=ROWS)
    signatures, buckets, removed = (str(out / name) for name in ("sig", "buckets", "remove"))
    (folder,) = {file.parent for file in files}
    reader = JsonlReader(str(folder), glob_pattern="*.jsonl.zst", id_key="id")
    writer = JsonlWriter(str(out / "kept"), output_filename="${rank}.jsonl.zst", compression="zstd")
    stages = [
        ([reader, MinhashDedupSignature(signatures, config, Languages.english)], len(files)),
        ([MinhashDedupBuckets(signatures, buckets, config=config)], BANDS),
        ([MinhashDedupCluster(buckets, removed, config=config)], 1),
        ([reader, MinhashDedupFilter(removed), writer], len(files)),
    ]
    for number, (steps, tasks) in enumerate(stages):
        logs = str(out / f"logs-{number}")
        LocalPipelineExecutor(steps, tasks=tasks, workers=processes, logging_dir=logs).run()


def main() -> int:
    """Deduplicate, and write the ids."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    deduplicate([file.absolute() for file in options.files], options.out, options.processes)
    with (options.out / "ids").open("w") as ids:
        for path in sorted((options.out / "kept").glob("*.jsonl.zst")):
            with zstandard.open(path, "rt", encoding="utf-8") as lines:
                ids.writelines(f"{json.loads(line)['id']}\n" for line in lines)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

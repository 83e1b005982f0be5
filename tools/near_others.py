"""Run the near-deduplication of another tool, for bench_dedup.py.

    PYTHON tools/near_others.py datatrove OUT --processes N FILE...
    PYTHON tools/near_others.py ids OUT

PYTHON is from an environment of `bench_dedup.py --make-env`; it need not have proxhpc. The tools
read JSON lines with the fields `id` and `text`, and write surviving documents to OUT/kept; `ids`
prints their ids. Everything that is not mentioned here has its default:

datatrove: its four stages (signatures, buckets, clusters, filter) with the English tokenizer, runs
of 5 words, and 14 bands of 8 slots. It has no threshold and compares no pairs; with these bands,
most pairs with a similarity above 0.72 are found.

text-dedup: `minhash` with runs of 5 words and --threshold 0.8, from which it chooses its bands out
of 250 slots. It compares no pairs either.
"""

import argparse
import sys
from pathlib import Path

WORDS = 5
BANDS, ROWS = 14, 8
THRESHOLD = 0.8


def datatrove(files: list[Path], out: Path, processes: int) -> None:
    """Run the four stages; the third one has a single task."""
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


def text_dedup(files: list[Path], out: Path, processes: int) -> None:
    """Run its command with the arguments of a user."""
    from text_dedup.minhash import main

    settings = {
        "path": "json",
        "data_files": str(files[0].parent / "*.jsonl.zst"),
        "split": "train",
        "cache_dir": str(out / "cache"),
        "output": str(out / "kept"),
        "column": "text",
        "idx_column": None,
        "ngram": str(WORDS),
        "threshold": str(THRESHOLD),
        "num_proc": str(processes),
    }
    arguments = [f"--{key}={value}" for key, value in settings.items() if value is not None]
    main(arguments, standalone_mode=False)


def ids(out: Path) -> None:
    """Print the ids of the surviving documents."""
    import json

    kept = out / "kept"
    if (kept / "state.json").exists():
        from datasets import load_from_disk

        print("\n".join(load_from_disk(str(kept))["id"]))
        return
    import zstandard

    for path in sorted(kept.glob("*.jsonl.zst")):
        with zstandard.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                print(json.loads(line)["id"])


def main() -> int:
    """Run a tool, or print ids."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tool", choices=["datatrove", "text-dedup", "ids"])
    parser.add_argument("out", type=Path)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    if options.tool == "ids":
        ids(options.out)
    else:
        run = datatrove if options.tool == "datatrove" else text_dedup
        run([file.absolute() for file in options.files], options.out, options.processes)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Measure the peak memory of a worker, without its engine, from few documents to many.

    python tools/bench_memory.py corpus.jsonl.zst --model DIR [--documents 1000 10000 100000]

All documents are in one shard. Each is the start of a document of the corpus after a unique first
line, so that all are different and every cache of the worker fills up. The engine answers at once
and stores nothing; everything else is the real worker: reading, tokenizing, windows, programs,
commits. Each row is the peak of a separate process.
"""

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import orjson

import bench
from proxhpc.engines.base import Completion, Request
from proxhpc.engines.tokenizer import HFTokenizer


class InstantEngine:
    """Answers at once: keep the document, remove the window's first line."""

    name, max_model_len, cache_tokens, min_in_flight = "instant", 2048, 0, 2048

    def __init__(self, model: Path) -> None:
        self.tokenizer = HFTokenizer(model)

    async def complete(self, request: Request) -> Completion:
        """Return a fixed program."""
        number = request.first_line
        text = "keep_doc()" if request.level == "doc" else f"remove_lines({number}, {number})"
        return Completion(text, "stop", len(request.prompt), 0, 6)

    async def close(self) -> None:
        """Do nothing."""


def write_input(options: argparse.Namespace, documents: int, file: Path) -> None:
    """Write that many documents."""
    texts = itertools.cycle(text[: options.chars] for text in bench.read_texts(options))
    with file.open("wb") as out:
        for number, text in zip(range(documents), texts, strict=False):
            out.write(orjson.dumps({"id": str(number), "text": f"Page {number}\n{text}"}) + b"\n")


def refine(folder: Path, model: Path) -> tuple[int, int, float, int]:
    """Refine the run's one shard: shards, documents, seconds and peak bytes."""
    from proxhpc.status.heartbeats import latest_heartbeats
    from proxhpc.worker.worker import Assignment, run_worker

    async def make_engine(*arguments: Any, **options: Any) -> InstantEngine:
        return InstantEngine(model)

    stage = {"model": str(model.resolve()), "prompt": "prox-plain"}
    run = bench.make_run(
        folder,
        corpus={"paths": str(folder / "in.jsonl"), "id": "id"},
        stages=[{"level": level} | stage for level in ("doc", "chunk")],
        engine={"name": "transformers"},
        sharding={"tokens": 10**12},
    )
    with patch("proxhpc.refine.refiner.make_engine", make_engine):
        run_worker(run.dir, Assignment(), lambda _: None)
    (heartbeat,) = latest_heartbeats(run.dir)
    documents = heartbeat.counts.documents
    return len(run.plan.shards), documents, heartbeat.busy_seconds, bench.peak_memory()


def main() -> int:
    """Measure, and print a row for each number of documents."""
    parser = bench.make_parser(__doc__, limit=5000)
    parser.add_argument("--model", type=Path, required=True, help="directory of a model")
    parser.add_argument("--documents", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--chars", type=int, default=2000, help="characters of a document")
    options = parser.parse_args()
    table: list[tuple[str, int, float, float]] = []
    for documents in options.documents:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            write_input(options, documents, Path(name, "in.jsonl"))
            shards, done, seconds, peak = bench.in_child(refine, Path(name), options.model)
        if done != documents:
            raise SystemExit(f"{done} of {documents} documents were refined")
        table.append((str(documents), shards, documents / seconds, peak / 2**20))
    header = ("documents", "shards", "documents/s", "peak MiB", "of first")
    bench.print_table(header, [(*row, row[3] / table[0][3]) for row in table])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

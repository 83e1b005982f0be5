"""Measure the peak memory of a worker beside its engine, from few documents to many.

    python tools/bench_memory.py corpus.jsonl.zst --model DIR [--documents 1000 10000 100000]

All documents are in one shard. Each is the start of one of the corpus behind a line of its own, so
that no two are alike and every bounded memory of the worker fills. The engine answers at once and
keeps nothing; all else is the real worker: reading, tokenising, windows, programs, commits. Each
number of documents is a process of its own, and what is printed is the most that it ever held.
"""

import argparse
import itertools
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import orjson
import yaml

from bench_program import read
from proxhpc.engines.base import Completion, Request
from proxhpc.engines.tokenizer import HFTokenizer
from proxhpc.launch.launch import prepare_run


class Instant:
    """An engine that answers at once: keep the document, remove the window's first line."""

    name, max_model_len, cache_tokens = "instant", 2048, 0

    def __init__(self, model: Path) -> None:
        self.tokenizer = HFTokenizer(model)

    async def complete(self, request: Request) -> Completion:
        """Answer without a thought."""
        number = request.first_line
        text = "keep_doc()" if request.level == "doc" else f"remove_lines({number}, {number})"
        return Completion(text, "stop", len(request.prompt), 0, 6)

    async def close(self) -> None:
        """Nothing to close."""


def write_input(options: argparse.Namespace, documents: int, folder: Path) -> None:
    """Write the documents, the manifest and the site."""
    texts = [text[: options.chars] for text in read(options.corpus, options.field, 5000)]
    with (folder / "in.jsonl").open("wb") as file:
        for number, text in zip(range(documents), itertools.cycle(texts), strict=False):
            file.write(orjson.dumps({"id": str(number), "text": f"Page {number}\n{text}"}) + b"\n")
    stage = {"model": str(options.model.resolve()), "prompt": "prox-plain"}
    manifest = {
        "name": "bench",
        "corpus": {"paths": "in.jsonl", "id": "id"},
        "stages": [{"level": level} | stage for level in ("doc", "chunk")],
        "engine": {"name": "transformers"},
        "dedup": {"before": "exact"},
        "sharding": {"tokens": 10**12},
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    (folder / "site.yaml").write_text(yaml.safe_dump({"name": "here", "kind": "local"}))


def _child(folder: Path, model: Path, out: Any) -> None:
    from proxhpc.status.heartbeats import latest
    from proxhpc.worker.worker import Assignment, run_worker

    async def instant(*arguments: Any, **options: Any) -> Instant:
        return Instant(model)

    run = prepare_run(folder / "manifest.yaml", str(folder / "site.yaml"), None)
    with patch("proxhpc.refine.refiner.make_engine", instant):
        run_worker(run.dir, Assignment(), lambda _: None)
    (beat,) = latest(run.dir)
    out.send((len(run.plan.shards), beat.counts.documents, beat.busy_seconds, peak_memory()))


def peak_memory() -> int:
    """Most bytes that this process has held; `ru_maxrss` begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    (kib,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kib) * 1024


def main() -> int:
    """Measure, and print one line for each number of documents."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="JSON lines, plain, .gz or .zst")
    parser.add_argument("--model", type=Path, required=True, help="directory of a model")
    parser.add_argument("--field", default="text", help="field that holds the text (text)")
    parser.add_argument("--documents", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--chars", type=int, default=2000, help="of a document (2000)")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    first = None
    print(f"{'documents':>9} {'shards':>6} {'documents/s':>11} {'peak MiB':>8} {'of first':>8}")
    for documents in options.documents:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            write_input(options, documents, Path(folder))
            mine, its = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(Path(folder), options.model, its))
            process.start()
            its.close()
            shards, done, seconds, peak = mine.recv()
            process.join()
        if done != documents:
            raise SystemExit(f"{done} of {documents} documents were refined")
        first = first or peak
        rate = documents / seconds
        print(f"{documents:9} {shards:6} {rate:11.0f} {peak / 2**20:8.0f} {peak / first:8.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Compare the merge with the least that any merge must do: decode the corpus and encode it again.

    python tools/bench_merge.py corpus.jsonl.zst

The ceiling decompresses the input, parses every line, writes it as JSON again and compresses that,
all in one process with the libraries and level that we use; it checks, counts and edits nothing.
Beside it, in the same process and in turn, two runs without a search for duplicates: one in which
every document is kept as it is, and one whose lines were edited by the C4 rules. `write` is the
phase that reads documents, replays their programs and writes parts; `merge` is all of it, in which
every document is read and replayed twice, the first time to prove that nothing is lost. Rates are
raw text by the best time of --rounds.
"""

import argparse
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import zstandard

from bench_dedup import keep_all, planned, write_files
from bench_program import read
from proxhpc.assemble.merge import merge_run
from proxhpc.corpus.writer import JsonLines
from proxhpc.run.paths import RunDir
from proxhpc.worker.worker import Assignment, run_worker

Seconds = dict[str, float]


def ceiling(files: Path, out: Path) -> Seconds:
    """Decode and encode the files."""
    began = time.perf_counter()
    encoder = JsonLines()
    with out.open("wb") as target:
        for path in sorted(files.iterdir()):
            with io.BufferedReader(zstandard.open(path, "rb"), 1 << 20) as source:
                for line in source:
                    row = orjson.loads(line)
                    target.write(encoder.add(row, orjson.dumps(row) + b"\n"))
        target.write(encoder.end())
    return {"": time.perf_counter() - began}


def edited(files: Path, folder: Path) -> Path:
    """Return a refined run over the files, edited by the C4 rules."""
    engine = {"name": "rules", "rules": ["c4"]}
    run = planned(files, folder, engine=engine, dedup={"exact": False})
    run_worker(run.dir, Assignment(), lambda _: None)
    return run.dir.root


def merged(root: Path) -> Seconds:
    """Merge a run from the start."""
    run = RunDir(root)
    for path in (run.corpus, run.merge_summary.parent):
        shutil.rmtree(path, ignore_errors=True)
    at: dict[str, list[float]] = {}
    began = time.perf_counter()
    merge_run(run, progress=lambda phase, *_: at.setdefault(phase, []).append(time.perf_counter()))
    return {"merge": time.perf_counter() - began, "write": at["write"][-1] - at["write"][0]}


def main() -> int:
    """Measure, and print one line for each way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="JSON lines, plain, .gz or .zst")
    parser.add_argument("--field", default="text", help="field that holds the text (text)")
    parser.add_argument("--limit", type=int, default=sys.maxsize, help="documents")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    texts = [*read(options.corpus, options.field, options.limit)]
    size = sum(len(text.encode()) for text in texts) / 1e6
    best: Seconds = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        files = folder / "in"
        write_files(texts, files, 1)
        kept = keep_all(files, folder / "kept", {"exact": False})
        changed = edited(files, folder / "edited")
        ways: dict[str, Callable[[], Seconds]] = {
            "ceiling": lambda: ceiling(files, folder / "out"),
            "kept": lambda: merged(kept),
            "edited": lambda: merged(changed),
        }
        for _ in range(options.rounds):
            for way, call in ways.items():
                for part, seconds in call().items():
                    label = f"{way} {part}".strip()
                    best[label] = min(best.get(label, seconds), seconds)
    print(f"{len(texts)} documents, {size:.1f} MB of text, best of {options.rounds}")
    print(f"{'':14} {'seconds':>8} {'MB/s':>7} {'of ceiling':>10}")
    for label, seconds in best.items():
        print(f"{label:14} {seconds:8.2f} {size / seconds:7.1f} {best['ceiling'] / seconds:10.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

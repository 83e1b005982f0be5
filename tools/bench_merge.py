"""Compare the merge with the minimal work of any merge: decode the corpus and encode it again.

    python tools/bench_merge.py corpus.jsonl.zst

The `ceiling` decompresses the input, parses each line, writes it as JSON again and compresses that,
with the libraries and compression level of the merge; it checks and counts nothing. Two runs are
merged in the same process, both without a search for duplicates: in `kept`, each document is kept
unchanged; in `edited`, the C4 rules edited its lines. `write` is the phase that reads documents,
makes their rows and writes parts. `merge` is the whole merge, which reads every document twice, and
replays it first to prove that nothing is lost. Seconds are of the processor. MB are raw text.
"""

import io
import shutil
import sys
import tempfile
import time
from pathlib import Path

import orjson
import zstandard

import bench
from bench_dedup import make_kept_run, write_files
from proxhpc.assemble.merge import merge_run
from proxhpc.corpus.writer import JsonLines
from proxhpc.run.paths import RunDir
from proxhpc.worker.worker import Assignment, run_worker


def encode_again(files: Path, out: Path) -> dict[str, float]:
    """Decode and encode the files; the processor seconds."""
    start = time.process_time()
    encoder = JsonLines()
    with out.open("wb") as target:
        for path in sorted(files.iterdir()):
            with io.BufferedReader(zstandard.open(path, "rb"), 1 << 20) as source:
                for line in source:
                    row = orjson.loads(line)
                    target.write(encoder.add(orjson.dumps(row) + b"\n"))
        target.write(encoder.end())
    return {"": time.process_time() - start}


def make_edited_run(files: Path, folder: Path) -> RunDir:
    """A refined run over the files, edited by the C4 rules."""
    folder.mkdir()
    run = bench.make_run(
        folder,
        corpus={"paths": str(files / "*.jsonl.zst"), "id": "id"},
        engine={"name": "rules", "rules": ["c4"]},
        dedup={"exact": False},
    )
    run_worker(run.dir, Assignment(), lambda _: None)
    return run.dir


def merge(run: RunDir) -> dict[str, float]:
    """Merge a run from the start; the processor seconds of all of it and of its phase `write`."""
    for path in (run.corpus, run.merge_summary.parent):
        shutil.rmtree(path, ignore_errors=True)
    times: dict[str, list[float]] = {}
    start = time.process_time()
    merge_run(
        run, progress=lambda phase, *_: times.setdefault(phase, []).append(time.process_time())
    )
    merge_seconds = time.process_time() - start
    return {" merge": merge_seconds, " write": times["write"][-1] - times["write"][0]}


def main() -> int:
    """Measure, and print speeds."""
    parser = bench.make_parser(__doc__, limit=sys.maxsize)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    texts = bench.read_texts(options)
    size = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        files = folder / "in"
        write_files(texts, files, 1)
        kept = make_kept_run(files, folder / "kept", {"exact": False})
        edited = make_edited_run(files, folder / "edited")
        results = bench.alternate(
            {
                "ceiling": lambda: encode_again(files, folder / "out"),
                "kept": lambda: merge(kept),
                "edited": lambda: merge(edited),
            },
            options.rounds,
        )
    seconds = {
        way + part: [taken[part] for taken in rounds]
        for way, rounds in results.items()
        for part in rounds[0]
    }
    print(f"{len(texts)} documents, {size:.1f} MB of text")
    bench.print_speeds(seconds, size, "MB", "ceiling")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

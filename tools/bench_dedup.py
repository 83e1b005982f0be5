"""Compare near-deduplication with that of datatrove: time, memory, and what is dropped.

    python tools/bench_dedup.py corpus.jsonl.zst --env .cache/datatrove [--make-env]

--make-env installs datatrove 0.10 into an environment in --env; without one, only proxhpc runs.
Both get the same files, one for each process, and write the documents that survive. For proxhpc
that is `proxhpc merge` of a run that keeps every document: it reads ledgers, proves that nothing is
lost, finds near-duplicates at --threshold, compares by text what signatures leave open, and writes
parts, checksums and a card. Making the run is not timed, as there is nothing to refine.

Quality is measured on a sample with planted near-duplicates, against the exact similarity of all
pairs (near_truth.py). run_datatrove.py has the settings of datatrove. Times are those of whole
commands, with start and imports (of compiled modules). If the machine does other work, processor
seconds are more reliable; for datatrove they are known only with one process, because it does not
wait for its other processes.
"""

import argparse
import compileall
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import zstandard

import bench
import near_truth
import proxhpc
from proxhpc.corpus.document import BadRecord, SpanEnd
from proxhpc.corpus.frames import FrameWriter
from proxhpc.run.ledger import LedgerState, LedgerWriter, Row, bad_row, text_digest
from proxhpc.run.paths import RunDir

DATATROVE = ("datatrove[io,processing]==0.10.1", "spacy", "xxhash<4")  # it needs an older xxhash
Tool = Callable[[Path, Path, int], tuple[bench.Cost, set[int]]]
"""Deduplicates the files of a folder into another one, with some processes: cost, surviving ids."""


def make_environment(folder: Path) -> None:
    """Install datatrove into a new environment."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *DATATROVE], check=True)


def write_files(texts: Sequence[str], folder: Path, count: int) -> None:
    """Write the texts, with their indices as ids, into `count` files of similar size."""
    folder.mkdir()
    size = sum(map(len, texts)) / count
    files: list[list[bytes]] = [[] for _ in range(count)]
    written = 0
    for number, text in enumerate(texts):
        row = orjson.dumps({"id": str(number), "text": text}, option=orjson.OPT_APPEND_NEWLINE)
        files[min(count - 1, int(written // size))].append(row)
        written += len(text)
    for number, rows in enumerate(files):
        compressed = zstandard.compress(b"".join(rows))
        (folder / f"{number}.jsonl.zst").write_bytes(compressed)


def make_kept_run(corpus: Path, folder: Path, dedup: dict[str, Any]) -> RunDir:
    """A refined run over the files in which each document was kept unchanged."""
    folder.mkdir()
    paths = {"paths": str(corpus / "*.jsonl.zst"), "id": "id"}
    run = bench.make_run(folder, corpus=paths, dedup=dedup, output={"provenance": False})
    for number, shard in enumerate(run.plan.shards):
        rows: list[Row] = []
        ends: list[SpanEnd] = []
        for item in (item for span in shard.spans for item in run.plan.read(span)):
            if isinstance(item, SpanEnd):
                ends.append(item)
            elif isinstance(item, BadRecord):
                rows.append(bad_row(item))
            else:
                size, digest = len(item.text.encode()), text_digest(item.text)
                where = item.id, item.file, item.position
                rows.append(Row(*where, "kept", digest=digest, bytes_in=size, bytes_out=size))
        path = run.dir.ledger(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        ledger = LedgerWriter(FrameWriter(path), run.plan.digest, number, LedgerState())
        ledger.commit(rows, tuple(ends))
        ledger.finish()
        ledger.close()
    return run.dir


def run_proxhpc(
    threshold: float, corpus: Path, out: Path, processes: int
) -> tuple[bench.Cost, set[int]]:
    """Merge a run over the files of `corpus`."""
    run = make_kept_run(corpus, out, {"near": {"threshold": threshold}})
    command = [sys.executable, "-m", "proxhpc", "merge", str(run.root)]
    cost = bench.measure_command([*command, "--processes", str(processes)], out / "log")
    parts = sorted(run.corpus.rglob("*.jsonl.zst"))
    rows = (line for part in parts for line in zstandard.open(part, "rb").read().splitlines())
    return cost, {int(orjson.loads(row)["id"]) for row in rows}


def run_datatrove(
    env: Path, corpus: Path, out: Path, processes: int
) -> tuple[bench.Cost, set[int]]:
    """Run datatrove on the files of `corpus`."""
    out.mkdir()
    script = Path(__file__).with_name("run_datatrove.py")
    command = [str(env / "bin" / "python"), str(script), str(out)]
    command += [*map(str, sorted(corpus.iterdir())), "--processes", str(processes)]
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    cost = bench.measure_command(command, out / "log", variables)
    return cost, set(map(int, (out / "ids").read_text().split()))


def measure_quality(texts: list[str], tools: dict[str, Tool], options: argparse.Namespace) -> None:
    """Print precision and recall on a sample with planted near-duplicates."""
    rng = random.Random(options.seed)
    sample = rng.sample(texts, min(len(texts), options.sample))
    sample = near_truth.plant_copies(sample, options.planted, rng)
    pairs = near_truth.similar_pairs(sample, options.threshold)
    table = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        write_files(sample, folder / "in", 1)
        for tool, call in tools.items():
            _, survivors = call(folder / "in", folder / tool, 1)
            dropped = set(range(len(sample))) - survivors
            precision, recall = near_truth.measure(sample, [*pairs], dropped)
            table.append((tool, len(dropped), f"{precision:.4f}", f"{recall:.4f}"))
    print(f"\n{len(sample)} documents, {len(pairs)} pairs with similarity >= {options.threshold}")
    bench.print_table(("", "dropped", "precision", "recall"), table)


def measure_speed(texts: list[str], tools: dict[str, Tool], options: argparse.Namespace) -> None:
    """Print time and memory on all documents; ratios are time relative to proxhpc."""
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(texts)} documents, {size:.1f} MB of text")
    for processes in options.processes:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            files = Path(name, "in")
            write_files(texts, files, processes)

            def measure(call: Tool, files: Path = files, processes: int = processes) -> Any:
                out = files.with_name("out")
                try:
                    return call(files, out, processes)
                finally:
                    shutil.rmtree(out, ignore_errors=True)

            ways = {tool: partial(measure, call) for tool, call in tools.items()}
            results = bench.alternate(ways, options.rounds)
        seconds = {tool: [cost.seconds for cost, _ in each] for tool, each in results.items()}
        cpu = {tool: [cost.cpu for cost, _ in each] for tool, each in results.items()}
        table = []
        for tool, each in results.items():
            row: list[str | float] = [tool]
            for times in (seconds, cpu):
                row.append(statistics.median(times[tool]))
                row.append(bench.median_ratio(times[tool], times["proxhpc"]))
            peak = max(cost.peak for cost, _ in each) / 2**20
            table.append((*row, peak, len(texts) - len(each[-1][1])))
        print(f"\n{processes} processes")
        bench.print_table(("", "seconds", "ratio", "cpu s", "ratio", "peak MiB", "dropped"), table)


def main() -> int:
    """Run both, and print what they took and what they dropped."""
    parser = bench.make_parser(__doc__, limit=sys.maxsize)
    parser.add_argument(
        "--env", type=Path, default=Path(".cache/datatrove"), help="environment with datatrove"
    )
    parser.add_argument("--make-env", action="store_true", help="make the environment first")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threshold", type=float, default=0.8, help="similarity")
    parser.add_argument("--sample", type=int, default=1500, help="documents for quality")
    parser.add_argument("--planted", type=int, default=500, help="near-duplicates of them")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.make_env:
        make_environment(options.env)
    compileall.compile_dir(Path(proxhpc.__file__).parent, quiet=1)
    tools: dict[str, Tool] = {"proxhpc": partial(run_proxhpc, options.threshold)}
    if options.env.exists():
        tools["datatrove"] = partial(run_datatrove, options.env.absolute())
    else:
        print(f"no datatrove in {options.env}: use --make-env", file=sys.stderr)
    texts = bench.read_texts(options)
    if options.rounds:
        measure_speed(texts, tools, options)
    if options.sample:
        measure_quality(texts, tools, options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

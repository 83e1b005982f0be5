"""Compare near-deduplication with other tools': time, memory, and what is dropped.

    python tools/bench_dedup.py corpus.jsonl.zst --envs .cache/near [--make-env]

`--make-env` makes an environment in --envs for each of the others, datatrove 0.10 and text-dedup,
which cannot be installed beside each other; what is not there is left out. All tools get the same
files, one a process, and write what survives. Ours is `proxhpc merge` of a run that keeps every
document: it reads the ledger, proves that nothing is lost, finds near-duplicates at --threshold,
compares by text what signatures cannot tell, and writes parts, checksums and a card; that run is
made before and not timed, as there is nothing to refine.

Quality is measured on some of the documents with planted near-duplicates, against all pairs by
their exact similarity (near_truth.py); the others' settings are in near_others.py. Times are of
whole commands, start and imports included (of modules that were compiled before, as by an
installer), the best of --rounds. Processor seconds are the ones to look at where the machine has
other work; of datatrove's they are known for one process only, as nobody waits for its others.
"""

import argparse
import compileall
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import yaml
import zstandard

import near_truth
import peak
import proxhpc
from bench_program import read
from proxhpc.corpus.document import Bad, End
from proxhpc.corpus.frames import FrameWriter
from proxhpc.launch.launch import Run, prepare_run
from proxhpc.run.ledger import LedgerState, LedgerWriter, Row, bad_row, text_digest

# Of the others, what `pip install` is given. datatrove's hashes need the xxhash of before.
OTHERS = {
    "datatrove": ["datatrove[io,processing]==0.10.1", "spacy", "xxhash<4"],
    "text-dedup": ["text-dedup==0.4.0"],
}
Tool = Callable[[Path, Path, int], tuple[peak.Cost, set[int]]]


def make_environments(folder: Path) -> None:
    """Make an environment for each of the others; what cannot be installed is told and left out."""
    for name, packages in OTHERS.items():
        there = folder / name
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(there)], check=True)
        command = [str(there / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages]
        if subprocess.run(command, check=False).returncode:
            print(f"{name} cannot be installed here", file=sys.stderr)
            shutil.rmtree(there)


def write_files(texts: Sequence[str], folder: Path, files: int) -> None:
    """Write the texts, with their places as ids, into so many files of like size."""
    folder.mkdir()
    packer = zstandard.ZstdCompressor()
    size = sum(map(len, texts)) / files
    piles: list[list[bytes]] = [[] for _ in range(files)]
    seen = 0
    for number, text in enumerate(texts):
        row = orjson.dumps({"id": str(number), "text": text}, option=orjson.OPT_APPEND_NEWLINE)
        piles[min(files - 1, int(seen // size))].append(row)
        seen += len(text)
    for number, pile in enumerate(piles):
        (folder / f"{number}.jsonl.zst").write_bytes(packer.compress(b"".join(pile)))


def planned(corpus: Path, folder: Path, **sections: Any) -> Run:
    """Return a planned run of the rules over the files, with these sections in its manifest."""
    folder.mkdir()
    manifest = {
        "name": "bench",
        "run_dir": str(folder / "run"),
        "corpus": {"paths": str(corpus / "*.jsonl.zst"), "id": "id"},
        "stages": [{"level": "chunk"}],
        "engine": {"name": "rules"},
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest | sections))
    (folder / "site.yaml").write_text("name: here\nkind: local\n")
    return prepare_run(folder / "manifest.yaml", str(folder / "site.yaml"), None)


def keep_all(corpus: Path, folder: Path, dedup: dict[str, Any]) -> Path:
    """Return a finished run over the files in which every document was kept as it is."""
    run = planned(corpus, folder, dedup=dedup, output={"provenance": False})
    for number, shard in enumerate(run.plan.shards):
        rows: list[Row] = []
        ends: list[End] = []
        for item in (item for span in shard.spans for item in run.plan.read(span)):
            if isinstance(item, End):
                ends.append(item)
            elif isinstance(item, Bad):
                rows.append(bad_row(item))
            else:
                size = len(item.text.encode())
                place = item.id, item.file, item.position
                digest = text_digest(item.text)
                rows.append(Row(*place, "kept", digest=digest, bytes_in=size, bytes_out=size))
        path = run.dir.ledger(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        ledger = LedgerWriter(FrameWriter(path), run.plan.digest, number, LedgerState())
        ledger.commit(rows, tuple(ends))
        ledger.finish()
        ledger.close()
    return run.dir.root


def ours(threshold: float) -> Tool:
    """Return what runs our merge on the files of a folder."""

    def tool(corpus: Path, out: Path, processes: int) -> tuple[peak.Cost, set[int]]:
        run = keep_all(corpus, out, {"near": {"threshold": threshold}})
        merge = [sys.executable, "-m", "proxhpc", "merge", str(run)]
        cost = peak.run([*merge, "--processes", str(processes)], out / "log")
        parts = sorted((run / "corpus").rglob("*.jsonl.zst"))
        rows = (line for part in parts for line in zstandard.open(part, "rb").read().splitlines())
        return cost, {int(orjson.loads(row)["id"]) for row in rows}

    return tool


def other(name: str, envs: Path) -> Tool:
    """Return what runs another tool on the files of a folder."""

    def tool(corpus: Path, out: Path, processes: int) -> tuple[peak.Cost, set[int]]:
        out.mkdir()
        script = str(Path(__file__).with_name("near_others.py"))
        call = [str(envs / name / "bin" / "python"), script]
        files = map(str, sorted(corpus.iterdir()))
        given = [name, str(out), *files, "--processes", str(processes)]
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        cost = peak.run([*call, *given], out / "log", env)
        kept = subprocess.run([*call, "ids", str(out)], capture_output=True, check=True, env=env)
        return cost, set(map(int, kept.stdout.split()))

    return tool


def quality(texts: Sequence[str], tools: dict[str, Tool], options: argparse.Namespace) -> None:
    """Print precision and recall on some documents with planted near-duplicates."""
    rng = random.Random(options.seed)
    sample = rng.sample(texts, min(len(texts), options.sample))
    sample = near_truth.planted(sample, options.planted, rng)
    pairs = near_truth.similar(sample, options.threshold)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        write_files(sample, folder / "in", 1)
        print(f"\n{len(sample)} documents, {len(pairs)} pairs alike by {options.threshold} or more")
        print(f"{'':12} {'dropped':>8} {'precision':>9} {'recall':>7}")
        for tool, call in tools.items():
            _, kept = call(folder / "in", folder / tool, 1)
            found = near_truth.judge(len(sample), [*pairs], set(range(len(sample))) - kept)
            print(f"{tool:12} {found.dropped:8} {found.precision:9.4f} {found.recall:7.4f}")


def speed(texts: Sequence[str], tools: dict[str, Tool], options: argparse.Namespace) -> None:
    """Print time and memory on all documents, and their ratios to ours."""
    best: dict[tuple[int, str], peak.Cost] = {}
    left: dict[tuple[int, str], int] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        for processes in options.processes:
            write_files(texts, folder / f"in-{processes}", processes)
        for number in range(options.rounds):
            for processes in options.processes:
                for tool, call in tools.items():
                    out = folder / f"{tool}-{processes}-{number}"
                    cost, kept = call(folder / f"in-{processes}", out, processes)
                    key = processes, tool
                    best[key] = min(best.get(key, cost), cost, key=lambda one: one.seconds)
                    left[key] = len(texts) - len(kept)
                    shutil.rmtree(out)
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(texts)} documents, {size:.1f} MB of text, best of {options.rounds}")
    head = f"{'seconds':>8} {'of ours':>8} {'cpu s':>7} {'of ours':>8}"
    print(f"{'processes':9} {'':12} {head} {'peak MiB':>9} {'dropped':>8}")
    for (processes, tool), cost in best.items():
        own = best[processes, "proxhpc"]
        print(
            f"{processes:9} {tool:12} {cost.seconds:8.1f} {cost.seconds / own.seconds:8.1f}"
            f" {cost.cpu:7.1f} {cost.cpu / own.cpu:8.1f} {cost.peak / 2**20:9.0f}"
            f" {left[processes, tool]:8}",
            flush=True,
        )


def main() -> int:
    """Run the tools and print what they took and what they dropped."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="JSON lines, plain, .gz or .zst")
    parser.add_argument("--field", default="text", help="field that holds the text (text)")
    parser.add_argument(
        "--envs", type=Path, default=Path(".cache/near"), help="others' environments"
    )
    parser.add_argument("--make-env", action="store_true", help="make them first")
    parser.add_argument("--limit", type=int, default=sys.maxsize, help="documents")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threshold", type=float, default=0.8, help="similarity (0.8)")
    parser.add_argument("--sample", type=int, default=1500, help="documents for quality (1500)")
    parser.add_argument("--planted", type=int, default=500, help="near-duplicates of them (500)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.make_env:
        make_environments(options.envs)
    compileall.compile_dir(Path(proxhpc.__file__).parent, quiet=1)
    tools = {"proxhpc": ours(options.threshold)}
    for name in OTHERS:
        if (options.envs / name).exists():
            tools[name] = other(name, options.envs.absolute())
        else:
            print(f"{name} is not in {options.envs}: left out", file=sys.stderr)
    texts = [*read(options.corpus, options.field, options.limit)]
    if options.rounds:
        speed(texts, tools, options)
    if options.sample:
        quality(texts, tools, options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

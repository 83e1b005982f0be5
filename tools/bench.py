"""What the benchmarks share: a corpus, a run, child processes, repeated measurements and tables."""

import argparse
import asyncio
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import yaml

from proxhpc.corpus.document import Document
from proxhpc.launch.launch import Run, prepare_run
from proxhpc.preview import read_documents
from proxhpc.refine.preflight import freeze_prompts
from proxhpc.refine.refiner import open_refiner
from proxhpc.run.ledger import Row
from proxhpc.run.models import ModelRef
from proxhpc.run.plan import find_models, freeze_manifest
from proxhpc.spec.manifest import Manifest

T = TypeVar("T")
DEFAULTS = {"name": "bench", "stages": [{"level": "chunk"}], "engine": {"name": "rules"}}
SAMPLE_S = 0.1  # between two samples of memory; more of them slow down the command


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default else action.help


def make_parser(doc: str | None, limit: int | None = None) -> argparse.ArgumentParser:
    """A parser with `doc` as description; with `limit`, for a tool that reads a corpus."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=_HelpFormatter)
    if limit is not None:
        parser.add_argument("corpus", type=Path, help="JSON lines: plain, .gz or .zst")
        parser.add_argument("--field", default="text", help="field that holds the text")
        parser.add_argument("--limit", type=int, default=limit, help="documents to read")
    return parser


def read_texts(options: argparse.Namespace) -> list[str]:
    """The texts of the first --limit documents of the corpus, without empty ones."""
    manifest = _manifest(corpus={"paths": "-", "text": options.field})
    documents = (item for _, item in read_documents(manifest, [options.corpus]))
    texts = [item.text for item in islice(documents, options.limit) if isinstance(item, Document)]
    if not any(texts):
        raise SystemExit(f"{options.corpus} holds no documents with a field {options.field!r}")
    return [text for text in texts if text]


def _manifest(**sections: Any) -> Manifest:
    return Manifest.model_validate(DEFAULTS | sections, context={"base": Path.cwd()})


def make_run(folder: Path, *, freeze: bool = True, **sections: Any) -> Run:
    """Plan a run in a folder, with these sections in its manifest."""
    manifest = DEFAULTS | {"run_dir": str(folder / "run")} | sections
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    (folder / "site.yaml").write_text("name: here\nkind: local\n")
    return prepare_run(folder / "manifest.yaml", str(folder / "site.yaml"), None, freeze=freeze)


def plan_stage(
    stage: dict[str, Any], engine: dict[str, Any]
) -> tuple[Manifest, dict[str, ModelRef]]:
    """The frozen manifest with one stage, and its model; UserError as from `proxhpc plan`."""
    manifest = _manifest(corpus={"paths": "-"}, stages=[stage], engine=engine)
    models = find_models(manifest)
    frozen = freeze_manifest(manifest, models)
    freeze_prompts(frozen, models)
    return frozen, models


def refine(
    stage: dict[str, Any], engine: dict[str, Any], texts: Sequence[str]
) -> tuple[list[Row], float]:
    """Refine texts with one stage; their rows, and the processor seconds of this process."""
    manifest, models = plan_stage(stage, engine)

    async def run() -> tuple[list[Row], float]:
        refiner = await open_refiner(manifest, models)
        try:
            start = time.process_time()
            documents = [Document(str(n), text, 0, n) for n, text in enumerate(texts)]
            rows = await asyncio.gather(*map(refiner.refine, documents))
            return rows, time.process_time() - start
        finally:
            await refiner.close()

    return asyncio.run(run())


def make_children(number: int | None = 1) -> ProcessPoolExecutor:
    """New Python processes that call functions and end with this one; for None, one for a core."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(number, mp_context=context, initializer=_end_with_parent)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)  # at once: nobody waits for the result

    threading.Thread(target=wait, daemon=True).start()


def in_child(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a new Python process and return its result."""
    with make_children() as pool:
        return pool.submit(function, *arguments).result()


def alternate(ways: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call every way once in each round, in reverse order in every second one; their results."""
    results: dict[str, list[T]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in reversed([*ways]) if number % 2 else ways:
            results[way].append(ways[way]())
            print(f"round {number + 1} of {rounds}: {way}", file=sys.stderr)
    return results


def median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Median over the rounds of value / other value."""
    return statistics.median(a / b for a, b in zip(values, others, strict=True))


def print_speeds(
    seconds: Mapping[str, Sequence[float]], amount: float, unit: str, base: str
) -> None:
    """Print, for each way, its median seconds and rate, and its speed relative to `base`."""
    rows = []
    for way, times in seconds.items():
        median = statistics.median(times)
        rows.append((way, median, amount / median, median_ratio(seconds[base], times)))
    print_table(("", "seconds", f"{unit}/s", f"vs {base}"), rows)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str | float]]) -> None:
    """Print rows as aligned columns; numbers have three digits or more."""
    table = [header, *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *cells in table:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        print("  ".join((first.ljust(widths[0]), *numbers)), flush=True)


def _cell(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def peak_memory() -> int:
    """Most bytes that this process has held; `ru_maxrss` would begin with its parent's."""
    status = Path("/proc/self/status").read_text()
    (kib,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kib) * 1024


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command took: wall seconds, processor seconds, and the most bytes at one time.

    Bytes are proportional set sizes (proc_pid_smaps(5)), which count shared memory once.
    """

    seconds: float
    cpu: float
    peak: int


def measure_command(command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> Cost:
    """Run a command with its output in `log`. SystemExit, with the log's end, if it fails."""
    cpu_before, start = _children_cpu(), time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)
    peak = 0
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_S):
            peak = max(peak, sum(map(_held_bytes, _process_tree(process.pid))))

    sampler = threading.Thread(target=sample)
    sampler.start()
    status = process.wait()
    seconds = time.perf_counter() - start
    done.set()
    sampler.join()
    if status:
        tail = log.read_text(errors="replace")[-2000:]
        raise SystemExit(f"{' '.join(command)}: exit status {status}\n{tail}")
    return Cost(seconds, _children_cpu() - cpu_before, peak)


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _process_tree(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []  # it has just ended
    children = [int(child) for text in lists for child in text.split()]
    return [pid, *(each for child in children for each in _process_tree(child))]


def _held_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # it has just ended
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)

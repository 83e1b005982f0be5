"""Measure how the costs of a merge grow with the number of documents, and project them.

    python tools/bench_merge_growth.py [--documents 100000 1000000] [--max-ram 256]
        [--dedup '{"near": {}, "lines": {}}']

The documents are synthetic, of about 1 KB. Half of them are copies of others: every second copy is
exact, the others lack a few words. Each size is merged in a new process, one unit after another.
The table has, for each phase, processor microseconds, opened files and bytes read for each
document, and the peak memory beyond the interpreter's. The exit status is 1 if the processor time
of a document grows by more than --growth from the first to the last size, or memory exceeds
--max-ram.

The projection is arithmetic: the processor time of a document between the first and the last size,
times --target documents. Phases that read texts cost in proportion to bytes, others to documents.
Phases with one unit whatever the corpus (SINGLE) run on one core, all others have enough units for
all cores. The phase `examples` replays a fixed number of documents, each in a shard of limited
size, so its cost is that at the last size. Bytes read are those of read(2); pages of mapped files
are not counted.
"""

import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import zstandard

import bench
from bench_dedup import make_kept_run
from proxhpc.assemble.match import MATCH_ROUNDS
from proxhpc.assemble.merge import merge_run
from proxhpc.run.paths import RunDir

DOCUMENT = 1000  # bytes of text, about
FILE_DOCUMENTS = 50_000
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprstvz" for b in ("a", "ei", "o", "un") for c in "dlmnrst"]
SINGLE = {name for name, each in MATCH_ROUNDS.items() if each.units == "one"} | {"listings"}
TEXT_PHASES = {"sketch", "scatter", "write", "read", "compare"}
FIXED = {"examples"}


@dataclass(slots=True)
class PhaseCost:
    """What a phase took; `units` is the most units that it had at a time."""

    units: int = 0
    cpu: float = 0
    opens: int = 0
    bytes_read: int = 0
    peak: int = 0


def write_documents(folder: Path, count: int, seed: int) -> None:
    """Write the documents into compressed files, in an order without pattern."""
    folder.mkdir()
    starts = range(0, count, FILE_DOCUMENTS)
    with bench.make_children(None) as pool:
        for _ in pool.map(partial(write_file, folder, count, seed), starts):
            pass


def write_file(folder: Path, count: int, seed: int, first: int) -> None:
    """Write the file that begins with the document `first` of `count`."""
    last = min(first + FILE_DOCUMENTS, count)
    lines = b"".join(
        orjson.dumps({"id": str(n), "text": make_text(n, seed)}) + b"\n" for n in range(first, last)
    )
    (folder / f"{first:010d}.jsonl.zst").write_bytes(zstandard.compress(lines))


def make_text(number: int, seed: int) -> str:
    """The text of a document: odd ones are copies of an earlier even one."""
    rng = random.Random(f"{seed} {number}")
    original = 2 * int(rng.random() ** 2 * (number // 2)) if number % 2 else number
    words = random.Random(f"{seed} {original} words").choices(WORDS, k=DOCUMENT // 5)
    if number % 4 == 3:
        for _ in range(rng.randrange(1, 4)):
            del words[rng.randrange(len(words))]
    return "\n".join(" ".join(words[at : at + 12]) + "." for at in range(0, len(words), 12))


class Meter:
    """Adds what this process takes to the phase that a merge is in."""

    def __init__(self) -> None:
        self.costs: dict[str, PhaseCost] = {}
        self._opens = 0
        self._phase = "start"
        sys.addaudithook(self._audit)
        self._before = self._now()

    def progress(self, phase: str, done: int, total: int) -> None:
        """Note that a phase has finished some of its units."""
        now, before = self._now(), self._before
        cost = self.costs.setdefault(self._phase, PhaseCost())
        cost.cpu += now[0] - before[0]
        cost.opens += now[1] - before[1]
        cost.bytes_read += now[2] - before[2]
        cost.peak = max(cost.peak, bench.peak_memory())
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins again (proc_pid_clear_refs)
        self._phase, self._before = phase, self._now()
        later = self.costs.setdefault(phase, PhaseCost())
        later.units = max(later.units, total)

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        self._opens += event == "open"

    def _now(self) -> tuple[float, int, int]:
        lines = Path("/proc/self/io").read_text().splitlines()
        return time.process_time(), self._opens, int(lines[0].split()[1])


def measure_merge(root: Path, memory: int) -> dict[str, PhaseCost]:
    """Merge a run; the cost of each phase, where peaks are without what was held at the start."""
    import numpy  # noqa: F401 - imports are no cost of the first phase
    import rensa  # noqa: F401

    meter = Meter()
    held = bench.peak_memory()
    merge_run(RunDir(root), memory=memory, progress=meter.progress)
    meter.progress("end", 0, 0)
    return {
        phase: replace(cost, peak=max(0, cost.peak - held))
        for phase, cost in meter.costs.items()
        if phase not in ("start", "end")
    }


def measure_size(
    documents: int, memory: int, dedup: dict[str, Any], seed: int
) -> dict[str, PhaseCost]:
    """The costs of merging so many documents."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        write_documents(folder / "in", documents, seed)
        run = make_kept_run(folder / "in", folder / "run", dedup)
        return bench.in_child(measure_merge, run.root, memory)


def print_costs(documents: int, costs: Mapping[str, PhaseCost]) -> float:
    """Print a row for each phase and return the processor seconds of a document."""
    rows = [
        (
            phase,
            str(cost.units),
            1e6 * cost.cpu / documents,
            cost.opens / documents,
            cost.bytes_read / documents,
            cost.peak / 2**20,
        )
        for phase, cost in costs.items()
    ]
    total = sum(cost.cpu for cost in costs.values()) / documents
    print(f"\n{documents} documents: {1e6 * total:.0f} processor µs a document")
    header = ("", "units", "µs/doc", "opens/doc", "bytes/doc", "peak MiB")
    bench.print_table(header, rows)
    return total


def project(
    seconds: Mapping[str, float], target: int, size: int, cores: int
) -> Iterator[tuple[str, float, float]]:
    """Yield the core hours of each phase at the target, and its hours on all cores."""
    for phase, each in seconds.items():
        grown = size / DOCUMENT if phase in TEXT_PHASES else 1.0
        hours = each * grown * target / 3600
        yield phase, hours, hours / (1 if phase in SINGLE else cores)


def main() -> int:
    """Measure each size, print the costs and the projection."""
    parser = bench.make_parser(__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--max-ram", type=int, default=256, help="MiB")
    parser.add_argument("--dedup", type=orjson.loads, default={"near": {}}, help="section, as JSON")
    parser.add_argument("--growth", type=float, default=1.3, help="most that CPU may grow by")
    parser.add_argument("--target", type=float, default=1e10, help="documents of the projection")
    parser.add_argument("--size", type=int, default=4000, help="bytes of a document there")
    parser.add_argument("--cores", type=int, default=64 * 64, help="cores there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the costs to this file")
    options = parser.parse_args()
    if len(set(options.documents)) < 2 or sorted(options.documents) != options.documents:
        parser.error("--documents needs two sizes or more, ascending")
    results, totals = [], []
    for documents in options.documents:
        memory = options.max_ram << 20
        results.append(measure_size(documents, memory, options.dedup, options.seed))
        totals.append(print_costs(documents, results[-1]))
    if options.json:
        named = zip(map(str, options.documents), results, strict=True)
        options.json.write_bytes(orjson.dumps(dict(named)))
    first, last = results[0], results[-1]
    more = options.documents[-1] - options.documents[0]
    seconds = {  # of each document more, without constant costs
        phase: max(0.0, cost.cpu - first.get(phase, PhaseCost()).cpu) / more
        for phase, cost in last.items()
        if phase not in FIXED
    }
    rows = [*project(seconds, int(options.target), options.size, options.cores)]
    rows += [(phase, last[phase].cpu / 3600, last[phase].cpu / 3600) for phase in sorted(FIXED)]
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    print(f"\n{options.target:.0e} documents of {options.size} bytes on {options.cores} cores")
    bench.print_table(("", "core hours", "hours"), rows)
    growth = totals[-1] / totals[0]
    print(f"processor time of a document: {growth:.2f} times from first to last size")
    fits = max(cost.peak for costs in results for cost in costs.values()) <= options.max_ram << 20
    print(f"memory is {'within' if fits else 'above'} {options.max_ram} MiB")
    return 0 if fits and growth <= options.growth else 1


if __name__ == "__main__":
    sys.exit(main())

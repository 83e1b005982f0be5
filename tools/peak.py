"""Run a command, and measure its time and the memory that it and its children hold together."""

import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

EVERY = 0.1  # seconds between two looks at the memory; more of them slow down what is looked at


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command took: wall seconds, processor seconds, and the most bytes at one time.

    Bytes are proportional set sizes (proc_pid_smaps(5)): what processes share counts once.
    """

    seconds: float
    cpu: float
    peak: int


def run(command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> Cost:
    """Run the command with its output in `log`. SystemExit, with the log's end, where it fails."""
    before = _children_cpu()
    began = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(EVERY):
            peak = max(peak, sum(map(_pss, _family(process.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    if status:
        tail = log.read_text(errors="replace")[-2000:]
        raise SystemExit(f"{' '.join(command)}: exit status {status}\n{tail}")
    return Cost(seconds, _children_cpu() - before, peak)


def _children_cpu() -> float:
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    try:
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []  # it has just ended
    return [
        pid,
        *(each for text in lists for child in text.split() for each in _family(int(child))),
    ]


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # it has just ended
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)

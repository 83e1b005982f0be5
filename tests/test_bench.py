"""Benchmarks run, and measure what they claim."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proxhpc.run.process import start_time

TOOLS = Path(__file__).parents[1] / "tools"

# A parent of 400 MiB, whose child prints its own peak.
CHILD = """
import subprocess, sys
held = b"x" * (400 << 20)
code = "import bench; print(bench.peak_memory())"
raise SystemExit(subprocess.run([sys.executable, "-c", code]).returncode)
"""

# It starts a process that prints its number.
SLEEPER = """
import os, time
import bench
def sleep():
    print(os.getpid(), flush=True)
    time.sleep(900)
if __name__ == "__main__":
    bench.in_child(sleep)
"""


def run_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    name, *options = arguments
    command = [sys.executable, str(TOOLS / name), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_peak_memory_excludes_the_parent() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=TOOLS, capture_output=True, text=True, check=True
    )
    assert 10 << 20 < int(done.stdout) < 300 << 20


def test_the_processes_of_a_killed_benchmark_end(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    env = os.environ | {"PYTHONPATH": str(TOOLS)}
    command = [sys.executable, str(tmp_path / "sleeper.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    while start_time(child) is not None:  # until the test's time limit
        time.sleep(0.02)


@pytest.mark.parametrize(
    "sizes", [("--workers", "8", "--shards", "15"), ("--workers", "0"), ("--processes", "0")]
)
def test_a_run_without_work_is_refused(sizes: tuple[str, ...]) -> None:
    done = run_tool("bench_rundir.py", *sizes)
    assert done.returncode == 2
    assert "two shards for each worker" in done.stderr


@pytest.mark.parametrize(
    ("name", "options", "label"),
    [
        ("bench_program.py", ("--rounds", "1"), "documents/s"),
        ("bench_merge.py", ("--rounds", "1"), "edited write"),
        ("bench_dedup.py", ("--processes", "1", "--sample", "8", "--planted", "4"), "recall"),
    ],
)
def test_benchmarks_of_a_corpus_run(
    name: str, options: tuple[str, ...], label: str, tmp_path: Path
) -> None:
    lines = "\n".join(f"Line {n} is one of many lines in this text." for n in range(20))
    rows = [json.dumps({"text": f"Page {n}\n{lines}"}) for n in range(10)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows))
    done = run_tool(name, str(tmp_path / "corpus.jsonl"), *options)
    assert done.returncode == 0, done.stderr
    assert label in done.stdout


def test_the_benchmark_of_a_run_directory_runs(tmp_path: Path) -> None:
    done = run_tool("bench_rundir.py", "--workers", "2", "--shards", "9", "--dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "4 shards leased, committed and published" in done.stdout
    assert not any(tmp_path.iterdir())


def test_growth_of_a_merge(tmp_path: Path) -> None:
    sizes = ("--documents", "300", "600", "--growth", "100", "--json", str(tmp_path / "costs"))
    done = run_tool("bench_merge_growth.py", *sizes)
    assert done.returncode == 0, done.stderr
    costs = json.loads((tmp_path / "costs").read_bytes())
    for documents in ("300", "600"):
        sketch, write = costs[documents]["sketch"], costs[documents]["write"]
        assert min(sketch["cpu"], sketch["opens"], write["bytes_read"], write["units"]) > 0
    assert "memory is within 256 MiB" in done.stdout
    assert run_tool("bench_merge_growth.py", "--documents", "9").returncode == 2

"""What the benchmarks say can be believed."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"

# A parent of 400 MiB, and what its child says of itself.
CHILD = """
import subprocess, sys
held = b"x" * (400 << 20)
code = "import bench_memory; print(bench_memory.peak_memory())"
raise SystemExit(subprocess.run([sys.executable, "-c", code]).returncode)
"""


def test_a_childs_peak_is_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=TOOLS, capture_output=True, text=True, check=True
    )
    assert 10 << 20 < int(done.stdout) < 300 << 20


@pytest.mark.parametrize(
    "sizes", [("--workers", "8", "--shards", "15"), ("--workers", "0"), ("--processes", "0")]
)
def test_a_run_without_work_is_not_timed(sizes: tuple[str, ...]) -> None:
    tool = [sys.executable, str(TOOLS / "bench_rundir.py"), *sizes]
    done = subprocess.run(tool, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "two shards for each worker" in done.stderr

"""A real part that is missing skips its tests loudly, and fails them where it is required."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TEST = Path(__file__).with_name("test_slurm_cluster.py")


def run_without_slurm(tmp_path: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs one test of the cluster where no program is on PATH."""
    # PYTEST_ADDOPTS could name this very file, which then would run itself without end.
    dropped = ("CI", "PROXHPC_REQUIRE", "PYTEST_ADDOPTS")
    kept = {k: v for k, v in os.environ.items() if k not in dropped}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"{TEST}::test_command_line"],
        cwd=TEST.parents[1],
        env={**kept, "PATH": str(tmp_path), **settings},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_missing_part_is_named_at_the_end(tmp_path: Path) -> None:
    done = run_without_slurm(tmp_path, PROXHPC_REQUIRE="model,vllm")

    assert done.returncode == 0, done.stdout
    assert "1 skipped" in done.stdout
    assert "NOT TESTED FOR REAL: slurm: no " in done.stdout
    assert "tools/install_slurm.sh" in done.stdout


@pytest.mark.parametrize("setting", [{"CI": "true"}, {"PROXHPC_REQUIRE": "model,slurm"}])
def test_a_required_part_may_not_be_missing(tmp_path: Path, setting: dict[str, str]) -> None:
    done = run_without_slurm(tmp_path, **setting)

    assert done.returncode == 1, done.stdout
    assert "slurm is required here: no " in done.stdout

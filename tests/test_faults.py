"""After a process is killed at any fault point, the relaunched run yields the same corpus."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from proxhpc.faults import FAULT_POINTS
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from runs import AFTER_DEATHS, corpus_bytes, document, local_site, manifest, rows_of, write_jsonl

PROXHPC = [sys.executable, "-m", "proxhpc"]
# Reached only by a submission to Slurm (tests/test_submit.py), by a worker that is stopped, or by
# every file (tests/test_assemble.py).
ELSEWHERE = (
    *("array held", "array recorded", "control held", "control recorded", "one released"),
    *("shard left", "draft written"),
)
# Leases that a killed process leaves behind at the end of a run.
AFTERWARDS = {"merge summarized": {"merge"}, "report written": {"advance"}}


def launch(folder: Path, *, faults: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Launch the run of `folder` with these faults, each with its file."""
    armed = ",".join(f"{point}:{folder / point.replace(' ', '-')}" for point in faults)
    return subprocess.run(
        [*PROXHPC, "launch", str(folder / "manifest.yaml"), "--site", local_site(folder)],
        env=os.environ | {"PROXHPC_FAULT": armed},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def plan(folder: Path, *, copies: int = 1) -> RunDir:
    rows = [
        document(number % 50 + 1000 * copy, id=f"doc-{copy}-{number}")
        for copy in range(copies)
        for number in range(80)
    ]
    source = write_jsonl(folder / "in.jsonl.zst", rows)
    manifest(folder, [source], sharding={"tokens": 4000}, output={"part_size": 4000})
    return RunDir(folder / "run")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("quiet")
    run = plan(folder)
    assert launch(folder).returncode == 0
    return corpus_bytes(run)


@pytest.mark.parametrize("point", [point for point in FAULT_POINTS if point not in ELSEWHERE])
def test_killed_at(point: str, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    run = plan(tmp_path)
    faults = (*AFTER_DEATHS.get(point, ()), point)
    tokens = [tmp_path / fault.replace(" ", "-") for fault in faults]
    for token in tokens:
        token.touch()
    for _ in range(2 + len(faults)):
        done = launch(tmp_path, faults=faults)
        if done.returncode == 0 and run.report_json.exists():
            break
    assert done.returncode == 0, done.stderr
    assert not any(token.exists() for token in tokens), "no process reached this point"
    assert corpus_bytes(run) == undisturbed
    rows = rows_of(run, Plan.load(run))
    assert sorted(row.id for row in rows) == sorted(f"doc-0-{number}" for number in range(80))
    leases = {path.name.partition(".")[0] for path in run.leases.glob("[!.]*")}
    assert leases <= AFTERWARDS.get(point, set())
    assert [path.name for path in run.shards.rglob("*.a*")] == []


def has_commits(run: RunDir) -> bool:
    """Return True if an attempt at a shard is not empty."""
    for path in run.shards.rglob("*.a1"):
        with suppress(FileNotFoundError):  # the attempt was published and removed
            if path.stat().st_size:
                return True
    return False


def test_killed_while_stopping(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    """A worker that is stopped dies after closing its file, before releasing the lease."""
    run = plan(tmp_path, copies=15)
    expected = plan(tmp_path / "quiet", copies=15)
    assert launch(tmp_path / "quiet").returncode == 0
    token = tmp_path / "shard-left"
    token.touch()
    with subprocess.Popen(
        [*PROXHPC, "launch", str(tmp_path / "manifest.yaml"), "--site", local_site(tmp_path)],
        env=os.environ | {"PROXHPC_FAULT": f"shard left:{token}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as launcher:
        while not has_commits(run):
            assert launcher.poll() is None
            time.sleep(0.01)
        launcher.terminate()
    assert not token.exists()
    assert launch(tmp_path).returncode == 0
    assert corpus_bytes(run) == corpus_bytes(expected)

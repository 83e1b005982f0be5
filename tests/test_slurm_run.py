"""Whole runs on a real Slurm of four nodes, each launched once."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from proxhpc.assemble.merge import merge_run
from proxhpc.launch.launch import prepare_run
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.progress import Heartbeat
from proxhpc.status.heartbeats import latest_heartbeats
from runs import check_balance, corpus_bytes, local_site, manifest, many_documents
from slurm_cluster import FINISHED, SlurmCluster

ROOT = Path(__file__).parent.parent
PROXHPC = [sys.executable, "-m", "proxhpc"]


@pytest.fixture
def cluster(slurm: SlurmCluster) -> Iterator[SlurmCluster]:
    yield slurm
    slurm.reset()


@pytest.fixture(scope="module")
def real_text(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The corpus in PROXHPC_DATA, or else many documents of the demo's sentences."""
    sample = Path(os.environ.get("PROXHPC_DATA", "")) / "corpus_sample.jsonl.zst"
    if sample.is_file():
        return [sample]
    return many_documents(tmp_path_factory.mktemp("many"), 4)


@pytest.fixture(scope="module")
def undisturbed(real_text: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The corpus that local processes write from the same text, with other shards and commits."""
    folder = tmp_path_factory.mktemp("quiet")
    path = manifest(folder, real_text, sharding={"tokens": 1_000_000})
    subprocess.run(
        [*PROXHPC, "launch", str(path), "--site", local_site(folder)], check=True, timeout=250
    )
    return corpus_bytes(RunDir(folder / "run"))


def site(folder: Path, **more: object) -> str:
    path = folder / "slurm.yaml"
    data = {"name": "test", "kind": "slurm", "workers": 4, "cpus": 1, "time": 10} | more
    path.write_text(yaml.safe_dump(data))
    return str(path)


def launch(cluster: SlurmCluster, path: Path, where: str, run: Path) -> str:
    command = [*PROXHPC, "launch", str(path), "--site", where, "--run", str(run)]
    done = subprocess.run(
        command, env=cluster.env(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def finished(run: RunDir) -> Callable[[], bool]:
    return lambda: run.report_json.exists()


def has_committed(beat: Heartbeat) -> bool:
    return beat.role == "refine" and beat.state == "working" and beat.counts.documents > 0


def idle(cluster: SlurmCluster) -> bool:
    return all(job.state in FINISHED for job in cluster.jobs())


def test_one_launch_is_enough_and_a_second_one_changes_nothing(
    cluster: SlurmCluster, tmp_path: Path, real_text: list[Path], undisturbed: dict[str, str]
) -> None:
    path = manifest(tmp_path, real_text, sharding={"tokens": 120_000}, commit={"documents": 64})
    run = RunDir(tmp_path / "run")
    output = launch(cluster, path, site(tmp_path), run.root)
    assert "4 workers" in output
    cluster.until(finished(run), "the report", timeout=240)
    plan = Plan.load(run)
    assert len(plan.shards) >= 20
    balance = check_balance(run)
    assert balance["documents"] == sum(beat.counts.documents for beat in latest_heartbeats(run))
    refiners = [beat for beat in latest_heartbeats(run) if beat.role == "refine"]
    assert len(refiners) == 4
    assert sum(beat.shards for beat in refiners) == len(plan.shards)
    before = corpus_bytes(run)
    again = launch(cluster, path, site(tmp_path), run.root)
    assert "finished" in again
    assert corpus_bytes(run) == before
    assert before == undisturbed


def test_a_cancelled_element_is_replaced(
    cluster: SlurmCluster, tmp_path: Path, real_text: list[Path], undisturbed: dict[str, str]
) -> None:
    path = manifest(tmp_path, real_text, sharding={"tokens": 120_000}, commit={"documents": 32})
    run = RunDir(tmp_path / "run")
    launch(cluster, path, site(tmp_path), run.root)

    def victim() -> str:
        return next((beat.owner.job for beat in latest_heartbeats(run) if has_committed(beat)), "")

    element = cluster.until(victim, "a worker that has committed something", timeout=60)
    cluster.run("scancel", element)
    cluster.until(finished(run), "the report", timeout=240)
    check_balance(run)
    states = {beat.owner.job: beat.state for beat in latest_heartbeats(run)}
    assert states[element] in ("stopped", "working")
    assert corpus_bytes(run) == undisturbed
    assert [*run.leases.glob("[!.]*")] == []


def test_the_lease_of_a_killed_element_is_taken_over(
    cluster: SlurmCluster, tmp_path: Path, real_text: list[Path], undisturbed: dict[str, str]
) -> None:
    """After SIGKILL a worker cannot release its lease."""
    path = manifest(tmp_path, real_text, sharding={"tokens": 120_000}, commit={"documents": 32})
    run = RunDir(tmp_path / "run")
    launch(cluster, path, site(tmp_path), run.root)

    def victim() -> int:
        return next((beat.owner.pid for beat in latest_heartbeats(run) if has_committed(beat)), 0)

    os.kill(cluster.until(victim, "a worker that has committed something", timeout=60), 9)
    cluster.until(finished(run), "the report", timeout=240)
    check_balance(run)
    assert corpus_bytes(run) == undisturbed


def test_without_control_jobs_each_launch_takes_a_step(
    cluster: SlurmCluster, tmp_path: Path, real_text: list[Path]
) -> None:
    """It refines and does each phase of the merge, although an element is lost."""
    more = {"sharding": {"tokens": 10_000}, "output": {"part_size": 400_000}}
    path = manifest(tmp_path, real_text[-1:], **more)
    run = RunDir(tmp_path / "run")
    where = site(tmp_path, submit_from_jobs=False, phases={"merge": {"workers": 2}})
    outputs = [launch(cluster, path, where, run.root)]
    while "finished" not in outputs[-1]:
        if array := re.search(r"\(sketch\) in 2 elements: job (\d+)", outputs[-1]):
            cluster.run("scancel", f"{array[1]}_1")
        cluster.until(lambda: idle(cluster), "the queue to empty", timeout=120)
        outputs.append(launch(cluster, path, where, run.root))
    arrays = re.findall(r"merging \((\w+)\) in (\d)", "".join(outputs))
    assert arrays == [("sketch", "2"), ("sketch", "1"), ("match", "1"), ("write", "2")]
    check_balance(run)
    before = corpus_bytes(run)
    for folder in (run.merge, run.corpus):
        shutil.rmtree(folder)
        folder.mkdir()
    merge_run(run)
    assert corpus_bytes(run) == before


def test_plain_sbatch_without_the_launcher(
    cluster: SlurmCluster, tmp_path: Path, real_text: list[Path]
) -> None:
    path = manifest(tmp_path, real_text[-2:], sharding={"tokens": 120_000})
    program = tmp_path / "proxhpc"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m proxhpc "$@"\n')
    program.chmod(0o755)
    run = RunDir(tmp_path / "run")
    prepare_run(path, site(tmp_path), run.root)
    folder = ROOT / "slurm"
    options = ["--parsable", "--time=10", f"--output={tmp_path}/%A_%a.log", "--cpus-per-task=1"]
    options.append(f"--export=ALL,PROXHPC={program}")
    array = cluster.run(
        *("sbatch", *options, "--array=0-2", str(folder / "refine.sbatch"), str(run.root)),
    ).stdout.strip()
    cluster.run(
        *("sbatch", *options, f"--dependency=afterany:{array}"),
        *(str(folder / "merge.sbatch"), str(run.root)),
    )
    cluster.until(finished(run), "the report", timeout=120)
    check_balance(run)


def test_a_job_calibrates_and_plan_waits_for_it(
    cluster: SlurmCluster, real_text: list[Path], tmp_path: Path
) -> None:
    path, where = manifest(tmp_path, real_text), site(tmp_path, cpus=2)
    command = [*PROXHPC, "plan", str(path), "--site", where, "--calibrate", "50", "--json"]
    done = subprocess.run(
        command, env=cluster.env(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    job = re.search(r"refining 50 documents in job (\d+)", done.stderr)
    assert job
    cost = json.loads(done.stdout)["cost"]
    assert (cost["basis"], cost["documents"], cost["gpu_hours"]) == ("calibration", 50, None)
    assert cost["days"] == pytest.approx(cost["core_hours"] / (2 * 4 * 24))
    [element] = cluster.jobs(job[1])
    assert element.name == "small-calibrate"

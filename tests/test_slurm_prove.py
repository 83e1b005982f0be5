"""Trainings as a Slurm array: over two nodes, killed and resumed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from proxhpc.prove.layout import ProveDir, TrainingReceipt
from proxhpc.prove.plan import ProvePlan
from proxhpc.prove.run import train_task
from slurm_cluster import SlurmCluster
from test_prove_run import merged_run, section
from test_slurm_run import site

PROXHPC = [sys.executable, "-m", "proxhpc"]


def prove(cluster: SlurmCluster, *arguments: str) -> str:
    done = subprocess.run(
        [*PROXHPC, "prove", *arguments],
        env=cluster.env(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def receipt(folder: ProveDir, arm: str) -> TrainingReceipt:
    return TrainingReceipt.model_validate_json(folder.training_receipt(arm, 0).read_bytes())


@pytest.mark.timeout(900)
def test_two_nodes_train_what_one_process_trains(slurm: SlurmCluster, tmp_path: Path) -> None:
    run = merged_run(tmp_path)
    keys = section(run, seeds=[0], milestones=[]).model_dump(mode="json")
    text = yaml.safe_load((tmp_path / "manifest.yaml").read_text())
    path = tmp_path / "with-prove.yaml"
    path.write_text(yaml.safe_dump(text | {"prove": keys}))
    (tmp_path / "slurm").mkdir()
    phases = {"train": {"nodes": 2, "workers": 2}}
    setup = ["export OMP_NUM_THREADS=1"]
    where = site(tmp_path / "slurm", phases=phases, setup=setup)
    folder = ProveDir(tmp_path / "out")
    prove(slurm, str(path), "--site", where, "--out", str(folder.root))

    numbers = {folder.training(*each): n for n, each in enumerate(ProvePlan.load(folder).trainings)}

    def in_training() -> list[Path]:
        return [path for path in folder.trainings.glob("*/train.jsonl") if path.stat().st_size]

    began = slurm.until(in_training, "the first step", timeout=400, seen=lambda: logs(folder))
    (array,) = {job.id.partition("_")[0] for job in slurm.jobs() if "-train-" in job.name}
    # The control job submits this training again; the other one goes on.
    slurm.run("scancel", f"{array}_{numbers[began[0].parent]}")
    slurm.until(folder.verdict.exists, "the verdict", timeout=400, seen=lambda: logs(folder))
    before = folder.verdict.read_bytes()
    prove(slurm, str(run.root), "--site", where, "--out", str(folder.root))
    assert folder.verdict.read_bytes() == before
    ended = {"COMPLETED", "CANCELLED", "FAILED"}  # the control job ends after its verdict
    slurm.until(lambda: all(job.state in ended for job in slurm.jobs()), "no jobs", timeout=60)
    cancel = [*PROXHPC, "cancel", str(folder.root)]
    done = subprocess.run(cancel, env=slurm.env(), capture_output=True, text=True, check=True)
    assert done.stdout == "this run has no jobs\n"

    plan = ProvePlan.load(folder)
    alone = ProveDir(tmp_path / "alone")
    for name in ("heldout", "tokens"):
        (alone.root / name).parent.mkdir(exist_ok=True)
        (alone.root / name).symlink_to(folder.root / name)
    for made in (alone.trainings, alone.evaluations, alone.leases, alone.workers):
        made.mkdir()
    alone.plan.write_bytes(folder.plan.read_bytes())
    train_task(str(alone.root), 0, 1)
    for arm, seed in plan.trainings:
        assert receipt(folder, arm).tokens == receipt(alone, arm).tokens
        weights, expected = (
            load_file(each.training(arm, seed) / "weights" / "model.safetensors")
            for each in (folder, alone)
        )
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-4)


def logs(folder: ProveDir) -> str:
    return "\n".join(path.read_text()[-2000:] for path in sorted(folder.logs.rglob("*.err")))

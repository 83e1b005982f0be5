"""Trainings in jobs of Slurm: alone, and as an array over two nodes; killed and resumed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from proxhpc.errors import UserError
from proxhpc.prove.layout import ProveDir, TrainingReceipt
from proxhpc.prove.plan import ProvePlan
from proxhpc.prove.run import train_task
from proxhpc.spec.site import load_site
from proxhpc.train.checkpoint import load_checkpoint
from proxhpc.train.job import submit
from slurm_cluster import FINISHED, SlurmCluster
from test_adapt import examples, log, trained, walk_recipe
from test_prove_run import merged_run, section
from test_slurm_run import site

__all__ = ["examples"]  # a fixture
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


def test_a_training_runs_as_a_slurm_job(
    slurm: SlurmCluster, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm.env()[name])
    site = load_site(Path(__file__).parents[1] / "slurm/sites/local.yaml")
    out = tmp_path / "out"
    with pytest.raises(UserError, match="is not a Slurm site"):
        submit(walk_recipe(examples), out, site)
    path = tmp_path / "slurm.yaml"
    path.write_text("name: test\ncpus: 1\ntime: 10\n")
    site = load_site(path)
    # The job never finishes: Slurm signals it, as before a time limit.
    endless = submit(walk_recipe(examples, steps=100_000, save_minutes=0.001), out, site)
    try:
        slurm.until((out / "training/state.pt").exists, "a checkpoint", timeout=90)
        slurm.run("scancel", "--signal=USR2", endless)
        slurm.wait_jobs(endless, FINISHED)
    finally:
        slurm.reset()
    error = next((out / "training/logs").glob("*.err")).read_text()
    assert "training stopped by SIGUSR2" in error
    assert not (out / "model.safetensors").exists()
    step = load_checkpoint(out / "training/state.pt")["progress"]["step"]
    trained(walk_recipe(examples, steps=step + 2), out, resume=True)
    assert log(out)[-1]["step"] == step + 2

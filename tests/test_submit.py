"""Submission is a transaction: whatever dies half way, the next launch settles it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxhpc.cluster import slurm as slurm_commands
from proxhpc.cluster.journal import Journal
from proxhpc.cluster.submit import _devices, make_backend
from proxhpc.errors import RetryError, UserError
from proxhpc.launch import launch, prepare
from proxhpc.rundir import RunDir
from proxhpc.status.beats import latest
from runs import document, manifest, write_jsonl
from slurm_cluster import SlurmCluster
from test_slurm_run import check_balance, finished


class DieError(BaseException):
    """The launcher is gone."""


@pytest.fixture
def cluster(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The cluster, with this process as its submit host."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm.env()[name])
    yield slurm
    slurm.reset()


def small(tmp_path: Path, **site: Any) -> tuple[Path, str]:
    source = write_jsonl(tmp_path / "in.jsonl", [document(n) for n in range(20)])
    path = manifest(tmp_path, [source], sharding={"tokens": 500})
    where = tmp_path / "slurm.yaml"
    about = {"name": "test", "kind": "slurm", "workers": 2, "cpus": 1, "time": 10} | site
    where.write_text(yaml.safe_dump(about))
    return path, str(where)


# Before each line of the journal: the intent, the array's receipt, the control job's, the release.
@pytest.mark.parametrize("step", range(4))
def test_a_launcher_that_dies_at_any_step_leaves_nothing_to_mend(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    run = prepare(*small(tmp_path), None)
    original = Journal.write
    lines = 0

    def write(self: Journal, *arguments: Any, **more: Any) -> None:
        nonlocal lines
        if lines == step:
            raise DieError
        lines += 1
        original(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", write)
        with pytest.raises(DieError):
            launch(run, lambda _: None)
    launch(run, lambda _: None)
    cluster.until(finished(run.dir), "the report", timeout=60)
    assert check_balance(run.dir)["documents"] == 20
    tag = slurm_commands.tag(run.plan.run_id)
    arrays = {
        job.id.partition("_")[0]
        for job in cluster.jobs()
        if job.comment.startswith(f"{tag}:refine") and job.state == "COMPLETED"
    }
    assert len(arrays) == 1
    held = [job for job in cluster.jobs() if job.comment.startswith(tag) and job.state == "PENDING"]
    assert held == []


def test_a_submission_that_was_given_up_and_came_late_is_cancelled(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = prepare(*small(tmp_path), None)
    mark = f"{slurm_commands.tag(run.plan.run_id)}:refine:0"
    late = cluster.sbatch("sleep 60", "--hold", f"--comment={mark}")
    journal = Journal(run.dir)
    journal.write("intent", 0, phase="refine", count=1, chained=True, about={"by_hand": 0})
    journal.write("abandoned", 0)
    make_backend(run.dir, run.plan, run.site).reconcile()
    cluster.wait_jobs(late, ["CANCELLED"])


def test_what_sbatch_refuses_is_one_clear_line(cluster: SlurmCluster, tmp_path: Path) -> None:
    path, where = small(tmp_path, partition="nowhere")
    command = [sys.executable, "-m", "proxhpc.cli", "launch", str(path), "--site", where]
    done = subprocess.run(command, env=cluster.env(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nvalid partition" in done.stderr
    assert "Traceback" not in done.stderr


def test_more_workers_than_max_array_size_are_capped(cluster: SlurmCluster, tmp_path: Path) -> None:
    path, where = small(tmp_path, workers=9, max_array_size=2)
    run = prepare(path, where, None)
    step = launch(run, lambda _: None)
    assert step.message.startswith("2 workers")
    cluster.until(finished(run.dir), "the report", timeout=60)


def test_whole_nodes_hold_several_workers(cluster: SlurmCluster, tmp_path: Path) -> None:
    path, where = small(tmp_path, workers=4, tasks_per_node=2, exclusive=True)
    run = prepare(path, where, None)
    step = launch(run, lambda _: None)
    assert step.message.startswith("4 workers")
    cluster.until(finished(run.dir), "the report", timeout=60)
    assert check_balance(run.dir)["documents"] == 20
    refiners = [beat.owner for beat in latest(run.dir) if beat.role == "refine"]
    assert len({owner.worker for owner in refiners}) == 4
    assert sorted(owner.job.partition("_")[2] for owner in refiners) == ["0", "0", "1", "1"]


def test_the_queue_speaks_of_what_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(*command: str) -> str:
        asked.append(command)
        return "7_1\x1fRUNNING\x1fproxhpc:r:refine:0\x1fNone\n7_2\x1fCOMPLETING\x1f\x1fNone\n"

    monkeypatch.setattr(slurm_commands, "run", run)
    monkeypatch.setattr(slurm_commands.shutil, "which", lambda _: "/bin/squeue")
    queue = slurm_commands.Queue()
    assert queue.alive("7_1") is True
    assert queue.alive("7_2") is None
    assert queue.alive("7_3") is False
    assert len(asked) == 1
    assert [job.id for job in queue.jobs("r")] == ["7_1"]
    queue._at -= 5  # an older look does not prove absence
    assert queue.alive("7_3") is False
    assert len(asked) == 2


def test_a_silent_queue_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*command: str) -> str:
        raise RetryError("squeue did not answer")

    monkeypatch.setattr(slurm_commands, "run", run)
    monkeypatch.setattr(slurm_commands.shutil, "which", lambda _: "/bin/squeue")
    assert slurm_commands.Queue().alive("7_1") is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1-02:03:04", 93784), ("02:03:04", 7384), ("03:04", 184), ("UNLIMITED", None), ("", None)],
)
def test_durations(text: str, seconds: int | None) -> None:
    assert slurm_commands.parse_duration(text) == seconds


def test_local_workers_share_the_cards_that_the_launcher_may_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _devices(0, 2) == ["", ""]
    assert _devices(2, 2) == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert _devices(1, 2) == ["GPU-a", "GPU-b"]
    with pytest.raises(UserError, match="GPU-a"):
        _devices(1, 3)


def test_a_journal_with_a_torn_line_is_read_on(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    journal = Journal(run)
    about = {"phase": "refine", "count": 2, "chained": True, "about": {}}
    journal.write("intent", 0, **about)
    with run.submissions.open("ab") as file:
        file.write(b'{"event": "intent", "inte')
    journal.write("receipt", 1, phase="refine", job="9")
    journal.write("receipt", 0, phase="refine", job="7")
    (entry,) = journal.read()
    assert (entry.jobs, entry.complete) == ({"refine": ["7"]}, False)
    journal.write("receipt", 0, phase="control", job="8")
    assert journal.read()[0].complete

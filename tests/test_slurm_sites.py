"""What sites' own commands and settings do to a run: each oddity on a real cluster."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from proxhpc.cluster.journal import Journal
from proxhpc.cluster.queue import Queue, Tag
from proxhpc.cluster.slurm import read_job_id
from proxhpc.cluster.submit import make_backend
from proxhpc.errors import RetryError, UserError
from proxhpc.launch.launch import Run, cancel, launch, prepare_run
from proxhpc.run.lease import LeaseOwner
from proxhpc.run.process import descendants
from runs import check_balance
from slurm_cluster import SlurmCluster
from test_slurm_run import finished, idle
from test_submit import SUBMISSION, cluster, run_jobs, small

__all__ = ["cluster"]  # a fixture

NO_LIST = "echo 'usage: squeue [options]'; exit 0"
NOTHING = "exit 0"
# In another pid namespace, a launcher looks like one on another login node. Its shell is the first
# process there, which cannot stop itself.
ELSEWHERE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", '"$@"; :')


def wrap(monkeypatch: pytest.MonkeyPatch, folder: Path, command: str, script: str) -> None:
    """Put a site's wrapper of a Slurm command first on PATH; `$real` is Slurm's own command."""
    path = folder / "wrap" / command
    path.parent.mkdir(exist_ok=True)
    slurms = subprocess.run(["which", command], capture_output=True, text=True, check=True).stdout
    path.write_text(f"#!/bin/bash\nreal={slurms.strip()}\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


def held(cluster: SlurmCluster, run: Run) -> list[str]:
    return [job.id for job, _ in run_jobs(cluster, run.plan.run_id) if job.state == "PENDING"]


@pytest.mark.parametrize("answer", [NO_LIST, NOTHING])
def test_a_queue_that_cannot_be_read_is_not_empty(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    run = prepare_run(*small(tmp_path, sbatch={"begin": "now+1hour"}), None)
    launch(run, lambda _: None)
    submitted = Journal(run.dir).job_phases()
    with monkeypatch.context() as patch:
        wrap(patch, tmp_path, "squeue", answer)
        for attempt in (lambda: launch(run, lambda _: None), lambda: cancel(run.dir)):
            with pytest.raises(RetryError, match="squeue"):
                attempt()
        array = next(iter(submitted))
        assert Queue().is_queued(f"{array}_0") is not False
    assert Journal(run.dir).job_phases() == submitted
    assert cancel(run.dir)
    assert held(cluster, run) == []


@pytest.mark.parametrize(
    "output",
    [
        "Submitted batch job 17",
        "17",
        "17;other",
        "Welcome\n--> job limits: fine for job 3\nSubmitted batch job 17",
        "Submitted batch job 17 on cluster other",
    ],
)
def test_the_id_of_a_job_is_found_in_what_sbatch_prints(output: str) -> None:
    assert read_job_id(output) == "17"


def test_a_site_whose_sbatch_prints_a_bare_id_and_drops_comments(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite = 'sed -i /--comment/d "${@: -1}"; exec $real --parsable "$@"'
    wrap(monkeypatch, tmp_path, "sbatch", rewrite)
    run = prepare_run(*small(tmp_path, sbatch={"export": "NONE"}), None)
    launch(run, lambda _: None)
    launch(run, lambda _: None)
    assert len(Journal(run.dir).read()) == 1
    cluster.until(finished(run.dir), "the report", timeout=90)
    assert check_balance(run.dir)["documents"] == 20
    launched = [job for job, tag in run_jobs(cluster, run.plan.run_id) if tag.intent == 0]
    assert {job.comment for job in launched} == {"(null)"}


def test_sbatch_without_an_answer_leaves_nothing_held(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrap(monkeypatch, tmp_path, "sbatch", '$real "$@" > /dev/null; echo "thank you"')
    run = prepare_run(*small(tmp_path), None)
    with pytest.raises(RetryError, match="thank you"):
        launch(run, lambda _: None)
    assert held(cluster, run) == []
    assert Journal(run.dir).read()[0].abandoned


def test_a_refused_release_leaves_nothing_held(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse = '[ "$1" = release ] && { echo "Access/permission denied" >&2; exit 1; }'
    wrap(monkeypatch, tmp_path, "scontrol", f'{refuse}\nexec $real "$@"')
    run = prepare_run(*small(tmp_path), None)
    with pytest.raises(RetryError, match="permission denied"):
        launch(run, lambda _: None)
    assert held(cluster, run) == []


def test_a_machine_without_srun_is_named(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare_run(*small(tmp_path), None)
    which = "proxhpc.cluster.submit.shutil.which"
    monkeypatch.setattr(which, lambda name: None if name == "srun" else name)
    with pytest.raises(RetryError, match="no srun"):
        make_backend(run.dir, run.plan, run.site)


def test_a_refusal_is_shown_whole(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "\\n".join(f"rule {number}: ask for what you need" for number in range(40))
    refuse = f"printf '{lines}\\nsbatch: error: invalid account\\n' >&2; exit 1"
    wrap(monkeypatch, tmp_path, "sbatch", refuse)
    with pytest.raises(UserError, match=r"rule 0: ask(.|\n)*rule 39(.|\n)*invalid account"):
        launch(prepare_run(*small(tmp_path), None), lambda _: None)


def test_launchers_that_were_frozen_submit_nothing_twice(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    """Each is frozen at another point, longer than its lease lasts, while another one launches."""
    runs = {}
    for point in SUBMISSION:
        folder = tmp_path / point.replace(" ", "-")
        folder.mkdir()
        runs[point] = prepare_run(*small(folder, stale_after=30, workers=1), None)
        (folder / "token").touch()

    def start(point: str, *prefix: str, **env: str) -> subprocess.Popen[bytes]:
        command = [*prefix, sys.executable, "-m", "proxhpc", "launch", str(runs[point].dir.root)]
        return subprocess.Popen(
            command, env=cluster.env(**env), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    frozen = {}
    for point in SUBMISSION:
        token = runs[point].dir.root.parent / "token"
        fault = {"PROXHPC_FAULT": f"{point}:{token}", "PROXHPC_FAULT_SIGNAL": "STOP"}
        frozen[point] = start(point, *ELSEWHERE, "sh", **fault)
    for point in SUBMISSION:
        cluster.until(lambda p=point: is_stopped(frozen[p].pid), f"the launcher to stop: {point}")
    others = [start(point) for point in SUBMISSION]
    assert [other.wait(timeout=120) for other in others] == [0] * len(SUBMISSION)
    for process in frozen.values():
        for pid in descendants(process.pid):
            os.kill(pid, signal.SIGCONT)
        process.wait(timeout=60)
    for run in runs.values():
        cluster.until(finished(run.dir), "the report", timeout=120)
    cluster.until(lambda: idle(cluster), "the queue to empty", timeout=60)
    for point, run in runs.items():
        assert check_balance(run.dir)["documents"] == 20
        jobs = run_jobs(cluster, run.plan.run_id)
        done = [job for job, tag in jobs if tag.phase == "refine" and job.state == "COMPLETED"]
        assert (point, len(done), held(cluster, run)) == (point, 1, [])


def is_stopped(pid: int) -> bool:
    return any(state(child) == "T" for child in descendants(pid))


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_process_that_proc_hides_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = LeaseOwner.current()
    assert owner.is_running() is True
    monkeypatch.setattr("proxhpc.run.lease.start_time", lambda pid: None)
    assert owner.is_running() is None
    ended = subprocess.Popen(["true"])
    ended.wait()
    gone = LeaseOwner("w", owner.host, ended.pid, "1", space=owner.space)
    assert gone.is_running() is False


def test_a_tag_is_found_in_a_name_or_a_comment() -> None:
    tag = Tag("0a1b2c3d", "refine", 3)
    assert Tag.read(tag.job_name("fineweb"), "") == tag
    assert Tag.read("", f"project 7 {tag.comment}") == tag
    assert Tag.read("fineweb-refine", "project 7") is None

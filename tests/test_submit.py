"""Submission is a transaction: whatever dies half way, the next launch settles it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxhpc.cluster import slurm as slurm_commands
from proxhpc.cluster import tasks
from proxhpc.cluster.backend import Work, intend
from proxhpc.cluster.journal import Journal
from proxhpc.cluster.local import _devices
from proxhpc.cluster.submit import SlurmBackend, make_backend
from proxhpc.errors import RetryError, UserError
from proxhpc.faults import Point
from proxhpc.launch.launch import launch, prepare_run
from proxhpc.run.paths import RunDir
from proxhpc.status.heartbeats import latest
from runs import check_balance, document, manifest, write_jsonl
from slurm_cluster import FINISHED, Job, SlurmCluster
from test_slurm_run import finished, idle


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


SUBMISSION = (
    *("advance held", "intent written", "array held", "array recorded", "control held"),
    *("control recorded", "one released", "all released"),
)


@pytest.mark.parametrize("point", SUBMISSION)
def test_a_launcher_that_dies_at_any_step_leaves_nothing_to_mend(
    cluster: SlurmCluster, tmp_path: Path, point: Point
) -> None:
    run = prepare_run(*small(tmp_path), None)
    token = tmp_path / "token"
    token.touch()
    command = [sys.executable, "-m", "proxhpc", "launch", str(run.dir.root)]
    died = subprocess.run(
        command,
        env=cluster.env(PROXHPC_FAULT=f"{point}:{token}"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
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
    run = prepare_run(*small(tmp_path), None)
    mark = f"{slurm_commands.tag(run.plan.run_id)}:refine:0"
    late = cluster.sbatch("sleep 60", "--hold", f"--comment={mark}")
    journal = Journal(run.dir)
    intend(journal, 0, Work("refine", print, [()], {"by_hand": 0}), arrays=1, chained=True)
    journal.write("abandoned", 0)
    make_backend(run.dir, run.plan, run.site).reconcile()
    cluster.wait_jobs(late, ["CANCELLED"])


def test_what_sbatch_refuses_is_one_clear_line(cluster: SlurmCluster, tmp_path: Path) -> None:
    path, where = small(tmp_path, partition="nowhere")
    command = [sys.executable, "-m", "proxhpc", "launch", str(path), "--site", where]
    done = subprocess.run(command, env=cluster.env(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nvalid partition" in done.stderr
    assert "Traceback" not in done.stderr


def test_more_workers_than_max_array_size_go_in_several_arrays(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    path, where = small(tmp_path, workers=5, max_array_size=2)
    run = prepare_run(path, where, None)
    step = launch(run, lambda _: None)
    assert step.message.startswith("5 workers")
    cluster.until(finished(run.dir), "the report", timeout=60)
    first = Journal(run.dir).read()[0]
    assert (first.count, first.arrays, len(first.jobs["refine"])) == (5, 3, 3)
    assert len([beat for beat in latest(run.dir) if beat.role == "refine"]) == 5


def test_no_more_is_submitted_than_a_user_may(cluster: SlurmCluster, tmp_path: Path) -> None:
    path, where = small(tmp_path, workers=5, max_submit_jobs=3)
    run = prepare_run(path, where, None)
    cluster.until(lambda: idle(cluster), "an empty queue")
    waiting = cluster.sbatch("sleep 60", "--hold")
    step = launch(run, lambda _: None)
    assert step.message.startswith("1 worker ")
    cluster.until(finished(run.dir), "the report", timeout=90)
    cluster.wait_jobs(Journal(run.dir).read()[-1].jobs["control"][0], FINISHED)
    backend = make_backend(run.dir, run.plan, run.site)
    more = [cluster.sbatch("sleep 60", "--hold") for _ in range(2)]
    with pytest.raises(RetryError, match="you may have 3 jobs in the queue, and have 3"):
        backend.elements(run.site.resources("refine"))
    cluster.run("scancel", waiting, *more)


def test_the_limit_on_jobs_is_asked_of_accounting(cluster: SlurmCluster, accounting: None) -> None:
    for what in (
        ("account", "limited"),
        ("user", slurm_commands.user(), "account=limited", "MaxSubmitJobs=7"),
    ):
        cluster.run("sacctmgr", "-i", "add", *what)
    assert slurm_commands.submit_limit("limited", None) == 7
    assert slurm_commands.submit_limit("other", None) is None
    cluster.run("sacctmgr", "-i", "modify", "qos", "normal", "set", "MaxSubmitJobsPerUser=5")
    assert slurm_commands.submit_limit("limited", "normal") == 5
    cluster.run("sacctmgr", "-i", "modify", "qos", "normal", "set", "MaxSubmitJobsPerUser=-1")
    cluster.run("sacctmgr", "-i", "delete", "user", slurm_commands.user(), "account=limited")


def arrays(cluster: SlurmCluster, script: str) -> list[str]:
    """Sixteen elements that run this, in arrays small enough for any cluster, ended."""
    ids = [cluster.sbatch(script, "--array=0-3") for _ in range(4)]
    for array in ids:
        cluster.wait_jobs(array, FINISHED)
    return ids


def test_a_node_that_ends_every_worker_is_left_out(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = prepare_run(*small(tmp_path), None)
    backend = make_backend(run.dir, run.plan, run.site)
    assert isinstance(backend, SlurmBackend)
    # Where a node fails at once it takes one element after the other.
    bad = arrays(cluster, "[ $SLURMD_NODENAME != n2 ] && sleep 2")
    journal = Journal(run.dir)
    intend(journal, 0, Work("refine", print, [()], {"by_hand": 1}), arrays=4, chained=False)
    for array in bad:
        journal.write("receipt", 0, phase="refine", job=array)
    journal.write("released", 0)

    def agreed() -> list[Job]:
        failed = [job for array in bad for job in cluster.jobs(array) if job.state == "FAILED"]
        return failed if backend.failing(set()) == {"n2": len(failed)} else []

    # The controller and the accounting, which is asked here, may be a moment apart.
    failed = cluster.until(agreed, "the accounting to know what the controller does")
    assert len(failed) >= 3
    assert backend.failing({job.id for job in failed}) == {}  # had they worked first
    work = Work("refine", tasks.merge_task, [("x", 1)] * 2, {"by_hand": 0}, ("n2",))
    (job, *_) = backend.submit(work, None)
    assert "ExcNodeList=n2" in cluster.run("scontrol", "show", "job", job).stdout
    assert Journal(run.dir).read()[1].exclude == ("n2",)


def failing_on(folder: Path, node: str) -> str:
    """A Python that fails at once on one node."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\n[ "$SLURMD_NODENAME" != {node} ] && exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_a_control_job_that_meets_a_bad_node_is_run_again_elsewhere(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    """The first node fails at once, so it is always free, and gets the control jobs too."""
    cluster.until(lambda: idle(cluster), "an empty queue")
    source = write_jsonl(tmp_path / "in.jsonl", [document(n) for n in range(60)])
    path = manifest(tmp_path, [source], sharding={"tokens": 500})
    _, where = small(tmp_path / "site", workers=12, python=failing_on(tmp_path, "n1"))
    run = prepare_run(path, where, None)
    assert len(run.plan.shards) >= 12
    launch(run, lambda _: None)
    cluster.until(finished(run.dir), "the report", timeout=150)
    assert check_balance(run.dir)["documents"] == 60
    cluster.until(lambda: idle(cluster), "the queue to empty")
    tag = slurm_commands.tag(run.plan.run_id)
    ours = [job for job in cluster.jobs() if job.comment.startswith(tag)]
    assert {job.state for job in ours if ":control:" in job.comment} == {"COMPLETED"}
    assert "FAILED" in {job.state for job in ours}


def test_a_control_job_that_is_gone_is_replaced(cluster: SlurmCluster, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "many.jsonl", [document(n) for n in range(4000)])
    _, where = small(tmp_path)
    run = prepare_run(manifest(tmp_path, [source], sharding={"tokens": 50_000}), where, None)
    launch(run, lambda _: None)
    control = Journal(run.dir).read()[0].jobs["control"][0]
    cluster.run("scancel", control)
    cluster.wait_jobs(control, ["CANCELLED"])
    assert "another one follows" in launch(run, lambda _: None).message
    assert "another one follows" not in launch(run, lambda _: None).message
    cluster.until(finished(run.dir), "the report", timeout=120)
    assert check_balance(run.dir)["documents"] == 4000


def test_a_users_defaults_hide_no_jobs(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = cluster.sbatch("sleep 60", "--hold")
    monkeypatch.setenv("SQUEUE_PARTITION", "nowhere")
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    assert slurm_commands.Queue().alive(job) is True
    cluster.run("scancel", job)


def test_a_path_that_sbatch_would_expand_is_refused(tmp_path: Path) -> None:
    path, where = small(tmp_path)
    with pytest.raises(UserError, match="as a pattern"):
        prepare_run(path, where, tmp_path / "100%j")


def test_a_launch_without_a_site_keeps_the_recorded_one(tmp_path: Path) -> None:
    path, where = small(tmp_path, workers=3)
    first = prepare_run(path, where, None)
    assert prepare_run(path, None, None).site == first.site


def test_where_all_nodes_fail_none_is_left_out(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = prepare_run(*small(tmp_path), None)
    backend = make_backend(run.dir, run.plan, run.site)
    bad = arrays(cluster, "exit 1")
    journal = Journal(run.dir)
    intend(journal, 0, Work("refine", print, [()], {"by_hand": 1}), arrays=4, chained=False)
    for array in bad:
        journal.write("receipt", 0, phase="refine", job=array)
    assert backend.failing(set()) == {}


def test_cancel_ends_everything_and_launch_goes_on(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, where = small(tmp_path)
    source = write_jsonl(tmp_path / "many.jsonl", [document(n) for n in range(6000)])
    path = manifest(tmp_path, [source], sharding={"tokens": 50_000}, commit={"documents": 32})
    run = prepare_run(path, where, None)
    launch(run, lambda _: None)

    def working() -> bool:
        return any(beat.counts.documents for beat in latest(run.dir))

    cluster.until(working, "a commit", timeout=60)
    command = [sys.executable, "-m", "proxhpc", "cancel", str(run.dir.root)]
    done = subprocess.run(command, env=cluster.env(), capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ended: ")
    cluster.until(lambda: idle(cluster), "the queue to empty", timeout=60)
    assert not run.dir.report_json.exists()
    assert [*run.dir.leases.glob("0*")] == []  # the workers had the time to give them back
    again = subprocess.run(command, env=cluster.env(), capture_output=True, text=True, check=True)
    assert "no job of this run was there" in again.stdout
    launch(run, lambda _: None)
    cluster.until(finished(run.dir), "the report", timeout=120)
    assert check_balance(run.dir)["documents"] == 6000


PHASES = ("# refine", "# merge", "# control")


def test_a_dry_run_shows_scripts_and_writes_nothing(cluster: SlurmCluster, tmp_path: Path) -> None:
    path, where = small(tmp_path, workers=3)
    command = [sys.executable, "-m", "proxhpc", "launch", str(path), "--site", where]
    done = subprocess.run(
        [*command, "--dry-run"], env=cluster.env(), capture_output=True, text=True, check=True
    )
    phases = [line[2:] for line in done.stdout.splitlines() if line in PHASES]
    assert phases == ["refine", "merge", "control"]
    assert "#SBATCH --array=0-2%3" in done.stdout
    assert done.stdout.count(" to start at ") == 3
    assert not (tmp_path / "run").exists()
    assert cluster.run("squeue", "-h").stdout == ""


def test_workers_in_a_container(cluster: SlurmCluster, tmp_path: Path) -> None:
    """The container's program is a stand-in that notes how it is called and runs the rest."""
    stand_in = tmp_path / "bin" / "apptainer"
    stand_in.parent.mkdir()
    stand_in.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n'
        f'while [ "$1" != image.sif ]; do shift; done; shift 2; exec {sys.executable} "$@"\n'
    )
    stand_in.chmod(0o755)
    container = {"kind": "apptainer", "image": "image.sif", "mounts": ["/opt"]}
    path, where = small(
        tmp_path, container=container, setup=[f"export PATH={stand_in.parent}:$PATH"]
    )
    text = Path(where).read_text().replace("image.sif", "docker://image.sif")
    Path(where).write_text(text)
    stand_in.write_text(stand_in.read_text().replace("image.sif", "docker://image.sif"))
    run = prepare_run(path, where, None)
    launch(run, lambda _: None)
    cluster.until(finished(run.dir), "the report", timeout=60)
    called = set((tmp_path / "called").read_text().splitlines())
    assert called == {
        f"exec --bind {run.dir.root} --bind {tmp_path} --bind /opt docker://image.sif python3 -u"
        f" -m submitit.core._submit {run.dir.logs}/0000-refine"
    }


def test_whole_nodes_hold_several_workers(cluster: SlurmCluster, tmp_path: Path) -> None:
    path, where = small(tmp_path, workers=4, tasks_per_node=2, exclusive=True)
    run = prepare_run(path, where, None)
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


def test_a_local_worker_has_its_own_cards_and_as_many_threads_as_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def seen(name: str) -> list[str | None]:
        return [name, os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS")]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert tasks.with_share("1", 3, seen, "w") == ["w", "1", "3"]
    assert tasks.with_share("2", 5, seen, "w") == ["w", "2", "3"], "what is given stays"


def test_a_journal_with_a_torn_line_is_read_on(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    journal = Journal(run)
    intend(journal, 0, Work("refine", print, [(), ()], {}), arrays=1, chained=True)
    with run.submissions.open("ab") as file:
        file.write(b'{"event": "intent", "inte')
    journal.write("receipt", 1, phase="refine", job="9")
    journal.write("receipt", 0, phase="refine", job="7")
    (entry,) = journal.read()
    assert (entry.jobs, entry.complete) == ({"refine": ["7"]}, False)
    journal.write("receipt", 0, phase="control", job="8")
    assert journal.read()[0].complete

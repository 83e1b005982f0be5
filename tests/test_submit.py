"""Submission is a transaction: if a launcher dies in between, the next launch settles it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from proxhpc.cluster import limits as limits_module
from proxhpc.cluster import queue as queue_module
from proxhpc.cluster import slurm as slurm_commands
from proxhpc.cluster import tasks
from proxhpc.cluster.backend import TaskBatch, record_intent
from proxhpc.cluster.journal import Journal
from proxhpc.cluster.limits import JobLimit, job_limits, running_limit
from proxhpc.cluster.local import split_gpus
from proxhpc.cluster.queue import Queue, Tag
from proxhpc.cluster.submit import SlurmBackend, make_backend
from proxhpc.engines.device import WORKERS_PER_GPU, workers_per_gpu
from proxhpc.errors import RetryError, UserError
from proxhpc.faults import FaultPoint
from proxhpc.launch.launch import Run, launch, prepare_run
from proxhpc.run.paths import RunDir
from proxhpc.spec.site import Site
from proxhpc.spec.slurm_notation import parse_duration
from proxhpc.status.heartbeats import latest_heartbeats
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


SUBMISSION: tuple[FaultPoint, ...] = (
    *("advance held", "intent written", "array held", "array recorded", "control held"),
    *("control recorded", "one released", "all released"),
)


def runs_by_point(folder: Path, **site: Any) -> dict[FaultPoint, Run]:
    """A planned run for each point of a submission, with a file that arms the point."""
    runs = {}
    for point in SUBMISSION:
        own = folder / point.replace(" ", "-")
        own.mkdir()
        runs[point] = prepare_run(*small(own, **site), None)
        (own / "token").touch()
    return runs


def start(
    cluster: SlurmCluster, run: Run, point: FaultPoint | None = None, *prefix: str, **env: str
) -> subprocess.Popen[bytes]:
    """Start to launch a run; the process dies at this point, or what PROXHPC_FAULT_SIGNAL says."""
    if point:
        env["PROXHPC_FAULT"] = f"{point}:{run.dir.root.parent}/token"
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "proxhpc", "launch", str(run.dir.root)],
        env=cluster.env(**env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_launcher_may_die_at_any_step(cluster: SlurmCluster, tmp_path: Path) -> None:
    """The next one leaves one submission of it; two of them run to their end."""
    phases = {"refine": {"sbatch": {"begin": "now+1hour"}}}
    runs = runs_by_point(tmp_path, workers=1, phases=phases)
    dying = [start(cluster, run, point) for point, run in runs.items()]
    assert {launcher.wait(timeout=120) for launcher in dying} == {-signal.SIGKILL}
    again = [start(cluster, run) for run in runs.values()]
    assert {launcher.wait(timeout=120) for launcher in again} == {0}
    wait_for_one_submission(cluster, runs)
    for point in ("intent written", "one released"):
        run = runs[point]
        (refine,) = Journal(run.dir).read()[-1].jobs["refine"]
        cluster.run("scontrol", "update", f"jobid={refine}", "StartTime=now")
        cluster.until(finished(run.dir), f"the report: {point}", timeout=120)
        assert check_balance(run.dir)["documents"] == 20


def wait_for_one_submission(cluster: SlurmCluster, runs: dict[FaultPoint, Run]) -> None:
    """Until each run has one refine array, which waits for its time, and its control job."""

    def left(run: Run) -> str:
        jobs = run_jobs(cluster, run.plan.run_id)
        return str(sorted((tag.phase, job.reason) for job, tag in jobs if job.state != "CANCELLED"))

    def is_one(run: Run) -> bool:
        return left(run) == "[('control', 'Dependency'), ('refine', 'BeginTime')]"

    # Slurm finds the reason some time after the release.
    for point, run in runs.items():
        cluster.until(partial(is_one, run), f"jobs: {point}", 60, partial(left, run))


def run_jobs(cluster: SlurmCluster, run_id: str) -> list[tuple[Job, Tag]]:
    """All jobs of a run that the controller knows."""
    tags = [(job, Tag.read(job.name, job.comment)) for job in cluster.jobs()]
    return [(job, tag) for job, tag in tags if tag and tag.run == run_id]


def test_an_abandoned_submission_that_arrives_late_is_cancelled(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = prepare_run(*small(tmp_path), None)
    comment = Tag(run.plan.run_id, "refine", 0).comment
    late = cluster.sbatch("sleep 60", "--hold", f"--comment={comment}")
    journal = Journal(run.dir)
    record_intent(
        journal, 0, TaskBatch("refine", print, [()], {"manual": 0}), arrays=1, has_control_job=True
    )
    journal.write("abandoned", 0)
    make_backend(run.dir, run.plan, run.site).reconcile()
    cluster.wait_jobs(late, ["CANCELLED"])


def test_a_refusal_of_sbatch_is_one_line(cluster: SlurmCluster, tmp_path: Path) -> None:
    path, where = small(tmp_path, partition="nowhere")
    command = [sys.executable, "-m", "proxhpc", "launch", str(path), "--site", where]
    done = subprocess.run(command, env=cluster.env(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nvalid partition" in done.stderr
    assert "Traceback" not in done.stderr


def test_more_workers_than_max_array_size_become_several_arrays(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    path, where = small(tmp_path, workers=5, max_array_size=2)
    run = prepare_run(path, where, None)
    step = launch(run, lambda _: None)
    assert step.message.startswith("5 workers")
    cluster.until(finished(run.dir), "the report", timeout=60)
    first = Journal(run.dir).read()[0]
    assert (first.elements, first.arrays, len(first.jobs["refine"])) == (5, 3, 3)
    assert len([beat for beat in latest_heartbeats(run.dir) if beat.role == "refine"]) == 5


def test_no_more_jobs_are_submitted_than_a_user_may_have(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
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
    with pytest.raises(RetryError, match="you may have 3 jobs in the queue, and there are 3"):
        backend.free_elements(run.site.resources("refine"))
    cluster.run("scancel", waiting, *more)


def smallest_limit(account: str | None, qos: str | None) -> int | None:
    limits = (limit.queued for limit in job_limits(account, qos) if limit.queued is not None)
    return min(limits, default=None)


def test_the_limit_on_jobs_comes_from_accounting(cluster: SlurmCluster, accounting: None) -> None:
    user = slurm_commands.user_name()

    def sacctmgr(*command: str) -> str:
        return cluster.run("sacctmgr", "-n", "-P", "-i", *command).stdout.strip()

    default = sacctmgr("show", "user", user, "format=DefaultAccount")
    sacctmgr("add", "account", "limited,teaching")
    sacctmgr("add", "user", user, "account=limited", "MaxSubmitJobs=7")
    sacctmgr("add", "user", user, "account=teaching", "MaxSubmitJobs=2")
    sacctmgr("add", "cluster", "elsewhere")
    sacctmgr("add", "account", "limited", "cluster=elsewhere")
    sacctmgr("add", "user", user, "account=limited", "cluster=elsewhere", "MaxSubmitJobs=1")
    default_account = ("user", "where", f"user={user}", "cluster=proxhpc", "set")
    sacctmgr("modify", *default_account, "DefaultAccount=limited")
    assert smallest_limit(None, None) == 7
    assert smallest_limit("limited", None) == 7
    assert smallest_limit("teaching", None) == 2
    assert smallest_limit("other", None) is None
    sacctmgr("modify", "qos", "normal", "set", "MaxSubmitJobsPerUser=5")
    assert smallest_limit("limited", "normal") == 5
    sacctmgr("modify", "qos", "normal", "set", "MaxSubmitJobsPerUser=-1")
    sacctmgr("delete", "cluster", "elsewhere")
    if default:
        sacctmgr("modify", *default_account, f"DefaultAccount={default}")
        sacctmgr("delete", "user", user, "account=limited,teaching")
    else:
        sacctmgr("delete", "user", user)


def test_without_an_account_the_limit_is_that_of_the_default_account(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run_command(*command: str) -> str:
        if "qos" in command:
            return "normal|||cpu=64||9|\n"
        assert "cluster=here" in command
        if "user=" in command:
            groups = ("root||500||", "teaching|root|20|7|cpu=15,mem=9G,gres/gpu=8")
            return "\n".join((*groups, "big|root|||", "lab|teaching|1||cpu=1"))
        limits = {name: f"{name}|normal|{n}||||\n" for name, n in (("big", 1000), ("teaching", 30))}
        if "onlydefaults" in command:
            return limits["big"]
        return "".join(limits[name] for name in limits if f"account={name}" in command)

    monkeypatch.setattr(limits_module, "run_command", run_command)
    monkeypatch.setattr(limits_module, "read_config", lambda: {"ClusterName": "here"})
    monkeypatch.setattr(limits_module.shutil, "which", lambda _: "/bin/sacctmgr")
    assert smallest_limit(None, None) == 500
    limits = job_limits("teaching", None)
    running = {"job": 7, "cpu": 15, "gres/gpu": 8}
    assert limits == [
        JobLimit(30, account="teaching"),
        JobLimit(20, running, "teaching", everyone=True, below=("lab",)),
        JobLimit(500, everyone=True),
        JobLimit(running={"cpu": 64}, qos="normal"),
        JobLimit(running={"job": 9}, qos="normal", everyone=True),
    ]

    def at_once(**site: Any) -> tuple[int, str]:
        found = running_limit(limits, Site(name="x", **site).resources("refine"))
        assert found
        return found.jobs, found.words

    assert at_once() == (9, "job=9 for running jobs with QOS normal")  # instead of the account's
    assert at_once(cpus=4) == (3, "cpu=15 for running jobs of account teaching")
    assert at_once(gpus=1, tasks_per_node=9)[0] == 0
    assert running_limit([], Site(name="x").resources("refine")) is None


def arrays(cluster: SlurmCluster, script: str) -> list[str]:
    """Sixteen elements that run this, in arrays small enough for any cluster, ended."""
    ids = [cluster.sbatch(script, "--array=0-3") for _ in range(4)]
    for array in ids:
        cluster.wait_jobs(array, FINISHED)
    return ids


def test_a_node_on_which_every_worker_fails_is_excluded(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare_run(*small(tmp_path), None)
    backend = make_backend(run.dir, run.plan, run.site)
    assert isinstance(backend, SlurmBackend)
    # A node on which jobs fail at once takes one element after the other.
    failing = arrays(cluster, "[ $SLURMD_NODENAME != n2 ] && sleep 2")
    journal = Journal(run.dir)
    record_intent(
        journal, 0, TaskBatch("refine", print, [()], {"manual": 1}), arrays=4, has_control_job=False
    )
    for array in failing:
        journal.write("receipt", 0, phase="refine", job=array)
    journal.write("released", 0)

    def agreement() -> list[Job]:
        failed = [job for array in failing for job in cluster.jobs(array) if job.state == "FAILED"]
        asked_again = make_backend(run.dir, run.plan, run.site)
        return failed if asked_again.failing_nodes(set()) == {"n2": len(failed)} else []

    # The accounting may lag behind the controller.
    failed = cluster.until(agreement, "the accounting to agree with the controller")
    assert len(failed) >= 3
    assert backend.failing_nodes({job.id for job in failed}) == {}  # if they had worked first
    hangs = RuntimeError("sacct is asked twice in a step")
    with monkeypatch.context() as patch:
        patch.setattr(slurm_commands, "ended_elements", Mock(side_effect=hangs))
        assert backend.silent_round("refine", {job.id for job in failed}) == ("", 0)
    batch = TaskBatch("refine", tasks.merge_task, [("x", 1)] * 2, {"manual": 0}, ("n2",))
    (job, *_) = backend.submit(batch, None)
    assert "ExcNodeList=n2" in cluster.run("scontrol", "show", "job", job).stdout
    assert Journal(run.dir).read()[1].excluded_nodes == ["n2"]


def failing_on(folder: Path, node: str) -> str:
    """A Python that fails at once on one node, because it has no packages there."""
    path = folder / "python"
    option = f'$([ "$SLURMD_NODENAME" = {node} ] && echo -S)'
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {option} "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_a_control_job_on_a_bad_node_is_requeued_elsewhere(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    """Jobs on the first node fail at once, so it is always idle and gets the control jobs, too."""
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
    ours = run_jobs(cluster, run.plan.run_id)
    assert {job.state for job, tag in ours if tag.phase == "control"} == {"COMPLETED"}
    assert "FAILED" in {job.state for job, _ in ours}


def test_a_cancelled_control_job_is_replaced(cluster: SlurmCluster, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "many.jsonl", [document(n) for n in range(4000)])
    _, where = small(tmp_path)
    run = prepare_run(manifest(tmp_path, [source], sharding={"tokens": 50_000}), where, None)
    launch(run, lambda _: None)
    control = Journal(run.dir).read()[0].jobs["control"][0]
    cluster.run("scancel", control)
    cluster.wait_jobs(control, ["CANCELLED"])
    assert "submitted another one" in launch(run, lambda _: None).message
    assert "submitted another one" not in launch(run, lambda _: None).message
    cluster.until(finished(run.dir), "the report", timeout=120)
    assert check_balance(run.dir)["documents"] == 4000


def test_defaults_of_the_user_hide_no_jobs(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = cluster.sbatch("sleep 60", "--hold")
    monkeypatch.setenv("SQUEUE_PARTITION", "nowhere")
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    assert Queue().is_queued(job) is True
    cluster.run("scancel", job)


def test_a_path_with_a_percent_sign_is_refused(tmp_path: Path) -> None:
    path, where = small(tmp_path)
    with pytest.raises(UserError, match="sbatch would expand"):
        prepare_run(path, where, tmp_path / "100%j")
    assert not (tmp_path / "100%j").exists()


def test_a_launch_without_a_site_keeps_the_recorded_one(tmp_path: Path) -> None:
    path, where = small(tmp_path, workers=3)
    first = prepare_run(path, where, None)
    assert prepare_run(path, None, None).site == first.site


def test_if_all_nodes_fail_none_is_excluded(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = prepare_run(*small(tmp_path), None)
    backend = make_backend(run.dir, run.plan, run.site)
    failing = arrays(cluster, "exit 1")
    journal = Journal(run.dir)
    record_intent(
        journal, 0, TaskBatch("refine", print, [()], {"manual": 1}), arrays=4, has_control_job=False
    )
    for array in failing:
        journal.write("receipt", 0, phase="refine", job=array)
    assert backend.failing_nodes(set()) == {}


def test_cancel_ends_every_job_and_launch_resumes(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, where = small(tmp_path)
    source = write_jsonl(tmp_path / "many.jsonl", [document(n) for n in range(6000)])
    path = manifest(tmp_path, [source], sharding={"tokens": 50_000}, commit={"documents": 32})
    run = prepare_run(path, where, None)
    launch(run, lambda _: None)

    def working() -> bool:
        return any(beat.counts.documents for beat in latest_heartbeats(run.dir))

    cluster.until(working, "a commit", timeout=60)
    command = [sys.executable, "-m", "proxhpc", "cancel", str(run.dir.root)]
    done = subprocess.run(command, env=cluster.env(), capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cancelled: ")
    cluster.until(lambda: idle(cluster), "the queue to empty", timeout=60)
    assert not run.dir.report_json.exists()
    assert [*run.dir.leases.glob("0*")] == []  # the workers had time to release them
    again = subprocess.run(command, env=cluster.env(), capture_output=True, text=True, check=True)
    assert "this run has no jobs" in again.stdout
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
    assert "#SBATCH --array=0-2\n" in done.stdout  # without %3, which some sites refuse
    assert done.stdout.count(" to start at ") == 3
    assert not (tmp_path / "run").exists()
    assert cluster.run("squeue", "-h").stdout == ""


def test_a_site_without_a_time_leaves_it_to_the_partition(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    """submitit would ask for five minutes."""
    path, where = small(tmp_path, time=None)
    run = prepare_run(path, where, None)
    command = [sys.executable, "-m", "proxhpc", "launch", str(path), "--site", where]
    scripts = subprocess.run(
        [*command, "--dry-run"], env=cluster.env(), capture_output=True, text=True, check=True
    ).stdout
    assert re.findall("--time=.*", scripts) == ["--time=30"]  # of the control job
    subprocess.run(command, env=cluster.env(), capture_output=True, check=True)
    jobs = cluster.run("squeue", "-h", "-t", "all", "-o", "%j %l").stdout.split("\n")
    limits = {job.split()[1] for job in jobs if job.startswith("small-refine")}
    assert limits & {"UNLIMITED", "365-00:00:00"}  # of pending and running jobs
    cluster.until(finished(run.dir), "the report", timeout=90)


def test_workers_in_a_container(cluster: SlurmCluster, tmp_path: Path) -> None:
    """The container program is a script that logs its arguments and runs the command."""
    program = tmp_path / "bin" / "apptainer"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n'
        f'while [ "$1" != image.sif ]; do shift; done; shift 2; exec {sys.executable} "$@"\n'
    )
    program.chmod(0o755)
    container = {"kind": "apptainer", "image": "image.sif", "mounts": ["/opt"]}
    path, where = small(
        tmp_path, container=container, setup=[f"export PATH={program.parent}:$PATH"]
    )
    text = Path(where).read_text().replace("image.sif", "docker://image.sif")
    Path(where).write_text(text)
    program.write_text(program.read_text().replace("image.sif", "docker://image.sif"))
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
    refiners = [beat.owner for beat in latest_heartbeats(run.dir) if beat.role == "refine"]
    assert len({owner.worker for owner in refiners}) == 4
    assert sorted(owner.job.partition("_")[2] for owner in refiners) == ["0", "0", "1", "1"]


def test_the_queue_asks_again_only_for_an_old_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def run(*command: str, timeout: float) -> str:
        calls.append(command)
        rows = (
            ("7_1", "RUNNING", "None", "", "", "", "name", "proxhpc:aa:refine:0"),
            ("7_2", "COMPLETING", "None", "", "", "", "name", ""),
        )
        return "".join("\x1f".join(row) + "\n" for row in rows)

    monkeypatch.setattr(queue_module, "run_command", run)
    monkeypatch.setattr(queue_module, "show_job", lambda *_: [])
    monkeypatch.setattr(queue_module.shutil, "which", lambda _: "/bin/squeue")
    queue = Queue()
    assert queue.is_queued("7_1") is True
    assert queue.is_queued("7_2") is None
    assert queue.is_queued("7_3") is False
    assert len(calls) == 1
    assert [job.id for job in queue.jobs("aa", {})] == ["7_1"]
    queue._read_at -= 5  # an old snapshot does not prove absence
    assert queue.is_queued("7_3") is False
    assert len(calls) == 2


def test_without_an_answer_nothing_is_known_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*command: str, timeout: float) -> str:
        raise RetryError("squeue did not answer")

    monkeypatch.setattr(queue_module, "run_command", run)
    monkeypatch.setattr(queue_module.shutil, "which", lambda _: "/bin/squeue")
    assert Queue().is_queued("7_1") is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1-02:03:04", 93784), ("02:03:04", 7384), ("03:04", 184), ("UNLIMITED", None), ("", None)],
)
def test_times_that_slurm_prints(text: str, seconds: int | None) -> None:
    assert parse_duration(text) == seconds


def test_local_workers_share_the_gpus_of_the_launcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert split_gpus(0, 2) == ["", ""]
    assert split_gpus(2, 2) == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert split_gpus(1, 2) == ["GPU-a", "GPU-b"]
    with pytest.raises(UserError, match=r"GPU-a,GPU-b.* makes 2 visible"):
        split_gpus(1, 3)
    assert split_gpus(1, 4, 2) == ["GPU-a", "GPU-a", "GPU-b", "GPU-b"]


@pytest.mark.parametrize(("task", "gpu"), [(0, "a"), (1, "a"), (2, "b"), (3, "b")])
def test_workers_that_share_a_gpu_know_it(
    monkeypatch: pytest.MonkeyPatch, task: int, gpu: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a,b")
    monkeypatch.setenv("SLURM_LOCALID", str(task))
    monkeypatch.setenv(WORKERS_PER_GPU, "1")
    monkeypatch.setattr(tasks, "refine_task", lambda root, number, workers: f"{number}/{workers}")
    assert tasks.refine_element_task("run", 1, 4, 8, 2) == f"{4 + task}/8"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == gpu
    assert workers_per_gpu() == 2


@pytest.mark.parametrize("variable", ["", "-1", "NoDevFiles"])
def test_no_visible_gpu_means_no_gpu_for_workers(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert split_gpus(0, 2) == ["", ""]
    with pytest.raises(UserError, match=f'CUDA_VISIBLE_DEVICES="{variable}" makes 0 visible'):
        split_gpus(1, 1)
    tasks.narrow_gpus(0, 2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == variable


def test_a_local_worker_has_its_own_gpus_and_a_thread_for_each_core(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def environment(name: str) -> list[str | None]:
        return [name, os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS")]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert tasks.call_with_resources("1", 3, environment, "w") == ["w", "1", "3"]
    assert tasks.call_with_resources("2", 5, environment, "w") == ["w", "2", "3"]


def test_a_torn_line_of_the_journal_is_skipped(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    journal = Journal(run)
    record_intent(
        journal, 0, TaskBatch("refine", print, [(), ()], {}), arrays=1, has_control_job=True
    )
    with run.submissions.open("ab") as file:
        file.write(b'{"event": "intent", "inte')
    journal.write("receipt", 1, phase="refine", job="9")
    journal.write("receipt", 0, phase="refine", job="7")
    (entry,) = journal.read()
    assert (entry.jobs, entry.is_complete) == ({"refine": ["7"]}, False)
    journal.write("receipt", 0, phase="control", job="8")
    assert journal.read()[0].is_complete

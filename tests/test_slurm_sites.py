"""What sites' own commands and settings do to a run: each oddity on a real cluster."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest

from proxhpc.cluster.journal import Journal
from proxhpc.cluster.limits import job_limits
from proxhpc.cluster.queue import Queue, Tag
from proxhpc.cluster.script import BatchJob, job_executor, script_text
from proxhpc.cluster.silent import last_words, out_of_memory
from proxhpc.cluster.slurm import read_job_id, site_words
from proxhpc.cluster.submit import SlurmBackend, make_backend
from proxhpc.doctor import diagnose
from proxhpc.doctor.probe import NodeReport, _delays, _describe
from proxhpc.errors import RetryError, StopError, UserError
from proxhpc.launch.control_job import run_control
from proxhpc.launch.launch import Run, cancel, dry_run, launch, prepare_run
from proxhpc.launch.step import advance_lock, control_batch, refine_batch
from proxhpc.run.lease import LeaseOwner
from proxhpc.run.paths import RunDir
from proxhpc.run.process import descendants
from proxhpc.spec.site import Site
from proxhpc.status.collect import collect
from runs import ELSEWHERE, check_balance, stopped_below
from slurm_cluster import SlurmCluster
from slurm_config import Spec, user_name
from test_slurm_run import finished, idle
from test_slurm_run import launch as launch_by_hand
from test_submit import (
    SUBMISSION,
    cluster,
    run_jobs,
    runs_by_point,
    small,
    start,
    wait_for_one_submission,
)

__all__ = ["cluster"]  # a fixture

STEP_WHEN_READY = """
import pathlib
from proxhpc.errors import RetryError

def step(root):
    if not (pathlib.Path(root).parent / "ready").exists():
        raise RetryError("sbatch failed: the controller is busy")
    return "one step"
"""
NO_LIST = "echo 'usage: squeue [options]'; exit 0"
NOTHING = "exit 0"


def plugin(body: str) -> str:
    """A job_submit plugin in Lua that does this at each submission."""
    return f"""
function slurm_job_submit(job, partitions, user)
{body.strip()}
  return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, user)
  return slurm.SUCCESS
end
return slurm.SUCCESS
"""


PLUGIN = plugin(
    """
  slurm.log_user("group b17: 500,000 hours left")
  job.comment = "site:billing=none"
  if job.min_mem_per_node then
    slurm.log_user("memory is asked for by core here:")
    slurm.log_user("use --mem-per-cpu")
    return slurm.ERROR
  end
"""
)
GREETING = plugin(
    """
  slurm.log_user("group b17: 500,000 hours left\\27[2J")
  if string.find(job.name, "single") and job.array_inx then
    slurm.log_user("arrays are not allowed")
    return slurm.ERROR
  end
"""
)


@pytest.fixture
def strict(slurm_programs: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """A cluster with a submit plugin, whose steps get one core unless they ask for more."""
    spec = Spec(
        nodes=2,
        accounting=False,
        extra=(
            "JobSubmitPlugins=lua",
            "TaskPlugin=task/affinity",
            "TaskPluginParam=autobind=cores",
            "SelectTypeParameters=CR_CPU_Memory",
        ),
        job_submit=PLUGIN,
    )
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as root,
        SlurmCluster(Path(root), spec) as cluster,
    ):
        for name in ("SLURM_CONF", "PATH"):
            monkeypatch.setenv(name, cluster.env()[name])
        yield cluster


def test_a_submit_plugin_and_bound_cores(strict: SlurmCluster, tmp_path: Path) -> None:
    with pytest.raises(RetryError, match=r"by core here:(.|\n)*use --mem-per-cpu"):
        launch(prepare_run(*small(tmp_path, mem="1G"), None), lambda _: None)
    again = tmp_path / "again"
    again.mkdir()
    python = again / "python"
    look = f"grep Cpus_allowed_list /proc/self/status >> {again}/cores"
    python.write_text(f'#!/bin/sh\n{look}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    options = {"mem-per-cpu": "1G"}
    run = prepare_run(*small(again, cpus=2, python=str(python), sbatch=options), None)
    launch(run, lambda _: None)
    launch(run, lambda _: None)
    strict.until(finished(run.dir), "the report", timeout=120)
    assert check_balance(run.dir)["documents"] == 20
    assert [entry.phase for entry in Journal(run.dir).read()].count("refine") == 1
    assert {job.comment for job, _ in run_jobs(strict, run.plan.run_id)} == {"site:billing=none"}
    assert (again / "cores").read_text().count("0-1\n") >= 2  # of the workers


def test_status_does_not_wait_for_a_dead_controller(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare_run(*small(tmp_path), None)
    with monkeypatch.context() as patch:
        wrap(patch, tmp_path, "squeue", "exec sleep 90")
        status = collect(run.dir, Queue(timeout=1))
    assert status.queue_problem == "squeue did not answer in 1 s"


def wrap(monkeypatch: pytest.MonkeyPatch, folder: Path, command: str, script: str) -> None:
    """Put a site's wrapper of a Slurm command first on PATH; `$real` is Slurm's own command."""
    path = folder / "wrap" / command
    path.parent.mkdir(exist_ok=True)
    slurms = subprocess.run(["which", command], capture_output=True, text=True, check=True).stdout
    path.write_text(f"#!/bin/bash\nreal={slurms.strip()}\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


@pytest.fixture(scope="module")
def odd_root(slurm_programs: None) -> Iterator[Path]:
    """A directory with a short path, for a cluster and the prolog that its nodes run."""
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as root:
        yield Path(root)


@pytest.fixture(scope="module")
def odd_cluster(odd_root: Path) -> Iterator[SlurmCluster]:
    """A cluster with a closed partition and limits of groups, where node n1 fails to start jobs."""
    (odd_root / "prolog").write_text(f"#!/bin/sh\n[ ! -e {odd_root}/broken ]\n")
    (odd_root / "prolog").chmod(0o755)
    spec = Spec(
        nodes=2,
        partitions=(
            "PartitionName=main Nodes=ALL Default=YES",
            "PartitionName=closed Nodes=ALL State=DOWN",
        ),
        extra=(
            f"Prolog={odd_root}/prolog",
            "AccountingStorageEnforce=associations,limits,qos",
            "JobSubmitPlugins=lua",
            "MinJobAge=2",
            "FirstJobId=1",
            "MaxJobId=50",
        ),
        job_submit=GREETING,
    )
    (odd_root / "cluster").mkdir()
    with SlurmCluster(odd_root / "cluster", spec) as cluster:
        yield cluster


@pytest.fixture
def odd(odd_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, odd_cluster.env()[name])
    odd_cluster.reset()
    return odd_cluster


def test_what_a_site_prints_when_it_accepts_jobs_is_shown_once(
    odd: SlurmCluster, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    printed = launch_by_hand(odd, *small(tmp_path, workers=1), run.root)
    lines = [line for line in printed.splitlines() if line.startswith("Slurm: ")]
    assert lines == [r"Slurm: group b17: 500,000 hours left\x1b[2J"]
    odd.until(finished(run), "the report", timeout=90)


def test_a_site_without_arrays_gets_plain_jobs(odd: SlurmCluster, tmp_path: Path) -> None:
    path, where = small(tmp_path, sbatch={"job-name": "single"})
    with pytest.raises(RetryError, match="arrays are not allowed"):
        launch(prepare_run(path, where, None), lambda _: None)
    run = prepare_run(
        path, small(tmp_path, sbatch={"job-name": "single"}, max_array_size=1)[1], None
    )
    launch(run, lambda _: None)
    assert len(Journal(run.dir).read()[-1].jobs["refine"]) == 2
    odd.until(finished(run.dir), "the report", timeout=90)


def test_words_of_a_site_are_bounded() -> None:
    output = "\n".join(["7;here", "-----", "x" * 999, *map("line {}".format, range(99))])
    words = site_words(output)
    assert (len(words), len(words[0]), words[1]) == (20, 300, "line 0")
    assert site_words("Submitted batch job 7\n 8\n***\n") == []


def test_a_refusal_on_stdout_is_shown(
    cluster: SlurmCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrap(monkeypatch, tmp_path, "sbatch", "echo '--> submission error: no queue named'; exit 1")
    with pytest.raises(RetryError, match="no queue named"):
        launch(prepare_run(*small(tmp_path), None), lambda _: None)
    assert capsys.readouterr().err == ""  # the command line prints the error, once and escaped


def test_held_jobs_are_released_by_a_person_who_launches(odd: SlurmCluster, tmp_path: Path) -> None:
    """Slurm holds a control job that its node could not start, and somebody may hold the others."""
    broken = Path(odd.conf).parents[1] / "broken"
    run = prepare_run(*small(tmp_path, workers=1), None)
    broken.touch()
    launch(run, lambda _: None)
    (control,) = Journal(run.dir).read()[0].jobs["control"]
    odd.until(lambda: [j for j in odd.jobs(control) if j.reason.endswith("held")], "a held job", 60)
    assert collect(run.dir, Queue()).phase == "stopped"
    broken.unlink()
    for node in odd.spec.names:
        odd.run("scontrol", "update", f"nodename={node}", "state=resume")
    assert f"released job {control}, which were held" in launch(run, lambda _: None).message
    odd.until(finished(run.dir), "the report", timeout=120)
    assert check_balance(run.dir)["documents"] == 20
    # The released job starts two minutes after its failure, if the run does not end before.
    jobs = [job for job, _ in run_jobs(odd, run.plan.run_id)]
    assert not [job.id for job in jobs if job.reason.lower().endswith("held")]


@pytest.mark.parametrize(
    ("site", "reason"),
    [
        ({"partition": "closed"}, r"PartitionDown\): the partition is closed"),
        ({"account": "spent"}, r"AssocGrpCPUMinutesLimit\): the budget of the account is used up"),
        ({"time": None}, r"[Mm]aintenance\): a maintenance comes first"),
    ],
)
def test_jobs_that_cannot_start_are_explained(
    odd: SlurmCluster, tmp_path: Path, site: dict[str, str], reason: str
) -> None:
    odd.run("sacctmgr", "-i", "add", "account", "spent", "GrpTRESMins=cpu=0", check=False)
    odd.run("sacctmgr", "-i", "add", "user", user_name(), "account=spent", check=False)
    window = ("StartTime=now+50minutes", "Duration=60", "Nodes=ALL", f"Users={user_name()}")
    if "time" in site:
        odd.run("scontrol", "create", "reservation", "ReservationName=m", *window, "Flags=MAINT")
    path, where = small(tmp_path, **site)
    run = prepare_run(path, where, None)
    found = {each.check: each for each in diagnose(where, None, tmp_path).findings}
    partition = found["partition of refine"]
    assert partition.verdict == ("ok" if "account" in site else partition.verdict)
    assert partition.verdict == ("error" if "partition" in site else partition.verdict)
    assert partition.verdict == ("warning" if "time" in site else partition.verdict)
    launch(run, lambda _: None)

    def is_explained() -> bool:
        status = collect(run.dir, Queue())
        return bool(re.search(reason, status.reason)) and status.next_step.startswith(
            "proxhpc cancel"
        )

    try:
        odd.until(is_explained, "the reason", 30, lambda: str(collect(run.dir, Queue()).reason))
    finally:
        if "time" in site:
            odd.run("scontrol", "delete", "ReservationName=m")
    cancel(run.dir)


def test_the_limit_of_a_group_holds_for_the_accounts_below(
    odd: SlurmCluster, tmp_path: Path
) -> None:
    groups = ("faculty", "GrpSubmitJobs=4", "GrpTRES=cpu=3")
    for account in (groups, ("lab", "parent=faculty")):
        odd.run("sacctmgr", "-i", "add", "account", *account)
    odd.run("sacctmgr", "-i", "add", "user", user_name(), "account=lab")
    path, where = small(tmp_path, account="lab", workers=6)
    run = prepare_run(path, where, None)
    (limit,) = job_limits("lab", None)
    assert (limit.queued, limit.accounts) == (4, ("faculty", "lab"))
    found = {each.check: each for each in diagnose(where, None, tmp_path).findings}
    assert found["jobs at once"].consequence == "3 of 6 jobs run at once; the others wait"
    wide = replace(run, site=run.site.model_copy(update={"cpus": 4}))
    warning = "Slurm: cpu=3 for running jobs of account faculty; a job asks for more"
    assert warning in launch(wide, lambda _: None).message
    cancel(run.dir)
    odd.sbatch("sleep 60", "--hold", "--account=lab")
    assert "\n2 workers for 6 shards" in launch(run, lambda _: None).message
    cancel(run.dir)


def test_a_job_of_a_new_cluster_with_an_old_id_is_left_alone(
    odd: SlurmCluster, tmp_path: Path
) -> None:
    run = prepare_run(*small(tmp_path, sbatch={"begin": "now+1hour"}), None)
    launch(run, lambda _: None)
    ids = [*Journal(run.dir).job_phases()]
    cancel(run.dir)

    def begin_again() -> str:
        job = odd.sbatch("sleep 60", "--hold", "--job-name=jupyter")
        if job not in ids:
            odd.run("scancel", job)
            return ""
        return job

    job = odd.until(begin_again, "an id to be used again", 120)
    assert collect(run.dir, Queue()).queue == {}
    assert cancel(run.dir) == []
    assert odd.jobs(job)[0].state == "PENDING"


def test_a_job_that_may_not_submit_stops_the_run_at_once(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    refusal = "[TACC]: Job submission is not allowed from this host. Please submit"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(f"#!/bin/sh\necho '{refusal}'\nexit 1\n")
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    run = prepare_run(*small(tmp_path, setup=[f"export PATH={tmp_path}/bin:$PATH"]), None)
    launch(run, lambda _: None)
    cluster.until(lambda: idle(cluster), "the queue to empty", timeout=60)
    status = collect(run.dir, Queue())
    assert status.phase == "stopped"
    assert refusal in status.reason
    assert any("set submit_from_jobs: false" in failure.message for failure in status.failures)


def test_a_node_without_sbatch_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare_run(*small(tmp_path), None)
    monkeypatch.setattr("proxhpc.cluster.submit.shutil.which", lambda name: None)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(StopError, match=r"no sbatch on this node(.|\n)*submit_from_jobs: false"):
        make_backend(run.dir, run.plan, run.site)


def test_a_step_that_fails_is_shown_while_it_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare_run(*small(tmp_path), None)
    shown = []

    def pause(seconds: float) -> None:
        shown.extend(failure.message for failure in collect(run.dir, None).failures)
        (tmp_path / "ready").touch()

    monkeypatch.setattr("proxhpc.launch.control_job.time.sleep", pause)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_step.py").write_text(STEP_WHEN_READY)
    assert run_control(str(run.dir.root), "a_step:step") == "one step"
    message = "could not take the next step and retries: sbatch failed: the controller is busy"
    assert shown == [message]
    assert collect(run.dir, None).failures == ()


def test_a_control_job_begins_again_after_a_result_that_was_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare_run(*small(tmp_path), None)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_step.py").write_text(STEP_WHEN_READY)
    (tmp_path / "ready").touch()
    results = [run.dir.logs / "0003-control" / f"{job}_0_result.pkl.save_tmp" for job in (7, 77)]
    results[0].parent.mkdir(parents=True)
    for result in results:
        result.touch()
    assert run_control(str(run.dir.root), "a_step:step") == "one step"
    assert [result.exists() for result in results] == [False, True]


def test_an_element_that_ran_out_of_memory_is_named(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    log = run.logs / "0000-refine" / "9_0_0_log.err"
    log.parent.mkdir(parents=True)
    killed = "slurmstepd: error: Detected 1 oom_kill event in StepId=9.0. Some tasks were killed."
    log.write_text(f"loading\n{killed}\nsrun: error: n1: task 0: Killed\n")
    assert last_words(log) == killed
    assert out_of_memory(run, "9_0") == killed
    assert out_of_memory(run, "9_1") == ""


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
    later = {"begin": "now+1hour"}
    runs = runs_by_point(tmp_path, stale_after=30, workers=1, sbatch=later)
    frozen = {
        point: start(cluster, run, point, *ELSEWHERE, PROXHPC_FAULT_SIGNAL="STOP")
        for point, run in runs.items()
    }
    for point in SUBMISSION:
        frozen_there = partial(stopped_below, frozen[point].pid)
        cluster.until(frozen_there, f"the launcher to stop: {point}", timeout=120)
    others = [start(cluster, run) for run in runs.values()]
    assert [other.wait(timeout=120) for other in others] == [0] * len(SUBMISSION)
    for process in frozen.values():
        for pid in descendants(process.pid):
            os.kill(pid, signal.SIGCONT)
        process.wait(timeout=60)
    wait_for_one_submission(cluster, runs)


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


def broken_setup(tmp_path: Path) -> Run:
    return prepare_run(*small(tmp_path, setup=["module load cuda/99 || exit 3"], workers=2), None)


def test_a_round_that_fails_everywhere_before_python_stops_the_run_and_says_why(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = broken_setup(tmp_path)
    launch(run, lambda _: None)
    cluster.until(lambda: idle(cluster), "the queue to empty", timeout=90)
    # Both elements may run on one node; then a second round shows that it is not the node.
    status = collect(run.dir, Queue())
    rounds = [entry for entry in Journal(run.dir).read() if entry.phase == "refine"]
    assert len(rounds) <= 2
    assert status.phase == "stopped"
    assert "module: command not found" in status.reason
    silent = [failure for failure in status.failures if failure.workers == 2]
    assert "module: command not found" in silent[0].message
    assert silent[0].hint.endswith("_0_log.err")


def test_a_round_that_found_the_disk_full_is_followed_by_another(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    full = "{ echo 'printf: write error: No space left on device' >&2; exit 3; }"
    setup = f'[ -z "$SLURM_ARRAY_JOB_ID" ] || {full}'  # the control job is no array
    run = prepare_run(*small(tmp_path, setup=[setup], workers=2), None)
    launch(run, lambda _: None)
    cluster.until(
        lambda: collect(run.dir, Queue()).reason.startswith("paused until 20"), "the pause"
    )
    cancel(run.dir)


def test_jobs_on_nodes_that_do_not_see_the_run_are_explained(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a run directory in a /tmp that each node, or each job, has for itself."""
    elsewhere = f"{tmp_path}/nowhere/%j"
    wrap(monkeypatch, tmp_path, "sbatch", f'exec $real -o {elsewhere} -e {elsewhere} "$@"')
    run = prepare_run(*small(tmp_path), None)
    launch(run, lambda _: None)
    assert collect(run.dir, Queue()).phase == "refining"
    cluster.until(lambda: idle(cluster), "the queue to empty")
    status = collect(run.dir, Queue())
    assert status.phase == "stopped"
    assert status.reason.endswith(f"or its node cannot write to {run.dir.logs}")


def test_a_launch_by_a_person_ends_a_pause(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = broken_setup(tmp_path)
    journal = Journal(run.dir)
    with advance_lock(run.dir) as lease:
        backend = make_backend(run.dir, run.plan, run.site, lease)
        state = dict.fromkeys(("published", "committed", "deaths", "merge_files"), 0)
        state |= {"fatal_workers": 0, "manual": 1}
        batch = refine_batch(run.dir, run.site.resources("refine"), 2, 2)
        paused = replace(batch, run_state=state, delay_seconds=1800)
        (array, control) = backend.submit(paused, control_batch(run.dir))
    cluster.until(
        lambda: collect(run.dir, Queue()).reason.startswith("paused until 20"), "the pause"
    )
    fixed = prepare_run(tmp_path / "manifest.yaml", str(tmp_path / "slurm.yaml"), None)
    with monkeypatch.context() as patch:
        patch.setattr(SlurmBackend, "free_elements", Mock(side_effect=RetryError("no answer")))
        with pytest.raises(RetryError, match="no answer"):
            launch(fixed, lambda _: None)
    assert held(cluster, run) != []  # a launch that fails leaves the pause's jobs in the queue
    site = fixed.site.model_copy(update={"setup": ()})
    message = launch(replace(fixed, site=site), lambda _: None).message
    assert f"cancelled jobs {array}, {control}, which waited for the end of a pause" in message
    cluster.until(finished(run.dir), "the report", timeout=90)
    assert check_balance(run.dir)["documents"] == 20
    assert journal.read()[1].delay_seconds == 0


def test_the_words_of_slurm_are_not_the_last_words(tmp_path: Path) -> None:
    log = tmp_path / "7_0_0_log.err"
    log.write_text("x" * 9000 + "\nbash: module: command not found\nsrun: error: n1: exit 127\n\n")
    assert last_words(log) == "bash: module: command not found"
    log.write_text(
        "RuntimeError: could not find submitted jobs in path:\n/tmp/run/7_submitted.pkl\n"
    )
    assert last_words(log).endswith("in path: /tmp/run/7_submitted.pkl")
    log.write_text("slurmstepd: error: execve(): No such file\n")
    assert last_words(log) == "slurmstepd: error: execve(): No such file"
    assert last_words(tmp_path / "none") == ""
    log.write_text("submitit INFO (7) - Loading pickle\nbecause of [Errno 28] No space left\n")
    assert last_words(log) == "because of [Errno 28] No space left"
    log.write_text("submitit INFO (7) - Loading pickle\n")
    assert last_words(log) == ""


def test_a_site_with_other_directives(cluster: SlurmCluster, tmp_path: Path) -> None:
    options = {"comment": "project 7", "job-name": "lab", "mem-per-cpu": "1G", "ntasks": 1}
    dropped = {"nodes": False, "open-mode": False, "ntasks-per-node": False, "no-requeue": False}
    gpu_only = {"mem-per-gpu": "8G", "gpus-per-task": 1}
    path, where = small(tmp_path, partition="main, whole", sbatch=options | dropped | gpu_only)
    run = prepare_run(path, where, None)
    scripts = {phase: text for phase, text, _ in dry_run(run)}
    tag = f"refine-{run.plan.run_id}-0"
    refine = scripts["refine"]
    assert f"#SBATCH --comment='project 7 proxhpc:{run.plan.run_id}:refine:0'\n" in refine
    assert f"#SBATCH --job-name=lab-small-{tag}\n" in refine
    assert "#SBATCH --partition=main,whole\n" in refine
    for name in (*dropped, *gpu_only, "mem"):
        assert f"#SBATCH --{name}" not in refine.replace("--mem-per-cpu", "")
    assert "#SBATCH --requeue\n" in scripts["control"]
    launch(run, lambda _: None)
    cluster.until(finished(run.dir), "the report", timeout=90)
    assert {tag.phase for _, tag in run_jobs(cluster, run.plan.run_id)} >= {"refine", "control"}


def test_gpus_may_be_asked_for_by_task() -> None:
    site = Site(name="x", gpus=1, sbatch={"gpus-per-task": 1, "mem-per-gpu": "8G"})
    job = BatchJob("n", "refine", Path("logs"), "c", ())
    text = script_text(job_executor(job, site), 2)
    assert "--gpus-per-task=1" in text
    assert "--gpus-per-node" not in text
    assert "--cpus-per-task=1 --export=ALL" in text
    with pytest.raises(ValueError, match="give either mem or mem-per-cpu"):
        Site(name="x", mem="8G", sbatch={"mem-per-cpu": "1G"})


def test_doctor_probes_two_nodes(cluster: SlurmCluster, tmp_path: Path) -> None:
    _, where = small(tmp_path, setup=["ulimit -c 0"])
    lines: list[str] = []
    found = diagnose(where, None, tmp_path / "runs", lines.append)
    findings = {finding.check: finding for finding in found.findings}
    assert findings["submission from jobs, tried"].verdict == "ok"
    assert "a file is seen after 0." in findings["file system between nodes"].result
    assert findings["file system between nodes"].consequence == "stale_after, 120 s, is long enough"
    nodes = [check for check in findings if check.startswith("node n") and "," not in check]
    assert len(nodes) == 2
    assert not (tmp_path / "runs").exists()
    cluster.until(lambda: idle(cluster), "the queue to empty")


def test_a_probe_that_cannot_start_quotes_its_log(cluster: SlurmCluster, tmp_path: Path) -> None:
    _, where = small(tmp_path, setup=["module load cuda/99 || exit 3"])
    found = diagnose(where, None, tmp_path, lambda _: None)
    assert not found.launch_would_work
    (finding,) = [finding for finding in found.findings if finding.check == "probe"]
    assert "module: command not found" in finding.result


@pytest.mark.parametrize(
    ("gone", "verdict", "words"), [(1.0, "ok", "120 s"), (50.0, "warning", "210")]
)
def test_a_slow_file_system_needs_a_longer_stale_after(
    gone: float, verdict: str, words: str
) -> None:
    finding = _delays(Site(name="x"), {"seen": 0.5, "gone": gone})
    assert finding.verdict == verdict
    assert words in finding.consequence


def test_a_node_with_another_python_is_named() -> None:
    here = ".".join(map(str, sys.version_info[:3]))
    reports = [
        NodeReport(f"n{n}", python, "", 1, 0, "", 0.0) for n, python in enumerate((here, "3.99.1"))
    ]
    found = [
        each for each in _describe(Site(name="x"), "rules", reports) if "Python" in each.result
    ]
    assert [each.verdict for each in found] == ["ok", "warning"]


def test_workers_fit_the_gap_before_a_reservation(cluster: SlurmCluster, tmp_path: Path) -> None:
    path, where = small(tmp_path, time="04:00:00", time_min="00:15:00")
    run = prepare_run(path, where, None)
    reservation = ("reservation", "ReservationName=maintenance")
    period = ("StartTime=now+50minutes", "Duration=60", "Nodes=ALL", "Users=nobody")
    cluster.run("scontrol", "create", *reservation, *period, "Flags=IGNORE_JOBS")
    try:
        launch(run, lambda _: None)
        show = ("scontrol", "show", "job", "-o", next(iter(Journal(run.dir).job_phases())))
        limits = "TimeLimit=00:30:00 TimeMin=00:15:00"
        cluster.until(lambda: limits in cluster.run(*show).stdout, "workers that fit", timeout=60)
    finally:
        cluster.run("scontrol", "delete", "ReservationName=maintenance")
    cluster.until(finished(run.dir), "the report", timeout=90)


def test_lengths_are_halves_of_the_time_limit() -> None:
    site = Site(name="x", time="24:00:00", time_min="05:00:00")
    hours = [seconds / 3600 for seconds in site.resources("refine").lengths]
    assert hours == [24, 12, 6]
    assert site.resources("merge").lengths == [24 * 3600]
    assert Site(name="x").resources("refine").lengths == []
    with pytest.raises(ValueError, match="at most `time`"):
        Site(name="x", time="01:00:00", time_min="02:00:00")

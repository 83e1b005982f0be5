"""The temporary Slurm: arrays, accounting, dying nodes, held jobs, and nothing left behind."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import slurm_cluster
from slurm_cluster import FINISHED, ClusterError, SlurmCluster
from slurm_config import Spec, free_ports
from slurm_reaper import processes


@pytest.fixture
def cluster(slurm: SlurmCluster) -> Iterator[SlurmCluster]:
    """The session's cluster, reset afterwards."""
    yield slurm
    slurm.reset()


@pytest.fixture
def root(slurm_programs: None) -> Iterator[Path]:
    """A directory whose path is short enough for sockets, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as path:
        yield Path(path)


def states(cluster: SlurmCluster, job: str) -> dict[str, str]:
    return {element.id: element.state for element in cluster.jobs(job)}


def test_an_array_runs_on_every_node_and_sacct_lists_it(
    cluster: SlurmCluster, accounting: None, tmp_path: Path
) -> None:
    script = f"echo $SLURM_ARRAY_TASK_ID $SLURMD_NODENAME > {tmp_path}/$SLURM_ARRAY_TASK_ID"
    job = cluster.sbatch(script, "--array=0-3", "--partition=whole")

    cluster.wait_jobs(job, FINISHED)

    assert states(cluster, job) == {f"{job}_{index}": "COMPLETED" for index in range(4)}
    outputs = [(tmp_path / str(index)).read_text().split() for index in range(4)]
    assert [index for index, _ in outputs] == ["0", "1", "2", "3"]
    assert {node for _, node in outputs} == {"n1", "n2", "n3", "n4"}

    def accounted() -> list[str]:
        rows = cluster.run("sacct", "-X", "-n", "-P", "-j", job, "-o", "JobID,State").stdout.split()
        return rows if len(rows) == 4 and all(row.endswith("|COMPLETED") for row in rows) else []

    assert sorted(cluster.until(accounted, "sacct to answer")) == [
        f"{job}_{index}|COMPLETED" for index in range(4)
    ]


def test_on_a_dead_node_one_job_fails_and_one_is_requeued(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    lost = cluster.sbatch(
        f"while true; do date >> {output}; sleep 0.1; done", "--nodelist=n2", "--no-requeue"
    )
    requeued = cluster.sbatch(
        f"echo ${{SLURM_RESTART_COUNT:-0}} >> {tmp_path}/requeued; "
        "[ $SLURM_RESTART_COUNT ] || sleep 99",
        "--nodelist=n2",
        "--requeue",
    )
    cluster.until((tmp_path / "requeued").is_file, "the job that will be requeued")
    cluster.until(output.is_file, "the job that will be lost")
    assert processes(cluster.root, "n2")

    cluster.kill_node("n2")

    assert processes(cluster.root, "n2") == []
    size = output.stat().st_size
    cluster.wait_jobs(lost, ["NODE_FAIL"])
    assert states(cluster, requeued) == {requeued: "PENDING"}
    cluster.start_node("n2")
    cluster.wait_jobs(requeued, ["COMPLETED"])
    assert (tmp_path / "requeued").read_text() == "0\n1\n"
    assert output.stat().st_size == size


def test_the_controller_notices_a_dead_node(root: Path) -> None:
    timeouts = ("SlurmdTimeout=3", "MessageTimeout=5", "TCPTimeout=2")
    quick = Spec(nodes=2, accounting=False, extra=timeouts)
    with SlurmCluster(root, quick) as cluster:
        job = cluster.sbatch("sleep 99", "--nodelist=n2", "--no-requeue")
        cluster.wait_jobs(job, ["RUNNING"])

        cluster.kill_node("n2", report=False)

        assert states(cluster, job) == {job: "RUNNING"}
        cluster.wait_jobs(job, ["NODE_FAIL"])


def test_a_held_job_is_found_by_its_comment_and_released(cluster: SlurmCluster) -> None:
    job = cluster.sbatch("true", "--hold", "--comment=run 7|a b", "--array=0-1")
    assert [element.state for element in cluster.jobs(job)] == ["PENDING", "PENDING"]
    assert {element.reason for element in cluster.jobs(job)} == {"JobHeldUser"}
    assert {each.id for each in cluster.jobs() if each.comment == "run 7|a b"} == {
        f"{job}_0",
        f"{job}_1",
    }

    cluster.run("scontrol", "release", job)

    cluster.wait_jobs(job, ["COMPLETED"])


def test_a_job_submits_the_one_that_follows_it(cluster: SlurmCluster, tmp_path: Path) -> None:
    follow = "sbatch --parsable -o /dev/null --dependency=afterany:$SLURM_JOB_ID --wrap='true'"
    job = cluster.sbatch(f"{follow} > {tmp_path}/next; sleep 1; exit 3")

    cluster.wait_jobs(job, ["FAILED"])

    cluster.wait_jobs((tmp_path / "next").read_text().strip(), ["COMPLETED"])


def test_jobs_survive_a_restart_of_the_controller(cluster: SlurmCluster, tmp_path: Path) -> None:
    go = tmp_path / "go"
    job = cluster.sbatch(f"until [ -e {go} ]; do sleep 0.1; done")
    cluster.wait_jobs(job, ["RUNNING"])

    cluster.restart_ctld()

    assert states(cluster, job) == {job: "RUNNING"}
    go.touch()
    cluster.wait_jobs(job, ["COMPLETED"])


def test_an_array_index_beyond_the_limit_is_refused(cluster: SlurmCluster) -> None:
    with pytest.raises(ClusterError, match="Invalid job array specification"):
        cluster.sbatch("true", "--array=1001")


def test_gpus_are_numbered_sacct_may_be_absent_and_nothing_is_left(root: Path) -> None:
    cluster = SlurmCluster(root, Spec(nodes=1, gpus=2, accounting=False))
    with cluster:
        seen = cluster.run("srun", "--gres=gpu:2", "printenv", "CUDA_VISIBLE_DEVICES")
        assert seen.stdout == "0,1\n"
        assert cluster.run("sacct", check=False).returncode != 0
        job = cluster.sbatch("trap '' TERM; setsid sleep 98 & sleep 99")
        cluster.wait_jobs(job, ["RUNNING"])
        assert len(processes(root)) > 4

    assert processes(root) == []


def test_nothing_is_left_when_its_owner_is_killed(root: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from slurm_cluster import SlurmCluster, Spec\n"
        "SlurmCluster(Path(sys.argv[1]), Spec(nodes=1, accounting=False)).start()\n"
        "print('up', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        assert processes(root)
        owner.kill()

    SlurmCluster(root).until(lambda: not processes(root), "the cluster to end", 20)


def test_a_daemon_that_fails_is_quoted(root: Path) -> None:
    broken = SlurmCluster(root, Spec(nodes=1, accounting=False, extra=("Nonsense=1",)))
    with pytest.raises(ClusterError, match=r"(?s)exited 1.*Nonsense"):
        broken.start()
    assert processes(root) == []


def test_a_root_path_too_long_for_sockets_is_refused(slurm_programs: None, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 60)
    with pytest.raises(ClusterError, match="too long for sockets"):
        SlurmCluster(long).start()


def test_variables_of_an_outer_job_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SBATCH_PARTITION", "elsewhere")
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")

    env = SlurmCluster(Path("/r")).env(MORE="1")

    assert {name for name in env if name.startswith(slurm_cluster.INHERITED)} == {"SLURM_CONF"}
    assert env["SLURM_CONF"] == "/r/slurm.conf"
    assert env["MORE"] == "1"


def test_free_ports_are_distinct() -> None:
    assert len(set(free_ports(50))) == 50


def test_command_line(slurm_programs: None) -> None:
    program = Path(slurm_cluster.__file__)
    done = subprocess.run(
        [
            sys.executable,
            program,
            "run",
            "--no-accounting",
            "--nodes=2",
            "--",
            "sinfo",
            "-hpmain",
            "-o%D",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "2\n")
    assert "2 nodes up in" in done.stderr

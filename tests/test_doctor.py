"""What doctor finds out about a site before a launch."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxhpc.cluster import slurm as slurm_commands
from proxhpc.cluster.backend import TaskBatch
from proxhpc.cluster.queue import Queue
from proxhpc.cluster.submit import SlurmBackend
from proxhpc.doctor import Diagnosis, Finding, examine_site, render_diagnosis
from proxhpc.spec.sections import Level
from proxhpc.spec.site import Site
from proxhpc.status.terminal import make_console
from runs import planned
from slurm_cluster import SlurmCluster
from slurm_config import Spec
from tiny_models import save_llama

PROXHPC = [sys.executable, "-m", "proxhpc"]


def site_file(folder: Path, **more: Any) -> str:
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump({"name": "test", "kind": "slurm", "workers": 4} | more))
    return str(path)


def doctor(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [*PROXHPC, "doctor", *arguments, "--json"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def by_name(result: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {finding["check"]: finding for finding in result["findings"]}


def test_a_site_where_a_launch_works(slurm: SlurmCluster, tmp_path: Path) -> None:
    where = site_file(tmp_path, partition="main", time="00:10:00")
    code, result = doctor(where, "--run", str(tmp_path / "run"), env=slurm.env())
    assert (code, result["launch_would_work"]) == (0, True)
    assert Diagnosis.model_validate(result).format == "proxhpc.doctor/1"
    findings = by_name(result)
    assert findings["MaxArraySize"]["result"] == str(slurm.spec.max_array_size)
    answers = "answers" if slurm.spec.accounting else "does not answer"
    assert findings["sacct"]["result"].startswith(answers)
    assert findings["KillWait"]["verdict"] == "warning"  # five seconds
    assert " to start at " in findings["sbatch --test-only"]["result"]
    assert findings["exclusive create, by link"]["result"] == "works"
    assert "4 nodes" in findings["partition of refine"]["result"]
    assert [*tmp_path.iterdir()] == [tmp_path / "site.yaml"]
    assert slurm.run("squeue", "-h").stdout == ""


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"partition": "nowhere"}, "partition of refine"),
        ({"cpus": 99}, "sbatch --test-only"),
        ({"container": {"kind": "apptainer", "image": "/not/there.sif"}}, "container image"),
        ({"max_submit_jobs": 1}, "jobs per user"),
    ],
)
def test_a_site_where_a_launch_does_not_work(
    slurm: SlurmCluster, tmp_path: Path, more: dict[str, Any], what: str
) -> None:
    code, result = doctor(site_file(tmp_path, **more), "--run", str(tmp_path), env=slurm.env())
    assert (code, result["launch_would_work"]) == (2, False)
    assert by_name(result)[what]["verdict"] == "error"


@pytest.fixture
def poor(slurm_programs: None) -> Iterator[SlurmCluster]:
    """A site with small arrays, short partitions and no accounting."""
    partition = "PartitionName=main Nodes=ALL Default=YES MaxTime=5"
    spec = Spec(nodes=1, accounting=False, max_array_size=3, partitions=(partition,))
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as root,
        SlurmCluster(Path(root), spec) as cluster,
    ):
        yield cluster


def test_a_limited_site_gets_the_consequences_for_a_run(poor: SlurmCluster, tmp_path: Path) -> None:
    phases = {"control": {"time": "00:05:00"}}  # half an hour by default
    where = site_file(tmp_path, partition="main", workers=7, time="00:05:00", phases=phases)
    code, result = doctor(where, "--run", str(tmp_path), env=poor.env())
    findings = by_name(result)
    assert code == 0
    assert findings["MaxArraySize"] == {
        "check": "MaxArraySize",
        "result": "3",
        "consequence": "the workers are submitted in 3 arrays",
        "verdict": "ok",
    }
    assert findings["sacct"]["result"].startswith("does not answer")
    assert findings["jobs per user"]["result"] == "no limit known"
    where = site_file(tmp_path, partition="main", time="01:00:00")
    code, result = doctor(where, "--run", str(tmp_path), env=poor.env())
    assert code == 2
    assert "would stay pending forever" in by_name(result)["partition of refine"]["consequence"]


def test_jobs_without_a_time_get_the_partition_s_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def partition(default_time: str) -> slurm_commands.Partition:
        return slurm_commands.Partition(
            "short", "UP", 1, "08:00:00", default_time, True, False, (), ()
        )

    monkeypatch.setattr(slurm_commands, "why_unavailable", str)
    monkeypatch.setattr(slurm_commands, "run_command", lambda *_: "ClusterName = x\n")
    for default_time, verdict in (("00:05:00", "warning"), ("01:00:00", "ok")):
        known = [partition(default_time)]
        monkeypatch.setattr(slurm_commands, "read_partitions", lambda known=known: known)
        found = {each.check: each for each in examine_site(Site(name="x"), tmp_path, [])}
        refine = found["partition of refine"]
        assert refine.verdict == verdict
        assert f"jobs may run for {default_time}, the partition's default" in refine.consequence
        assert found["partition of control"].consequence == "jobs may run for 00:30:00"


def test_models_must_be_whole(tmp_path: Path) -> None:
    whole, broken = save_llama(tmp_path / "whole"), save_llama(tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    site = Site(name="here", kind="local")
    verdicts = {
        finding.check: finding.verdict
        for finding in examine_site(site, tmp_path, [(str(whole), "doc"), (str(broken), "chunk")])
    }
    assert verdicts[f"model {whole}"] == "ok"
    assert verdicts[f"model {broken}"] == "error"


def test_a_model_is_checked_once_and_the_embedded_one_at_each_level(tmp_path: Path) -> None:
    model = str(save_llama(tmp_path / "model"))
    models: list[tuple[str, Level]] = [(model, "doc"), (model, "chunk")]
    models += [("embedded", "doc"), ("embedded", "chunk")]
    checks = [each.check for each in examine_site(Site(name="x", kind="local"), tmp_path, models)]
    named = [check for check in checks if check.startswith("model ")]
    assert named == [f"model {model}", "model embedded (doc)", "model embedded (chunk)"]


def test_a_folder_without_write_permission(tmp_path: Path) -> None:
    if os.getuid() == 0:
        folder = Path("/proc/self")
    else:
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o500)
    findings = examine_site(Site(name="x", kind="local"), folder, [])
    verdicts = {finding.check: finding.verdict for finding in findings}
    assert verdicts["run directory"] == "error"


def test_untrusted_text_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    findings = (Finding.error("a\x1b[2J", "b[red]", "c"),)
    diagnosis = Diagnosis(site="x", launch_would_work=False, findings=findings)
    make_console().print(render_diagnosis(diagnosis))
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown
    assert r"a\x1b[2J" in shown
    assert "b[red]" in shown
    assert "would not work: 1 to fix" in shown


def test_a_cluster_without_arrays_gets_plain_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_command(*command: str) -> str:
        return "MaxArraySize = 0\n" if command[0] == "scontrol" else ""

    monkeypatch.setattr(slurm_commands, "why_unavailable", str)
    monkeypatch.setattr(slurm_commands, "run_command", run_command)
    monkeypatch.setattr(slurm_commands, "check_script", lambda _: "Job 1 to start at noon")
    site = Site(name="x", kind="slurm", workers=3)
    findings = {finding.check: finding for finding in examine_site(site, tmp_path, [])}
    assert findings["MaxArraySize"] == Finding.warning(
        "MaxArraySize",
        "0",
        "the cluster does not support job arrays: workers are submitted as 3 jobs",
    )
    assert "error" not in {finding.verdict for finding in findings.values()}
    run = planned(tmp_path)
    backend = SlurmBackend(run.dir, run.plan, site, Queue())
    batch = TaskBatch("refine", print, [(1,), (2,), (3,)], {})
    arrays = [array.arguments for array in backend._split_into_arrays(batch)]
    assert arrays == [[(1,)], [(2,)], [(3,)]]

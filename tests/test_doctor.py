"""What a site is told before anything is launched on it."""

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

from proxhpc.doctor import Finding, examine_site, render_findings
from proxhpc.spec.site import Site
from proxhpc.status.terminal import make_console
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
    return {finding["what"]: finding for finding in result["findings"]}


def test_a_site_that_works(slurm: SlurmCluster, tmp_path: Path) -> None:
    where = site_file(tmp_path, partition="main", time="00:10:00")
    code, result = doctor(where, "--run", str(tmp_path / "run"), env=slurm.env())
    assert (code, result["launch_would_work"]) == (0, True)
    found = by_name(result)
    assert found["MaxArraySize"]["found"] == str(slurm.spec.max_array_size)
    answers = "answers" if slurm.spec.accounting else "does not answer"
    assert found["sacct"]["found"].startswith(answers)
    assert found["KillWait"]["verdict"] == "note"  # five seconds
    assert " to start at " in found["sbatch --test-only"]["found"]
    assert found["exclusive create, by link"]["found"] == "works"
    assert "4 nodes" in found["partition of refine"]["found"]
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
def test_a_site_that_does_not(
    slurm: SlurmCluster, tmp_path: Path, more: dict[str, Any], what: str
) -> None:
    code, result = doctor(site_file(tmp_path, **more), "--run", str(tmp_path), env=slurm.env())
    assert (code, result["launch_would_work"]) == (2, False)
    assert by_name(result)[what]["verdict"] == "bad"


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


def test_a_poor_site_is_told_what_a_run_does_about_it(poor: SlurmCluster, tmp_path: Path) -> None:
    phases = {"control": {"time": "00:05:00"}}  # half an hour unless told otherwise
    where = site_file(tmp_path, partition="main", workers=7, time="00:05:00", phases=phases)
    code, result = doctor(where, "--run", str(tmp_path), env=poor.env())
    found = by_name(result)
    assert code == 0
    assert found["MaxArraySize"] == {
        "what": "MaxArraySize",
        "found": "3",
        "so": "the workers go in 3 arrays",
        "verdict": "fine",
    }
    assert found["sacct"]["found"].startswith("does not answer")
    assert found["jobs per user"]["found"] == "no limit known"
    where = site_file(tmp_path, partition="main", time="01:00:00")
    code, result = doctor(where, "--run", str(tmp_path), env=poor.env())
    assert code == 2
    assert "would let it wait for ever" in by_name(result)["partition of refine"]["so"]


def test_models_must_be_whole(tmp_path: Path) -> None:
    whole, broken = save_llama(tmp_path / "whole"), save_llama(tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    site = Site(name="here", kind="local")
    verdicts = {
        finding.what: finding.verdict
        for finding in examine_site(site, tmp_path, [str(whole), str(broken)])
    }
    assert verdicts[f"model {whole}"] == "fine"
    assert verdicts[f"model {broken}"] == "bad"


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    if os.getuid() == 0:
        place = Path("/proc/self")
    else:
        place = tmp_path / "closed"
        place.mkdir(mode=0o500)
    found = {
        finding.what: finding for finding in examine_site(Site(name="x", kind="local"), place, [])
    }
    assert found["run directory"].verdict == "bad"


def test_strangers_text_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    make_console().print(render_findings([Finding("a\x1b[2J", "b[red]", "c", "bad")]))
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown
    assert r"a\x1b[2J" in shown
    assert "b[red]" in shown
    assert "would not work: 1 to mend" in shown

"""`proxhpc init`: copies of shipped files, and a site from what Slurm says and accepts."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from proxhpc.cli.main import main
from proxhpc.cluster import slurm as slurm_commands
from proxhpc.errors import RetryError
from proxhpc.init import site as init_site
from proxhpc.launch.launch import prepare_run
from proxhpc.spec.manifest import load_manifest
from proxhpc.spec.site import Site, load_site
from runs import document, manifest, write_jsonl
from slurm_cluster import SlurmCluster

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_copy_can_be_changed_and_is_found_by_its_name(folder: Path, capsys: Capture) -> None:
    assert main(["init", "manifest", "fineweb"]) == 0
    assert "set these variables, or write values in their place: FINEWEB_DIR" in (
        capsys.readouterr().out
    )
    copy = folder / "fineweb.yaml"
    assert "schema.json" not in copy.read_text()
    copy.write_text(copy.read_text().replace("${FINEWEB_DIR}", "mine"))
    manifest = load_manifest(Path("fineweb"), {})
    assert manifest.corpus.paths == (f"{folder}/mine/data/*/*.parquet",)
    assert manifest.run_dir == folder / "runs" / "fineweb"


def test_nothing_is_overwritten(folder: Path, capsys: Capture) -> None:
    (folder / "site.yaml").write_text("mine")
    assert main(["init", "site"]) == 2
    assert main(["init", "recipe", "base", "site.yaml"]) == 2
    assert (folder / "site.yaml").read_text() == "mine"
    assert capsys.readouterr().err.count("site.yaml exists") == 2


def test_a_name_that_is_not_shipped(capsys: Capture) -> None:
    assert main(["init", "sbatch", "refin"]) == 2
    error = capsys.readouterr().err
    assert 'no sbatch named "refin" comes with proxhpc; did you mean "refine"?' in error
    assert "there are: merge, refine" in error


def test_without_slurm_the_site_is_for_this_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["init", "site", "here.yaml"]) == 0
    assert "proxhpc doctor here.yaml" in capsys.readouterr().out
    assert (
        Path("here.yaml").read_text().startswith("# This machine has no Slurm (no sbatch on PATH)")
    )
    assert load_site("here.yaml").kind == "local"


# What Slurm 22.05 prints without slurm.conf, with a path to none, and while slurmctld is down.
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("scontrol: fatal: Could not establish a configuration source", "local"),
        ("scontrol: fatal: Unable to process configuration file", "local"),
        ("scontrol: error: no route to vm", "slurm"),
    ],
)
def test_slurm_s_commands_alone_are_no_cluster(
    answer: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for name in ("sbatch", "scontrol"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{answer}' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    path = manifest(tmp_path, [write_jsonl(tmp_path / "in.jsonl", [document(1)])])
    run = prepare_run(path, None, None, freeze=False)
    assert (run.site.name, run.site.kind) == ("auto", kind)
    if kind == "local":
        assert main(["launch", str(path)]) == 0
        reason = "workers are processes of this machine: sbatch is installed, but no cluster is"
        assert reason in capsys.readouterr().out


def test_a_site_of_a_real_cluster_works(slurm: SlurmCluster, folder: Path) -> None:
    proxhpc = [sys.executable, "-m", "proxhpc"]
    subprocess.run([*proxhpc, "init", "site"], env=slurm.env(), check=True)
    site = load_site("./site.yaml")
    assert (site.name, site.kind, site.partition) == ("proxhpc", "slurm", "main")
    assert site.resources("refine").seconds == 8 * 3600
    text = Path("site.yaml").read_text()
    assert "#   main: 4 nodes (2 CPUs, 6,000 MB, no GPU), at most UNLIMITED: accepted" in text
    assert "#   whole: 4 nodes" in text
    assert "DefMemPerCPU=3000 (MB)" in text
    if slurm.spec.accounting:
        assert site.account == slurm.run("whoami").stdout.strip()
    else:
        assert "# could not be read: account" in text
    doctor = [*proxhpc, "doctor", "site.yaml", "--run", str(folder / "run")]
    done = subprocess.run(doctor, env=slurm.env(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "a launch would work" in done.stdout


CONFIG = "ClusterName = big iron\nSelectTypeParameters = CR_CPU\nMaxArraySize = 1001\n"
PARTITIONS = """\
PartitionName=cpu Default=YES DefaultTime=01:00:00 MaxTime=2-00:00:00 State=UP TotalNodes=99 \
OverSubscribe=NO DefMemPerCPU=3000 MaxMemPerNode=UNLIMITED
PartitionName=a100 Default=NO DefaultTime=NONE MaxTime=04:00:00 State=UP TotalNodes=4 \
OverSubscribe=NO JobDefaults=DefMemPerGPU=60000
PartitionName=boost Default=NO DefaultTime=NONE MaxTime=1-00:00:00 State=UP TotalNodes=2 \
OverSubscribe=EXCLUSIVE
PartitionName=old Default=NO DefaultTime=NONE MaxTime=UNLIMITED State=DOWN TotalNodes=9
"""
NODES = """\
cpu|99|64|256000|(null)
a100|4|128|1000000|gpu:a100:4(S:0-3),shard:16
boost|2|32+|512000|gpu:4
old|9|8|8000|gpu:2
"""
ACCOUNTS = {"assoc": "climate\nwheat\n", "user": "wheat\n", "qos": ""}


class FakeSlurm:
    """Answers of a cluster that accepts jobs of one account, GPUs only with their type."""

    def __init__(self, **answers: str) -> None:
        self.answers = {"config": CONFIG, "partition": PARTITIONS, "sinfo": NODES} | answers

    def run_command(self, *command: str) -> str:
        key = command[2] if command[0] == "scontrol" else command[0]
        if key == "sacctmgr":
            key = command[4]
        answer = (ACCOUNTS | self.answers)[key]
        if answer == "fails":
            raise RetryError(f"{command[0]} failed: down\nstill")
        return answer

    def check_script(self, script: str) -> str:
        if "account=climate" not in script and "account" in script:
            return "sbatch: error: Invalid account"
        if "gpus-per-node" in script and "partition=a100" in script:
            return "sbatch: error: name the type of GPU"
        if "partition=boost" in script:
            return "sbatch: error: \x1b[2Jclosed for you"
        return "sbatch: Job 7 to start at noon"


def proposed(fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Site]:
    monkeypatch.setattr(slurm_commands, "is_available", lambda: True)
    monkeypatch.setattr(slurm_commands.shutil, "which", lambda name: name)
    monkeypatch.setattr(slurm_commands, "run_command", fake.run_command)
    monkeypatch.setattr(slurm_commands, "check_script", fake.check_script)
    text = init_site.propose_site()
    return text, Site.model_validate(yaml.safe_load(text))


def test_a_site_is_what_slurm_says_and_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    text, site = proposed(FakeSlurm(), monkeypatch)
    refine, merge = site.resources("refine"), site.resources("merge")
    assert site.name == "big-iron"
    assert (refine.account, refine.partition, refine.gres) == ("climate", "a100", "gpu:a100:1")
    assert (refine.time, refine.cpus, refine.mem, refine.workers) == ("04:00:00", 8, None, 16)
    assert (merge.partition, merge.gres, merge.time) == ("cpu", None, "08:00:00")
    assert site.resources("control").partition == "cpu"
    assert "account: climate  # or wheat" in text
    assert "a100: 4 nodes (128 CPUs, 1,000,000 MB, 4 a100), at most 04:00:00: accepted" in text
    assert (
        r"boost: 2 nodes (32 CPUs, 512,000 MB, 4 GPUs), at most 1-00:00:00: sbatch: error: " in text
    )
    assert "\x1b" not in text
    assert "old" not in text
    assert "SelectTypeParameters CR_CPU" in text


def test_each_phase_charges_an_account_of_its_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_script(script: str) -> str:
        account = "wheat" if "partition=cpu" in script else "climate"
        accepted = f"account={account}" in script and "partition=boost" not in script
        return "sbatch: Job 7 to start at noon" if accepted else "sbatch: error: Invalid account"

    fake = FakeSlurm()
    monkeypatch.setattr(fake, "check_script", check_script)
    _, site = proposed(fake, monkeypatch)
    assert site.resources("refine").account == "climate"
    for phase in ("merge", "control"):
        resources = site.resources(phase)
        assert (resources.account, resources.partition) == ("wheat", "cpu")


def test_memory_and_whole_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = CONFIG.replace("CR_CPU", "CR_Core_Memory")
    only = "".join(line for line in PARTITIONS.splitlines(True) if "a100" in line or "Job" in line)
    _, site = proposed(FakeSlurm(config=memory, partition=only), monkeypatch)
    assert site.resources("refine").mem == f"{64 << 10}M"
    only = only.replace("PartitionName=a100", "PartitionName=cpu").replace("=NO", "=EXCLUSIVE")
    _, site = proposed(FakeSlurm(config=memory, partition=only), monkeypatch)
    whole = site.resources("refine")
    assert (whole.exclusive, whole.tasks_per_node, whole.cpus, whole.mem) == (True, 1, 64, "0")


def test_control_jobs_do_not_wait_for_a_whole_node(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeSlurm(config=CONFIG.replace("CR_CPU", "CR_Core_Memory"))
    monkeypatch.setattr(
        fake,
        "check_script",
        lambda script: "no" if "partition=a100" in script else "sbatch: Job 7 to start at noon",
    )
    _, site = proposed(fake, monkeypatch)
    refine, control = site.resources("refine"), site.resources("control")
    assert (refine.partition, refine.mem) == ("boost", "0")
    assert (control.partition, control.mem) == ("cpu", "4G")


def test_workers_fill_nodes_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    only = PARTITIONS.splitlines(keepends=True)[0]
    _, site = proposed(FakeSlurm(partition=only, sinfo="cpu|1|64|256000|(null)\n"), monkeypatch)
    assert (site.workers, site.cpus) == (8, 8)


def test_what_cannot_be_read_is_a_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    text, site = proposed(FakeSlurm(assoc="fails"), monkeypatch)
    assert "(Slurm charges your default one): sacctmgr failed: down still\n" in text
    assert (site.account, site.partition) == (None, "a100")
    text, site = proposed(FakeSlurm(sinfo="fails"), monkeypatch)
    assert "# could not be read: partitions: sinfo failed: down still" in text
    assert site.partition is None
    with pytest.raises(RetryError, match="still\n  run this on a login node"):
        proposed(FakeSlurm(config="fails"), monkeypatch)

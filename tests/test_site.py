"""Sites: the resources of each phase, and what a site may not contain."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxhpc.errors import UserError
from proxhpc.spec.site import Site, load_site
from proxhpc.spec.slurm_notation import (
    MANAGED_SBATCH_OPTIONS,
    format_time,
    min_memory,
    parse_time,
)
from proxhpc.spec.yaml_lines import parse
from runs import schema_tool

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "slurm/sites").glob("*.yaml"))
CLUSTER = """\
name: big
account: me
partition: gpu
time: 08:00:00
cpus: 8
gpus: 2
mem: 64G
workers: 10
setup: [module load cuda]
sbatch: {mail_type: FAIL, nice: 5, get-user-env: true}
"""

Load = Callable[[str], Site]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a site from its text; messages call the file x.yaml."""
    monkeypatch.chdir(tmp_path)

    def from_text(text: str) -> Site:
        Path("x.yaml").write_text(text)
        return load_site("x.yaml", {})

    return from_text


def test_sites_are_shipped_for_the_known_kinds() -> None:
    assert {p.stem for p in SHIPPED} >= {"gpu", "whole-node", "cpu", "local"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_site_is_valid(path: Path) -> None:
    site = load_site(path, {})
    assert site.name == path.stem
    assert site.resources("merge").gpus == 0
    assert path.read_text().startswith("# yaml-language-server: $schema=./schema.json\n")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_site_fits_the_schema(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(parse(path, {}).data, schema_tool().json_schema(Site))


TIMES = {
    "30": 1800,
    "30:15": 1815,
    "04:00:00": 14400,
    "24:00:00": 86400,
    "100:00:00": 360000,
    "1-00": 86400,
    "1-12:30": 131400,
    "2-01:00:05": 176405,
}


@pytest.mark.parametrize("text", TIMES)
def test_time_limits(text: str, load: Load) -> None:
    assert parse_time(text) == TIMES[text]
    site = load(f"name: s\ntime: {text}\n")
    assert site.resources("refine").seconds == TIMES[text]
    assert site.time == format_time(TIMES[text])


@given(st.integers(1, 10**8))
def test_time_limits_round_trip(seconds: int) -> None:
    assert parse_time(format_time(seconds)) == seconds


@pytest.mark.parametrize(
    "text", ["UNLIMITED", "0", "1:2:3:4", "-5", "1d", "1-", "true", "00:00:00"]
)
def test_wrong_time_limits(text: str, load: Load) -> None:
    with pytest.raises(UserError, match=r"x\.yaml:2: time: .* is not a time limit"):
        load(f"name: s\ntime: {text}\n")


def test_refine_uses_the_resources_of_the_site(load: Load) -> None:
    resources = load(CLUSTER).resources("refine")
    assert (resources.account, resources.partition, resources.time) == ("me", "gpu", "08:00:00")
    assert (resources.cpus, resources.gpus, resources.mem, resources.workers) == (8, 2, "64G", 10)
    assert (resources.exclusive, resources.tasks_per_node, resources.jobs) == (False, 1, 10)
    assert resources.setup == ("module load cuda",)
    assert resources.sbatch == {"mail-type": "FAIL", "nice": 5, "get-user-env": True}


def test_cpu_phases_request_no_gpus(load: Load) -> None:
    site = load(CLUSTER + "exclusive: true\ntasks_per_node: 4\n")
    merge, control = site.resources("merge"), site.resources("control")
    for resources in (merge, control):
        assert (resources.gpus, resources.gres, resources.exclusive, resources.tasks_per_node) == (
            0,
            None,
            False,
            1,
        )
        assert (resources.account, resources.partition, resources.workers) == ("me", "gpu", 1)
    assert (merge.cpus, merge.mem, merge.seconds) == (8, "64G", 28800)
    assert (control.cpus, control.mem, control.seconds) == (1, "4G", 1800)
    assert site.resources("refine").jobs == 3


def test_workers_that_share_a_gpu_take_part_of_the_gpus_of_their_node(load: Load) -> None:
    site = load("name: s\ngpus: 1\ntasks_per_node: 8\nworkers_per_gpu: 2\nworkers: 16\n")
    refine, train = site.resources("refine"), site.resources("train")
    assert (refine.gpus_per_node, refine.jobs) == (4, 2)
    assert (train.tasks_per_node, train.gpus_per_node) == (4, 4), "its processes share none"
    assert site.resources("merge").workers_per_gpu == 1
    for keys, problem in (
        ("workers_per_gpu: 2\n", "workers_per_gpu: needs gpus: 1, or gres"),
        ("gpus: 1\nworkers_per_gpu: 2\n", "tasks_per_node: must be a multiple"),
    ):
        with pytest.raises(UserError, match=problem):
            load(f"name: s\n{keys}")


def test_phases_override_the_site(load: Load) -> None:
    site = load(
        CLUSTER
        + """\
phases:
  refine: {workers: 3, gres: "gpu:a100:1"}
  merge: {partition: cpu, gpus: 1, setup: [], sbatch: {nice: null, mail-user: me}}
  control: {mem: 1G, time: 5, exclusive: true}
"""
    )
    refine, merge, control = (site.resources(p) for p in ("refine", "merge", "control"))  # type: ignore[arg-type]
    assert (refine.workers, refine.gres, refine.gpus) == (3, "gpu:a100:1", 0)
    assert (merge.partition, merge.gpus, merge.setup) == ("cpu", 1, ())
    assert merge.sbatch == {"mail-type": "FAIL", "get-user-env": True, "mail-user": "me"}
    assert (control.mem, control.seconds, control.exclusive) == ("1G", 300, True)


def test_gpus_of_a_phase_replace_the_gres_of_the_site(load: Load) -> None:
    site = load('name: s\ngres: "gpu:1"\nphases: {refine: {gpus: 4}}\n')
    assert (site.resources("refine").gpus, site.resources("refine").gres) == (4, None)


@pytest.mark.parametrize(
    ("memory", "control"), [("2G", "2G"), ("64G", "4G"), ("4000", "4000"), ("0", "0")]
)
def test_control_requests_no_more_memory_than_the_site(
    memory: str, control: str, load: Load
) -> None:
    assert load(f"name: s\nmem: {memory}\n").resources("control").mem == control
    assert min_memory(memory, "4G") == control


def test_json_round_trip(load: Load) -> None:
    for site in (load(CLUSTER), *(load_site(p, {}) for p in SHIPPED)):
        assert Site.model_validate_json(site.model_dump_json()) == site


@pytest.mark.parametrize("option", sorted(MANAGED_SBATCH_OPTIONS))
@pytest.mark.parametrize("form", ["{}", "--{}"])
def test_managed_options_are_refused_by_name(option: str, form: str, load: Load) -> None:
    with pytest.raises(UserError) as caught:
        load(f'name: s\nsbatch:\n  "{form.format(option)}": x\n')
    expected = f"sbatch.{option}: not allowed here: {MANAGED_SBATCH_OPTIONS[option]}"
    assert expected in caught.value.message
    load(f'name: s\nsbatch:\n  "x{option}": x\n')


GOLDEN = {
    "several": (
        """\
name: s
workers: 0
mem: 32GB
phases: {control: {workers: 2}, refin: {}}
gpus: true
account: 123
""",
        """\
x.yaml:2: workers: must be greater than 0, not 0
x.yaml:3: mem: "32GB" is not a memory size like 32G (units: K, M, G, T)
x.yaml:4: phases.control.workers: unknown key; did you mean "phases.refine.workers"? (keys here: \
account, constraint, container, cpus, exclusive, gpus, gres, mem, partition, qos, reservation, \
sbatch, setup, tasks_per_node, time, time_min)
x.yaml:4: phases.refin: unknown key; did you mean "refine"? (keys here: control, merge, refine, \
train)
x.yaml:5: gpus: must be a whole number, not true
x.yaml:6: account: must be text, not 123; put it in quotes""",
    ),
    "both": ("name: s\ngpus: 1\ngres: gpu:1\n", "x.yaml:3: gres: give either gpus or gres"),
    "short": (
        "name: s\nsbatch: {p: x}\n",
        "x.yaml:2: sbatch.p: use the option's long name, like mail-type",
    ),
    "twice": (
        "name: s\nsbatch: {mail-type: x, mail_type: y}\n",
        "x.yaml:2: sbatch: an option is given twice, once with dashes and once with underscores",
    ),
    "lines": (
        'name: s\nsbatch: {mail-user: "a\\n#SBATCH --array=1"}\n',
        'x.yaml:2: sbatch.mail-user: must be one line, not "a\\n#SBATCH --array=1"',
    ),
    "local": (
        "name: s\nkind: local\npartition: gpu\nphases: {merge: {time: 10, sbatch: {nice: 1}}}\n",
        """\
x.yaml:3: partition: only with kind: slurm
x.yaml:4: phases.merge.time: only with kind: slurm
x.yaml:4: phases.merge.sbatch: only with kind: slurm""",
    ),
    "name": ("workers: 2\n", "x.yaml:1: name: required, but not given"),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_message(case: str, load: Load) -> None:
    text, expected = GOLDEN[case]
    with pytest.raises(UserError) as caught:
        load(text)
    assert caught.value.message == expected


def test_setup_lines_are_left_to_the_shell(load: Load) -> None:
    site = load('name: s\nsetup: ["export A=$HOME/${B}"]\nphases: {merge: {setup: ["echo $$"]}}\n')
    assert site.resources("refine").setup == ("export A=$HOME/${B}",)
    assert site.resources("merge").setup == ("echo $$",)


def test_python_is_relative_to_the_site_and_not_resolved(load: Load, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to("/usr/bin/python3")
    assert load("name: s\npython: bin/python\n").python == str(tmp_path / "bin/python")
    assert load("name: s\npython: python3.11\n").python == "python3.11"


def test_sites_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_site("local", {}).kind == "local"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/local.yaml").write_text("name: mine\n")
    assert load_site("local", {"PROXHPC_SITES": "mine"}).name == "mine"


def test_the_error_for_an_unknown_site_lists_the_known_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_site("whole-nod", {})
    assert caught.value.message == 'no site named "whole-nod"; did you mean "whole-node"?'
    assert "apptainer, cpu, gpu, local, pyxis, whole-node" in caught.value.hint


def test_batch_scripts_of_the_sites_equal_the_golden_files() -> None:
    """`python tools/write_goldens.py` updates them."""
    tool = Path(__file__).parent.parent / "tools" / "write_goldens.py"
    done = subprocess.run(
        [sys.executable, tool, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

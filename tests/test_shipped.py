"""Manifests, sites and recipes that come with proxhpc are found by name, from any folder."""

from pathlib import Path

import pytest

from proxhpc.cli.main import main
from proxhpc.errors import UserError
from proxhpc.launch.launch import prepare_run
from proxhpc.spec.manifest import load_manifest
from proxhpc.spec.shipped import find_file, shipped_files, shipped_folder
from proxhpc.spec.site import load_site
from runs import manifest, planned, write_jsonl

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.delenv("PROXHPC_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_paths_in_a_shipped_manifest_start_at_the_current_folder(folder: Path) -> None:
    for given in ("fineweb", shipped_folder() / "manifests" / "fineweb.yaml"):
        found = load_manifest(Path(given), {"FINEWEB_DIR": "data"})
        assert found.run_dir == folder / "runs" / "fineweb"
        assert found.corpus.paths == (f"{folder}/data/data/*/*.parquet",)
    image = load_site("apptainer", {"PROXHPC_IMAGE": "here.sif"}).resources("refine").container
    assert image is not None
    assert image.image == str(folder / "here.sif")


def test_a_missing_variable_is_named_and_how_to_change_the_file(capsys: Capture) -> None:
    assert main(["plan", "fineweb", "--site", "gpu"]) == 2
    error = capsys.readouterr().err
    assert "fineweb.yaml:9: corpus.paths: the environment variable FINEWEB_DIR is unset" in error
    assert "proxhpc init manifest fineweb" in error


def test_a_file_of_the_current_folder_comes_first(folder: Path) -> None:
    (folder / "fineweb.yaml").touch()
    (folder / "gpu.yaml").touch()
    assert find_file("manifest", "fineweb") == Path("fineweb.yaml")
    assert find_file("site", "gpu", {}) == Path("gpu.yaml")
    (folder / "sites").mkdir()
    (folder / "sites" / "gpu.yaml").touch()
    assert find_file("site", "gpu", {"PROXHPC_SITES": "sites"}) == Path("sites/gpu.yaml")


@pytest.mark.parametrize(
    ("command", "what", "known"),
    [
        (
            ["launch", "finewebb"],
            'no manifest named "finewebb"; did you mean "fineweb"?',
            "teacher",
        ),
        (["plan", "demo", "--site", "gpus"], 'no site named "gpus"; did you mean "gpu"?', "pyxis"),
        (
            ["adapt", "embeded", "--out", "x"],
            'no recipe named "embeded"',
            "base, embedded, embedded-verdicts",
        ),
        (["refine", "--manifest", "x", "y"], 'no manifest named "x"', "demo, demo-rules"),
        (["doctor", "--manifest", "x"], 'no manifest named "x"', "demo, demo-rules"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(
    command: list[str], what: str, known: str, capsys: Capture
) -> None:
    assert main(command) == 2
    error = capsys.readouterr().err
    assert what in error
    assert known in error


def test_a_folder_of_the_same_name_is_no_run_unless_it_is_one(folder: Path) -> None:
    (folder / "demo").mkdir()
    assert prepare_run(Path("demo"), None, None, freeze=False).plan.manifest.name == "demo"
    run = planned(folder / "x").dir
    (folder / "demo").rmdir()
    run.root.rename(folder / "demo")
    assert prepare_run(Path("demo"), None, None, freeze=False).plan.manifest.name == "small"
    (folder / "other").mkdir()
    with pytest.raises(UserError, match=r"is not a run directory: it has no plan\.json"):
        prepare_run(Path("other"), None, None)


def test_the_variable_of_shipped_files_can_be_used_in_any_manifest(folder: Path) -> None:
    path = manifest(folder, [write_jsonl(folder / "a.jsonl", [])])
    path.write_text(path.read_text().replace(str(folder / "a.jsonl"), "${PROXHPC_SHIPPED}/a"))
    assert load_manifest(path, {}).corpus.paths == (f"{shipped_folder()}/a",)
    assert load_manifest(path, {"PROXHPC_SHIPPED": "/x"}).corpus.paths == ("/x/a",)


def test_every_kind_is_shipped() -> None:
    assert {"demo", "fineweb"} <= shipped_files("manifest").keys()
    assert {"gpu", "local"} <= shipped_files("site").keys()
    assert {"base", "embedded", "embedded-verdicts"} == shipped_files("recipe").keys()
    assert {"refine", "merge"} == shipped_files("sbatch").keys()

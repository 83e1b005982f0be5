"""What a launch needs is checked alike by doctor, plan and launch, before anything is written."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from proxhpc import preview
from proxhpc.cli.main import main
from proxhpc.doctor import needs
from proxhpc.engines import device
from proxhpc.extras import how_to_install
from proxhpc.spec.manifest import load_manifest
from proxhpc.spec.site import Site
from runs import document, local_site, manifest, planned, write_jsonl
from tiny_models import save_llama

Capture = pytest.CaptureFixture[str]


def vllm_manifest(folder: Path) -> Path:
    model = save_llama(folder / "model", max_position_embeddings=1024, head_dim=32)
    source = write_jsonl(folder / "in.jsonl", [document(0)])
    stages = [{"level": "chunk", "model": str(model), "prompt": "compact"}]
    return manifest(folder, [source], engine={"name": "vllm"}, stages=stages)


def refused(path: Path, site: str, capsys: Capture) -> str:
    """Check that no command says that a launch would work; return what launch says."""
    where = ["--site", site]
    assert main(["doctor", site, "--manifest", str(path), "--json"]) == 2
    diagnosis = json.loads(capsys.readouterr().out)
    assert not diagnosis["launch_would_work"]
    wrong = [found for found in diagnosis["findings"] if found["verdict"] == "error"]
    assert main(["plan", str(path), *where, "--json"]) == 2
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert problems == [f"{found['result']}; {found['consequence']}" for found in wrong]
    assert main(["plan", str(path), *where]) == 2
    assert "a launch would not work: " in capsys.readouterr().out
    assert main(["plan", str(path), *where, "--freeze"]) == 2
    assert main(["launch", str(path), *where]) == 2
    assert not (path.parent / "run").exists()
    return capsys.readouterr().err


def test_a_missing_engine(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(needs, "count_gpus", lambda: 1)
    error = refused(vllm_manifest(tmp_path), local_site(tmp_path), capsys)
    assert "engine vllm needs the package vllm, which is not installed" in error
    assert "pip install 'vllm<0.33,>=" in error
    assert "proxhpc[" not in error


def test_a_vllm_that_is_too_old(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", sys)
    monkeypatch.setattr("proxhpc.engines.vllm_build", lambda: "0.9.1+cpu")
    error = refused(vllm_manifest(tmp_path), local_site(tmp_path), capsys)
    assert "engine vllm needs vllm 0.20 or later; 0.9.1+cpu is installed" in error


def test_no_gpu_for_vllm(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", sys)  # found, whether it is installed or not
    monkeypatch.setattr(needs, "vllm_build", lambda: "0.30.0")
    monkeypatch.setattr(needs, "count_gpus", lambda: 0)
    error = refused(vllm_manifest(tmp_path), local_site(tmp_path), capsys)
    assert "engine vllm needs a GPU, and this machine has none" in error


def test_no_package_for_parquet(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    source = write_jsonl(tmp_path / "in.jsonl", [document(0)])
    path = manifest(tmp_path, [source], output={"format": "parquet"})
    assert main(["doctor", local_site(tmp_path), "--manifest", str(path)]) == 2
    assert "a launch would not work" in capsys.readouterr().out
    assert main(["launch", str(path), "--site", local_site(tmp_path)]) == 2
    assert how_to_install("parquet") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("site", "build", "verdict"),
    [
        ({"gpus": 1}, "0.30.0", "ok"),
        ({"gres": "gpu:a100:1"}, "0.30.0", "ok"),
        ({"sbatch": {"gpus-per-socket": 1}}, "0.30.0", "ok"),
        ({"exclusive": True}, "0.30.0", "warning"),
        ({"gres": "shard:1"}, "0.30.0", "error"),
        ({}, "0.30.0", "error"),
        ({}, "0.30.0+cpu", "ok"),
        ({"container": {"kind": "apptainer", "image": "/x.sif"}}, "0.30.0+cpu", "error"),
        ({"gpus": 1, "phases": {"refine": {"gpus": 0}}}, "0.30.0", "error"),
    ],
)
def test_gpus_of_a_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: dict[str, Any], build: str, verdict: str
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", sys)
    monkeypatch.setattr(needs, "vllm_build", lambda: build)
    found = needs.examine_needs(
        load_manifest(vllm_manifest(tmp_path)), Site.model_validate({"name": "x"} | site)
    )
    assert {each.check: each.verdict for each in found}["GPUs for vllm"] == verdict


def test_heads_that_vllm_lacks_on_a_cpu(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", sys)
    monkeypatch.setattr(needs, "vllm_build", lambda: "0.30.0+cpu")
    path = vllm_manifest(tmp_path)
    assert main(["plan", str(path), "--site", local_site(tmp_path)]) == 0
    capsys.readouterr()
    save_llama(tmp_path / "model", max_position_embeddings=1024)
    error = refused(path, local_site(tmp_path), capsys)
    assert "has attention heads of size 8, and vllm on a CPU only has 32, 48, 64" in error
    assert "use `engine: {name: transformers}`" in error


@pytest.mark.parametrize(
    ("engine", "option", "hint"),
    [
        ("transformers", "device_map", "takes attn_implementation"),
        ("vllm", "enforce_eagr", "did you mean 'enforce_eager'?"),
    ],
)
def test_an_unknown_option_of_an_engine_is_refused_before_it_starts(
    tmp_path: Path, engine: str, option: str, hint: str
) -> None:
    if engine == "vllm":
        pytest.importorskip("vllm.version")
    path = vllm_manifest(tmp_path)
    text = path.read_text()
    path.write_text(text.replace("name: vllm", f"name: {engine}\n  options: {{{option}: true}}"))
    (found, *_) = needs.examine_needs(load_manifest(path), Site(name="x", kind="local"))
    assert (found.verdict, found.check) == ("error", "engine.options")
    assert f"{option!r} is unknown to {engine}" in found.result
    assert hint in found.consequence


def test_another_python_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    checked = load_manifest(vllm_manifest(tmp_path))
    site = Site(name="x", python="/opt/python", gpus=1)
    assert {each.verdict for each in needs.examine_needs(checked, site)} == {"ok", "warning"}


def test_a_refined_run_needs_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from proxhpc.cluster import tasks
    from proxhpc.launch import launch

    run = planned(tmp_path, 6).dir
    tasks.refine_task(str(run.root), 0, 1)

    def refuse(*_: object) -> None:
        raise AssertionError("checked")

    monkeypatch.setattr(launch, "require_needs", refuse)
    assert main(["launch", str(run.root)]) == 0
    assert run.report_json.exists()


def test_doctor_looks_for_the_inputs_and_takes_the_manifest_s_site(
    tmp_path: Path, capsys: Capture
) -> None:
    path = manifest(tmp_path, [tmp_path / "none.jsonl"], site=local_site(tmp_path))
    assert main(["doctor", "--manifest", str(path), "--json"]) == 2
    diagnosis = json.loads(capsys.readouterr().out)
    assert diagnosis["site"] == "here"
    findings = {found["check"]: found["result"] for found in diagnosis["findings"]}
    assert "no file matches" in findings["inputs"]


@pytest.mark.parametrize(("gpus", "engine"), [(0, "transformers"), (1, "vllm")])
def test_refine_takes_vllm_only_with_a_gpu(
    monkeypatch: pytest.MonkeyPatch, gpus: int, engine: str
) -> None:
    monkeypatch.setattr(preview, "is_installed", lambda _: True)
    monkeypatch.setattr(preview, "count_gpus", lambda: gpus)
    assert preview.RefinerChoice(model="org/name").open().engine.name == engine
    assert preview.RefinerChoice(model="embedded").open().engine.name == "transformers"


def test_gpus_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "AMD_DEVICE", tmp_path / "kfd")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device.count_gpus() == 0
    (tmp_path / "kfd").touch()
    assert device.count_gpus() == 1
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: A100 (UUID: GPU-1)'\necho 'GPU 1: A100'\n")
    program.chmod(0o755)
    assert device.count_gpus() == 2


@pytest.mark.parametrize("extra", ["vllm", "transformers", "parquet"])
def test_hints_name_packages_and_not_this_one(extra: str) -> None:
    command = how_to_install(extra)
    assert command.startswith("pip install '")
    assert "proxhpc" not in command

"""Plans: runs of other versions are refused."""

from collections.abc import Callable
from pathlib import Path
from threading import Barrier
from typing import Any

import orjson
import pytest

from proxhpc import __version__
from proxhpc.cli.main import main
from proxhpc.corpus.inputs import InputInfo
from proxhpc.errors import StopError, UserError
from proxhpc.launch.launch import prepare_run
from proxhpc.run import plan as plan_module
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from runs import document, local_site, manifest, planned, write_jsonl

Harm = Callable[[dict[str, object]], object]


def edit_plan(tmp_path: Path, harm: Harm) -> Path:
    """Plan a run, change its plan.json, and return the run directory."""
    run = planned(tmp_path, 3).dir
    data = orjson.loads(run.plan.read_bytes())
    harm(data)
    run.plan.write_bytes(orjson.dumps(data))
    return run.root


@pytest.mark.parametrize(
    "verb", ["status", "verify", "report", "inspect", "merge", "worker", "launch"]
)
def test_a_run_of_version_0_1_is_refused(
    tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = edit_plan(tmp_path, lambda data: data.update(version=2, code="0.1.0"))
    arguments = {
        "launch": [str(tmp_path / "manifest.yaml"), "--site", local_site(tmp_path)],
        "inspect": [str(root), "doc-1"],
    }
    assert main([verb, *arguments.get(verb, [str(root)])]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"proxhpc: {root} was planned by proxhpc 0.1.0; this is proxhpc {__version__} and cannot "
        "resume it. Use 0.1.0 to finish that run, or choose another run_dir."
    ]


def test_a_run_of_another_build_of_this_version_is_refused(tmp_path: Path) -> None:
    root = edit_plan(tmp_path, lambda data: data.update(version=2))
    with pytest.raises(UserError, match=f"by another build of proxhpc {__version__}; this one can"):
        Plan.load(RunDir(root))


@pytest.mark.parametrize("key", ["version", "code", "shards"])
def test_a_plan_without_a_key_is_damaged(tmp_path: Path, key: str) -> None:
    root = edit_plan(tmp_path, lambda data: data.pop(key))
    with pytest.raises(StopError, match=r"plan\.json is damaged"):
        Plan.load(RunDir(root))


def test_files_without_the_text_field_are_named_with_their_fields(tmp_path: Path) -> None:
    good = [write_jsonl(tmp_path / f"{n}.jsonl", [document(n)]) for n in range(3)]
    bad = [write_jsonl(tmp_path / f"forum{n}.jsonl", [{"id": n, "content": "a"}]) for n in range(5)]
    with pytest.raises(UserError) as caught:
        prepare_run(manifest(tmp_path, [*good, *bad]), None, None)
    assert "forum0.jsonl, record at 0: missing_text: no field 'text'; it has: id, content" in (
        caught.value.message
    )
    assert caught.value.message.endswith("and 2 more files")
    assert caught.value.hint.startswith("other files have one: list the fields of all files in")
    both = {"paths": [*map(str, good), *map(str, bad)], "text": ["text", "content"]}
    planned = prepare_run(manifest(tmp_path, [], corpus=both), None, None, freeze=False)
    assert len(planned.plan.inputs) == 8
    with pytest.raises(UserError) as caught:
        prepare_run(manifest(tmp_path, bad[:1]), None, None)
    assert caught.value.hint.startswith("set corpus.text to the field with the text")
    assert not (tmp_path / "run").exists()


def test_files_are_described_several_at_a_time_in_order_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_jsonl(tmp_path / f"{n}.jsonl", [document(n)]) for n in range(6)]
    meeting, told = Barrier(3, timeout=60), list[str]()
    describe_input = plan_module.describe_input

    def describe(*arguments: Any, **options: Any) -> InputInfo:
        meeting.wait()  # until three files are looked at
        return describe_input(*arguments, **options)

    monkeypatch.setattr(plan_module, "describe_input", describe)
    run = prepare_run(manifest(tmp_path, paths), None, None, freeze=False, report=told.append)
    assert [info.path for info in run.plan.inputs] == paths
    assert told == [
        *(f"reading the inputs: {n} of 6 files" for n in range(1, 7)),
        "reading the first records of 6 files",
    ]

"""Launching from the command line: whole local runs, and one-line errors."""

import bz2
import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
import yaml
import zstandard
from rich.console import Console

from merging import plan_of_one
from proxhpc.assemble.merge import describe_missing_files
from proxhpc.cli.main import main
from proxhpc.cluster.backend import TaskBatch, record_intent
from proxhpc.cluster.journal import Journal
from proxhpc.cluster.submit import make_backend
from proxhpc.corpus.disk import draft_path
from proxhpc.corpus.inputs import InputInfo
from proxhpc.errors import StopError, UserError
from proxhpc.launch.launch import prepare_run
from proxhpc.launch.step import Round
from proxhpc.plan.estimate import estimate_run
from proxhpc.plan.view import render_estimate
from proxhpc.run.lease import LeaseOwner
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan, check_new, check_outside, split_into_shards
from proxhpc.run.progress import ProgressLog
from proxhpc.status.heartbeats import latest_heartbeats
from proxhpc.worker.leaser import first_shard
from runs import document, local_site, manifest, planned, write_jsonl

PROXHPC = [sys.executable, "-m", "proxhpc"]


def proxhpc(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROXHPC, *(str(a) for a in arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | environment,
    )


def launch(path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return proxhpc("launch", path, "--site", local_site(folder))


def is_whole(run: RunDir) -> bool:
    return run.merge_summary.exists() and describe_missing_files(run) == ""


def corpus(run: RunDir) -> list[dict[str, object]]:
    rows = []
    for path in sorted(run.corpus.glob("part-*")):
        with zstandard.open(path, "rb") as file:
            rows += [json.loads(line) for line in file.read().splitlines()]
    return rows


def test_one_command_from_raw_text_to_corpus_and_report(tmp_path: Path) -> None:
    rows = [document(n) for n in range(40)] + [document(7, id="copy")]
    path = manifest(tmp_path, [write_jsonl(tmp_path / "in.jsonl.zst", rows)])
    done = launch(path, tmp_path)
    assert done.returncode == 0, done.stderr
    run = RunDir(tmp_path / "run")
    out = corpus(run)
    assert [row["id"] for row in out] == [f"doc-{n}" for n in range(40)]
    assert all("Home | About" not in str(row["text"]) for row in out)
    assert out[3]["url"] == "http://example.org/3"
    report = json.loads(run.report_json.read_bytes())
    assert report["documents"] == report["documents"] | {"read": 41, "duplicates": 1, "written": 40}
    for shown in (done.stdout, launch(path, tmp_path).stdout):
        summary = shown.partition("small finished: ")[2].splitlines()
        assert summary[-1].split()[:2] == ["proxhpc", "review"]
        assert len(summary) <= 10
        assert "before and after" not in shown


def test_bad_records_are_quarantined_and_counted(tmp_path: Path) -> None:
    rows: list[object] = [
        document(0),
        b'{"id": "broken", "text": ',
        b'{"id": "latin", "text": "caf\xe9"}',
        {"id": "null", "text": None},
        {"id": "missing"},
        b'{"id": "long", "text": "' + b"x" * 50_000_000 + b'"}',
        document(1),
        document(2, id="doc-1"),
    ]
    files = [
        write_jsonl(tmp_path / "a.jsonl", rows),
        write_jsonl(tmp_path / "b.jsonl.zst", [document(n) for n in range(10, 2000)]),
        tmp_path / "c.jsonl",
    ]
    files[1].write_bytes(files[1].read_bytes()[:-20])
    files[2].touch()
    done = launch(manifest(tmp_path, files, sharding={"tokens": 20_000_000}), tmp_path)
    assert done.returncode == 0, done.stderr
    run = RunDir(tmp_path / "run")
    report = json.loads(run.report_json.read_bytes())
    reasons = ("invalid_json", "invalid_utf8", "null_text", "missing_text", "record_too_long")
    totals = report["documents"]
    assert totals["quarantined"] == dict.fromkeys(sorted([*reasons, "truncated_input"]), 1)
    assert report["shared_ids"] == 1
    assert totals["read"] == totals["written"] + 6
    assert {"doc-0", "doc-1", "doc-10"} <= {row["id"] for row in corpus(run)}
    with zstandard.open(run.quarantine, "rb") as file:
        listed = [json.loads(line) for line in file.read().splitlines()]
    assert [row["reason"] for row in listed] == [*reasons, "truncated_input"]
    assert "quarantined" in done.stdout


def test_a_changed_manifest_is_refused_with_the_keys(tmp_path: Path) -> None:
    path = manifest(tmp_path, [write_jsonl(tmp_path / "in.jsonl", [document(1)])])
    assert launch(path, tmp_path).returncode == 0
    data = yaml.safe_load(path.read_text())
    data["commit"] = {"documents": 5}
    path.write_text(yaml.safe_dump(data))
    done = launch(path, tmp_path)
    assert done.returncode == 2
    assert "commit.documents" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"corpus": {"paths": "nowhere/*.zst"}}, "no file matches"),
        ({"corpus": {"txt": "body"}}, 'did you mean "text"'),
        (
            {
                "engine": {"name": "transformers"},
                "stages": [{"level": "doc", "model": "./no-model"}],
            },
            "no-model",
        ),
        ({"run_dir": "/proc/nowhere"}, "/proc/nowhere"),
    ],
    ids=["missing files", "unknown key", "missing model", "unwritable run directory"],
)
def test_a_mistake_in_the_manifest_is_one_line(
    tmp_path: Path, sections: dict[str, object], message: str
) -> None:
    path = manifest(tmp_path, [write_jsonl(tmp_path / "in.jsonl", [document(1)])], **sections)
    done = launch(path, tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3


def test_an_unreadable_model_directory_is_named(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{broken")
    path = manifest(
        tmp_path,
        [write_jsonl(tmp_path / "in.jsonl", [document(1)])],
        engine={"name": "transformers"},
        stages=[{"level": "doc", "model": str(model)}],
    )
    done = launch(path, tmp_path)
    assert done.returncode == 2
    assert "config.json" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_a_full_disk_stops_the_run_and_a_launch_with_more_space_resumes_it() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = folder / "small"
        small.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", small], check=False
        )
        if mounted.returncode:
            pytest.skip("this machine does not let root mount a tmpfs")
        try:
            rows = [document(n, junk=os.urandom(300).hex()) for n in range(600)]
            source = write_jsonl(folder / "in.jsonl", rows)
            path = manifest(folder, [source], run_dir=str(small / "run"))
            done = launch(path, folder)
            assert done.returncode in (4, 75), done.stdout
            assert "disk full" in done.stderr
            assert "Traceback" not in done.stderr
            subprocess.run(["mount", "-o", "remount,size=50m", small], check=True)
            again = launch(path, folder)
            assert again.returncode == 0, again.stderr
            assert len(corpus(RunDir(small / "run"))) == 600
        finally:
            subprocess.run(["umount", small], check=True)


def test_a_run_directory_without_write_permission_is_an_error(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        command = ["setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=-all", *PROXHPC]
    else:
        command = PROXHPC
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        path = manifest(folder, [write_jsonl(folder / "in.jsonl", [document(1)])])
        where = local_site(folder)
        if os.geteuid() != 0:
            folder.chmod(0o555)
        probe = [*command[:-3], sys.executable, "-c", "import proxhpc"]
        if os.geteuid() == 0 and subprocess.run(probe, check=False, capture_output=True).returncode:
            pytest.skip("an ordinary user cannot read this checkout")
        done = subprocess.run(
            [*command, "launch", str(path), "--site", where],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "ermission denied" in done.stderr
        assert "Traceback" not in done.stderr


def test_plan_submits_and_writes_nothing(tmp_path: Path) -> None:
    path = manifest(tmp_path, [write_jsonl(tmp_path / "in.jsonl", [document(n) for n in range(9)])])
    done = proxhpc("plan", path, "--site", local_site(tmp_path), "--json")
    figures = json.loads(done.stdout)
    assert figures["files"] == 1
    assert figures["estimated_work"]["documents"] == 9
    assert figures["cost"]["gpu_hours"] is None
    assert not [key for key in figures if "at_most" in key]
    assert not (tmp_path / "run").exists()
    shown = proxhpc("plan", path, "--site", local_site(tmp_path)).stdout
    assert "shards" in shown
    assert "at most" not in shown


def test_the_estimated_number_of_files_is_about_right(tmp_path: Path) -> None:
    rows = [document(n) for n in range(400)]
    path = manifest(tmp_path, [write_jsonl(tmp_path / "in.jsonl", rows)])
    figures = json.loads(proxhpc("plan", path, "--site", local_site(tmp_path), "--json").stdout)
    assert launch(path, tmp_path).returncode == 0
    files = sum(1 for _ in (tmp_path / "run").rglob("*"))
    assert 0.7 * files < figures["space"][-1]["inodes"] < 1.4 * files


def test_the_estimate_of_model_work_names_what_it_omits(tmp_path: Path) -> None:
    from proxhpc.account.flops import ModelShape
    from proxhpc.run.models import ModelRef

    run = planned(tmp_path)
    shape = ModelShape(8, 2, 4, 2, vocab=100, active=1152, parameters=2792)
    ref = ModelRef.from_dict(
        {"name": "org/m", "path": "/m", "max_model_len": 2048, "snapshot": "a",
         "stop_ids": [], "shape": asdict(shape), "refiner": None}
    )  # fmt: skip
    figures = estimate_run(replace(run.plan, models={"doc": ref}), run.site, run.dir)
    work = figures.estimated_work
    assert work.flops == 2 * shape.paper_parameters * run.plan.estimated_tokens
    assert figures.flops_counted_as is not None
    assert "without prompt frames" in figures.flops_counted_as
    out = io.StringIO()
    Console(file=out, width=200).print(render_estimate(figures))
    assert "of A100 time" in out.getvalue()
    assert "not measured" in out.getvalue()
    assert "without prompt frames" in out.getvalue()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_directory_with_other_files_in_it_is_refused_untouched(tmp_path: Path) -> None:
    raw = write_jsonl(tmp_path / "corpus" / "part-00000.jsonl.zst", [document(1)])
    path = manifest(tmp_path, [raw], run_dir=".")
    before = files_of(tmp_path) | {"site.yaml": Path(local_site(tmp_path)).read_bytes()}
    for verb in ("launch", "plan"):
        done = proxhpc(verb, path, "--site", tmp_path / "site.yaml")
        assert done.returncode == 2
        assert "is not empty and not a run directory" in done.stderr
        assert "--run DIR" in done.stderr
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    "where",
    ["corpus/part-00000.jsonl.zst", "logs/a.jsonl", "merge/sketch/a.jsonl", "manifest.yaml", "x"],
)
def test_a_directory_with_foreign_files_is_refused(tmp_path: Path, where: str) -> None:
    run = RunDir(tmp_path / "run")
    write_jsonl(run.root / where, [document(1)])
    with pytest.raises(UserError, match="is not empty and not a run directory"):
        check_new(run)


def test_a_launch_continues_what_a_killed_launch_left(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    check_new(run)
    for folder in (*run.folders(), run.shard_folder(0)):
        folder.mkdir(parents=True)
    draft_path(run.plan).write_bytes(b"{")
    draft_path(draft_path(run.plan)).write_bytes(b"{")
    check_new(run)
    assert planned(tmp_path).dir.root == run.root


def test_the_first_of_two_plans_wins(tmp_path: Path) -> None:
    run = planned(tmp_path)
    text, manifest_text = run.dir.plan.read_bytes(), run.dir.manifest.read_bytes()
    run.plan.save(run.dir, b"of the loser")
    assert run.dir.plan.read_bytes() == text
    assert run.dir.manifest.read_bytes() == manifest_text


@pytest.mark.parametrize("kind", ["file", "link in", "link out", "linked directory"])
def test_an_input_inside_the_run_directory_is_refused(tmp_path: Path, kind: str) -> None:
    inside, outside = tmp_path / "run" / "logs" / "a.jsonl", tmp_path / "in" / "a.jsonl"
    given = inside if kind == "link out" else outside
    write_jsonl(inside if kind in ("file", "link in") else outside, [document(1)])
    given.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        given = inside
    elif kind == "link in":
        given.symlink_to(inside)
    elif kind == "link out":
        given.symlink_to(outside)
    else:
        (tmp_path / "run").symlink_to(outside.parent)
    with pytest.raises(UserError, match="is inside the run directory"):
        check_outside(RunDir(tmp_path / "run"), [given])


def test_planning_refuses_an_input_inside_the_run_directory(tmp_path: Path) -> None:
    raw = write_jsonl(tmp_path / "run" / ".raw.tmp", [document(1)])  # else taken for a draft
    path = manifest(tmp_path, [raw], corpus={"format": "jsonl"})
    with pytest.raises(UserError, match="is inside the run directory"):
        prepare_run(path, local_site(tmp_path), None, freeze=False)


def test_a_merge_deletes_only_parts(tmp_path: Path) -> None:
    from proxhpc.assemble import merge

    run = RunDir(tmp_path)
    old = ["part-00001.jsonl.zst", ".part-00000.jsonl.zst.00aa.tmp", ".README.md.00aa.tmp"]
    other = ["part-00001.jsonl.bz2", "part-1.jsonl.zst", ".mine.tmp", "part-00000.jsonl.zst"]
    for name in (*old, *other):
        write_jsonl(run.corpus / name, [])
    run.merge.mkdir()
    merge._retract(run, plan_of_one(provenance=True), 1)
    assert sorted(path.name for path in run.corpus.iterdir()) == sorted(other)


def test_a_wrong_text_field_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    rows = [{"content": "a", "\x1b[31murl": "b"} for _ in range(9)]
    path = manifest(tmp_path, [write_jsonl(tmp_path / "in.jsonl.zst", rows)])
    done = launch(path, tmp_path)
    assert done.returncode == 2
    assert "no field 'text'; it has: content" in done.stderr
    assert "set corpus.text" in done.stderr
    assert "\x1b" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_corpus_without_records_is_refused(tmp_path: Path) -> None:
    path = manifest(tmp_path, [write_jsonl(tmp_path / "in.jsonl", [])])
    done = launch(path, tmp_path)
    assert done.returncode == 2
    assert "in.jsonl: the file is empty" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def finished(tmp_path: Path) -> RunDir:
    path = manifest(tmp_path, [write_jsonl(tmp_path / "in.jsonl", [document(n) for n in range(9)])])
    assert launch(path, tmp_path).returncode == 0
    return RunDir(tmp_path / "run")


def test_status_inspect_and_report_of_a_finished_run(finished: RunDir) -> None:
    status = json.loads(proxhpc("status", finished.root, "--json").stdout)
    assert status["phase"] == "finished"
    assert "finished" in proxhpc("status", finished.root).stdout
    shown = proxhpc("inspect", finished.root, "doc-3").stdout
    assert "Home | About" in shown
    assert "remove_lines" in shown
    assert "in the corpus" in proxhpc("report", finished.root).stdout
    missing = proxhpc("inspect", finished.root, "doc-99")
    assert missing.returncode == 2
    assert "Traceback" not in missing.stderr


def test_a_read_only_finished_run_can_be_shown(
    finished: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise UserError(f"no permission to write {path}: Read-only file system")

    for module in ("proxhpc.report", "proxhpc.launch.launch", "proxhpc.run.plan"):
        monkeypatch.setattr(f"{module}.write_atomic", refuse)
    monkeypatch.setattr("proxhpc.launch.launch.advance_lock", refuse)
    assert main(["report", str(finished.root), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == json.loads(finished.report_json.read_bytes())
    assert "the report was not rewritten: no permission" in shown.err
    assert main(["launch", str(finished.root)]) == 0
    assert "finished" in capsys.readouterr().out
    finished.report_json.unlink()
    assert main(["report", str(finished.root)]) == 2


def test_a_missing_part_of_a_finished_corpus_is_written_again(finished: RunDir) -> None:
    before = finished.part(0).read_bytes()
    assert is_whole(finished)
    finished.part(0).unlink()
    assert not is_whole(finished)
    done = proxhpc("launch", finished.root)
    assert done.returncode == 0, done.stderr
    assert "the corpus lacks part-00000.jsonl.zst" in done.stdout
    assert finished.part(0).read_bytes() == before
    assert is_whole(finished)
    assert finished.report_json.exists()


def test_a_run_without_a_recorded_site_uses_the_manifests(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    run = planned(tmp_path, site=local_site(tmp_path / "site", 3))
    run.dir.site.unlink()
    assert prepare_run(run.dir.root, None, None).site.workers == 3
    assert run.dir.site.exists()


def test_a_run_directory_and_run_option_are_refused(tmp_path: Path) -> None:
    run = planned(tmp_path)
    with pytest.raises(UserError, match="--run needs a manifest"):
        prepare_run(run.dir.root, None, tmp_path / "other")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["worker", "RUN", "--of", "0"], "--of 0: it must be 1 or more"),
        (["worker", "RUN", "--number", "-1"], "--number -1: it must be 0 or more"),
        (["merge", "RUN", "--processes", "0"], "--processes 0: it must be 1 or more"),
        (["status", "FILE"], "it has no plan.json"),
    ],
)
def test_an_impossible_argument_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "FILE").touch()
    assert main([str(tmp_path / a) if a.isupper() else a for a in arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_error_of_the_system_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(run: RunDir, **_: object) -> None:
        raise OSError(5, "Input/output error", str(run.root))

    monkeypatch.setattr("proxhpc.status.show_status", fail)
    assert main(["status", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"proxhpc: {tmp_path}: Input/output error\n"
    with pytest.raises(OSError, match="Input/output"):
        main(["--debug", "status", str(tmp_path)])


def test_a_fatal_error_on_one_host_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(tmp_path)
    run.dir.site.write_bytes(orjson.dumps({"name": "here", "kind": "local"}))

    def add(name: str, host: str, state: str, error: Exception | None = None) -> int:
        """Write a worker's state; return how many workers have a fatal error."""
        owner = replace(LeaseOwner.current(), worker=name, host=host)
        ProgressLog(run.dir, owner, "refine").write(state, error)
        return Round(run.dir, run.plan, 3, False).state["fatal_workers"]

    fatal = StopError("input changed")
    assert add("one", "a", "failed", fatal) == 1, "the only host"
    assert add("two", "b", "working") == 0, "one of two hosts: it may be the cause itself"
    assert add("three", "a", "failed", fatal) == 0
    assert add("four", "b", "failed", fatal) == 3, "both hosts"
    assert Round(run.dir, run.plan, 0, False).state["fatal_workers"] == 0  # all is refined


def test_rounds_without_progress_are_delayed_more_and_more(tmp_path: Path) -> None:
    run = planned(tmp_path)
    journal = Journal(run.dir)
    delays = []
    for number in range(5):
        this_round = Round(run.dir, run.plan, 3, number == 0)
        delays.append(this_round.delay_seconds("refine"))
        work = TaskBatch("refine", print, [()], this_round.state)
        record_intent(journal, number, work, arrays=1, has_control_job=True)
    assert delays == [0, 60, 300, 900, 1800]
    assert Round(run.dir, run.plan, 3, True).delay_seconds("refine") == 0, "a person launched"
    backend = make_backend(run.dir, run.plan, run.site)
    with pytest.raises(StopError, match="in a row made no progress"):
        Round(run.dir, run.plan, 3, False).check("refine", backend)


def test_messages_contain_no_control_characters(tmp_path: Path) -> None:
    done = proxhpc("status", tmp_path / "x\x1b]52;c;aGk=\x07")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert "\\x1b]52" in done.stderr


def test_a_second_launch_at_the_same_time_is_refused(tmp_path: Path) -> None:
    run = planned(tmp_path)
    from proxhpc.launch.step import advance_lock

    with advance_lock(run.dir):
        done = launch(tmp_path / "manifest.yaml", tmp_path)
    assert done.returncode == 75
    assert "another launch" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_interrupted_local_launch_leaves_nothing_behind_and_can_be_resumed(
    tmp_path: Path, number: signal.Signals
) -> None:
    rows = [document(n) for n in range(12_000)]
    source = write_jsonl(tmp_path / "in.jsonl.zst", rows)
    path = manifest(tmp_path, [source], sharding={"tokens": 400_000})
    command = [*PROXHPC, "launch", str(path), "--site", local_site(tmp_path)]
    launcher = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    run = RunDir(tmp_path / "run")
    deadline = time.monotonic() + 60
    while not any(beat.counts.documents for beat in latest_heartbeats(run)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(launcher.pid, number)  # as a terminal does
    else:
        launcher.send_signal(number)
    _, stderr = launcher.communicate(timeout=60)
    assert launcher.returncode == 130
    assert stderr == (
        "proxhpc: interrupted; what is committed is kept: "
        f"`proxhpc launch {run.root}` resumes the run\n"
    )
    assert [*run.leases.glob("[!.]*")] == []
    assert not run.report_json.exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(launcher.pid, 0)
    again = launch(path, tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(corpus(run)) == 12_000


def test_shards_cover_the_inputs_in_order(tmp_path: Path) -> None:
    plan = planned(tmp_path, 300).plan
    spans = [span for shard in plan.shards for span in shard.spans]
    by_file = {file: [s for s in spans if s.file == file] for file in range(2)}
    assert [s.file for s in spans] == sorted(s.file for s in spans)
    for file_spans in by_file.values():
        assert file_spans[0].start == 0
        assert file_spans[-1].stop is None
        assert all(a.stop == b.start for a, b in pairwise(file_spans))


def test_small_files_share_a_shard_up_to_a_number_of_files(tmp_path: Path) -> None:
    files = [write_jsonl(tmp_path / f"{n:03}.jsonl", [document(n)]) for n in range(50)]
    run = prepare_run(manifest(tmp_path, files), local_site(tmp_path), None)
    sizes = [len(shard.spans) for shard in run.plan.shards]
    assert sum(sizes) == 50
    assert max(sizes) > 5
    few = [len(shard.spans) for shard in split_into_shards(run.plan.inputs, 10**9, max_files=7)]
    assert few == [7] * 7 + [1]


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = planned(tmp_path)
    assert Plan.load(run.dir) == run.plan
    assert Plan.load(run.dir).digest == run.plan.digest


def test_workers_start_side_by_side_in_a_compressed_file(tmp_path: Path) -> None:
    """Each finds the restart point that the one before it notes."""
    run = planned(tmp_path)
    zipped, plain = (
        replace(run.plan.inputs[0], compression=kind, estimated_bytes=800)
        for kind in ("gzip", "none")
    )
    frame = replace(zipped, enterable=False)

    def starts(inputs: tuple[InputInfo, ...], workers: int) -> list[int]:
        shards = tuple(split_into_shards(inputs, 100, max_files=1))
        plan = replace(run.plan, inputs=inputs, shards=shards)
        return [first_shard(plan, worker, workers) for worker in range(workers)]

    assert starts((zipped,), 4) == [0, 1, 2, 3]
    assert starts((zipped, zipped), 4) == [0, 1, 8, 9]
    assert starts((plain,), 4) == starts((frame,), 4) == [0, 2, 4, 6]
    assert starts((zipped,), 9) == [0, 1, 2, 3, 4, 5, 6, 7, 7]


def test_files_that_can_only_be_read_from_their_start_are_named(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [{"text": f"{rng.randbytes(3000).hex()} is a text, {n}."} for n in range(1500)]
    data = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    frames = [data[at : at + 500_000] for at in range(0, len(data), 500_000)]
    files = {
        "frame.jsonl.zst": zstandard.compress(data),
        "frames.jsonl.zst": b"".join(map(zstandard.compress, frames)),
        "a.jsonl.gz": gzip.compress(data, 1),
        "a.jsonl.bz2": bz2.compress(data),
    }
    for name, packed in files.items():
        (tmp_path / name).write_bytes(packed)
    run = prepare_run(
        manifest(tmp_path, [tmp_path / name for name in files], sharding={"tokens": 250_000}),
        local_site(tmp_path),
        None,
    )
    bz2_note, frame_note = sorted(run.plan.listing_notes)
    assert bz2_note.startswith("a.jsonl.bz2: a process that reads any of its")
    assert frame_note.startswith("frame.jsonl.zst: a process that reads any of its 9 shards")
    assert "it is one zstd frame; compress it with pzstd" in frame_note


def test_spans_behind_a_guessed_length_grow(tmp_path: Path) -> None:
    info = replace(planned(tmp_path).plan.inputs[0], compression="xz", estimated_bytes=1000)
    shards = [*split_into_shards((info,), 500, max_files=1)]
    ends = [(shard.spans[0].start, shard.spans[0].stop) for shard in shards]
    assert ends[:5] == [(0, 500), (500, 1000), (1000, 1500), (1500, 2500), (2500, 4500)]
    assert ends[-1] == (1000 + 500 * 127, None)
    assert sum(shard.estimated_bytes for shard in shards) == 1000

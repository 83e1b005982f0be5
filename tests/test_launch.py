"""Launching from the command line: whole local runs, and one clear line where one goes wrong."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
import zstandard

from proxhpc.plan import Plan, cut
from proxhpc.rundir import RunDir
from proxhpc.status.beats import latest
from runs import document, local_site, manifest, planned, write_jsonl

PROXHPC = [sys.executable, "-m", "proxhpc.cli"]


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
    assert report["documents"] == report["documents"] | {"in": 41, "duplicates": 1, "written": 40}
    again = launch(path, tmp_path)
    assert again.returncode == 0
    assert "finished" in again.stdout


def test_bad_records_are_set_aside_and_counted_and_the_rest_is_the_corpus(tmp_path: Path) -> None:
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
    found = report["documents"]
    assert found["quarantined"] == dict.fromkeys(sorted([*reasons, "truncated_input"]), 1)
    assert found["shared_ids"] == 1
    assert found["in"] == found["written"] + 6
    assert {"doc-0", "doc-1", "doc-10"} <= {row["id"] for row in corpus(run)}
    with zstandard.open(run.quarantine, "rb") as file:
        aside = [json.loads(line) for line in file.read().splitlines()]
    assert [row["reason"] for row in aside] == [*reasons, "truncated_input"]
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
def test_what_is_wrong_is_one_clear_line(
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
def test_a_full_disk_stops_the_run_with_a_reason_and_space_heals_it() -> None:
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
            healed = launch(path, folder)
            assert healed.returncode == 0, healed.stderr
            assert len(corpus(RunDir(small / "run"))) == 600
        finally:
            subprocess.run(["umount", small], check=True)


def test_a_run_without_write_permission_says_so(tmp_path: Path) -> None:
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
    assert figures["estimated_documents"] == 9
    assert figures["a100_hours_at_most"] is None
    assert not (tmp_path / "run").exists()
    shown = proxhpc("plan", path, "--site", local_site(tmp_path)).stdout
    assert "shards" in shown


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
    assert "written" in proxhpc("report", finished.root).stdout
    missing = proxhpc("inspect", finished.root, "doc-99")
    assert missing.returncode == 2
    assert "Traceback" not in missing.stderr


def test_a_second_launch_at_the_same_time_waits_its_turn(tmp_path: Path) -> None:
    run = planned(tmp_path)
    from proxhpc.advance import alone

    with alone(run.dir):
        done = launch(tmp_path / "manifest.yaml", tmp_path)
    assert done.returncode == 75
    assert "another launch" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_local_launch_leaves_nothing_behind_and_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    rows = [document(n) for n in range(12_000)]
    source = write_jsonl(tmp_path / "in.jsonl.zst", rows)
    path = manifest(tmp_path, [source], sharding={"tokens": 400_000})
    command = [*PROXHPC, "launch", str(path), "--site", local_site(tmp_path)]
    launcher = subprocess.Popen(command, start_new_session=True)
    run = RunDir(tmp_path / "run")
    deadline = time.monotonic() + 60
    while not any(beat.counts.documents for beat in latest(run)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(launcher.pid, number)  # as a terminal does
    else:
        launcher.send_signal(number)
    assert launcher.wait(timeout=60) == 130
    assert [*run.leases.glob("[!.]*")] == []
    assert not run.report_json.exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(launcher.pid, 0)
    again = launch(path, tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(corpus(run)) == 12_000


def test_shards_tile_the_inputs_in_order(tmp_path: Path) -> None:
    plan = planned(tmp_path, 300).plan
    spans = [span for shard in plan.shards for span in shard.spans]
    by_file = {file: [s for s in spans if s.file == file] for file in range(2)}
    assert [s.file for s in spans] == sorted(s.file for s in spans)
    for own in by_file.values():
        assert own[0].start == 0
        assert own[-1].stop is None
        assert all(a.stop == b.start for a, b in pairwise(own))


def test_small_files_are_gathered_and_the_number_of_files_is_bounded(tmp_path: Path) -> None:
    files = [write_jsonl(tmp_path / f"{n:03}.jsonl", [document(n)]) for n in range(50)]
    from proxhpc.launch import prepare

    run = prepare(manifest(tmp_path, files), local_site(tmp_path), None)
    sizes = [len(shard.spans) for shard in run.plan.shards]
    assert sum(sizes) == 50
    assert max(sizes) > 5
    few = [len(shard.spans) for shard in cut(run.plan.inputs, 10**9, max_files=7)]
    assert few == [7] * 7 + [1]


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    run = planned(tmp_path)
    assert Plan.load(run.dir) == run.plan
    assert Plan.load(run.dir).digest == run.plan.digest

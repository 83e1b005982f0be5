"""Verification of a run: damaged files are named, repaired and written again."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
import zstandard

from merging import kill_self
from proxhpc import verify as verification
from proxhpc.cli.main import main
from proxhpc.corpus.frames import FrameWriter, read_frames
from proxhpc.errors import RetryError
from proxhpc.run.ledger import CommitHeader, LedgerState, parse_frame
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from runs import document, local_site, manifest, write_jsonl

PROXHPC = [sys.executable, "-m", "proxhpc"]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A finished run of two files, one with a broken line."""
    rows = [document(number) for number in range(60)]
    files = [
        write_jsonl(tmp_path / "in" / "a.jsonl.zst", rows[:20]),
        write_jsonl(
            tmp_path / "in" / "b.jsonl",
            [*rows[15:], b"", b'{"broken'],
        ),
    ]
    manifest(tmp_path, files)
    launch(tmp_path)
    return RunDir(tmp_path / "run")


def launch(folder: Path) -> None:
    subprocess.run(
        [*PROXHPC, "launch", str(folder / "manifest.yaml"), "--site", local_site(folder)],
        check=True,
        capture_output=True,
    )


def verify(run: RunDir, *options: str) -> tuple[int, str]:
    done = subprocess.run(
        [*PROXHPC, "verify", str(run.root), *options], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def corpus(run: RunDir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.corpus.iterdir()}


@pytest.mark.parametrize("processes", ["1", "3"])
def test_an_intact_run_passes(run: RunDir, processes: str) -> None:
    code, output = verify(run, "--processes", processes)
    assert code == 0
    assert "66 documents" in output
    assert "all checksums and counts agree" in output
    result = json.loads(verify(run, "--json")[1])
    assert (result["intact"], result["not_refined"]) == (True, 0)
    assert result["totals"]["documents"]["read"] == 66
    assert result["documents_written"] == 60


def test_files_that_are_not_text_or_json_are_reported_as_damaged(run: RunDir) -> None:
    run.checksums.write_bytes(b"\xff\xfe")
    code, output = verify(run)
    assert code == 4
    assert "DAMAGED" in output
    assert "SHA256SUMS" in output
    launch(run.root.parent)
    run.report_json.write_bytes(b'{"docu')
    code, output = verify(run)
    assert code == 4
    assert "report.json does not have the sums" in output


def test_a_part_that_the_merge_did_not_write_is_reported_and_removed(run: RunDir) -> None:
    run.part(77).write_bytes(b"")
    code, output = verify(run, "--repair")
    assert code == 4
    assert "part-00077.jsonl.zst: it is not part of the corpus" in output
    launch(run.root.parent)
    assert verify(run)[0] == 0


def test_a_run_without_ledgers_is_intact(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [document(number) for number in range(60)])
    manifest(tmp_path, [source])
    subprocess.run(
        [*PROXHPC, "plan", str(tmp_path / "manifest.yaml"), "--freeze"],
        check=True,
        capture_output=True,
    )
    code, output = verify(RunDir(tmp_path / "run"))
    assert code == 0
    assert "0 of " in output
    assert "shards are not refined yet" in output


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def rewrite(path: Path) -> None:
    """Drop a ledger's first row, and correct every checksum and count."""
    frames = [frame.payload for frame in read_frames(path)]
    path.unlink()
    progress = LedgerState()
    with FrameWriter(path) as out:
        for payload in frames[:-1]:
            head, rows = parse_frame(payload)
            rows = rows[head["commit"] == 0 :]
            header = CommitHeader.decode(head | {"rows": len(rows)})
            payload = b"\n".join([header.encode(), *(row.encode() for row in rows)])
            out.append(payload)
            progress.add(header, rows, payload)
        summary = orjson.loads(frames[-1]) | {"digest": progress.digest.hexdigest()}
        out.append(orjson.dumps(summary | {"counts": progress.counts.to_dict()}))


DAMAGE = ["ledger", "ledger cut", "part", "card", "checksums", "part gone"]


@pytest.mark.parametrize("where", DAMAGE)
def test_a_damaged_file_is_named_removed_and_written_again(run: RunDir, where: str) -> None:
    before = corpus(run)
    part = next(run.corpus.glob("part-*"))
    path = {
        "ledger": run.ledger(1),
        "ledger cut": run.ledger(2),
        "part": part,
        "part gone": part,
        "card": run.card,
        "checksums": run.checksums,
    }[where]
    if where.endswith("cut"):
        path.write_bytes(path.read_bytes()[:-9])
    elif where.endswith("gone"):
        path.unlink()
    elif where == "checksums":
        path.write_text(path.read_text().replace("0", "1"))
    else:
        flip(path)
    code, output = verify(run)
    assert code == 4
    assert f"DAMAGED {run.corpus if where == 'checksums' else path}" in output
    code, output = verify(run, "--repair")
    assert code == 4
    assert "removed: " in output
    launch(run.root.parent)
    assert verify(run)[0] == 0
    assert corpus(run) == before


def test_a_manipulated_ledger_does_not_balance(run: RunDir) -> None:
    """Its checksums are right, but its rows are not those that were merged."""
    rewrite(run.ledger(0))
    code, output = verify(run)
    assert code == 4
    assert "does not have the sums of the ledgers" in output


def test_repair_does_not_touch_a_changed_input(run: RunDir) -> None:
    path = Plan.load(run).inputs[1].path
    path.write_bytes(path.read_bytes() + b"x\n")
    code, output = verify(run, "--repair")
    assert code == 4
    assert "restore the inputs" in output
    assert "removed: " not in output
    assert run.report_json.exists()


def test_a_part_with_the_wrong_number_of_documents(run: RunDir) -> None:
    """The checksum list is right, but a document is missing."""
    part = next(run.corpus.glob("part-*"))
    with zstandard.open(part, "rb") as file:
        rows = file.read().splitlines(keepends=True)
    old = hashlib.sha256(part.read_bytes()).hexdigest()
    part.write_bytes(zstandard.compress(b"".join(rows[1:])))
    new = hashlib.sha256(part.read_bytes()).hexdigest()
    run.checksums.write_text(run.checksums.read_text().replace(old, new))
    result = verification.verify_run(run)
    assert result.damaged_corpus == {part: f"it has {len(rows) - 1} documents, not {len(rows)}"}


def test_a_killed_process_is_a_one_line_error(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verification, "_read_shard", kill_self)
    assert main(["verify", str(run.root), "--processes", "2"]) == RetryError.exit_code
    error = capsys.readouterr().err
    assert "a process of `proxhpc verify` died" in error
    assert "Traceback" not in error

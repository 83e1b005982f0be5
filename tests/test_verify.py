"""A run proved again: what is damaged is named, and made again."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
import zstandard

from proxhpc import verify as module
from proxhpc.corpus.frames import FrameWriter, read_frames
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
def test_a_good_run(run: RunDir, processes: str) -> None:
    code, said = verify(run, "--processes", processes)
    assert code == 0
    assert "66 documents" in said
    assert "all of it agrees" in said
    result = json.loads(verify(run, "--json")[1])
    assert (result["good"], result["not_refined"], result["totals"]["documents"]["read"]) == (True, 0, 66)
    assert result["documents_written"] == 60


def test_what_is_no_text_or_no_json_is_damage_and_no_crash(run: RunDir) -> None:
    run.checksums.write_bytes(b"\xff\xfe")
    code, said = verify(run)
    assert code == 4
    assert "DAMAGED" in said
    assert "SHA256SUMS" in said
    launch(run.root.parent)
    run.report_json.write_bytes(b'{"docu')
    code, said = verify(run)
    assert code == 4
    assert "report.json does not have the sums" in said


def test_a_part_that_nobody_wrote_is_told(run: RunDir) -> None:
    run.part(77).write_bytes(b"")
    code, said = verify(run, "--repair")
    assert code == 4
    assert "part-00077.jsonl.zst: it is no part of the corpus" in said
    launch(run.root.parent)
    assert verify(run)[0] == 0


def test_a_run_that_is_not_done(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [document(number) for number in range(60)])
    manifest(tmp_path, [source])
    subprocess.run(
        [*PROXHPC, "plan", str(tmp_path / "manifest.yaml"), "--freeze"],
        check=True,
        capture_output=True,
    )
    code, said = verify(RunDir(tmp_path / "run"))
    assert code == 0
    assert "0 of " in said
    assert "shards to refine" in said


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def rewrite(path: Path) -> None:
    """Drop a ledger's first row, with every checksum and sum made right."""
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
def test_damage_is_named_and_made_again(run: RunDir, where: str) -> None:
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
    code, said = verify(run)
    assert code == 4
    assert f"DAMAGED {run.corpus if where == 'checksums' else path}" in said
    code, said = verify(run, "--repair")
    assert code == 4
    assert "taken away" in said
    launch(run.root.parent)
    assert verify(run)[0] == 0
    assert corpus(run) == before


def test_a_doctored_ledger_does_not_balance(run: RunDir) -> None:
    """Its checksums are right; what it says no longer is what was merged."""
    rewrite(run.ledger(0))
    code, said = verify(run)
    assert code == 4
    assert "does not have the sums of the ledgers" in said


def test_a_changed_input_is_nobody_elses_to_mend(run: RunDir) -> None:
    path = Plan.load(run).inputs[1].path
    path.write_bytes(path.read_bytes() + b"x\n")
    code, said = verify(run, "--repair")
    assert code == 4
    assert "put the inputs back" in said
    assert "taken away" not in said
    assert run.report_json.exists()


def test_a_part_with_the_wrong_number_of_documents(run: RunDir) -> None:
    """Digest and list agree, yet a document is gone."""
    part = next(run.corpus.glob("part-*"))
    with zstandard.open(part, "rb") as file:
        rows = file.read().splitlines(keepends=True)
    old = hashlib.sha256(part.read_bytes()).hexdigest()
    part.write_bytes(zstandard.compress(b"".join(rows[1:])))
    new = hashlib.sha256(part.read_bytes()).hexdigest()
    run.checksums.write_text(run.checksums.read_text().replace(old, new))
    proof = module.verify(run)
    assert proof.damaged_corpus == {part: f"it has {len(rows) - 1} documents, not {len(rows)}"}

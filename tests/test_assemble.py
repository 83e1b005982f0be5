"""The merge writes the same bytes for any shards and kills, and accounts for every document."""

import base64
import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
import yaml
import zstandard

from merging import PART, corpus, killed, output, records, refined, rewrite_ledger
from proxhpc.assemble.listings import read_listing
from proxhpc.assemble.merge import merge_run
from proxhpc.assemble.summary import MergeSummary
from proxhpc.cluster import tasks
from proxhpc.corpus.document import SpanEnd
from proxhpc.launch.launch import prepare_run
from proxhpc.run.ledger import Row
from proxhpc.run.paths import RunDir
from runs import document, local_site, manifest, rows_of, write_jsonl


def test_the_corpus_follows_from_ledgers_and_input(tmp_path: Path) -> None:
    run = refined(tmp_path)
    rows = {row.id: row for row in rows_of(run.dir, run.plan) if row.digest}
    raw = {row["id"]: row for row in records() if isinstance(row, dict)}
    merge_run(run.dir)
    written = corpus(run.dir)
    ids = [row["id"] for row in written]
    # 30 is a duplicate of 3, 8 of 7, and 12 of 11; the short and the empty document are dropped.
    removed = {"doc-30", "doc-8", "doc-12", "doc-14", "doc-26", "no text"}
    order = [row["id"] for row in records() if isinstance(row, dict)]
    assert ids == [name for name in order if name not in removed]
    changed = (None, 11, 15, 16, 28)
    for row in (row for row in written if row.get("n") not in changed):
        name, number = row["id"], row["n"]
        assert list(row) == ["id", "text", "url", "n", "deep", "proxhpc"]
        assert row["text"].rstrip() == document(number)["text"].split("\n", 1)[1]
        assert {key: row[key] for key in ("url", "n", "deep")} == {
            key: raw[name][key] for key in ("url", "n", "deep")
        }
        file = run.plan.inputs[rows[name].file].name
        assert row["proxhpc"] == {
            "source": f"{file}:{rows[name].position}",
            "outcome": "edited",
            "doc": "keep_doc()",
            "chunk": [call.program for call in rows[name].windows],
        }


def test_the_summary_agrees_with_the_files(tmp_path: Path) -> None:
    run = refined(tmp_path)
    summary = merge_run(run.dir)
    assert MergeSummary.load(run.dir) == summary
    rows, written = rows_of(run.dir, run.plan), corpus(run.dir)
    assert summary.counts.documents == len(rows) == 39
    assert summary.counts.quarantined == {"invalid_json": 1, "missing_text": 1, "invalid_utf8": 1}
    assert summary.written == len(written) == sum(part.documents for part in summary.parts)
    assert summary.text_bytes == sum(len(row["text"].encode()) for row in written)
    assert summary.tokens == sum(-(-len(row["text"].encode()) // 4) for row in written)
    assert summary.duplicates.documents == summary.counts.in_corpus - len(written) == 3
    assert (summary.duplicates.sets, summary.duplicates.largest_set) == (3, 2)
    assert summary.counts.blank_lines == 1
    for file, counts in enumerate(summary.files):
        file_rows = [row for row in rows if row.file == file]
        assert counts.documents == len(file_rows)
        assert counts.kept == sum(row.outcome == "kept" for row in file_rows)
        assert counts.edited == sum(row.outcome == "edited" for row in file_rows)
        assert counts.dropped == sum(row.outcome == "dropped" for row in file_rows)
        sources = [row["proxhpc"]["source"].split(":")[0] for row in written]
        assert counts.written == sources.count(counts.name)
    assert summary.shared_ids.documents == 1
    assert [name for name, _ in summary.shared_ids.examples] == ["doc-15"]


def test_a_part_holds_the_rows_that_begin_within_its_size(tmp_path: Path) -> None:
    run = refined(tmp_path)
    summary = merge_run(run.dir)
    assert len(summary.parts) > 2
    at, expected = 0, [0]
    for row in corpus(run.dir):
        expected[-1] += 1
        at += len(orjson.dumps(row)) + 1
        if at // PART > len(expected) - 1:
            expected.append(0)
    assert [part.documents for part in summary.parts] == [count for count in expected if count]


def test_shards_commits_and_processes_do_not_change_the_corpus(tmp_path: Path) -> None:
    whole = refined(tmp_path, sharding={"tokens": 10_000_000})
    merge_run(whole.dir)
    many = refined(tmp_path, sharding={"tokens": 400}, run_dir=str(tmp_path / "many"))
    merge_run(many.dir, processes=2)
    few = refined(tmp_path, commit={"documents": 1}, run_dir=str(tmp_path / "few"))
    merge_run(few.dir)
    assert len(whole.plan.shards) == 1
    assert len(many.plan.shards) > len(few.plan.shards) + 4 > 8
    assert output(many.dir) == output(whole.dir)
    assert output(few.dir) == output(whole.dir)


def test_a_merge_killed_before_any_of_its_files_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxhpc.run.shards.MIN_GROUP_BYTES", 16000)
    run = refined(tmp_path).dir
    other = RunDir(tmp_path / "undisturbed")
    shutil.copytree(run.root, other.root)
    expected = merge_run(other)
    files = sum(
        1 for folder in (other.merge, other.corpus) for p in folder.rglob("*") if p.is_file()
    )
    for allowed in range(files + 1):
        shutil.rmtree(run.merge)
        shutil.rmtree(run.corpus, ignore_errors=True)
        run.merge.mkdir()
        assert killed(run, allowed)
        assert not run.merge_summary.exists()
        assert MergeSummary.load(run) is None
        assert merge_run(run) == expected
        assert output(run) == output(other)
    assert not killed(run, 0)


def test_merging_again_changes_nothing(tmp_path: Path) -> None:
    run = refined(tmp_path)
    first = merge_run(run.dir)
    times = {path: path.stat().st_mtime_ns for path in run.dir.root.rglob("*")}
    assert merge_run(run.dir) == first
    assert {path: path.stat().st_mtime_ns for path in run.dir.root.rglob("*")} == times


def test_missing_files_of_a_corpus_are_written_again(tmp_path: Path) -> None:
    run = refined(tmp_path)
    merge_run(run.dir)
    before = output(run.dir)
    run.dir.part(1).write_bytes(run.dir.part(1).read_bytes()[:-5])
    run.dir.part(99).write_bytes(b"of an earlier merge")
    (run.dir.corpus / ".part-00000.jsonl.zst.0a.tmp").write_bytes(b"of a killed merge")
    (run.dir.corpus / "notes.txt").write_bytes(b"the user's")
    merge_run(run.dir)
    assert output(run.dir) == before | {"notes.txt": b"the user's"}


def test_a_shard_that_was_refined_again_is_merged_again(tmp_path: Path) -> None:
    run = refined(tmp_path)
    merge_run(run.dir)
    before = output(run.dir)

    def drop_one(rows: list[Row], ends: list[SpanEnd]) -> None:
        index = next(i for i, row in enumerate(rows) if row.outcome == "edited")
        row, doc = rows[index], rows[index].doc
        assert doc is not None
        rows[index] = replace(
            row,
            outcome="dropped",
            reason="doc_program",
            doc=doc._replace(program="drop_doc()"),
            windows=(),
            bytes_out=0,
            tokens_out=0,
            lines_removed=0,
        )

    rewrite_ledger(run, 1, drop_one)
    summary = merge_run(run.dir)
    fresh = RunDir(tmp_path / "fresh")
    shutil.copytree(run.dir.root, fresh.root, ignore=shutil.ignore_patterns("merge", "corpus"))
    fresh.merge.mkdir()
    assert summary.counts.dropped["doc_program"] == merge_run(fresh).counts.dropped["doc_program"]
    assert output(run.dir) == output(fresh) != before


def test_without_dedup_every_refined_document_is_written(tmp_path: Path) -> None:
    run = refined(tmp_path, dedup={"exact": False})
    summary = merge_run(run.dir)
    assert summary.written == summary.counts.in_corpus
    assert summary.duplicates.documents == 0
    assert not run.dir.duplicates.exists()


def test_duplicates_and_quarantined_records_are_listed(tmp_path: Path) -> None:
    run = refined(tmp_path)
    merge_run(run.dir)
    pairs = list(read_listing(run.dir.duplicates))
    assert [(row["duplicate"]["id"], row["survivor"]["id"]) for row in pairs] == [
        ("doc-8", "before"),
        ("doc-12", "doc-11"),
        ("doc-30", "early copy"),
    ]
    quarantined = list(read_listing(run.dir.quarantine))
    assert [row["reason"] for row in quarantined] == [
        "invalid_json",
        "missing_text",
        "invalid_utf8",
    ]
    assert base64.b64decode(quarantined[2]["head"]) == b'{"id": "latin", "text": "caf\xe9"}'
    assert quarantined[0]["source"].startswith("a.jsonl.zst:")


def test_a_quarantined_document_is_listed_verbatim(tmp_path: Path) -> None:
    run = refined(tmp_path)

    def quarantine_first(rows: list[Row], ends: list[SpanEnd]) -> None:
        rows[0] = replace(rows[0], outcome="quarantined", reason="by_policy", bytes_out=0)

    rewrite_ledger(run, 0, quarantine_first)
    merge_run(run.dir)
    first = next(read_listing(run.dir.quarantine))
    assert (first["id"], first["reason"]) == ("doc-0", "by_policy")
    assert base64.b64decode(first["head"]).decode() == document(0)["text"]


def test_a_run_that_drops_everything_has_an_empty_corpus(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "in.jsonl", [{"id": str(n), "text": "too short"} for n in range(9)]
    )
    run = prepare_run(manifest(tmp_path, [path]), local_site(tmp_path), None)
    tasks.refine_task(str(run.dir.root), 0, 1)
    summary = merge_run(run.dir)
    assert (summary.written, summary.parts, summary.counts.dropped.total()) == (0, (), 9)
    assert b"configs:" not in run.dir.card.read_bytes()


def test_checksums_cover_every_file(tmp_path: Path) -> None:
    run = refined(tmp_path)
    merge_run(run.dir)
    names = [line.split("  ")[1] for line in run.dir.checksums.read_text().splitlines()]
    assert set(names) == {path.name for path in run.dir.corpus.iterdir()} - {"SHA256SUMS"}
    for line in run.dir.checksums.read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((run.dir.corpus / name).read_bytes()).hexdigest() == digest


def test_the_card_shows_hostile_names_as_text(tmp_path: Path) -> None:
    hostile = "a|b<script>alert(1)<#script> [x](javascript:1) `c` \u202e www.evil.jsonl"
    path = write_jsonl(tmp_path / hostile, [document(n) for n in range(3)])
    sections = {"corpus": {"paths": [str(tmp_path / "a*.jsonl")], "id": "id", "text": "```x"}}
    rows = [document(n) | {"```x": document(n)["text"]} for n in range(3)]
    write_jsonl(path, rows)
    run = prepare_run(manifest(tmp_path, [], **sections), local_site(tmp_path), None)
    tasks.refine_task(str(run.dir.root), 0, 1)
    merge_run(run.dir)
    card = run.dir.card.read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["configs"][0]["data_files"][0]["path"] == "part-*.jsonl.zst"
    line = next(line for line in body.splitlines() if "script" in line)
    assert line.count("|") == 9
    assert not set("<>[]`\u202e") & set(line)
    assert "www&#46;evil" in line
    assert "\n````yaml\n" in body
    assert str(tmp_path) not in card


def test_progress_is_reported_by_phase(tmp_path: Path) -> None:
    run = refined(tmp_path)
    reported: list[tuple[str, int, int]] = []
    summary = merge_run(run.dir, progress=lambda *step: reported.append(step))
    parts = len(summary.parts)
    assert [step for step in reported if step[0] == "write"] == [
        ("write", done, parts) for done in range(parts + 1)
    ]


@pytest.mark.skipif(
    "PROXHPC_DATA" not in os.environ, reason="PROXHPC_DATA is not set to a folder with a corpus"
)
def test_real_documents_balance(tmp_path: Path) -> None:
    path = Path(os.environ["PROXHPC_DATA"]) / "corpus_sample.jsonl.zst"
    sections = {"sharding": {"tokens": 2_000_000}, "output": {"part_size": "4MiB"}}
    run = prepare_run(manifest(tmp_path, [path], **sections), local_site(tmp_path), None)
    tasks.refine_task(str(run.dir.root), 0, 1)
    summary = merge_run(run.dir)
    with path.open("rb") as file:
        raw = zstandard.ZstdDecompressor().stream_reader(file).read()
    assert summary.counts.documents == raw.count(b"\n")
    assert summary.written == len(corpus(run.dir))
    assert summary.text_bytes == sum(len(row["text"].encode()) for row in corpus(run.dir))

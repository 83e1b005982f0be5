"""The merge stops, naming the file, if input, ledgers and its own files do not agree."""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from merging import output, plan_of_one, refined, rewrite_ledger
from proxhpc.assemble import merge as merging_steps
from proxhpc.assemble.coverage import check_coverage
from proxhpc.assemble.match import MATCH_ROUNDS, round_names
from proxhpc.assemble.match_result import require_match
from proxhpc.assemble.merge import merge_run
from proxhpc.assemble.phases import run_share
from proxhpc.assemble.replay import SpanStats
from proxhpc.assemble.summary import MergeSummary
from proxhpc.cluster import tasks
from proxhpc.corpus.document import SpanEnd
from proxhpc.dedup.arrays import save_json
from proxhpc.errors import RetryError, StopError
from proxhpc.launch.launch import Run, prepare_run
from proxhpc.run.ledger import Row
from runs import document, local_site, manifest, planned, write_jsonl


def no_row(rows: list[Row], ends: list[SpanEnd]) -> None:
    del rows[1]


def one_more_row(rows: list[Row], ends: list[SpanEnd]) -> None:
    rows.append(replace(rows[-1], position=rows[-1].position + 1))


def other_position(rows: list[Row], ends: list[SpanEnd]) -> None:
    rows[1] = replace(rows[1], position=rows[1].position - 1)


def other_outcome(rows: list[Row], ends: list[SpanEnd]) -> None:
    rows[0] = replace(rows[0], outcome="kept")


def other_program(rows: list[Row], ends: list[SpanEnd]) -> None:
    call = rows[0].windows[0]._replace(program="remove_lines(2, 2)")
    rows[0] = replace(rows[0], windows=(call,))


def other_size(rows: list[Row], ends: list[SpanEnd]) -> None:
    rows[0] = replace(rows[0], bytes_out=rows[0].bytes_out + 1)


def other_reason(rows: list[Row], ends: list[SpanEnd]) -> None:
    index = next(i for i, row in enumerate(rows) if not row.digest)
    rows[index] = replace(rows[index], reason="invalid_utf8")


def other_window(rows: list[Row], ends: list[SpanEnd]) -> None:
    call = rows[0].windows[0]._replace(stop=1000)
    rows[0] = replace(rows[0], windows=(call,))


def other_end(rows: list[Row], ends: list[SpanEnd]) -> None:
    ends[0] = replace(ends[0], position=ends[0].position + 1)


@pytest.mark.parametrize(
    "change",
    [
        no_row,
        one_more_row,
        other_position,
        other_outcome,
        other_program,
        other_size,
        other_reason,
        other_window,
        other_end,
    ],
)
def test_a_manipulated_ledger_stops_the_merge(
    tmp_path: Path, change: Callable[[list[Row], list[SpanEnd]], None]
) -> None:
    run = refined(tmp_path, sharding={"tokens": 100_000})
    path = rewrite_ledger(run, 0, change)
    with pytest.raises(StopError, match=r"has changed since it was refined|does not match") as stop:
        merge_run(run.dir)
    assert str(path) in str(stop.value)
    assert not run.dir.corpus.exists()


def test_a_damaged_ledger_stops_the_merge(tmp_path: Path) -> None:
    run = refined(tmp_path)
    path = run.dir.ledger(2)
    data = bytearray(path.read_bytes())
    for truncated in (bytes(data[: len(data) // 2]), bytes(data[:-20]), b""):
        path.write_bytes(truncated)
        with pytest.raises(StopError, match=r"2\.ledger"):
            merge_run(run.dir)
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(StopError, match=r"2\.ledger"):
        merge_run(run.dir, processes=2)


def test_a_ledger_of_another_shard_stops_the_merge(tmp_path: Path) -> None:
    run = refined(tmp_path)
    shutil.copy(run.dir.ledger(1), run.dir.ledger(2))
    with pytest.raises(StopError, match=r"00002\.ledger\.zst: it belongs to another"):
        merge_run(run.dir)


def test_an_unrefined_shard_is_named(tmp_path: Path) -> None:
    run = refined(tmp_path)
    for shard in (1, 3):
        run.dir.ledger(shard).unlink()
    with pytest.raises(
        RetryError, match=f"^not refined yet: 2 of {len(run.plan.shards)} shards;.*00001.ledger.zst"
    ):
        merge_run(run.dir)


def test_an_altered_input_stops_the_merge(tmp_path: Path) -> None:
    rows = [document(number, pad="x" * 3000) for number in range(100)]
    path = write_jsonl(tmp_path / "in.jsonl", rows)
    run = prepare_run(manifest(tmp_path, [path]), local_site(tmp_path), None)
    tasks.refine_task(str(run.dir.root), 0, 1)
    good = path.read_bytes()
    # In the middle of the file, which its fingerprint does not cover.
    path.write_bytes(good.replace(b"Number 50 of", b"Number 5O of"))
    with pytest.raises(StopError, match=r"in\.jsonl has changed since it was refined.*has changed"):
        merge_run(run.dir)
    path.write_bytes(good.replace(b'{"id": "doc-50"', b'{"id": "doc-50}'))
    with pytest.raises(
        StopError, match=r"in\.jsonl has changed since it was refined.*invalid_json"
    ):
        merge_run(run.dir)
    path.write_bytes(good + b"{}\n")
    with pytest.raises(StopError, match=r"in\.jsonl: its size was"):
        merge_run(run.dir)
    path.write_bytes(good)
    assert merge_run(run.dir).written == 100


# A file of the merge, and the file that must be missing for the first one to be read again.
FILES = {
    "sketch/00000.json": "",
    "sketch/00000.npy": "merge/match.json",
    "sketch/00000.hashes": "merge/match.json",
    "sketch/00000.minhash.npy": "merge/match.json",
    "sketch/00000.patches": "corpus/part-00000.jsonl.zst",
    "sketch/00000.quarantine.jsonl.zst": "merge/summary.json",
    "sketch/00000.examples.jsonl.zst": "merge/summary.json",
    "match/source.json": "",
    "match/*/flags/00000.npy": "corpus/part-00000.jsonl.zst",
    "match/*/duplicates/00000.jsonl.zst": "merge/summary.json",
    "match.json": "",
    "summary.json": "",
}


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    data[-1 if how == "other end" else len(data) // 2] ^= 1
    path.write_bytes({"truncated": bytes(data[:-3]), "emptied": b""}.get(how, bytes(data)))


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, MergeSummary]:
    """A merged run; each test damages one file and restores it."""
    run = refined(tmp_path_factory.mktemp("merged"), dedup={"near": {"bands": 4, "rows": 2}})
    return run, merge_run(run.dir)


@pytest.mark.parametrize("how", ["changed", "other end", "truncated", "emptied"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_the_merge_is_named_and_written_again(
    merged: tuple[Run, MergeSummary], name: str, how: str
) -> None:
    run, expected = merged
    before = output(run.dir)
    if FILES[name]:
        (run.dir.root / FILES[name]).unlink()
    (path,) = run.dir.merge.glob(name)
    damage(path, how)
    with pytest.raises(StopError, match="is damaged") as stop:
        merge_run(run.dir)
    assert str(path) in str(stop.value)
    path.unlink()  # as the error says
    assert merge_run(run.dir) == expected
    assert output(run.dir) == before


@pytest.mark.parametrize("kind", ["leaders", "stars", "edges", "claims", "groups", "text_edges"])
def test_damaged_files_of_rounds_are_named_and_written_again(tmp_path: Path, kind: str) -> None:
    run = refined(tmp_path, dedup={"near": {"bands": 4, "rows": 2}})
    expected = merge_run(run.dir)
    before = output(run.dir)
    shutil.rmtree(run.dir.match_folder)
    run.dir.match.unlink()
    run_share(run.dir, "start", (0, 1))
    for name in round_names(run.plan):
        run_share(run.dir, name, (0, 1))
        if kind in MATCH_ROUNDS[name].writes:
            break
    (path,) = run.dir.match_folder.glob(f"*/{kind}/00000")
    damage(path, "changed")
    with pytest.raises(StopError, match="is damaged") as stop:
        merge_run(run.dir)
    assert str(path) in str(stop.value)
    assert "delete" in stop.value.hint
    shutil.rmtree(path.parents[1])  # as the error says
    assert merge_run(run.dir) == expected
    assert output(run.dir) == before


def test_a_plan_that_skips_a_span_stops_the_merge(tmp_path: Path) -> None:
    run = planned(tmp_path)
    data = json.loads(run.dir.plan.read_bytes())
    index = next(n for n, shard in enumerate(data["shards"]) if shard[1][1] > 0)
    del data["shards"][index]
    run.dir.plan.write_bytes(orjson.dumps(data))
    tasks.refine_task(str(run.dir.root), 0, 1)
    with pytest.raises(StopError, match=r"b\.jsonl is not covered by the run"):
        merge_run(run.dir)


def test_a_summary_that_does_not_balance_is_refused(tmp_path: Path) -> None:
    run = refined(tmp_path)
    good = merge_run(run.dir)
    first, *rest = good.files
    unwritten = replace(first, written=first.written - 1)
    with pytest.raises(StopError, match=r"a\.jsonl\.zst: .* reached the merge"):
        replace(good, files=(unwritten, *rest)).check()
    with pytest.raises(StopError, match=r"a\.jsonl\.zst: .* does not add up"):
        replace(good, files=(replace(first, dropped=first.dropped + 1), *rest)).check()
    with pytest.raises(StopError, match="documents written, by input file"):
        replace(good, written=good.written + 1).check()
    with pytest.raises(StopError, match="by input file"):
        replace(good, files=tuple(rest)).check()


FIRST = SpanStats(0, start=0, stop=50, end=55, first=0, last=40)
SECOND = SpanStats(0, start=50, stop=None, end=90, first=55, last=70, at_eof=True)
SHORT_FILE = SpanStats(0, start=0, stop=50, end=30, first=0, last=20, at_eof=True)
EMPTY_END = SpanStats(0, start=50, stop=None, end=50, at_eof=True)


def test_spans_that_hold_every_record_once() -> None:
    plan = plan_of_one(True)
    check_coverage(plan, [FIRST, SECOND])
    check_coverage(plan, [SHORT_FILE, EMPTY_END])
    check_coverage(plan, [SpanStats(0, start=0, stop=None, end=0, at_eof=True)])
    truncated = SpanStats(0, start=0, stop=None, end=9, first=3, last=9, at_eof=True)
    check_coverage(plan, [truncated])


@pytest.mark.parametrize(
    ("spans", "problem"),
    [
        ([], "no shard has read it"),
        ([SECOND], "first span begins at 50"),
        ([FIRST], "nothing was read after 55"),
        ([FIRST, replace(SECOND, start=60, first=60)], "stops at 50, the next begins at 60"),
        ([FIRST, replace(SECOND, first=52)], "record at 52 begins before the end"),
        ([replace(FIRST, end=45), SECOND], "read only up to 45"),
        ([replace(FIRST, last=50), SECOND], "record at 50 begins after the span's stop 50"),
        ([replace(FIRST, last=60), SECOND], "records at 0 to 60"),
        ([FIRST, replace(SECOND, first=40)], "records at 40"),
        ([FIRST, replace(SECOND, at_eof=False)], "read only up to 90"),
        ([replace(FIRST, at_eof=True), SECOND], "record at 55 begins before"),
        (
            [SHORT_FILE, replace(EMPTY_END, at_eof=False, stop=50), EMPTY_END],
            "a later span ends at 50",
        ),
    ],
)
def test_spans_that_miss_or_repeat_records(spans: Iterable[SpanStats], problem: str) -> None:
    with pytest.raises(StopError, match=problem) as stop:
        check_coverage(plan_of_one(True), spans)
    assert "in.jsonl" in str(stop.value)


def test_a_part_that_differs_from_the_match_stops_the_merge(tmp_path: Path) -> None:
    run = refined(tmp_path)
    merge_run(run.dir)
    match = require_match(run.dir)
    parts = list(match.parts)
    parts[1] = replace(parts[1], bytes=parts[1].bytes + 1)
    save_json(run.dir.match, replace(match, parts=tuple(parts)))
    run.dir.part_receipt(1).unlink()
    run.dir.part(1).unlink()
    with pytest.raises(StopError, match=r"part-00001\.jsonl\.zst would have"):
        merge_run(run.dir)
    assert not run.dir.part(1).exists()
    assert not run.dir.checksums.exists()
    assert not run.dir.merge_summary.exists()


@pytest.mark.parametrize("how", ["truncated", "deleted"])
def test_a_part_that_changes_before_checksums_are_written_stops_the_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    run = refined(tmp_path)
    part = run.dir.part(1)

    def lose(*_: Any) -> None:
        if how == "truncated":
            part.write_bytes(part.read_bytes()[:-1])
        else:
            part.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(merging_steps, "_write_listings", lose)
        with pytest.raises(StopError, match="bytes, not the") as stop:
            merge_run(run.dir)
    assert str(part) in str(stop.value)
    assert not run.dir.checksums.exists()
    merge_run(run.dir)
    whole = refined(tmp_path / "whole")
    merge_run(whole.dir)
    assert output(run.dir) == output(whole.dir)

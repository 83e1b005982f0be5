"""Replaying some records of a shard: which of them are read and parsed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxhpc.assemble import replay
from proxhpc.assemble.merge import merge_run
from proxhpc.assemble.replay import ReplayedRecord, replay_records, replay_shard
from proxhpc.corpus import jsonl, readers
from proxhpc.errors import StopError
from proxhpc.launch.launch import Run, prepare_run
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.worker.worker import Assignment, run_worker
from runs import document, local_site, manifest, write_jsonl

BLANK, BOM = b" ", b"\xef\xbb\xbf"  # lines without records


def refined(folder: Path, files: list[Path], **sections: object) -> Run:
    run = prepare_run(manifest(folder, files, **sections), local_site(folder), None)
    run_worker(run.dir, Assignment(), lambda _: None)
    return run


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[ReplayedRecord]]:
    """A run of one shard over files of several formats, and all of its records."""
    folder = tmp_path_factory.mktemp("mixed")
    rows = [document(number) for number in range(40)]
    bad = [b"{", b'{"id": 1}', b"null"]
    files = [
        write_jsonl(folder / "a.jsonl", [BOM, *rows[:9], BLANK, bad[0], *rows[9:15]]),
        write_jsonl(folder / "b.jsonl.zst", [bad[1], *rows[15:22], BOM + BLANK, bad[2], rows[22]]),
        write_jsonl(folder / "c.json", [b"[", orjson.dumps(rows[39]), b",1,{}", b"]"]),
        folder / "d.parquet",
    ]
    table = {name: [str(row[name]) for row in rows[23:39]] for name in ("id", "text")}
    pq.write_table(pa.table(table), files[-1], row_group_size=5)
    run = refined(folder, files, sharding={"tokens": 10**7})
    assert len(run.plan.shards) == 1
    return run, [i for i in replay_shard(run.dir, run.plan, 0) if isinstance(i, ReplayedRecord)]


@settings(deadline=None, max_examples=60)
@given(data=st.data(), far=st.sampled_from([1, 700, 1 << 20]))
def test_any_records_in_any_calls_are_those_of_the_whole_shard(
    mixed: tuple[Run, list[ReplayedRecord]], data: st.DataObject, far: int
) -> None:
    run, everything = mixed
    numbers = st.lists(st.sampled_from(range(len(everything))), unique=True).map(sorted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "FAR", far)
        for wanted in data.draw(st.lists(numbers, max_size=3)):
            found = list(replay_records(run.dir, run.plan, 0, wanted))
            assert found == [everything[number] for number in wanted]


def test_a_record_that_does_not_exist_stops_the_merge(
    mixed: tuple[Run, list[ReplayedRecord]],
) -> None:
    run, everything = mixed
    with pytest.raises(StopError, match=f"it has no record number {len(everything)}"):
        list(replay_records(run.dir, run.plan, 0, [0, len(everything)]))


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions of the records that were converted to documents."""
    positions: list[int] = []
    convert = jsonl.to_document

    def count(record: object, position: int, *rest: object) -> object:
        positions.append(position)
        return convert(record, position, *rest)

    monkeypatch.setattr(jsonl, "to_document", count)
    return positions


def copies() -> Iterator[dict[str, object]]:
    for number in range(90):
        yield document(number // 3, id=f"d{number}")


@pytest.mark.parametrize("part_size", ["256MiB", "4KiB"])
def test_a_merge_parses_each_record_twice_at_most(
    tmp_path: Path, parsed: list[int], part_size: str
) -> None:
    file = write_jsonl(tmp_path / "in.jsonl.zst", copies())
    run = refined(tmp_path, [file], output={"part_size": part_size})
    parsed.clear()
    summary = merge_run(run.dir)
    assert (len(summary.parts) > 3) == (part_size == "4KiB")
    assert summary.duplicates.documents == 60
    assert len(parsed) <= 90 + 30 + 10  # all once; then what is written, and the largest copies


def test_a_process_begins_to_read_where_its_part_begins(
    tmp_path: Path, parsed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_jsonl(tmp_path / "in.jsonl", (document(number) for number in range(60)))
    run = refined(tmp_path, [file], sharding={"tokens": 10**7})
    positions = list(parsed)
    starts, read_chunks = [], readers.read_chunks
    monkeypatch.setattr(readers, "read_chunks", lambda *a: starts.append(a[2]) or read_chunks(*a))
    plan = replace(Plan.load(RunDir(run.dir.root)))  # as another process has it
    parsed.clear()
    [record] = replay_records(run.dir, plan, 0, [50])
    assert record.document is not None
    assert record.document.id == "doc-50"
    assert starts == [positions[50] - 1]
    assert parsed == [positions[50]]

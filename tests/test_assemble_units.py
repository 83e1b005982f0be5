"""Units of the merge: replay, rows, duplicates, parts, and the pool of processes."""

import gc
import gzip
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merging import failing_unit, kill_self, plan_of_one, refined
from proxhpc.assemble.merge import merge_run
from proxhpc.assemble.parts import InputOrderSplitter, ShuffledSplitter, bucket_starts
from proxhpc.assemble.replay import ReplayedRecord, replay_records, replay_shard
from proxhpc.assemble.rows import corpus_row
from proxhpc.cluster import tasks
from proxhpc.corpus import readers
from proxhpc.corpus.document import Document
from proxhpc.dedup.hashes import SKETCH_DTYPE
from proxhpc.errors import ProxError, RetryError
from proxhpc.launch.launch import prepare_run
from proxhpc.run.ledger import Row
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.pool import open_pool
from proxhpc.spec.sections import Output
from runs import document, local_site, manifest, planned


def test_replaying_some_records_reads_no_further(tmp_path: Path) -> None:
    run = refined(tmp_path, sharding={"tokens": 10_000_000})
    everything = [i for i in replay_shard(run.dir, run.plan, 0) if isinstance(i, ReplayedRecord)]
    assert [item.number for item in everything] == list(range(39))
    wanted = [2, 5, 23]
    assert list(replay_records(run.dir, run.plan, 0, wanted)) == [everything[n] for n in wanted]
    assert list(replay_records(run.dir, run.plan, 0, [])) == []
    run.plan.inputs[2].path.unlink()
    run = replace(run, plan=Plan.load(run.dir))
    assert list(replay_records(run.dir, run.plan, 0, [2])) == [everything[2]]
    with pytest.raises(RetryError, match=r"c\.jsonl"):
        list(replay_records(run.dir, run.plan, 0, [38]))


def test_a_large_compressed_file_is_decompressed_once_by_each_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(orjson.dumps(document(n)) + b"\n" for n in range(200))))
    sections = {"sharding": {"tokens": 1000}, "output": {"part_size": 9000}}
    run = prepare_run(manifest(tmp_path, [path], **sections), local_site(tmp_path), None)
    assert len(run.plan.shards) > 20
    opened, read_chunks = [], readers.read_chunks
    monkeypatch.setattr(readers, "read_chunks", lambda *a: opened.append(a) or read_chunks(*a))
    tasks.refine_task(str(run.dir.root), 0, 1)
    assert len(opened) == 1
    assert len(merge_run(run.dir).parts) > 10
    assert len(opened) == 3  # sketch and write; the sketch has the examples of the report


NAMES = ["id", "text", "proxhpc", "original_id", "original_text", "original_original_text", "x"]


@given(st.dictionaries(st.sampled_from(NAMES), st.integers(), max_size=7), st.booleans())
def test_no_field_of_a_record_is_lost(fields: dict[str, Any], provenance: bool) -> None:
    plan = plan_of_one(provenance)
    parsed = Document("7", "raw", 0, 5, dict(fields))
    row = corpus_row(plan, ReplayedRecord(0, Row("7", 0, 5, "kept"), parsed, "refined"))
    assert (row.pop("id"), row.pop("text")) == ("7", "refined")
    if provenance:
        assert row.pop("proxhpc")["source"] == "in.jsonl:5"
    if fields.get("id") == 7:
        del fields["id"]
    assert sorted(row.values()) == sorted(fields.values())
    for name, value in row.items():
        while name not in fields or fields[name] != value:
            assert name.startswith("original_")
            name = name.removeprefix("original_")


@pytest.mark.parametrize("depth", [200, 254, 256, 300, 500, 1000])
def test_a_deeply_nested_field_survives(depth: int) -> None:
    raw = b'{"a":[' * (depth // 2) + b"1" + b"]}" * (depth // 2)
    parsed = Document("7", "raw", 0, 5, {"deep": orjson.loads(raw)})
    row = corpus_row(
        plan_of_one(False), ReplayedRecord(0, Row("7", 0, 5, "kept"), parsed, "refined")
    )
    assert orjson.dumps(row) == b'{"id":"7","text":"refined","deep":%b}' % raw


def test_bad_records_do_not_reach_the_corpus() -> None:
    with pytest.raises(ValueError, match="does not reach the corpus"):
        corpus_row(plan_of_one(True), ReplayedRecord(0, Row("", 0, 5, "quarantined")))


@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), max_size=40), st.integers(1, 50))
def test_each_survivor_is_in_one_part(documents: list[tuple[int, bool]], part_size: int) -> None:
    hashes = np.zeros(len(documents), SKETCH_DTYPE)
    hashes["row_bytes"] = [size for size, _ in documents]
    hashes["record"] = range(len(documents))
    survives = np.array([survives for _, survives in documents], bool)
    splitter = InputOrderSplitter(Output(part_size=part_size))
    for start in range(0, len(hashes), 7):  # groups
        splitter.add(hashes[start : start + 7][survives[start : start + 7]])
    parts = splitter.finish()
    remaining = np.flatnonzero(survives).tolist()
    offset = 0
    for part in parts:
        numbers, remaining = remaining[: part.documents], remaining[part.documents :]
        assert numbers
        assert (part.first, part.last) == (numbers[0], numbers[-1])
        assert part.bytes == sum(documents[n][0] for n in numbers)
        begins = [offset + sum(documents[n][0] for n in numbers[:k]) for k in range(len(numbers))]
        assert len({begin // part_size for begin in begins}) == 1
        offset += part.bytes
    assert not remaining


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, (1 << 64) - 1)), max_size=40),
    st.integers(1, 300),
)
def test_shuffled_parts_cover_all_sort_keys(
    documents: list[tuple[int, int]], part_size: int
) -> None:
    hashes = np.zeros(len(documents), SKETCH_DTYPE)
    hashes["row_bytes"] = [size for size, _ in documents]
    hashes["sort_key"] = np.array([key for _, key in documents], np.uint64)
    splitter = ShuffledSplitter(Output(part_size=part_size, shuffle=True))
    for start in range(0, len(hashes), 7):  # groups
        splitter.add(hashes[start : start + 7])
    parts = splitter.finish()
    edges = [0, *(part.last + 1 for part in parts)]
    assert [part.first for part in parts] == edges[:-1]
    assert not parts or edges[-1] == 1 << 64
    cells = {key >> 44 for _, key in documents}
    for part in parts:
        sizes = [size for size, key in documents if part.first <= key <= part.last]
        assert (part.documents, part.bytes) == (len(sizes), sum(sizes))
        assert sizes
        last = max(cell for cell in cells if cell <= part.last >> 44)
        before = sum(size for size, key in documents if part.first >> 44 <= key >> 44 < last)
        assert before < part_size
        starts = bucket_starts(part, 10)
        assert (starts[0], len(starts)) == (part.first, -(-part.bytes // 10))
        assert starts == sorted(set(starts))
        assert starts[-1] <= part.last


def test_a_killed_process_of_the_pool_is_an_error(tmp_path: Path) -> None:
    run = planned(tmp_path)
    with (
        pytest.raises(RetryError, match="a process of `proxhpc merge` died"),
        open_pool(run.dir, run.plan, 2) as pool,
    ):
        pool.map("kill_self", kill_self, range(2))
    assert all_children_end()


def test_garbage_is_collected_less_often_while_units_run(tmp_path: Path) -> None:
    before = gc.get_threshold()
    gc.set_threshold(700)
    try:
        with open_pool(RunDir(tmp_path), plan_of_one(False), 1):
            assert gc.get_threshold()[0] > 700
        assert gc.get_threshold()[0] == 700
    finally:
        gc.set_threshold(*before)


def test_an_error_stops_the_other_processes_at_once(tmp_path: Path) -> None:
    run = planned(tmp_path)
    with (
        pytest.raises(ProxError, match="a unit failed\n  fix it"),
        open_pool(run.dir, run.plan, 2) as pool,
    ):
        pool.map("failing_unit", failing_unit, range(2))
    assert all_children_end()
    assert (run.dir.merge / "pid-0").exists()
    assert not (run.dir.merge / "done-0").exists()


def all_children_end() -> bool:
    """Whether all children of this process end long before their units would."""
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not multiprocessing.active_children()


def has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def test_processes_of_the_pool_die_with_their_parent(tmp_path: Path) -> None:
    run = planned(tmp_path)
    code = (
        "import sys; from pathlib import Path\n"
        "from proxhpc.run.paths import RunDir; from proxhpc.run.plan import Plan\n"
        "from proxhpc.run.pool import open_pool; from merging import slow_unit\n"
        "if __name__ == '__main__':\n"
        "    run = RunDir(Path(sys.argv[1]))\n"
        "    with open_pool(run, Plan.load(run), 2) as pool: pool.map('x', slow_unit, range(2))\n"
    )
    tests = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{tests.parent}:{tests}"}
    command = [sys.executable, "-c", code, str(run.dir.root)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as parent:
        files = [run.dir.merge / f"pid-{number}" for number in range(2)]
        deadline = time.monotonic() + 60
        while not all(f.exists() and f.read_text() for f in files) and time.monotonic() < deadline:
            time.sleep(0.02)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(10) == -signal.SIGTERM
    pids = [int(file.read_text()) for file in files]
    while not all(map(has_ended, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert all(map(has_ended, pids))

"""Formats, order and extra fields of the corpus; `datasets` can load it."""

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

from merging import SECTIONS, corpus, killed, output, refined
from proxhpc.assemble import columns, shuffle
from proxhpc.assemble.merge import merge_run
from proxhpc.cluster import tasks
from proxhpc.errors import StopError, UserError
from proxhpc.launch.launch import Run, prepare_run
from proxhpc.run.paths import RunDir
from proxhpc.spec.sections import Output
from proxhpc.verify import verify_run
from runs import document, local_site, manifest, write_jsonl

LOAD = """
import json, sys, datasets
for folder in sys.argv[1:]:
    rows = datasets.load_dataset(folder, split="train")
    print(json.dumps([rows.column_names, rows["id"][:], rows["text"][:], rows["proxhpc"][:]]))
"""


def merged(folder: Path, **options: Any) -> Run:
    """A merged run with these keys of `output`."""
    folder.mkdir(exist_ok=True)
    run = refined(folder, output=SECTIONS["output"] | options)
    merge_run(run.dir)
    return run


def parquet_rows(run: RunDir) -> list[dict[str, Any]]:
    return [
        row for path in sorted(run.corpus.glob("part-*")) for row in pq.read_table(path).to_pylist()
    ]


def as_jsonl(row: dict[str, Any]) -> dict[str, Any]:
    """The row of JSON lines that is equivalent to a parquet row."""
    front = {name: row[name] for name in row if name not in ("metadata", "proxhpc")}
    return front | json.loads(row["metadata"]) | {"proxhpc": json.loads(row["proxhpc"])}


def test_parquet_parts_have_the_rows_of_the_json_lines(tmp_path: Path) -> None:
    lines, tables = merged(tmp_path / "a"), merged(tmp_path / "b", format="parquet")
    rows = parquet_rows(tables.dir)
    assert [as_jsonl(row) for row in rows] == corpus(lines.dir)
    assert all(list(row) == ["id", "text", "metadata", "proxhpc"] for row in rows)
    names = sorted(path.stem for path in tables.dir.corpus.glob("*.parquet"))
    assert names == sorted(p.name.split(".")[0] for p in lines.dir.corpus.glob("part-*"))
    assert len(names) > 2
    before = output(tables.dir)
    tables.dir.part(0, "parquet").unlink()
    merge_run(tables.dir)
    assert output(tables.dir) == before


def test_a_parquet_corpus_is_verified(tmp_path: Path) -> None:
    run = merged(tmp_path, format="parquet")
    result = verify_run(run.dir)
    assert result.intact
    assert result.documents_written == len(parquet_rows(run.dir))
    part = run.dir.part(1, "parquet")
    part.write_bytes(part.read_bytes()[:-1])
    assert verify_run(run.dir).damaged_corpus == {part: "its SHA-256 differs"}


def test_row_groups_are_limited_in_bytes_and_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    for name, limits in (("GROUP_ROWS", 2), ("GROUP_BYTES", 2500)):
        with monkeypatch.context() as patch:
            patch.setattr(columns, name, limits)
            run = merged(tmp_path / name, format="parquet")
            file = pq.ParquetFile(run.dir.part(0, "parquet")).metadata
            sizes.append([file.row_group(n).num_rows for n in range(file.num_row_groups)])
    assert sizes[0][:-1] == [2] * (len(sizes[0]) - 1)
    assert sizes[1] != sizes[0]
    assert sum(sizes[0]) == sum(sizes[1]) > 4


def test_row_groups_have_up_to_32_mib_and_a_page_index() -> None:
    encoder = columns.ParquetEncoder(Output(format="parquet"))
    data = b""
    for n in range(70):
        row = {"id": f"d{n}", "text": "word " * 200_000, "proxhpc": {}}
        data += encoder.add(orjson.dumps(row))
    metadata = pq.ParquetFile(io.BytesIO(data + encoder.end())).metadata
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [33, 33, 4]
    for group in groups:
        chunks = [group.column(n) for n in range(group.num_columns)]
        assert all(chunk.has_offset_index for chunk in chunks)
        assert {chunk.path_in_schema for chunk in chunks if chunk.has_column_index} == {"id"}


def test_datasets_loads_both_formats(tmp_path: Path) -> None:
    runs = [merged(tmp_path / name, format=name) for name in ("jsonl.zst", "parquet")]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *(str(run.dir.corpus) for run in runs)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines, tables = map(json.loads, done.stdout.splitlines())
    expected = corpus(runs[0].dir)
    for loaded in (lines, tables):
        assert loaded[1] == [row["id"] for row in expected]
        assert loaded[2] == [row["text"] for row in expected]
    assert tables[0] == ["id", "text", "metadata", "proxhpc"]
    assert list(map(json.loads, tables[3])) == [row["proxhpc"] for row in expected]


def test_the_raw_text_is_written_if_asked_for(tmp_path: Path) -> None:
    raw = {f"doc-{number}": document(number)["text"] for number in range(40)}
    lines = merged(tmp_path / "a", original=True)
    tables = merged(tmp_path / "b", original=True, format="parquet", provenance=False)
    for row in corpus(lines.dir)[:3]:
        assert list(row)[:3] == ["id", "text", "original_text"]
        assert row["original_text"] == raw[row["id"]] != row["text"]
    rows = parquet_rows(tables.dir)
    assert list(rows[0]) == ["id", "text", "metadata", "original_text"]
    assert [row["original_text"] for row in rows] == [
        row["original_text"] for row in corpus(lines.dir)
    ]
    assert "original_text" in lines.dir.card.read_text()


def test_fields_with_reserved_names_are_renamed(tmp_path: Path) -> None:
    reserved = {"original_text": "own", "metadata": [1, {"a": None}], "proxhpc": 7, "n": 1e22}
    raw = document(0) | reserved | {"body": document(0)["text"], "text": "not this"}
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    source = write_jsonl(tmp_path / "in.jsonl", [raw | {"deep": deep}])
    read = []
    for number, kind in enumerate(("jsonl.zst", "parquet", "jsonl.zst")):
        options = {"format": kind, "original": True, "shuffle": number == 2}
        folder = tmp_path / str(number)
        folder.mkdir()
        path = manifest(
            folder, [source], corpus={"paths": [str(source)], "text": "body"}, output=options
        )
        run = prepare_run(path, local_site(folder), None)
        tasks.refine_task(str(run.dir.root), 0, 1)
        merge_run(run.dir)
        rows = parquet_rows(run.dir) if kind == "parquet" else corpus(run.dir)
        read += [as_jsonl(row) if kind == "parquet" else row for row in rows]
    assert read[0] == read[1] == read[2]
    written = read[0]
    assert written["original_text"] == raw["body"]
    renamed = [written[f"original_original_{more}text"] for more in ("", "original_")]
    assert sorted(renamed) == ["not this", "own"]
    assert (written["metadata"], written["original_proxhpc"]) == (reserved["metadata"], 7)
    assert written["deep"] == deep


def test_parquet_without_pyarrow_is_refused_when_planning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    source = write_jsonl(tmp_path / "in.jsonl", [document(0)])
    path = manifest(tmp_path, [source], output={"format": "parquet"})
    with pytest.raises(UserError, match=r"output\.format.* needs the package pyarrow"):
        prepare_run(path, local_site(tmp_path), None)


def sources(run: RunDir) -> list[str]:
    return [row["proxhpc"]["source"] for row in corpus(run)]


def test_a_shuffled_corpus_has_the_same_rows_in_another_order(tmp_path: Path) -> None:
    plain, mixed = merged(tmp_path / "a"), merged(tmp_path / "b", shuffle=True)
    rows = {row["proxhpc"]["source"]: row for row in corpus(plain.dir)}
    assert {row["proxhpc"]["source"]: row for row in corpus(mixed.dir)} == rows
    order = sources(mixed.dir)
    assert sorted(order) == sorted(sources(plain.dir))
    assert order != sources(plain.dir)
    # A random permutation leaves about half of all neighbours in order.
    before = {name: number for number, name in enumerate(sources(plain.dir))}
    rising = sum(before[a] < before[b] for a, b in itertools.pairwise(order))
    assert 0.2 < rising / len(order) < 0.8
    assert not mixed.dir.shuffled.exists()
    sizes = [part.stat().st_size for part in mixed.dir.corpus.glob("part-*")]
    assert len(sizes) > 2
    other = refined(tmp_path / "b", output={"shuffle": True}, seed=1, run_dir=str(tmp_path / "c"))
    merge_run(other.dir)
    assert sorted(sources(other.dir)) == sorted(order)
    assert sources(other.dir) != order


def test_removed_documents_do_not_change_the_order_of_the_others(tmp_path: Path) -> None:
    some = merged(tmp_path / "a", shuffle=True)
    every = refined(
        tmp_path / "a",
        output={"shuffle": True},
        dedup={"exact": False},
        run_dir=str(tmp_path / "b"),
    )
    merge_run(every.dir)
    removed = set(sources(every.dir)) - set(sources(some.dir))
    assert len(removed) == 3
    assert [name for name in sources(every.dir) if name not in removed] == sources(some.dir)


def test_buckets_blocks_and_processes_do_not_change_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = merged(tmp_path / "a", shuffle=True)
    monkeypatch.setattr(shuffle, "_BUCKET", 1500)  # several a part, several blocks a group
    monkeypatch.setattr("proxhpc.run.shards.MIN_GROUP_BYTES", 8000)
    small = merged(tmp_path / "b", shuffle=True)
    assert output(small.dir) == output(whole.dir)
    monkeypatch.undo()
    for path in (small.dir.corpus, small.dir.merge):
        shutil.rmtree(path)
    merge_run(small.dir, memory=8000)  # several blocks a group, a bucket is read several times
    assert output(small.dir) == output(whole.dir)
    many = refined(
        tmp_path / "a",
        output=SECTIONS["output"] | {"shuffle": True},
        sharding={"tokens": 400},
        run_dir=str(tmp_path / "c"),
    )
    merge_run(many.dir, processes=2)
    assert output(many.dir) == output(whole.dir)


def test_a_killed_shuffle_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxhpc.run.shards.MIN_GROUP_BYTES", 8000)
    expected = output(merged(tmp_path / "whole", shuffle=True).dir)
    run = refined(
        tmp_path / "whole",
        output=SECTIONS["output"] | {"shuffle": True},
        run_dir=str(tmp_path / "run"),
    )
    kills, scattered = 0, set[int]()
    while killed(run.dir, 7):
        kills += 1
        scattered.add(len([*run.dir.shuffled.glob("*.rows")]))
    assert kills > 2
    assert len(scattered) > 1
    merge_run(run.dir)
    assert output(run.dir) == expected
    assert not run.dir.shuffled.exists()


def test_a_damaged_file_of_scattered_rows_is_named(tmp_path: Path) -> None:
    run = merged(tmp_path, shuffle=True)
    before = output(run.dir)
    run.dir.part(0).unlink()
    shuffle.scatter_group(run.dir, run.plan, 0, 1 << 20)
    path = run.dir.scattered(0)
    data = path.read_bytes()
    path.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
    with pytest.raises(StopError, match="is damaged") as stop:
        merge_run(run.dir)
    assert str(path) in str(stop.value)
    for incomplete in (data[:-7], data[:-1] + b"\xff"):  # they are written again
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(incomplete)
        run.dir.part(0).unlink(missing_ok=True)
        merge_run(run.dir)
        assert output(run.dir) == before

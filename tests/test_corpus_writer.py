"""Part files: atomic, deterministic and readable with standard tools."""

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard

from corpus_files import ids, read
from proxhpc.corpus.document import Document
from proxhpc.corpus.writer import Part, PartWriter
from proxhpc.errors import ShardError

ROWS: list[dict[str, Any]] = [
    {"id": f"d{i}", "text": f"läine {i}\n" * 300, "big": 2**64 - 1, "meta": {"x": [None, 1.5]}}
    for i in range(900)
]


def make(path: Path, rows: list[dict[str, Any]]) -> Part:
    writer = PartWriter(path)
    for row in rows:
        writer.write(row)
    return writer.close()


def test_a_part_has_its_sizes_and_checksum(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.jsonl.zst"
    part = make(path, ROWS)
    raw = b"".join(orjson.dumps(row) + b"\n" for row in ROWS)
    assert len(raw) > 2 << 20  # several batches
    packed = path.read_bytes()
    assert part == Part(path.name, 900, len(raw), len(packed), hashlib.sha256(packed).hexdigest())
    assert zstandard.ZstdDecompressor().stream_reader(packed).read() == raw
    items, _ = read(path)
    assert ids(items) == [row["id"] for row in ROWS]
    assert isinstance(items[5], Document)
    assert {"text": items[5].text, **items[5].fields} == ROWS[5]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a", ROWS), make(tmp_path / "b", ROWS)
    assert (first.sha256, first.bytes) == (second.sha256, second.bytes)
    assert make(tmp_path / "c", ROWS[:-1]).sha256 != first.sha256


def test_an_empty_part_is_a_valid_file(tmp_path: Path) -> None:
    part = make(tmp_path / "p.jsonl.zst", [])
    assert (part.documents, part.bytes_raw) == (0, 0)
    assert read(tmp_path / "p.jsonl.zst")[0] == []


def test_a_part_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.zst"
    writer = PartWriter(path)
    writer.write({"text": "x"})
    assert not path.exists()
    writer.close()
    assert os.listdir(tmp_path) == ["p.jsonl.zst"]


def test_an_exception_removes_the_unfinished_part(tmp_path: Path) -> None:
    with pytest.raises(KeyError), PartWriter(tmp_path / "p.jsonl.zst") as writer:  # noqa: PT012
        writer.write({"text": "x"})
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_an_error_while_reading_rows_is_not_reported_as_a_write_error(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.zst"
    with pytest.raises(FileNotFoundError, match="gone"), PartWriter(path) as writer:
        writer.write({"text": (tmp_path / "gone").read_text()})
    assert os.listdir(tmp_path) == []


def test_the_context_manager_closes_a_finished_part(tmp_path: Path) -> None:
    with PartWriter(tmp_path / "p.jsonl.zst") as writer:
        writer.write({"text": "x"})
    assert ids(read(tmp_path / "p.jsonl.zst")[0]) == ["p.jsonl.zst:0"]


def test_a_row_that_is_not_json_is_refused_and_nan_becomes_null(tmp_path: Path) -> None:
    with PartWriter(tmp_path / "p.jsonl.zst") as writer:
        with pytest.raises(ShardError, match="a row is not JSON"):
            writer.write({"text": b"bytes"})
        with pytest.raises(ShardError, match="a row is not JSON"):
            writer.write({"text": "\ud800"})
        writer.write({"text": "x", "nan": math.nan})
    (item,), _ = read(tmp_path / "p.jsonl.zst")
    assert isinstance(item, Document)
    assert item.fields == {"nan": None}

"""Text files: one document each, whose id is the file's name."""

from pathlib import Path

import orjson
import pytest
import zstandard

from proxhpc.cluster import tasks
from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.inputs import describe_input
from proxhpc.corpus.readers import Fields, read_span
from proxhpc.launch.launch import prepare_run
from runs import check_balance, document, local_site, manifest, rows_of, write_jsonl

LIMIT = 1 << 20


def read(path: Path, limit: int = LIMIT) -> list[Document | BadRecord | SpanEnd]:
    return [*read_span(path, "auto", Span(3), Fields(), limit)]


@pytest.mark.parametrize("name", ["page.txt", "README.MD"])
def test_a_file_is_one_document(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b'\xef\xbb\xbfTitle\r\n\r\n{"no": "record"}\n\x0c\xe2\x80\xa8end')
    text = 'Title\r\n\r\n{"no": "record"}\n\x0c\u2028end'
    assert read(path) == [Document(name, text, 3, 0), SpanEnd(3, 1, at_eof=True)]
    info = describe_input(path)
    assert (info.format, info.rows, info.estimated_records) == ("text", 1, 1)
    assert info.size == info.estimated_bytes == path.stat().st_size


def test_what_is_no_text_is_a_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "page.txt"
    path.write_bytes("café".encode("latin-1"))
    bad, end = read(path)
    assert isinstance(bad, BadRecord)
    assert (bad.reason, bad.detail, bad.head) == (
        "invalid_utf8",
        "unexpected end of data at byte 3",
        b"caf\xe9",
    )
    assert end == SpanEnd(3, 1, at_eof=True)
    path.write_bytes(b"x" * 5000)
    bad, end = read(path, 4000)
    assert isinstance(bad, BadRecord)
    assert (bad.reason, len(bad.head)) == ("record_too_long", 1024)
    for blank in (b"", b" \n\n", b"\xef\xbb\xbf"):
        path.write_bytes(blank)
        assert read(path) == [SpanEnd(3, 1, at_eof=True)]


def test_a_run_over_files_of_every_kind(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "in"
    write_jsonl(folder / "a.jsonl.zst", [document(0)])
    body = document(1)
    write_jsonl(folder / "b.jsonl", [{"id": "doc-1", "content": body["text"], "text_size": 9}])
    (folder / "deep" / "er").mkdir(parents=True)
    for n in range(2, 60):
        (folder / "deep" / "er" / f"{n:02}.txt").write_text(str(document(n)["text"]))
    long = "\n".join(f"Page {n} of the series begins with this line." for n in range(400))
    (folder / "z.md").write_text(long)  # longer than one and a half shards
    assert len(long) > 1.5 * 4 * 2000
    pq.write_table(pa.table({"text": [document(61)["text"]]}), folder / "p.parquet")
    paths = [folder / "**" / "*"]
    made = manifest(
        tmp_path, paths, corpus={"text": ["text", "content"]}, stages=[{"level": "chunk"}]
    )
    run = prepare_run(made, local_site(tmp_path), None)
    assert len(run.plan.shards) < 20
    tasks.refine_task(str(run.dir.root), 0, 1)
    tasks.merge_task(str(run.dir.root), 1)
    assert check_balance(run.dir) == {"documents": 62, "written": 62}
    ids = [row.id for row in rows_of(run.dir, run.plan)]
    assert sorted(ids) == sorted(
        ["doc-0", "doc-1", *(f"deep/er/{n:02}.txt" for n in range(2, 60)), "p.parquet:0", "z.md"]
    )
    texts = {}
    for part in run.dir.corpus.glob("part-*"):
        with zstandard.open(part, "rb") as file:
            texts |= {row["id"]: row["text"] for row in map(orjson.loads, file.read().splitlines())}
    assert texts["doc-1"] == body["text"].removeprefix("Home | About | Contact\n")
    assert texts["deep/er/07.txt"].endswith("Number 7 of the series ends with this line.")


def test_the_text_is_in_the_first_of_several_fields(tmp_path: Path) -> None:
    rows = [
        {"content": "a"},
        {"text": "b", "content": "c"},
        {"body": "d"},
        {"text": None, "content": "e"},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    items = [*read_span(path, "auto", Span(0), Fields(("text", "content")), LIMIT)]
    first, second, missing, null, _ = items
    assert isinstance(first, Document)
    assert isinstance(second, Document)
    assert (first.text, second.text, second.fields) == ("a", "b", {"content": "c"})
    assert isinstance(missing, BadRecord)
    assert missing.detail == "no field 'text' or 'content'; it has: body"
    assert isinstance(null, BadRecord)
    assert null.reason == "null_text"

"""Parquet: rows as documents, values as JSON types, and damaged row groups."""

import datetime
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_files import FIELDS, LIMIT, ids, read
from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.inputs import describe_input
from proxhpc.corpus.parquet import Table
from proxhpc.corpus.readers import Fields, read_span
from proxhpc.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(tmp_path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table(columns), path, **options)
    return path


def numbered(tmp_path: Path, count: int = 25, group: int = 10) -> Path:
    columns = {"id": [f"d{i}" for i in range(count)], "text": [f"text {i}" for i in range(count)]}
    return write(tmp_path, columns, row_group_size=group, compression="none", use_dictionary=False)


def document(item: Document | BadRecord) -> Document:
    assert isinstance(item, Document)
    return item


def damage(path: Path, needle: bytes) -> None:
    """Flip a bit in a page; pages have a checksum."""
    data = bytearray(path.read_bytes())
    data[data.index(needle)] ^= 1
    path.write_bytes(data)


def test_rows_are_documents_and_positions_are_row_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, {"text": ["a", "b"], "id": [7, None], "n": [1, 2]})
    items, end = read(path)
    assert items == [
        Document("7", "a", 0, 0, {"id": 7, "n": 1}),
        Document("c.parquet:1", "b", 0, 1, {"id": None, "n": 2}),
    ]
    assert end == SpanEnd(0, 2, at_eof=True)


@settings(deadline=None, max_examples=40)
@given(edges=st.lists(st.integers(0, 30), max_size=5))
def test_each_row_is_in_exactly_one_span(
    tmp_path_factory: pytest.TempPathFactory, edges: list[int]
) -> None:
    path = numbered(tmp_path_factory.mktemp("tile"))
    starts = sorted({0, *edges})
    seen = []
    for start, stop in zip(starts, [*starts[1:], None], strict=True):
        items, end = read(path, start, stop)
        seen += ids(items)
        assert end.at_eof == (stop is None or stop >= 25)
        assert end.position == max(start, 25 if stop is None else min(stop, 25))
    assert seen == [f"d{i}" for i in range(25)]


def test_all_types_are_converted_to_json_types(tmp_path: Path) -> None:
    utc = datetime.UTC
    columns = {
        "text": ["t"],
        "day": pa.array([datetime.date(2024, 2, 29)]),
        "ns": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")),
        "zoned": pa.array(
            [datetime.datetime(2024, 1, 1, 12, tzinfo=utc)], pa.timestamp("ms", "+02:00")
        ),
        "time": pa.array([datetime.time(1, 2, 3)], pa.time64("ns")),
        "wait": pa.array([1500], pa.duration("ms")),
        "price": pa.array([Decimal("1.50")], pa.decimal128(9, 2)),
        "blob": pa.array([b"\xff\x00"]),
        "bytes": pa.array(["né".encode()]),
        "half": pa.array([1.5], pa.float16()),
        "code": pa.array(["en"]).dictionary_encode(),
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())),
        "deep": pa.array([{"when": [datetime.datetime(2024, 1, 1)]}]),
        "none": pa.array([None], pa.int32()),
    }
    (item,), _ = read(write(tmp_path, columns))
    assert isinstance(item, Document)
    assert item.fields == {
        "day": "2024-02-29",
        "ns": "2023-11-14T22:13:20.123456",
        "zoned": "2024-01-01T12:00:00+00:00",
        "time": "01:02:03",
        "wait": 1.5,
        "price": "1.50",
        "blob": "/wA=",
        "bytes": "né",
        "half": 1.5,
        "code": "en",
        "map": [["k", 1]],
        "deep": {"when": ["2024-01-01T00:00:00"]},
        "none": None,
    }
    assert orjson.loads(orjson.dumps(item.fields)) == item.fields


def test_a_nested_text_and_id(tmp_path: Path) -> None:
    path = write(tmp_path, {"doc": [{"body": "t", "key": 3}]})
    (item,), _ = read(path, fields=Fields(("doc.body",), "doc.key"))
    assert item == Document("3", "t", 0, 0, {"doc": {"key": 3}})


def test_rows_that_are_not_documents_are_bad_records(tmp_path: Path) -> None:
    broken = pa.array([b"ok", b"\xff\xfe", None, b"x" * 50]).view(pa.string())
    path = write(tmp_path, {"text": broken, "n": [0, 1, 2, 3]})
    items, _ = read(path, limit=40)
    assert ids(items) == ["c.parquet:0", "invalid_utf8", "null_text", "record_too_long"]
    assert [item.position for item in items] == [0, 1, 2, 3]
    assert isinstance(items[2], BadRecord)
    assert items[2].head == b'{"text":null,"n":2}'
    assert isinstance(items[3], BadRecord)
    assert (items[3].size, items[3].head) == (50, b"x" * 50)
    assert ids(read(path, fields=Fields(("content",)))[0])[0] == "missing_text"


def test_a_text_of_bytes_that_are_not_utf_8_is_a_bad_record(tmp_path: Path) -> None:
    items, _ = read(write(tmp_path, {"text": [b"\xc3\xa4", b"\xff\xfe"], "b": [b"\xff", b""]}))
    assert ids(items) == ["c.parquet:0", "invalid_utf8"]
    assert document(items[0]).fields == {"b": "/w=="}
    assert isinstance(items[1], BadRecord)
    assert (items[1].size, items[1].head) == (2, b"\xff\xfe")


def test_a_date_that_python_cannot_represent_is_one_bad_record(tmp_path: Path) -> None:
    when = pa.array([0, 2**60], pa.timestamp("us"))
    items, _ = read(write(tmp_path, {"text": ["a", "b"], "when": when}))
    assert ids(items) == ["c.parquet:0", "unreadable_row"]


def test_a_damaged_row_group_is_one_bad_record_and_the_others_are_read(tmp_path: Path) -> None:
    columns = {"id": [f"d{i}" for i in range(25)], "text": [f"text {i}" for i in range(25)]}
    path = write(
        tmp_path,
        columns,
        row_group_size=10,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    damage(path, b"text 14")
    items, end = read(path)
    good = [f"d{i}" for i in [*range(10), *range(20, 25)]]
    assert ids(items) == [*good[:10], "corrupt_input", *good[10:]]
    bad = items[10]
    assert isinstance(bad, BadRecord)
    assert bad.position == 10
    assert "rows 10 to 19 of row group 1 are lost" in bad.detail
    assert end == SpanEnd(0, 25, at_eof=True)
    assert read(path, 0, 15)[0] + read(path, 15)[0] == items


@pytest.mark.parametrize("size", [3, 40, -1])
def test_a_truncated_file_is_described_with_a_note_and_read_as_one_bad_record(
    tmp_path: Path, size: int
) -> None:
    path = numbered(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    info = describe_input(path)
    assert info.rows is None
    assert info.note.startswith("corrupt: ")
    items, end = read(path)
    assert ids(items) == ["corrupt_input"]
    assert end == SpanEnd(0, 0, at_eof=True)
    assert read(path, 10) == ([], SpanEnd(0, 10, at_eof=True))


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    path.touch()
    assert read(path) == ([], SpanEnd(0, 0, at_eof=True))
    assert (describe_input(path).rows, describe_input(path).note) == (0, "")


def test_the_description_has_the_number_of_rows(tmp_path: Path) -> None:
    info = describe_input(numbered(tmp_path))
    assert (info.format, info.rows, info.estimated_records) == ("parquet", 25, 25)
    assert 0 < info.estimated_bytes < info.size


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = numbered(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError) as caught:
        list(read_span(path, "parquet", Span(0), FIELDS, LIMIT))
    assert "c.parquet" in caught.value.message
    assert caught.value.hint.startswith("pip install 'pyarrow>=")


def test_int96_dates_far_from_today_are_right(tmp_path: Path) -> None:
    dates = [datetime.datetime(year, 12, 31, 23, 59, 59) for year in (1, 1500, 2001, 9999)]
    table = pa.table({"text": ["a"] * 4, "ts": pa.array(dates, pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    items, _ = read(tmp_path / "a.parquet")
    assert [document(item).fields["ts"] for item in items] == [date.isoformat() for date in dates]


def test_columns_of_one_name_are_all_read_and_told(tmp_path: Path) -> None:
    names = ["text", "url", "url", "text", "url_2"]
    table = pa.Table.from_arrays([pa.array([str(n)]) for n in range(5)], names)
    pq.write_table(table, tmp_path / "a.parquet")
    [item], _ = read(tmp_path / "a.parquet")
    assert document(item).text == "0"
    assert document(item).fields == {"url": "1", "url_3": "2", "text_2": "3", "url_2": "4"}
    assert describe_input(tmp_path / "a.parquet").note == (
        "columns have equal names; the later ones are read as url_3, text_2"
    )


@pytest.mark.parametrize("repeated", [True, False])
def test_rows_that_decode_to_far_more_than_their_size_are_read_in_bounded_memory(
    tmp_path: Path, repeated: bool
) -> None:
    """A dictionary of one long text; or a row group of short texts before it."""
    text = "A sentence of this text. " * 4000
    if repeated:
        column = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array([text]))
    else:
        column = pa.array([str(n) for n in range(2000)] + [text] * 1500)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": column}), path, row_group_size=2000)
    before = pa.total_allocated_bytes()
    peak = rows = 0
    for item in read_span(path, "auto", Span(0), FIELDS, LIMIT):
        peak = max(peak, pa.total_allocated_bytes() - before)
        rows += isinstance(item, Document)
    assert rows == len(column)
    assert peak < 64 << 20


def test_rows_of_more_than_2_gib_in_a_batch_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands in for them: batches of more than 10 rows cannot be decoded."""
    table = pa.table({"text": [f"text {n}" for n in range(100)]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    whole = Table.batches

    def limited(self: Table, group: int, size: int, skip: int) -> Iterator[Any]:
        for batch in whole(self, group, size, skip):
            if batch.num_rows > 10:
                raise pa.ArrowCapacityError("array cannot contain more than 2147483646 bytes")
            yield batch

    monkeypatch.setattr(Table, "batches", limited)
    items, _ = read(path)
    assert [document(item).text for item in items] == [f"text {n}" for n in range(100)]


def test_rows_that_a_damaged_footer_hides_are_told(tmp_path: Path) -> None:
    """Footers have no checksum; some changes make pyarrow return fewer rows, or abort."""
    path = numbered(tmp_path)
    sound = path.read_bytes()
    footer = len(sound) - 8 - int.from_bytes(sound[-8:-4], "little")
    details = []
    for at in range(footer, len(sound), 3):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << at % 8]) + sound[at + 1 :])
        describe_input(path)
        items, _ = read(path)
        bad = [item.detail for item in items if isinstance(item, BadRecord)]
        assert bad or len(items) == 25
        details += bad
    assert any("it has fewer rows than its header says" in detail for detail in details)
    assert any("the footer counts 25 rows, its row groups" in detail for detail in details)

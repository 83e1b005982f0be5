"""JSON lines: documents, bad records, and the span of each record."""

import tracemalloc
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_files import FIELDS, LIMIT, ids, pack, read, rows
from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.inputs import describe_input
from proxhpc.corpus.jsonl import LineStream, first_byte, read_jsonl, split_lines
from proxhpc.corpus.readers import Fields, read_span
from proxhpc.errors import UserError


def write(tmp_path: Path, data: bytes, name: str = "c.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def one(tmp_path: Path, line: bytes, fields: Fields = FIELDS) -> Document | BadRecord:
    items, _ = read(write(tmp_path, line), fields=fields)
    assert len(items) == 1
    return items[0]


def test_a_document_keeps_every_other_field(tmp_path: Path) -> None:
    line = b'{"id": "a", "z": [1, {"b": null}], "text": "hi\\nyou", "url": "u"}\n'
    assert one(tmp_path, line) == Document(
        "a", "hi\nyou", 0, 0, {"id": "a", "z": [1, {"b": None}], "url": "u"}
    )


def test_dotted_names_are_paths_unless_there_is_such_a_key(tmp_path: Path) -> None:
    fields = Fields(("doc.body",), "meta.WARC-Record-ID")
    line = b'{"doc": {"body": "t", "lang": "en"}, "meta": {"WARC-Record-ID": "<u>"}}'
    assert one(tmp_path, line, fields) == Document(
        "<u>", "t", 0, 0, {"doc": {"lang": "en"}, "meta": {"WARC-Record-ID": "<u>"}}
    )
    both = one(tmp_path, b'{"doc.body": "literal", "doc": {"body": "path"}}', fields)
    assert isinstance(both, Document)
    assert (both.text, both.fields) == ("literal", {"doc": {"body": "path"}})


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    line = b'{"id": "a", "text": "NaN", "score": NaN, "more": [-Infinity, Infinity, 1.5]}'
    assert one(tmp_path, line) == Document(
        "a", "NaN", 0, 0, {"id": "a", "score": None, "more": [None, None, 1.5]}
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": 1, "text": "cut', "invalid_json"),
        (b'{"id": 1, "text": "a", "x": nan}', "invalid_json"),
        (b'{"id": 1, "text": "NaN", "x": NaN', "invalid_json"),
        (b'{"id": 1, "text": "\\ud800", "x": NaN}', "invalid_json"),
        (b'{"id": 1, "text": "\\ud800"}', "invalid_json"),
        (b'{"id": 1, "text": "\xff"}', "invalid_utf8"),
        (b"[1, 2]", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b'{"id": 1, "txt": "a"}', "missing_text"),
        (b'{"id": 1, "text": null}', "null_text"),
        (b'{"id": 1, "text": ["a"]}', "text_not_string"),
        (b'{"id": [1], "text": "a"}', "id_not_scalar"),
        (b'{"id": true, "text": "a"}', "id_not_scalar"),
        (b"[" * 5000, "invalid_json"),
    ],
)
def test_a_line_that_is_not_a_document_is_a_bad_record(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    good = b'{"id": "%d", "text": "t"}\n'
    items, end = read(write(tmp_path, good % 1 + line + b"\n" + good % 2))
    assert ids(items) == ["1", reason, "2"]
    bad = items[1]
    assert isinstance(bad, BadRecord)
    assert (bad.position, bad.size, bad.head) == (len(good % 1), len(line), line[:1024])
    assert bad.detail
    assert end.at_eof


def test_a_missing_text_lists_the_existing_fields(tmp_path: Path) -> None:
    bad = one(tmp_path, b'{"id": 1, "content": "x"}')
    assert isinstance(bad, BadRecord)
    assert bad.detail == "no field 'text'; it has: id, content"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'"a b"', "a b"),
        (b"17", "17"),
        (b"1.5", "1.5"),
        (b"123456789012345678901234567890", "123456789012345678901234567890"),
        (b"null", "c.jsonl:0"),
        (b'""', "c.jsonl:0"),
    ],
)
def test_ids_become_strings(tmp_path: Path, value: bytes, expected: str) -> None:
    assert ids([one(tmp_path, b'{"id": %s, "text": "t"}' % value)]) == [expected]


def test_integers_of_more_than_64_bits_are_text(tmp_path: Path) -> None:
    item = one(
        tmp_path,
        b'{"id": 1, "text": "t", "a": [{"b": 18446744073709551616}], "c": -9223372036854775809,'
        b' "d": [18446744073709551615, -9223372036854775808, 1e30, 0.5], "e": {"f": 1e400}}',
    )
    assert isinstance(item, BadRecord)  # a float that no double holds
    item = one(
        tmp_path,
        b'{"id": 1, "text": "t", "a": [{"b": 18446744073709551616}], "c": -9223372036854775809,'
        b' "d": [18446744073709551615, -9223372036854775808, 1e30, 0.5], "e": NaN}',
    )
    assert isinstance(item, Document)
    assert item.fields == {
        "id": 1,
        "a": [{"b": "18446744073709551616"}],
        "c": "-9223372036854775809",
        "d": [2**64 - 1, -(2**63), 1e30, 0.5],
        "e": None,
    }


def test_the_default_id_is_the_display_name_and_position(tmp_path: Path) -> None:
    info = describe_input(
        write(tmp_path, b'{"text": "a"}\n{"text": "b"}\n'), name="crawl/1/c.jsonl"
    )
    *items, _ = read_span(info, info.format, Span(0), Fields(("text",)), LIMIT)
    assert ids(items) == ["crawl/1/c.jsonl:0", "crawl/1/c.jsonl:14"]


def test_bom_carriage_returns_blank_lines_and_a_missing_last_newline(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"id": 1, "text": "a"}\r\n\r\n  \t\n\n{"id": 2, "text": "b"}'
    items, end = read(write(tmp_path, data))
    assert ids(items) == ["1", "2"]
    assert end == SpanEnd(0, len(data), at_eof=True, blank=3)


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    text = "a\u2028b\u0085c\x0bd"
    line = orjson.dumps({"id": 1, "text": text})
    item = one(tmp_path, line.replace(rb"\u000b", b"\x0b") if b"\x0b" in line else line)
    assert isinstance(item, Document)
    assert item.text == text


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_an_empty_file_has_no_records(tmp_path: Path, compression: str) -> None:
    suffix = {"none": "", "gzip": ".gz", "zstd": ".zst"}[compression]
    path = write(tmp_path, b"", f"c.jsonl{suffix}")
    assert read(path) == ([], SpanEnd(0, 0, at_eof=True))
    path.write_bytes(pack(b"", compression))
    assert read(path) == ([], SpanEnd(0, 0, at_eof=True))


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_50_mb_line_is_a_bad_record_in_bounded_memory(tmp_path: Path, compression: str) -> None:
    size = 50 << 20
    head = b'{"id": "long", "text": "'
    long = head + b"x" * (size - len(head))
    data = rows(1)[0] + b"\n" + long + b"\n" + rows(2)[1]
    path = write(tmp_path, pack(data, compression))
    del data, long
    tracemalloc.start()
    try:
        items, end = read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ids(items) == ["d0", "record_too_long", "d1"]
    bad = items[1]
    assert isinstance(bad, BadRecord)
    assert (bad.size, len(bad.head)) == (size, 1024)
    assert bad.head.startswith(head + b"xxx")
    assert end.at_eof
    assert peak < 24 << 20


def test_the_limit_is_inclusive(tmp_path: Path) -> None:
    line = rows(1)[0]
    path = write(tmp_path, line + b"\n" + line)
    assert ids(read(path, limit=len(line))[0]) == ["d0", "d0"]
    assert ids(read(path, limit=len(line) - 1)[0]) == ["record_too_long"] * 2
    path.write_bytes(b"y" * 9000 + b"\n")
    (bad,), _ = read(path, limit=2000)
    assert isinstance(bad, BadRecord)
    assert (bad.size, bad.head) == (9000, b"y" * 1024)


def test_a_record_belongs_to_the_span_of_its_first_byte(tmp_path: Path) -> None:
    lines = [b'{"id": "%d", "text": "t"}' % i for i in range(3)]
    step = len(lines[0]) + 1
    path = write(tmp_path, b"\n".join(lines) + b"\n")
    assert ids(read(path, 0, step)[0]) == ["0"]
    assert ids(read(path, 0, step + 1)[0]) == ["0", "1"]
    assert ids(read(path, step, None)[0]) == ["1", "2"]
    assert ids(read(path, step - 1, None)[0]) == ["1", "2"]
    assert ids(read(path, step + 1, None)[0]) == ["2"]
    assert read(path, 1, 2) == ([], SpanEnd(0, step, at_eof=False))
    assert read(path, 3 * step) == ([], SpanEnd(0, 3 * step, at_eof=True))
    assert read(path, 999, 1000) == ([], SpanEnd(0, 999, at_eof=True))


def test_the_end_of_a_span_is_the_start_of_the_next(tmp_path: Path) -> None:
    path = write(tmp_path, b"\n".join(rows(5)))
    position, seen = 0, []
    while True:
        items, end = read(path, position, position + 1)
        seen += ids(items)
        assert end.position > position or end.at_eof
        position = end.position
        if end.at_eof:
            break
    assert seen == ["d0", "d1", "d2", "d3", "d4"]


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    missing = tmp_path / "none.jsonl.zst"
    with pytest.raises(UserError, match=r"no such input file.*none\.jsonl\.zst"):
        read(missing)
    with pytest.raises(UserError, match="not a file"):
        read(tmp_path)


LINES = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.sampled_from(
            [b"", b"\r", b"  ", b'{"id":1,"text":"a"}', b'{"text":"b\\n"}', b"\xef\xbb\xbf{}"]
        ),
        st.integers(30, 90).map(lambda size: b'{"text":"' + b"y" * size + b'"}'),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=300)
@given(
    lines=LINES,
    newline=st.booleans(),
    edges=st.lists(st.integers(0, 400), max_size=6),
    chunk=st.integers(1, 50),
    limit=st.sampled_from([8, 40, 1000]),
)
def test_each_record_is_in_exactly_one_span(
    lines: list[bytes], newline: bool, edges: list[int], chunk: int, limit: int
) -> None:
    data = b"\n".join(lines) + (b"\n" if newline else b"")

    def read_part(
        start: int, stop: int | None, step: int
    ) -> tuple[list[Document | BadRecord | SpanEnd], SpanEnd]:
        span = Span(0, start, stop)
        at = first_byte(span)
        pieces = (data[i : i + step] for i in range(at, len(data), step))
        stream = LineStream(split_lines(pieces, at, limit))
        *items, end = read_jsonl(stream, span, FIELDS, "n", limit)
        assert isinstance(end, SpanEnd)
        return items, end

    pieces = (data[i : i + chunk] for i in range(0, len(data), chunk))
    kept_open = LineStream(split_lines(pieces, 0, limit))

    whole, last = read_part(0, None, len(data) or 1)
    starts = sorted({0, *edges})
    parts, blank = [], 0
    for start, stop in zip(starts, [*starts[1:], None], strict=True):
        items, end = read_part(start, stop, chunk)
        if start % 3 or start == 0:  # a stream that stays open gives the same, also if spans lack
            again = read_jsonl(kept_open, Span(0, start, stop), FIELDS, "n", limit)
            assert [*again] == [*items, end]
        parts += items
        blank += end.blank
    assert parts == whole
    assert blank == last.blank
    # Each line of the file is a document, a bad record or blank.
    texts = data.split(b"\n")
    if not texts[-1]:
        texts.pop()
    assert len(whole) + last.blank == len(texts)

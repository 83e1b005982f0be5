"""Every format is read, and damage of any kind is accounted for: nothing crashes or vanishes."""

import bz2
import gzip
import io
import json
import lzma
import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard

from corpus_files import FIELDS, LIMIT, ids, pack, read, rows
from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.inputs import describe_input, detect_format
from proxhpc.corpus.probe import probe_inputs
from proxhpc.corpus.readers import read_span
from proxhpc.corpus.records import Fields

COUNT = 60
LINES = rows(COUNT, size=30)
DATA = b"\n".join(LINES) + b"\n"
SKIPPABLE = b"\x50\x2a\x4d\x18" + b"\4\0\0\0" + b"\x28\xb5\x2f\xfd"
NAMES = [f"d{i}" for i in range(COUNT)]
RECORDS = [orjson.loads(line) for line in LINES]


def lz4(data: bytes) -> bytes:
    frame = pytest.importorskip("lz4.frame")
    packed: bytes = frame.compress(data, content_checksum=True)
    return packed


def table(writer: Callable[[Any, Any], None]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    sink = io.BytesIO()
    writer(pyarrow.Table.from_pylist(RECORDS), sink)
    return sink.getvalue()


def write_parquet(rows_: Any, sink: Any) -> None:
    from pyarrow import parquet

    parquet.write_table(rows_, sink, row_group_size=25, write_page_checksum=True)


def write_arrow_file(rows_: Any, sink: Any) -> None:
    import pyarrow

    with pyarrow.ipc.new_file(sink, rows_.schema) as writer:
        writer.write_table(rows_, max_chunksize=25)


def write_arrow_stream(rows_: Any, sink: Any) -> None:
    import pyarrow

    with pyarrow.ipc.new_stream(sink, rows_.schema) as writer:
        writer.write_table(rows_, max_chunksize=25)


def wet() -> bytes:
    parts = [b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 4\r\n\r\na: b\r\n\r\n"]
    for record in RECORDS:
        text = record["text"].encode()
        head = f"WARC-Type: conversion\r\nid: {record['id']}\r\nContent-Length: {len(text)}"
        parts.append(b"WARC/1.0\r\n" + head.encode() + b"\r\n\r\n" + text + b"\r\n\r\n")
    return b"".join(parts)


# Files of the same documents: name, content, and whether checksums cover all of the texts.
FILES: dict[str, tuple[str, Callable[[], bytes], bool]] = {
    "plain": ("a.jsonl", lambda: DATA, False),
    "gzip": ("a.jsonl.gz", lambda: pack(DATA, "gzip", 3), True),
    "zstd": ("a.jsonl.zst", lambda: SKIPPABLE + pack(DATA, "zstd", 3) + SKIPPABLE, True),
    "xz": ("a.jsonl.xz", lambda: lzma.compress(DATA[:999]) + lzma.compress(DATA[999:]), True),
    "bzip2": ("a.jsonl.bz2", lambda: bz2.compress(DATA), True),
    "lz4": ("a.jsonl.lz4", lambda: SKIPPABLE + lz4(DATA[:999]) + lz4(DATA[999:]), True),
    "array": ("a.json", lambda: b"[\n" + b",\n".join(LINES) + b"\n]\n", False),
    "array on one line": ("a.json.gz", lambda: gzip.compress(json.dumps(RECORDS).encode()), True),
    "indented": (
        "a.json",
        lambda: "\n".join(json.dumps(r, indent=1) for r in RECORDS).encode(),
        False,
    ),
    "wet": ("a.warc.wet.gz", lambda: gzip.compress(wet()), True),
    "parquet": ("a.parquet", lambda: table(write_parquet), True),
    "arrow file": ("a.arrow", lambda: table(write_arrow_file), False),
    "arrow stream": ("a.arrow", lambda: table(write_arrow_stream), False),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_format_gives_the_same_documents_in_any_spans(tmp_path: Path, kind: str) -> None:
    name, make, _ = FILES[kind]
    path = tmp_path / name
    path.write_bytes(make())
    items, end = read(path)
    assert [(i.id, i.text) for i in items if isinstance(i, Document)] == [
        (record["id"], record["text"]) for record in RECORDS
    ]
    assert end.at_eof
    info = describe_input(path)
    assert info.note == ""
    stop = info.rows or info.estimated_bytes
    edges = [0, 1, stop // 7, stop // 3, stop // 3 + 1, stop, stop + 9, None]
    spans = [*pairwise(edges)]
    in_order = [read(path, start or 0, stop) for start, stop in spans]
    assert [item for part, _ in in_order for item in part] == items
    for (start, stop), part in reversed([*zip(spans, in_order, strict=True)]):
        assert read(path, start or 0, stop) == part  # no stream is open at the right place


@pytest.mark.parametrize("kind", FILES)
def test_damage_is_accounted_for_and_nothing_altered_passes_as_sound(
    tmp_path: Path, kind: str
) -> None:
    name, make, verified = FILES[kind]
    sound, path = make(), tmp_path / name
    path.write_bytes(sound)
    right = {(i.id, i.text) for i in read(path)[0] if isinstance(i, Document)}
    chooser = random.Random(kind)
    for _ in range(40):
        check_mutated(path, mutate(sound, chooser), right if verified else None)


def mutate(data: bytes, chooser: random.Random) -> bytes:
    at, other = sorted(chooser.choices(range(len(data)), k=2))
    junk = chooser.randbytes(chooser.choice([1, 4, 300]))
    return chooser.choice(
        [
            data[:at],
            data[:at] + junk + data[at:],
            data[:at] + junk + data[at + len(junk) :],
            data[:at] + bytes([data[at] ^ 1 << chooser.randrange(8)]) + data[at + 1 :],
            data[:at] + data[other:],
            b"PK\x03\x04" + data[4:],
            data[other:] + data[:other],
        ]
    )


def check_mutated(path: Path, data: bytes, right: set[tuple[str, str]] | None) -> None:
    path.write_bytes(data)
    describe_input(path)
    items, end = read(path)
    half = max(1, end.position // 2)
    parts = read(path, 0, half)[0] + read(path, half)[0]
    assert parts == items
    bad = [item for item in items if isinstance(item, BadRecord)]
    if right is None:
        return
    unverified = [re.search(r"from position (\d+) on are unverified", item.detail) for item in bad]
    sound_before = min([int(found[1]) for found in unverified if found], default=end.position + 1)
    for item in items:
        if isinstance(item, Document) and item.position < sound_before:
            assert (item.id, item.text) in right, item


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'[{"text": "a"}]', ["a"]),
        (b' [ ] [{"text": "a"} ,{"text": "]}"}]', ["a", "]}"]),
        (b'[{"text": "\\\\\\"[{"}, 3, {"text": "b"}]', ['\\"[{', "not_an_object", "b"]),
        (b'[{"text": "a"}, {"text": nul}, {"text": "b"}]', ["a", "invalid_json", "b"]),
        (b'[{"text": "a"},\n{"text": "a\n"},\n{"text": "b"}]', ["a", "invalid_json"]),
        (b'[{"text": "a"}, {"text": "b', ["a", "invalid_json"]),
        (
            b'[["a"], {"x": [{}]}, {"text": "%s"}]' % (b"x" * 99),
            ["not_an_object", "missing_text", "record_too_long"],
        ),
        (b'{\n"text": "a"\n}\n\xef\xbb\xbf{"text": "b"}\n', ["a", "b"]),
        (b'{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n\xef\xbb\xbf\n', ["a", "b"]),
        (b'{"text": "a"}{"text": "b"} {"text": nul}{"text": "c"}', ["a", "b", "invalid_json", "c"]),
        (b'{"text": "a"},\n{"text": "b"},\n', ["a", "b"]),
        (b'{"text": "a"}\r{"text": "b"}\r', ["a", "b"]),
    ],
)
@pytest.mark.parametrize("step", [2, 7, 1000])
def test_values_are_found_in_json(
    tmp_path: Path, content: bytes, expected: list[str], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    kind = detect_format(path, "auto")
    monkeypatch.setattr("proxhpc.corpus.streams._READ", step)
    *items, _ = read_span(path, kind, Span(0), Fields(), 90)
    shown = [
        item.text if isinstance(item, Document) else item.reason
        for item in items
        if not isinstance(item, SpanEnd)
    ]
    assert shown == expected


def test_all_that_zcat_reads_of_a_gzip_file_with_a_wrong_checksum_is_read(tmp_path: Path) -> None:
    data = b"\n".join(rows(3000, size=40)) + b"\n"
    first, second = gzip.compress(DATA), bytearray(gzip.compress(data))
    second[-5] ^= 1
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(first + second)
    items, _ = read(path)
    assert len(items) == COUNT + 3000 + 1
    assert isinstance(items[-1], BadRecord)
    assert items[-1].reason == "corrupt_input"
    assert f"records from position {len(DATA)} on are unverified" in items[-1].detail


def test_the_row_of_a_file_that_is_not_what_its_name_says_has_its_first_bytes(
    tmp_path: Path,
) -> None:
    page = b"<?xml version='1.0'?><Error><Code>SlowDown</Code></Error>"
    for name in ("a.jsonl.gz", "a.jsonl.zst", "a.jsonl.xz", "a.parquet", "a.arrow"):
        path = tmp_path / name
        path.write_bytes(page)
        [item], _ = read(path)
        assert isinstance(item, BadRecord)
        assert (item.reason, item.head) == ("corrupt_input", page), name
        [probe] = probe_inputs([describe_input(path)], FIELDS, LIMIT)
        assert "it looks like XML, perhaps the error page of a download" in probe.note


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "a Git LFS pointer",
        ),
        ("a.jsonl", DATA.decode().encode("utf-16"), "UTF-16 text"),
        ("a.jsonl.gz", gzip.compress(gzip.compress(DATA)), "gzip within a compressed file"),
        ("a.jsonl", b"PK\x03\x04\0\0\n\x80", "a zip archive"),
        ("a.jsonl", b"<html><p>Not found</p>", "HTML, perhaps the error page"),
        ("a.parquet", b"/annex/objects/SHA256E-s14--66.parquet\n", "a git-annex pointer"),
        ("a.jsonl.zst", bytes(999), "zeros, perhaps of a download that did not end"),
        ("a.jsonl", DATA.decode().encode("utf-16-be"), "UTF-16 text: convert it with iconv"),
        ("a.jsonl.lz4", b"\x02\x21\x4c\x18\x10\0\0\0", "lz4 in its legacy format"),
        (
            "a.jsonl.gz",
            gzip.compress(b"x.jsonl".ljust(257, b"\0") + b"ustar" + DATA),
            "a tar archive",
        ),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    [probe] = probe_inputs([describe_input(path)], FIELDS, LIMIT)
    assert bool(probe.documents) == ("tar" in words)
    assert f"it looks like {words}" in probe.note


@pytest.mark.parametrize("kind", ["array", "indented", "parquet", "arrow file", "wet"])
def test_a_file_is_not_said_to_look_like_what_it_is(tmp_path: Path, kind: str) -> None:
    name, make, _ = FILES[kind]
    path = tmp_path / name
    path.write_bytes(make())
    [probe] = probe_inputs([describe_input(path)], Fields(("texts",)), LIMIT)
    assert not probe.documents
    assert probe.example
    assert probe.note.endswith("no field 'texts'; it has: " + probe.example.detail.split(": ")[1])


def test_a_text_file_that_is_compressed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(gzip.compress(b"Some text"))
    [probe] = probe_inputs([describe_input(path)], FIELDS, LIMIT)
    assert probe.note == "not a text (invalid_utf8): it looks like gzip: decompress it once"


def test_what_is_not_known_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"text,id\nhello,1\n")
    [probe] = probe_inputs([describe_input(path)], FIELDS, LIMIT)
    assert "line 1 column 1 (char 0); it begins with b'text,id\\nhello,1\\n'" in probe.note


def test_a_zstd_window_of_2_gib_is_read_if_the_manifest_allows_it(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=31, write_content_size=False)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(packer.compress(DATA) + packer.flush())
    [probe] = probe_inputs([describe_input(path)], FIELDS, LIMIT)
    assert "2048 MiB, above 128 MiB: raise corpus.zstd_window" in probe.note
    *items, end = read_span(path, "auto", Span(0), FIELDS, LIMIT, max_window=1 << 31)
    assert isinstance(end, SpanEnd)
    assert ids([item for item in items if not isinstance(item, SpanEnd)]) == NAMES


def test_the_length_of_a_compressed_file_is_read_from_headers_and_trailers(tmp_path: Path) -> None:
    repetitive = b'{"text": "%s"}\n' % (b"spam " * 2000) * 600
    noise = b"".join(
        orjson.dumps({"text": random.Random(n).randbytes(900).hex()}) + b"\n" for n in range(600)
    )
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        for data in (repetitive + noise, noise * 5 + repetitive):
            path = tmp_path / name
            packed = pack(data, "gzip" if name.endswith("gz") else "zstd")
            path.write_bytes(packed)
            assert describe_input(path).estimated_bytes == len(data)


def test_a_process_decompresses_a_file_once_for_all_its_spans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from proxhpc.corpus import readers

    opened: list[object] = []
    for name in ("read_chunks", "detect_compression"):
        real = getattr(readers, name)
        monkeypatch.setattr(readers, name, lambda *a, real=real: opened.append(a) or real(*a))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(pack(DATA, "gzip"))
    edges = [*range(0, len(DATA), 700), None]
    parts = [read(path, a or 0, b)[0] for a, b in pairwise(edges)]
    assert ids([item for part in parts for item in part]) == NAMES
    assert len(opened) == 2  # once to tell the compression, and once to read
    path.write_bytes(pack(DATA.replace(b"d1", b"e1"), "gzip"))  # a new file is not the open one
    assert "e19" in ids(read(path, 700)[0])

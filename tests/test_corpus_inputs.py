"""Descriptions of input files: sizes, fingerprints and clear errors."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from corpus_files import FIELDS, LIMIT, pack, rows
from proxhpc.corpus.inputs import InputInfo, check_unchanged, describe_input, detect_format
from proxhpc.corpus.probe import find_misread
from proxhpc.corpus.records import Fields
from proxhpc.errors import RetryError, StopError, UserError

DATA = b"\n".join(rows(300, size=50)) + b"\n"
NOBODY = 65534


@contextmanager
def not_root() -> Iterator[None]:
    """Become the user nobody for the block, because root can read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_file_within_the_sample_is_described_exactly(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(pack(DATA, compression, 3))
    info = describe_input(path)
    assert (info.name, info.format, info.compression) == ("c.jsonl", "jsonl", compression)
    assert info.size == path.stat().st_size
    assert info.estimated_bytes == len(DATA)
    assert (info.rows, info.estimated_records, info.note) == (None, 300, "")


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_larger_file_is_estimated_from_its_start(tmp_path: Path, compression: str) -> None:
    data = DATA * (24 * 2**20 // len(DATA))
    path = tmp_path / "c.jsonl"
    path.write_bytes(pack(data, compression, 40))
    info = describe_input(path)
    assert info.estimated_bytes == pytest.approx(len(data), rel=0.05)
    assert info.estimated_records == pytest.approx(data.count(b"\n"), rel=0.05)
    if compression == "none":
        assert info.estimated_bytes == len(data)


def test_an_empty_file_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl.zst"
    path.touch()
    info = describe_input(path, name="a/c.jsonl.zst")
    assert (info.name, info.size, info.estimated_bytes) == ("a/c.jsonl.zst", 0, 0)
    assert info.estimated_records == 0
    check_unchanged(info)


def test_a_truncated_file_is_described_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl.zst"
    packed = pack(DATA, "zstd")
    path.write_bytes(packed[: len(packed) // 2])
    info = describe_input(path)
    assert info.note.startswith("truncated_input: the file ends inside a zstd frame")


def test_with_a_line_longer_than_the_sample_the_count_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"x" * (6 << 20))
    assert describe_input(path).estimated_records is None


def test_a_path_that_is_not_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such input file: .*gone\.jsonl"):
        describe_input(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match="not a file"):
        describe_input(tmp_path)
    with pytest.raises(UserError, match="not a file"):
        describe_input(Path("/dev/null"))
    fifo = tmp_path / "pipe.jsonl"
    os.mkfifo(fifo)
    with pytest.raises(UserError, match="not a file"):
        describe_input(fifo)


def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    path = tmp_path / "secret.jsonl"
    path.write_bytes(DATA)
    path.chmod(0)
    with not_root(), pytest.raises(UserError, match=r"no permission to read .*secret\.jsonl"):
        describe_input(path)


def test_a_changed_input_stops_the_run(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"a" * 200_000)
    info = describe_input(path)
    check_unchanged(info)
    os.utime(path, (1, 1))
    check_unchanged(info)  # only the content counts, so inputs may be copied
    with path.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"b")
    with pytest.raises(StopError, match=r"c\.jsonl: its content changed"):
        check_unchanged(info)
    path.write_bytes(b"a" * 200_001)
    with pytest.raises(StopError, match=r"c\.jsonl: its size was 200000 bytes, now 200001"):
        check_unchanged(info)
    path.unlink()
    with pytest.raises(RetryError, match=r"c\.jsonl cannot be read on "):
        check_unchanged(info)
    path.mkdir()
    with pytest.raises(RetryError, match=r"c\.jsonl cannot be read on "):
        check_unchanged(info)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "jsonl"),
        ("a.ndjson.gz", "jsonl"),
        ("A.JSON.ZST", "jsonl"),
        ("a.json", "jsonl"),
        ("a.parquet", "parquet"),
        ("a.PQ", "parquet"),
    ],
)
def test_auto_infers_the_format_from_the_name(name: str, kind: str) -> None:
    assert detect_format(Path(name), "auto") == kind


@pytest.mark.parametrize("name", ["README.rst", "a.txt.zst", "a.zst", "a.parquet.gz", "jsonl", "a"])
def test_auto_refuses_an_unknown_suffix(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(DATA)
    with pytest.raises(UserError, match=f"{name}: unknown file format") as error:
        describe_input(path)
    assert "set corpus.format" in error.value.hint
    with pytest.raises(UserError, match="no such input file"):
        describe_input(tmp_path / "gone" / name)
    assert describe_input(path, "jsonl").estimated_records == 300


def infos(folder: Path, *files: bytes) -> list[InputInfo]:
    paths = [folder / f"{number}.jsonl" for number in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    return [describe_input(path) for path in paths]


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"content": "a", "url": "b"}', "missing_text", "it has: content, url"),
        (b'{"text": null}', "null_text", "is null"),
        (b'{"text": ["a"]}', "text_not_string", "is a JSON array"),
        (b'["a"]', "not_an_object", "a JSON array"),
    ],
)
def test_a_corpus_without_any_text_is_found(
    tmp_path: Path, line: bytes, reason: str, detail: str
) -> None:
    files = infos(tmp_path, b"", b"{broken\n" + line, line)
    (info, bad), (second, _) = find_misread(files, FIELDS, LIMIT)
    assert (info.name, bad.position, bad.reason) == ("1.jsonl", 8, reason)
    assert second.name == "2.jsonl"
    assert detail in bad.detail


def test_every_file_is_probed(tmp_path: Path) -> None:
    files = [b'{"text": "b"}'] * 200 + [b""] * 9
    files[5] = b'{"body": "a"}\n{"text": "b"}'
    files[77] = b'{"body": "a"}\n{"content": "b"}'
    [(info, bad)] = find_misread(infos(tmp_path, *files), FIELDS, LIMIT)
    assert (info.name, bad.detail) == ("77.jsonl", "no field 'text'; it has: body")


def test_records_that_are_bad_for_other_reasons_are_accepted(tmp_path: Path) -> None:
    inputs = infos(tmp_path, b"", b'{"text": "no end', b'{"text": "caf\xe9"}\n', b"x" * (5 << 20))
    assert not [*find_misread(inputs, FIELDS, LIMIT)]
    assert not [*find_misread([], FIELDS, LIMIT)]


def test_only_the_start_of_a_file_is_read(tmp_path: Path) -> None:
    other = b'{"body": "a"}\n'
    late = other * (3 * 2**20 // len(other)) + b'{"text": "b"}\n'
    assert [*find_misread(infos(tmp_path, late), FIELDS, LIMIT)]


def test_a_parquet_file_is_checked_too(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"content": ["a", "b"]}), path)
    assert [*find_misread([describe_input(path)], FIELDS, LIMIT)]
    assert not [*find_misread([describe_input(path)], Fields(("content",)), LIMIT)]
    good = tmp_path / "b.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", None]}), good)
    inputs = [describe_input(good)] * 101 + [describe_input(path)] + [describe_input(good)] * 99
    assert [info.path for info, _ in find_misread(inputs, FIELDS, LIMIT)] == [path]


def test_reading_json_lines_does_not_import_pyarrow() -> None:
    code = (
        "import proxhpc.corpus.readers, proxhpc.corpus.writer, sys; print('pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

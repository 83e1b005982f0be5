"""Describing input files: honest sizes, fingerprints, and one clear line where one is wrong."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from corpus_files import pack, rows
from proxhpc.corpus.inputs import check_unchanged, describe
from proxhpc.errors import StopError, UserError

DATA = b"\n".join(rows(300, size=50)) + b"\n"
NOBODY = 65534


@contextmanager
def not_root() -> Iterator[None]:
    """Root may read everything: become nobody for a moment."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_file_within_the_sample_is_known_exactly(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(pack(DATA, compression, 3))
    info = describe(path)
    assert (info.name, info.format, info.compression) == ("c.jsonl", "jsonl", compression)
    assert info.size == path.stat().st_size
    assert info.estimated_bytes == len(DATA)
    assert (info.rows, info.estimated_records, info.note) == (None, 300, "")


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_larger_file_is_estimated_from_its_beginning(tmp_path: Path, compression: str) -> None:
    data = DATA * (24 * 2**20 // len(DATA))
    path = tmp_path / "c.jsonl"
    path.write_bytes(pack(data, compression, 40))
    info = describe(path)
    assert info.estimated_bytes == pytest.approx(len(data), rel=0.05)
    assert info.estimated_records == pytest.approx(data.count(b"\n"), rel=0.05)
    if compression == "none":
        assert info.estimated_bytes == len(data)


def test_an_empty_file_is_legal(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl.zst"
    path.touch()
    info = describe(path, name="a/c.jsonl.zst")
    assert (info.name, info.size, info.estimated_bytes) == ("a/c.jsonl.zst", 0, 0)
    assert info.estimated_records == 0
    check_unchanged(info)


def test_a_cut_file_is_described_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl.zst"
    packed = pack(DATA, "zstd")
    path.write_bytes(packed[: len(packed) // 2])
    info = describe(path)
    assert info.note.startswith("truncated_input: the file ends inside a zstd frame")


def test_one_line_longer_than_the_sample_leaves_the_count_unknown(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"x" * (6 << 20))
    assert describe(path).estimated_records is None


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such input file: .*gone\.jsonl"):
        describe(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match="not a file"):
        describe(tmp_path)
    with pytest.raises(UserError, match="not a file"):
        describe(Path("/dev/null"))
    fifo = tmp_path / "pipe.jsonl"
    os.mkfifo(fifo)
    with pytest.raises(UserError, match="not a file"):
        describe(fifo)


def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    path = tmp_path / "secret.jsonl"
    path.write_bytes(DATA)
    path.chmod(0)
    with not_root(), pytest.raises(UserError, match=r"no permission to read .*secret\.jsonl"):
        describe(path)


def test_an_input_that_changed_stops_the_run_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"a" * 200_000)
    info = describe(path)
    check_unchanged(info)
    os.utime(path, (1, 1))
    check_unchanged(info)  # the content counts, not the time: copies keep a run alive
    with path.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"b")
    with pytest.raises(StopError, match=r"c\.jsonl: its content is another"):
        check_unchanged(info)
    path.write_bytes(b"a" * 200_001)
    with pytest.raises(StopError, match=r"c\.jsonl: its size was 200000 bytes, now 200001"):
        check_unchanged(info)
    path.unlink()
    with pytest.raises(StopError, match=r"c\.jsonl: it can no longer be read"):
        check_unchanged(info)
    path.mkdir()
    with pytest.raises(StopError, match=r"c\.jsonl: it can no longer be read"):
        check_unchanged(info)


def test_reading_json_lines_does_not_import_pyarrow() -> None:
    code = (
        "import proxhpc.corpus.readers, proxhpc.corpus.writer, sys; print('pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

"""Atomic, durable files, and clear errors if the disk is full or writing is not allowed."""

import errno
import hashlib
import os
import random
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxhpc.assemble.merge import merge_run
from proxhpc.corpus.disk import (
    append_line,
    create,
    publish,
    replacing,
    sha256_file,
    write_atomic,
    writing,
)
from proxhpc.corpus.frames import FrameWriter, read_frames
from proxhpc.corpus.writer import PartWriter
from proxhpc.errors import RetryError, UserError
from proxhpc.launch.launch import prepare_run
from proxhpc.worker.worker import Assignment, run_worker
from runs import local_site, manifest, write_jsonl
from test_corpus_inputs import not_root


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("NOT TESTED: a full disk, because mounting a tmpfs needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path, remaining: int) -> None:
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "ballast").write_bytes(b"\0" * (free - remaining))


def test_a_commit_on_a_full_disk_is_undone_and_can_be_retried(small_disk: Path) -> None:
    path = small_disk / "a1"
    with FrameWriter(path) as writer:
        end = writer.append(b"good")
        fill(small_disk, 64 << 10)
        with pytest.raises(RetryError) as caught:
            writer.append(os.urandom(300_000))
    assert caught.value.message.startswith(f"disk full: cannot write a1 in {small_disk}")
    assert "free space" in caught.value.hint
    assert path.stat().st_size == end
    (small_disk / "ballast").unlink()
    again = small_disk / "a2"
    with FrameWriter(again) as writer:
        writer.copy(path, end)
        writer.append(b"again")
    assert [frame.payload for frame in read_frames(again)] == [b"good", b"again"]


def test_a_part_on_a_full_disk_leaves_nothing_behind(small_disk: Path) -> None:
    path = small_disk / "part-00000.jsonl.zst"
    with pytest.raises(RetryError, match="disk full"), PartWriter(path) as writer:  # noqa: PT012
        for _ in range(40):
            writer.write({"text": os.urandom(50_000).hex()})
    assert list(small_disk.iterdir()) == []


def test_replacing_on_a_full_disk_keeps_the_old_file(small_disk: Path) -> None:
    path = small_disk / "plan.json"
    write_atomic(path, b"old")
    fill(small_disk, 8 << 10)
    with pytest.raises(RetryError, match="disk full"):
        write_atomic(path, b"new" * 100_000)
    assert path.read_bytes() == b"old"
    assert sorted(os.listdir(small_disk)) == ["ballast", "plan.json"]
    with pytest.raises(RetryError, match="disk full"):
        append_line(small_disk / "w.jsonl", b"x" * 100_000)


def test_no_write_permission_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    with not_root():
        with pytest.raises(UserError, match=r"no permission to write .*closed/a1"):
            FrameWriter(closed / "a1")
        with pytest.raises(UserError, match="no permission to write"):
            PartWriter(closed / "part.jsonl.zst")
        with pytest.raises(UserError, match="no permission to write"):
            write_atomic(closed / "plan.json", b"x")
        with pytest.raises(UserError, match="no permission to write"):
            append_line(closed / "w.jsonl", b"x")


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no directory .*gone"):
        write_atomic(tmp_path / "gone" / "x", b"x")


def test_a_file_in_place_of_a_directory_is_a_user_error(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(UserError, match=r"cannot write .*taken: it is a file"), writing(taken):
        os.listdir(taken)


def test_the_first_to_publish_wins(tmp_path: Path) -> None:
    first, second, final = tmp_path / "a1", tmp_path / "a2", tmp_path / "ledger"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    assert publish(first, final)
    assert not publish(second, final)
    assert publish(first, final)  # the link was made, but its reply was lost
    assert final.read_bytes() == b"1"


def test_a_file_system_without_links_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a1").write_bytes(b"1")

    def no_links(*args: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("proxhpc.corpus.disk.os.link", no_links)
    with pytest.raises(UserError, match="cannot make hard links in "):
        publish(tmp_path / "a1", tmp_path / "ledger")


def test_replacing_is_atomic_and_leaves_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "site.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"

    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("proxhpc.corpus.disk.os.replace", fail)
    with pytest.raises(RetryError, match=r"cannot write .*site\.json: Input/output error"):
        write_atomic(path, b"three")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["site.json"]


def test_a_draft_whose_block_raises_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "part"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), replacing(path) as file:  # noqa: PT012
        file.write(b"new")
        raise KeyError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["part"]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collect the names of replaced files; each file and its directory must be synced."""
    replaced: list[str] = []
    files: set[int] = set()  # inodes of synced drafts
    names: set[Path] = set()  # replaced files whose directory has not been synced yet
    fsync, replace = os.fsync, os.replace

    def spy_fsync(fd: int) -> None:
        fsync(fd)
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            directory = Path(f"/proc/self/fd/{fd}").readlink()
            names.difference_update([path for path in names if path.parent == directory])
        else:
            files.add(status.st_ino)

    def spy_replace(source: Path, target: Path) -> None:
        files.remove(source.stat().st_ino)  # KeyError if it was not synced
        replace(source, target)
        replaced.append(target.name)
        names.add(target)

    monkeypatch.setattr("os.fsync", spy_fsync)
    monkeypatch.setattr("os.replace", spy_replace)
    yield replaced
    assert names == set()


def test_a_replaced_file_is_durable_with_its_name(tmp_path: Path, synced: list[str]) -> None:
    with replacing(tmp_path / "draft") as file:
        file.write(b"x")
    write_atomic(tmp_path / "data", b"x")
    with PartWriter(tmp_path / "part") as writer:
        writer.write({"text": "x"})
    assert synced == ["draft", "data", "part"]


def test_every_file_of_a_merge_is_durable_with_its_name(tmp_path: Path, synced: list[str]) -> None:
    words = [f"{a}{b}" for a in "bdfgklmn" for b in ("ald", "emp", "int")]
    rows = []
    for number in range(6):
        text = random.Random(number).choices(words, k=100)
        texts = [" ".join(text) + ".", " ".join([*text[:50], "another", *text[51:]]) + "."]
        rows += [{"id": f"{n}{number}", "text": text} for n, text in zip("ab", texts, strict=True)]
    path = manifest(
        tmp_path,
        [write_jsonl(tmp_path / "in.jsonl", rows)],
        stages=[{"level": "chunk"}],
        dedup={"near": {"bands": 48, "rows": 4}},
        output={"shuffle": True},
    )
    run = prepare_run(path, local_site(tmp_path), None)
    run_worker(run.dir, Assignment(), lambda _: None)
    merge_run(run.dir)
    assert {".rows", ".hashes", ".npy"} <= {Path(name).suffix for name in synced}
    assert synced.count("00000") > 10  # of the rounds of the match phase


def test_the_sha256_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 300_000)
    assert sha256_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    append_line(path, b'{"a":1}')
    append_line(path, b'{"b":2}\n', fsync=True)
    assert path.read_bytes() == b'{"a":1}\n{"b":2}\n'


def test_a_line_is_appended_after_an_incomplete_line(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, b"one")
    with path.open("ab") as file:
        file.write(b"torn")
    append_line(path, b"two")
    assert path.read_bytes() == b"one\ntorn\ntwo\n"


def test_create_does_not_replace_a_file(tmp_path: Path) -> None:
    path = tmp_path / "name"
    assert create(path, b"first")
    assert not create(path, b"second")
    assert path.read_bytes() == b"first"
    assert [*tmp_path.iterdir()] == [path]

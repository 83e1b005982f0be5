"""Frame files: damage never yields a wrong payload."""

from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from proxhpc.corpus import frames
from proxhpc.corpus.frames import FrameWriter, read_frames
from proxhpc.errors import RetryError, ShardError

PAYLOADS = [b"first " * 9, b"", b"\0" * 300_000, b"last"]


def write(path: Path, payloads: list[bytes] = PAYLOADS) -> list[int]:
    with FrameWriter(path) as writer:
        return [writer.append(payload) for payload in payloads]


def payloads(path: Path, *, strict: bool = True) -> list[bytes]:
    return [frame.payload for frame in read_frames(path, strict=strict)]


def test_frames_are_read_in_order_with_their_offsets(tmp_path: Path) -> None:
    path = tmp_path / "a1"
    ends = write(path)
    read = list(read_frames(path))
    assert [frame.payload for frame in read] == PAYLOADS
    assert [frame.end for frame in read] == ends
    assert ends[-1] == path.stat().st_size


def test_any_zstd_tool_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a1"
    write(path)
    reader = zstandard.ZstdDecompressor().stream_reader(path.read_bytes(), read_across_frames=True)
    assert reader.read() == b"".join(PAYLOADS)


def test_an_existing_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a1"
    write(path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        FrameWriter(path)
    assert path.read_bytes() == before


def test_strict_reading_refuses_an_incomplete_frame_and_lenient_reading_stops_there(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a1"
    write(path)
    with path.open("ab") as file:
        file.write(b"\x28\xb5")
    assert payloads(path, strict=False) == PAYLOADS
    with pytest.raises(ShardError, match="a1 is damaged"):
        payloads(path)


@settings(deadline=None, max_examples=150)
@given(bit=st.integers(0, 10**6), size=st.integers(0, 10**6))
def test_a_flipped_bit_or_truncation_leaves_a_prefix_of_the_frames(
    tmp_path_factory: pytest.TempPathFactory, bit: int, size: int
) -> None:
    path = tmp_path_factory.mktemp("flip") / "a1"
    ends = write(path, [b"alpha" * 5, b"beta" * 50, b"", b"gamma"])
    written = payloads(path)
    data = bytearray(path.read_bytes())
    bit %= len(data) * 8
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    intact = payloads(path, strict=False)
    assert intact == written[: len(intact)]
    assert len(intact) >= sum(end <= bit // 8 for end in ends)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data[: size % len(data)])
    assert payloads(path, strict=False) == written[: sum(end <= size % len(data) for end in ends)]


@pytest.mark.parametrize(
    "options", [{"write_checksum": False}, {"write_checksum": True, "write_content_size": False}]
)
def test_frames_that_cannot_be_verified_are_refused(
    tmp_path: Path, options: dict[str, bool]
) -> None:
    path = tmp_path / "a1"
    path.write_bytes(zstandard.ZstdCompressor(**options).compress(b"payload"))
    with pytest.raises(ShardError, match="no frame with size and checksum"):
        payloads(path)
    path.write_bytes(b"\x50\x2a\x4d\x18\0\0\0\0")
    with pytest.raises(ShardError, match="no zstd frame"):
        payloads(path)


def test_a_frame_is_never_decompressed_beyond_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a1"
    write(path, [b"x" * 5000])
    monkeypatch.setattr(frames, "MAX_PAYLOAD", 4999)
    with pytest.raises(ShardError, match="more than 4999 bytes"):
        payloads(path)
    monkeypatch.setattr(frames, "MAX_PAYLOAD", 5000)
    assert len(payloads(path)) == 1


def test_a_wrong_size_in_a_header_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a1"
    write(path, [b"x" * 255])
    data = bytearray(path.read_bytes())
    assert data[5] == 255
    data[5] = 254
    path.write_bytes(data)
    with pytest.raises(ShardError, match="damaged"):
        payloads(path)


def test_a_commit_above_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "MAX_PAYLOAD", 10)
    with FrameWriter(tmp_path / "a1") as writer, pytest.raises(ShardError, match="too large"):
        writer.append(b"x" * 11)


def test_copying_the_frames_of_another_attempt(tmp_path: Path) -> None:
    old, new = tmp_path / "a1", tmp_path / "a2"
    ends = write(old)
    with old.open("r+b") as file:
        file.truncate(ends[3] - 1)
    with FrameWriter(new) as writer:
        writer.copy(old, ends[2])
        writer.append(b"next")
    assert payloads(new) == [*PAYLOADS[:3], b"next"]
    with FrameWriter(tmp_path / "a3") as writer, pytest.raises(ShardError, match="shrank"):
        writer.copy(old, ends[3])


@pytest.mark.parametrize("call", ["fsync", "pwrite"])
def test_a_failed_commit_keeps_the_earlier_frames_and_closes_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a1"
    writer = FrameWriter(path)
    writer.append(b"good")

    def fail(*args: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(f"proxhpc.corpus.frames.os.{call}", fail)
        with pytest.raises(RetryError, match=r"cannot write .*a1: Input/output error"):
            writer.append(b"lost")
    with pytest.raises(RetryError, match="an earlier write failed"):
        writer.append(b"after")
    writer.close()
    assert payloads(path) == [b"good"]


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, bytes(data[:7]), at))
    write(tmp_path / "a1")
    assert payloads(tmp_path / "a1") == PAYLOADS

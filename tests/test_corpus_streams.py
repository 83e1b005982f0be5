"""Compressed streams: many frames, truncation and damage, bounded memory."""

import gzip
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_files import ids, pack, read, rows
from proxhpc.corpus.blocks import DamageError
from proxhpc.corpus.document import BadRecord, Document, SpanEnd
from proxhpc.corpus.streams import detect_compression, read_chunks

ROWS = rows(40, size=30)
DATA = b"\n".join(ROWS) + b"\n"
NAMES = [f"d{i}" for i in range(40)]


def write(tmp_path: Path, data: bytes, name: str = "c.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def as_bad(item: Document | BadRecord) -> BadRecord:
    assert isinstance(item, BadRecord)
    return item


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("pieces", [1, 7])
def test_concatenated_frames_and_members_are_one_stream(
    tmp_path: Path, compression: str, pieces: int
) -> None:
    path = write(tmp_path, pack(DATA, compression, pieces))
    items, end = read(path)
    assert ids(items) == NAMES
    assert end == SpanEnd(0, len(DATA), at_eof=True)
    middle = len(DATA) // 2
    assert read(path, 0, middle)[0] + read(path, middle)[0] == items


def test_frames_of_other_writers_are_read(tmp_path: Path) -> None:
    skippable = b"\x53\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"extra"
    streamed = zstandard.ZstdCompressor().compressobj()  # no content size, no checksum
    first = streamed.compress(DATA) + streamed.flush()
    long_window = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27)
    ).compressobj()
    second = long_window.compress(DATA) + long_window.flush()
    path = write(tmp_path, skippable + first + skippable + second + skippable)
    assert ids(read(path)[0]) == NAMES * 2


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_truncation_anywhere_yields_the_complete_records_and_one_bad_record(
    tmp_path: Path, compression: str
) -> None:
    packed = pack(DATA, compression, 3)
    path = tmp_path / f"c.jsonl.{'gz' if compression == 'gzip' else 'zst'}"
    # Truncated exactly between two frames, a file is valid.
    step = -(-len(DATA) // 3)
    frames = [len(pack(DATA[at : at + step], compression)) for at in range(0, len(DATA), step)]
    between = {sum(frames[:count]) for count in range(4)}
    assert sum(frames) == len(packed)
    for size in [*range(1, 30), *range(30, len(packed), 13), len(packed) - 1]:
        if size in between:
            continue
        path.write_bytes(packed[:size])
        items, end = read(path)
        assert ids(items) == [*NAMES[: len(items) - 1], "truncated_input"], size
        tail = as_bad(items[-1])
        assert "ends inside a" in tail.detail
        assert tail.head == DATA[tail.position : tail.position + tail.size][:1024]
        assert end == SpanEnd(0, tail.position + tail.size, at_eof=True)


def test_truncation_between_records_is_reported_too(tmp_path: Path) -> None:
    second = pack(DATA, "zstd")
    path = write(tmp_path, pack(DATA, "zstd") + second[: len(second) // 2], "c.jsonl.zst")
    items, _ = read(path)
    assert ids(items) == [*NAMES, "truncated_input"]
    assert (as_bad(items[-1]).position, as_bad(items[-1]).size) == (len(DATA), 0)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_garbage_after_the_stream_is_reported(tmp_path: Path, compression: str) -> None:
    items, _ = read(write(tmp_path, pack(DATA, compression) + b"garbage"))
    assert ids(items) == [*NAMES, "corrupt_input"]
    assert as_bad(items[-1]).position == len(DATA)


def test_zero_padding_after_gzip_is_allowed(tmp_path: Path) -> None:
    data = gzip.compress(DATA) + b"\0" * 700_000 + gzip.compress(DATA) + b"\0" * 512
    assert ids(read(write(tmp_path, data))[0]) == NAMES * 2


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@settings(deadline=None, max_examples=120)
@given(bit=st.integers(0, 10**6))
def test_a_flipped_bit_never_changes_a_document_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, compression: str, bit: int
) -> None:
    packed = bytearray(pack(DATA, compression, 3))
    bit %= len(packed) * 8
    packed[bit // 8] ^= 1 << bit % 8
    path = tmp_path_factory.mktemp("flip") / f"c.jsonl.{'gz' if compression == 'gzip' else 'zst'}"
    path.write_bytes(packed)
    items, _ = read(path)
    if not any(isinstance(item, BadRecord) for item in items):
        # The bit is in a field without content (a gzip time stamp, a larger window).
        assert ids(items) == NAMES
        assert b"\n".join(ROWS) == b"".join(read_chunks(path, detect_compression(path))).rstrip(
            b"\n"
        )


@settings(deadline=None, max_examples=80)
@given(
    size=st.integers(1, 10**6),
    edges=st.lists(st.integers(0, len(DATA) + 50), max_size=5),
    compression=st.sampled_from(["gzip", "zstd"]),
    limit=st.sampled_from([30, 1 << 20]),
)
def test_exactly_one_span_of_a_truncated_file_reports_it(
    tmp_path_factory: pytest.TempPathFactory,
    size: int,
    edges: list[int],
    compression: str,
    limit: int,
) -> None:
    packed = pack(DATA, compression, 3)
    name = f"c.jsonl.{'gz' if compression == 'gzip' else 'zst'}"
    path = tmp_path_factory.mktemp("truncated") / name
    path.write_bytes(packed[: size % len(packed)])
    whole, _ = read(path, limit=limit)
    starts = sorted({0, *edges})
    parts = []
    for start, stop in zip(starts, [*starts[1:], None], strict=True):
        parts += read(path, start, stop, limit=limit)[0]
    assert parts == whole


def test_a_span_that_starts_at_the_truncation_reports_it(tmp_path: Path) -> None:
    second = pack(DATA, "zstd")
    path = write(tmp_path, pack(DATA, "zstd") + second[:20], "c.jsonl.zst")
    assert ids(read(path, len(DATA))[0]) == ["truncated_input"]
    assert ids(read(path, 0, len(DATA))[0]) == NAMES
    assert read(path, len(DATA) + 1) == ([], SpanEnd(0, len(DATA) + 1, at_eof=True))


def test_a_window_that_needs_too_much_memory_is_refused_with_its_size(tmp_path: Path) -> None:
    packer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=28)
    ).compressobj()
    path = write(tmp_path, packer.compress(DATA) + packer.flush())
    items, end = read(path)
    assert ids(items) == ["zstd_window_too_large"]
    assert "256 MiB, above 128 MiB" in as_bad(items[0]).detail
    assert end == SpanEnd(0, 0, at_eof=True)


def test_a_frame_that_needs_a_dictionary_is_refused(tmp_path: Path) -> None:
    book = zstandard.train_dictionary(2048, rows(2000))
    path = write(tmp_path, zstandard.ZstdCompressor(dict_data=book).compress(DATA))
    items, _ = read(path)
    assert "dictionary" in as_bad(items[0]).detail


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_zip_bomb_is_decompressed_in_bounded_memory(tmp_path: Path, compression: str) -> None:
    path = write(tmp_path, pack(b"\0" * (96 << 20), compression))
    assert path.stat().st_size < 1 << 17
    tracemalloc.start()
    try:
        sizes = [len(chunk) for chunk in read_chunks(path, detect_compression(path))]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(sizes) == 96 << 20
    assert max(sizes) <= 256 << 10
    assert peak < 8 << 20


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("start", [0, 1, 1000, len(DATA) - 1, len(DATA), len(DATA) + 5])
def test_chunks_start_at_the_requested_offset(tmp_path: Path, compression: str, start: int) -> None:
    path = write(tmp_path, pack(DATA, compression, 4))
    assert b"".join(read_chunks(path, detect_compression(path), start)) == DATA[start:]


def test_compression_is_detected_from_the_content_or_else_the_name(tmp_path: Path) -> None:
    assert detect_compression(write(tmp_path, pack(DATA, "zstd"), "a.jsonl.gz")) == "zstd"
    assert detect_compression(write(tmp_path, pack(DATA, "gzip"), "a.jsonl")) == "gzip"
    assert detect_compression(write(tmp_path, DATA, "a.jsonl.zst")) == "none"
    assert detect_compression(write(tmp_path, b"", "a.jsonl.zst")) == "zstd"
    assert detect_compression(write(tmp_path, b"?????", "a.jsonl.gz")) == "gzip"


def test_a_damaged_block_is_a_bad_record_not_an_exception(tmp_path: Path) -> None:
    packed = bytearray(pack(DATA, "zstd"))
    packed[-4:] = b"\0\0\0\0"
    items, _ = read(write(tmp_path, bytes(packed)))
    assert ids(items) == [*NAMES, "corrupt_input"]
    with pytest.raises(DamageError, match="checksum"):
        list(read_chunks(tmp_path / "c.jsonl", "zstd"))

"""Restart points: a compressed file is decompressed once, whatever reads it in which order."""

import gzip
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_files import FIELDS, pack
from proxhpc.corpus import deflate, readers, restarts, streams
from proxhpc.corpus.blocks import FrameReader
from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.restarts import Restart, RestartLog
from proxhpc.corpus.streams import MemberReader, read_ahead

Item = Document | BadRecord | SpanEnd


def lines(size: int) -> bytes:
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(3000)]
    made = []
    while size > 0:
        made.append(orjson.dumps({"id": str(size), "text": " ".join(rng.choices(words, k=200))}))
        size -= len(made[-1])
    return b"\n".join(made) + b"\n"


DATA = lines(4_000_000)
FILES = {
    "gzip": pack(DATA, "gzip"),
    "gzip, fast": gzip.compress(DATA, 1),
    "gzip members": pack(DATA, "gzip", 3),
    "zstd frames": pack(DATA, "zstd", 25),
}


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points are as dense in relation to the file as in a large one; nobody waits."""
    monkeypatch.setattr(restarts, "GAP", 128_000)
    monkeypatch.setattr(restarts, "_FAR", 500_000)
    monkeypatch.setattr(restarts, "_IDLE", -1.0)
    monkeypatch.setattr(readers, "GAP", 128_000)
    monkeypatch.setattr(streams, "_STEP", 64_000)


@pytest.fixture
def decompressed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all chunks that readers decompress."""
    sizes: list[int] = []
    for reader in (FrameReader, MemberReader):

        def counted(self: object, *args: object, inner: object = reader.chunks) -> Iterator[bytes]:
            for chunk in inner(self, *args):  # type: ignore[operator]
                sizes.append(len(chunk))
                yield chunk

        monkeypatch.setattr(reader, "chunks", counted)
    return sizes


def spans(count: int, size: int = len(DATA)) -> list[Span]:
    starts = [size * number // count for number in range(count)]
    return [Span(0, a, b) for a, b in zip(starts, [*starts[1:], None], strict=True)]


def as_new_process(path: Path, span: Span, log: Path | None) -> list[Item]:
    readers._open.clear()
    found = RestartLog(log, "a", writable=True) if log else None
    return [*readers.read_span(path, "jsonl", span, FIELDS, 1 << 20, restarts=found)]


@pytest.mark.parametrize("kind", FILES)
def test_every_process_begins_shortly_before_its_span(
    tmp_path: Path, kind: str, decompressed: list[int]
) -> None:
    path, log = tmp_path / "a", tmp_path / "logs" / "0.log"
    path.write_bytes(FILES[kind])
    whole = as_new_process(path, Span(0), None)
    parts = spans(5)
    decompressed.clear()
    first = [as_new_process(path, span, log) for span in parts]
    assert sum(decompressed) < 1.3 * len(DATA)
    decompressed.clear()
    order = random.Random(1).sample(parts, len(parts))
    again = {span: as_new_process(path, span, log) for span in order}
    assert sum(decompressed) < 1.3 * len(DATA)
    assert first == [again[span] for span in parts]
    assert [item for part in first for item in part[:-1]] == whole[:-1]
    assert [entry.name for entry in log.parent.iterdir()] == ["0.log"]


@pytest.mark.parametrize("kind", FILES)
@settings(deadline=None, max_examples=5)
@given(data=st.data())
def test_points_change_nothing_that_is_read(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    """Also of damaged files, with torn, mixed or stale logs, in any order of spans."""
    folder = tmp_path_factory.mktemp("points")
    path, log = folder / "a", folder / "0.log"
    packed = bytearray(FILES[kind])
    damage = data.draw(st.sampled_from(["none", "cut", "flip", "trailer"]))
    at = data.draw(st.integers(0, len(packed) - 9))
    if damage == "cut":
        del packed[at:]
    elif damage != "none":
        packed[at if damage == "flip" else -6] ^= 4
    path.write_bytes(packed)
    edges = sorted(data.draw(st.sets(st.integers(1, len(DATA) + 99), min_size=2, max_size=5)))
    parts = [Span(0, a, b) for a, b in zip([0, *edges], [*edges, None], strict=True)]
    expected = {span: as_new_process(path, span, None) for span in parts}
    for span in data.draw(st.permutations(parts)):
        assert as_new_process(path, span, log) == expected[span]
    raw = bytearray(log.read_bytes()) if log.exists() else bytearray()
    if raw:
        torn = data.draw(st.integers(0, len(raw) - 1))
        raw[torn:] = data.draw(st.sampled_from([b"", b"\0" * 9, bytes(raw[torn + 1 :])]))
        log.write_bytes(raw + raw)
    for span in data.draw(st.permutations(parts)):
        assert as_new_process(path, span, log) == expected[span]


def test_a_wrong_checksum_is_found_by_a_process_that_begins_within_the_member(
    tmp_path: Path, decompressed: list[int]
) -> None:
    path, log = tmp_path / "a", tmp_path / "0.log"
    packed = bytearray(FILES["gzip"])
    packed[-6] ^= 1
    path.write_bytes(packed)
    for span in spans(5):
        decompressed.clear()
        *_, bad, _ = as_new_process(path, span, log)
    assert sum(decompressed) < len(DATA) / 3
    assert isinstance(bad, BadRecord)
    assert "incorrect data check; records from position 0 on are unverified" in bad.detail


def test_points_of_another_file_are_not_used(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    ours, other = (RestartLog(log, name, writable=True) for name in "ab")
    ours.add(Restart(100, 10))
    other.add(Restart(200, 20))
    for both in (ours, other):
        both.finish()
    assert RestartLog(log, "a", writable=False).before(300) == Restart(100, 10)
    assert RestartLog(log, "b", writable=False).before(300) == Restart(200, 20)


def test_a_command_that_only_reads_a_run_writes_no_points(tmp_path: Path) -> None:
    path, log = tmp_path / "a", tmp_path / "logs" / "0.log"
    path.write_bytes(FILES["gzip"])
    found = RestartLog(log, "a", writable=False)
    [*readers.read_span(path, "jsonl", spans(2)[0], FIELDS, 1 << 20, restarts=found)]
    assert not log.parent.exists()


def test_a_process_that_died_at_work_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "_STALLED", 0.3)
    path, log = tmp_path / "a", tmp_path / "0.log"
    path.write_bytes(FILES["gzip"])
    log.with_suffix(".busy").touch()
    last = spans(2)[1]
    assert as_new_process(path, last, log) == as_new_process(path, last, None)
    assert not log.with_suffix(".busy").exists()


@pytest.mark.parametrize("bits", range(1, 8))
def test_blocks_before_a_point_have_no_content(bits: int) -> None:
    """A block with the fixed codes for "a", which begins after some bits of a byte."""
    block = zlib.compressobj(wbits=-15, strategy=zlib.Z_FIXED)
    raw = block.compress(b"a") + block.flush()
    shifted = (int.from_bytes(raw, "little") << bits | (1 << bits) - 1).to_bytes(
        len(raw) + 1, "little"
    )
    decoder = zlib.decompressobj(-15)
    assert decoder.decompress(deflate._aligned(shifted, bits)) == b"a"
    assert decoder.eof


def test_chunks_are_held_only_for_a_slow_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RestartLog(tmp_path / "0.log", "a", writable=True)
    log.aim(5 << 20)
    made: list[int] = []

    def chunks() -> Iterator[bytes]:
        for number in range(5):
            made.append(number)
            yield bytes(1 << 20)

    clock = [0.0]
    monkeypatch.setattr("proxhpc.corpus.streams.time.monotonic", lambda: clock[0])
    for seconds, expected in ((1.0, 5), (0.0, 5), (1.0, 1)):
        made.clear()
        stream = read_ahead(chunks(), 0, log)
        next(stream)
        assert len(made) == expected
        for _ in stream:
            clock[0] += seconds

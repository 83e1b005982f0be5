"""Ledgers: rows, resuming, and what a damaged ledger is refused for."""

import json
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from proxhpc.corpus.document import SpanEnd
from proxhpc.corpus.frames import FrameWriter, read_frames
from proxhpc.errors import StopError
from proxhpc.run.crash_backoff import CrashBackoff
from proxhpc.run.ledger import Call, LedgerState, LedgerWriter, Row, read_ledger, read_rows, resume

Payloads = list[bytes]


def row(number: int) -> Row:
    return Row(str(number), 0, number, "kept", doc=Call(0, 1, "keep_doc()", "stop", 9, 0, 2))


def write_ledger(path: Path) -> Payloads:
    """Write a ledger of two commits and return the payloads of its frames."""
    with FrameWriter(path) as frames:
        writer = LedgerWriter(frames, "plan", 7, LedgerState())
        writer.commit([row(0), row(1)])
        writer.write_backoff(CrashBackoff(deaths=1, log_tail="out of memory"))
        writer.commit([row(2)], (SpanEnd(0, 3, True, 1),))
        writer.finish()
    return [frame.payload for frame in read_frames(path)]


def test_rows_survive_json() -> None:
    row = Row("i", 0, 5, "edited", flags=("truncated",), rejected={"x": 2}, head=b"\xff\x00")
    assert Row.decode(row.encode()) == row
    assert json.loads(row.encode()) == {
        "id": "i",
        "at": [0, 5],
        "outcome": "edited",
        "rej": {"x": 2},
        "flags": ["truncated"],
        "head": "/wA=",
    }


def test_a_whole_ledger_is_read(tmp_path: Path) -> None:
    first, backoff, _, summary = write_ledger(tmp_path / "ledger")
    assert [json.loads(payload.split(b"\n")[0])["v"] for payload in (first, backoff)] == [2, 2]
    assert json.loads(backoff)["backoff"]["deaths"] == 1
    assert json.loads(summary)["counts"]["documents"] == 3
    assert list(read_ledger(tmp_path / "ledger", "plan", 7)) == [
        *(row(0), row(1), row(2), SpanEnd(0, 3, True, 1))
    ]


def test_rows_are_found_by_number(tmp_path: Path) -> None:
    write_ledger(tmp_path / "ledger")
    for numbers in ([], [0], [1, 2], [2]):
        assert list(read_rows(tmp_path / "ledger", "plan", 7, numbers)) == [*map(row, numbers)]
    with pytest.raises(StopError, match="it has no record number 3"):
        list(read_rows(tmp_path / "ledger", "plan", 7, [1, 3]))


DAMAGES: dict[str, tuple[Callable[[Payloads], Payloads], str]] = {
    "rows": (
        lambda p: [p[0].rpartition(b"\n")[0], *p[1:]],
        "commit 0 has 1 of 2 rows",
    ),
    "first commit": (lambda p: p[2:], "commit 0 is missing"),
    "last commit": (lambda p: [p[0], p[3]], "commit 1 is missing"),
    "after the summary": (lambda p: [*p, p[0]], "it has frames after the summary"),
    "digest": (
        lambda p: [p[0].replace(b'"id":"1"', b'"id":"8"'), *p[1:]],
        "the summary does not match the rows",
    ),
    "counts": (
        lambda p: [*p[:3], p[3].replace(b'"tokens_in":0', b'"tokens_in":1')],
        "the summary does not match the rows",
    ),
    "summary": (lambda p: p[:3], "the summary is missing"),
    "shard": (
        lambda p: [p[0].replace(b'"shard":7', b'"shard":8'), *p[1:]],
        "it belongs to another plan or shard",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger_is_refused(tmp_path: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    payloads = write_ledger(tmp_path / "good")
    damaged = change(payloads)
    assert damaged != payloads
    with FrameWriter(tmp_path / "bad") as frames:
        for payload in damaged:
            frames.append(payload)
    with pytest.raises(StopError) as caught:
        list(read_ledger(tmp_path / "bad", "plan", 7))
    assert caught.value.message == f"damaged ledger {tmp_path / 'bad'}: {message}"
    assert "delete this file" in caught.value.hint


def test_resuming_stops_at_a_frame_of_something_else(tmp_path: Path) -> None:
    first, backoff, second, _ = write_ledger(tmp_path / "good")
    other = orjson.dumps(json.loads(second.split(b"\n")[0]) | {"plan": "other"})
    with FrameWriter(tmp_path / "attempt") as frames:
        for payload in (first, backoff, other, second):
            frames.append(payload)
    with FrameWriter(tmp_path / "next") as frames:
        state = resume(tmp_path / "attempt", frames, "plan", 7)
    assert (state.commits, state.last_position, state.backoff.deaths) == (1, (0, 1), 1)
    assert [frame.payload for frame in read_frames(tmp_path / "next")] == [first, backoff]

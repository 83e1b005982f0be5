"""Matching in bounded memory: sorting on disk, sets larger than memory, and resuming."""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merging import killed, output, refined
from proxhpc.assemble.merge import merge_run
from proxhpc.dedup import sorting
from proxhpc.dedup.sorting import Scratch, Sorter, with_leaders

_FOLDER = tempfile.TemporaryDirectory(prefix="sorting-")
SMALL = Scratch(Path(_FOLDER.name), 0)
LITTLE = settings(deadline=None, max_examples=40)


@pytest.fixture(autouse=True, scope="module")
def five_rows_in_memory() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "_MIN_ROWS", 5)
        yield


def array(rows: Sequence[Sequence[int]], columns: int = 2) -> npt.NDArray[np.int64]:
    return np.array(rows, np.int64).reshape(-1, columns)


def make_sorter(rows: Sequence[Sequence[int]], columns: int = 2, block: int = 3) -> Sorter:
    sorter = Sorter(SMALL, columns)
    for start in range(0, len(rows), block):
        sorter.add(array(rows[start : start + block], columns))
    return sorter


def listed(blocks: Any) -> list[tuple[int, ...]]:
    return [tuple(row) for rows in blocks for row in rows.tolist()]


@LITTLE
@given(
    st.lists(st.tuples(*[st.integers(-2, 2) | st.integers(-(1 << 63), (1 << 63) - 1)] * 3)),
    st.integers(1, 20),
)
def test_a_sorter_yields_distinct_rows_in_order(
    rows: list[tuple[int, int, int]], block: int
) -> None:
    sorter = make_sorter(rows, 3, block)
    for _ in range(2):
        blocks = [*sorter]
        assert listed(blocks) == sorted(set(rows))
        assert all(0 < len(block) <= 10 for block in blocks)
    first: dict[int, tuple[int, ...]] = {}
    for row in sorted(set(rows)):
        first.setdefault(row[0], row)
    pairs = [pair for blocks in with_leaders(sorter) for pair in zip(*blocks, strict=True)]
    assert all(tuple(leader.tolist()) == first[int(row[0])] for row, leader in pairs)
    assert len(pairs) == len(set(rows))


def test_a_match_killed_in_each_round_resumes(tmp_path: Path) -> None:
    run, whole = (refined(tmp_path / name, dedup={"near": {}}) for name in ("run", "whole"))
    merge_run(whole.dir)
    made: set[str] = set()
    begun: set[int] = set()  # when the match was started, by the file that says from what
    for attempt in itertools.count():
        if not killed(run.dir, 5 + attempt // 4):  # more files than any unit writes
            break
        made |= {path.parent.name for path in run.dir.merge.glob("match/*/*/*")}
        if run.dir.match_source.exists():
            begun.add(run.dir.match_source.stat().st_mtime_ns)
    assert len(begun) == 1
    assert len(made) > 5, "kills in several rounds"
    assert output(run.dir) == output(whole.dir)
    left = {path.name for path in run.dir.match_folder.glob("*/*")}
    assert left <= {"flags", "duplicates"}

"""Matching in bounded memory: sorting on disk, sets larger than memory, and resuming."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merging import killed, output, refined
from proxhpc.assemble.duplicates import DuplicateSets, duplicate_flags
from proxhpc.assemble.merge import merge_run
from proxhpc.dedup import sorting
from proxhpc.dedup.arrays import RowReader, open_array, save_blocks
from proxhpc.dedup.clusters import SetBuilder, pairs_across_sets
from proxhpc.dedup.sorting import Scratch, Sorter, with_leaders

TOOL = Path(__file__).parents[1] / "tools" / "bench_match_memory.py"
_FOLDER = tempfile.TemporaryDirectory(prefix="sorting-")
SMALL = Scratch(Path(_FOLDER.name), 0)
LITTLE = settings(deadline=None, max_examples=40)
PAIRS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=80)


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


def first_members(pairs: list[tuple[int, int]]) -> dict[int, int]:
    """The first document of each document's set, by a plain search."""
    sets = {n: {n} for pair in pairs for n in pair}
    for a, b in pairs:
        union = sets[a] | sets[b]
        for member in union:
            sets[member] = union
    return {n: min(members) for n, members in sets.items() if len(members) > 1}


def build_sets(pairs: list[tuple[int, int]], block: int) -> Any:
    builder = SetBuilder(SMALL)
    for start in range(0, len(pairs), block):
        builder.add(array(pairs[start : start + block]))
    return builder.build()


@LITTLE
@given(PAIRS, st.integers(1, 9))
def test_sets_match_a_plain_search(pairs: list[tuple[int, int]], block: int) -> None:
    assert listed(build_sets(pairs, block)) == sorted(first_members(pairs).items())


def test_a_chain_longer_than_memory_is_one_set() -> None:
    numbers = np.random.default_rng(0).permutation(80).tolist()
    pairs = [*pairwise(numbers)]
    assert listed(build_sets(pairs, 4)) == [(n, 0) for n in range(80)]


@LITTLE
@given(PAIRS, PAIRS)
def test_pairs_across_sets(pairs: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    first = first_members(pairs)
    expected = {(a, b) for a, b in others if first.get(a, a) != first.get(b, b)}
    across = pairs_across_sets(SMALL, make_sorter(others), build_sets(pairs, 3))
    assert listed(across) == sorted(expected)


@LITTLE
@given(st.lists(st.integers(0, 6), max_size=60), st.integers(1, 9))
def test_sizes_of_sets(firsts: list[int], block: int) -> None:
    rows = sorted((first, 100 - n) for n, first in enumerate(firsts))
    sets = DuplicateSets()
    for start in range(0, len(rows), block):
        sets.add(*array(rows[start : start + block]).T)
    sets.finish()
    duplicates = {first: [row[1] for row in rows if row[0] == first] for first in firsts}
    largest = sorted((-len(members) - 1, min(members)) for members in duplicates.values())
    assert sets.count == len(duplicates)
    assert listed([sets.largest]) == [(-size, document) for size, document in largest]
    bits = [(len(members) + 1).bit_length() for members in duplicates.values()]
    assert sets.size_histogram.tolist() == [bits.count(number) for number in range(64)]


@LITTLE
@given(st.sets(st.integers(0, 30)), st.lists(st.integers(0, 31), max_size=6))
def test_flags_of_groups(documents: set[int], edges: list[int]) -> None:
    groups = np.array([0, *sorted(edges), 31])
    parts = np.array_split(sorted(documents), 4)
    blocks = (array([[n, 0] for n in part]) for part in parts if len(part))
    flags = [flag for group in duplicate_flags(blocks, groups) for flag in group.tolist()]
    assert flags == [n in documents for n in range(31)]


def test_rows_of_a_file_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.arange(3000).reshape(-1, 3)
    save_blocks(tmp_path / "a.npy", np.array_split(rows, 7), "<u4", 3)
    assert np.array_equal(open_array(tmp_path / "a.npy"), rows)
    monkeypatch.setattr("proxhpc.dedup.arrays.WINDOW", 100)
    indices = np.array([0, 0, 7, 8, 9, 500, 999])
    assert np.array_equal(RowReader(tmp_path / "a.npy").take(indices), rows[indices])


def test_a_killed_match_resumes_after_its_last_task(tmp_path: Path) -> None:
    run, whole = (refined(tmp_path / name, dedup={"near": {}}) for name in ("run", "whole"))
    merge_run(whole.dir)
    before: set[str] = set()
    for allowed in range(4, 60, 9):
        assert killed(run.dir, allowed)
        files = run.dir.merge.glob("match/*/*.npy")
        now = {f"{path.name}{path.stat().st_mtime_ns}" for path in files}
        assert before <= now
        before = now
        if before:
            break
    assert before
    merge_run(run.dir)
    assert not [path for path in run.dir.pairs.parent.iterdir() if path.is_dir()]
    assert output(run.dir) == output(whole.dir)


def test_many_documents_are_matched_in_the_allowed_memory() -> None:
    sizes = ["--documents", "40000", "--groups", "2", "--max-ram", "32", "512"]
    done = subprocess.run(
        [sys.executable, str(TOOL), *sizes], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

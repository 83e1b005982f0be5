"""Rows that one round of the match phase writes for the next, and what its rounds do with them."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxhpc.assemble.families import similar_pairs
from proxhpc.assemble.near_rounds import pack_documents
from proxhpc.dedup import sorting
from proxhpc.dedup.exchange import ExchangeWriter, partition_of, read_slices
from proxhpc.dedup.hashes import EXTERNAL, SKETCH_DTYPE, priorities
from proxhpc.dedup.sorting import IntRows, Scratch, SortedCursor, sorted_unique
from proxhpc.errors import StopError
from proxhpc.spec.sections import Dedup, Near

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 2), st.integers(0, 5)), max_size=60)


@pytest.fixture(autouse=True, scope="module")
def few_rows_in_memory() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "_MIN_ROWS", 7)
        yield


def as_rows(rows: list[tuple[int, ...]], columns: int) -> IntRows:
    return np.array(rows, np.int64).reshape(-1, columns)


@settings(deadline=None, max_examples=60)
@given(st.lists(ROWS, max_size=3), st.integers(1, 20))
def test_each_unit_reads_what_was_written_for_it(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[tuple[int, int, int]]], block: int
) -> None:
    folder = tmp_path_factory.mktemp("exchange")
    expected = defaultdict(list)
    for number, rows in enumerate(files):
        writer = ExchangeWriter(folder / str(number), 2, 4, Scratch(folder, 0))
        for start in range(0, len(rows), block):
            part = as_rows(rows[start : start + block], 3)  # type: ignore[arg-type]
            writer.add(part[:, 0], part[:, 1:])
        writer.finish()
        for unit, *row in rows:
            expected[unit].append(tuple(row))
    paths = [folder / str(number) for number in range(len(files))]
    for unit in range(4):
        blocks = [*read_slices(paths, unit, 5)]
        assert all(len(rows) <= 5 for rows in blocks)
        assert sorted(tuple(row) for rows in blocks for row in rows.tolist()) == sorted(
            expected[unit]
        )
    assert sorted(path.name for path in folder.iterdir()) == [path.name for path in paths]


def test_a_damaged_exchange_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    writer = ExchangeWriter(path, 2, 2, Scratch(tmp_path, 1 << 20))
    writer.add(np.array([1, 1, 0]), np.arange(6).reshape(3, 2))
    writer.finish()
    data = path.read_bytes()
    flipped = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(len(data))]
    for damaged in [*flipped, *(data[:size] for size in range(len(data)))]:
        path.write_bytes(damaged)
        with pytest.raises(StopError, match=r"rows is damaged"):
            [[*read_slices([path], unit, 10)] for unit in (0, 1)]


@settings(max_examples=60)
@given(ROWS, st.integers(1, 3))
def test_rows_are_sorted_by_their_first_columns(
    rows: list[tuple[int, int, int]], keys: int
) -> None:
    result = sorted_unique(as_rows(rows, 3), keys)  # type: ignore[arg-type]
    assert [tuple(row[:keys]) for row in result.tolist()] == sorted({row[:keys] for row in rows})
    assert {tuple(row) for row in result.tolist()} <= set(rows)


def test_a_cursor_takes_rows_up_to_a_number() -> None:
    blocks = [as_rows([(1, 0), (2, 0)], 2), as_rows([(2, 1), (7, 0)], 2)]
    cursor = SortedCursor(blocks, 2)
    taken = [cursor.take(last)[:, 0].tolist() for last in (0, 2, 6, 9, 9)]
    assert taken == [[], [1, 2, 2], [], [7], []]


@settings(max_examples=60)
@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1), st.integers(1, 4096))
def test_partitions_are_in_the_order_of_the_hashes(hashes: list[int], units: int) -> None:
    values = np.array(sorted(hashes), np.uint64)
    partitions = partition_of(values.view(np.int64), units)
    assert (np.diff(partitions) >= 0).all()
    assert partitions[0] >= 0
    assert partitions[-1] < units


@pytest.mark.parametrize("dedup", [{}, {"keep": "highest", "by": "score"}])
def test_packed_documents_are_about_in_the_order_of_priorities(dedup: dict[str, str]) -> None:
    documents = np.zeros(200, SKETCH_DTYPE)
    rng = np.random.default_rng(0)
    documents["chars"] = (2.0 ** rng.uniform(0, 32, 200)).astype(np.uint32)
    documents["rank"] = rng.integers(0, 1 << 63, 200, np.uint64) * 2
    documents["external"][:20] = 1
    documents["rank"][20:40] = 0  # without the field
    ranks = priorities(documents, Dedup.model_validate(dedup))
    assert ((ranks[:, 0] == EXTERNAL) == (documents["external"] == 1)).all()
    packed = pack_documents(np.arange(200), ranks, by_field=bool(dedup))
    assert (packed[:20] < 1 << 48).all()
    assert (packed[20:] >= 1 << 48).all()
    exact = np.lexsort((np.arange(200), ranks[:, 1], ranks[:, 0]))
    value = documents["rank"] if dedup else documents["chars"]
    best, best_packed = value[exact[20]], value[20 + packed[20:].argmin()]
    assert best_packed >= best * (1 - 1 / 64)
    if dedup:
        assert set(packed.argsort()[-20:]) == set(range(20, 40))


def family(
    pages: int, slots: int = 192, share: float = 0.78, same: float = 0.2
) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Signatures of pages from one template; each second page is like the one before it.

    `share` of a page's slots are the template's; `same` of the others are those of the page before.
    """
    rng = np.random.default_rng(pages)
    own = rng.integers(0, 1 << 16, (pages, slots), np.uint16)
    own[1::2] = np.where(rng.random((pages // 2, slots)) < same, own[:-1:2], own[1::2])
    template = rng.integers(0, 1 << 16, slots, np.uint16)
    in_template = rng.random((pages, slots)) < share
    in_template[1::2] = in_template[:-1:2]
    return np.where(in_template, template, own)


@pytest.mark.parametrize("pages", [2, 16, 18, 400, 5000])
def test_similar_pages_of_a_template_are_found_in_families_of_any_size(pages: int) -> None:
    pairs, counts = similar_pairs(family(pages), 140)
    found = {(a, b) for a, b in pairs.tolist() if a % 2 == 0 and b == a + 1}
    assert len(found) >= 0.99 * pages / 2
    assert len(pairs) <= 4 * pages + 120
    assert (counts >= 140).all()


@pytest.mark.parametrize("threshold", [0.9, 0.97, 0.99])
def test_signatures_tell_similar_pages_apart_at_thresholds_near_1(threshold: float) -> None:
    near = Near(threshold=threshold)
    slots = near.bands * near.rows
    signatures = family(1000, slots, share=threshold, same=0.9)
    pairs, _ = similar_pairs(signatures, int(threshold**2 * slots))
    found = {(a, b) for a, b in pairs.tolist() if a % 2 == 0 and b == a + 1}
    assert len(found) >= 0.99 * 500

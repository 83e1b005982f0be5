"""Which documents the merge removes, given pairs of similar documents."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxhpc.assemble.settle import remove_similar
from proxhpc.dedup import sorting
from proxhpc.dedup.sorting import Scratch, Sorter

_FOLDER = tempfile.TemporaryDirectory(prefix="settle-")
SMALL = Scratch(Path(_FOLDER.name), 0)
Pair = tuple[int, int]


@pytest.fixture(autouse=True, scope="module")
def few_rows_in_memory() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "_MIN_ROWS", 3)
        yield


def removed(pairs: list[Pair], priorities: list[Pair]) -> dict[int, Pair]:
    """The removed documents, each with its survivor and their similarity."""
    edges = Sorter(SMALL, 7, 6)
    for pair in pairs:
        better, worse = sorted(pair, key=lambda n: (*priorities[n], n))
        row = [*priorities[better], better, *priorities[worse], worse, 900 + (better + worse) % 99]
        edges.add(np.array([row]))
    found: dict[int, list[list[int]]] = {}
    for rows in remove_similar(SMALL, edges):
        for document, *rest in rows.tolist():
            found.setdefault(document, []).append(rest)
    best = {document: min(rows) for document, rows in found.items()}
    return {document: (survivor, share) for document, (_, survivor, share) in best.items()}


def plainly_removed(pairs: list[Pair], priorities: list[Pair]) -> dict[int, Pair]:
    similar = {frozenset(pair) for pair in pairs}
    kept: list[int] = []
    out = {}
    for document in sorted(range(len(priorities)), key=lambda n: (*priorities[n], n)):
        like = [other for other in kept if frozenset((other, document)) in similar]
        if like:
            out[document] = (like[0], 900 + (like[0] + document) % 99)
        else:
            kept.append(document)
    return out


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(-2, 1), st.integers(-3, 0)), min_size=2, max_size=40).flatmap(
        lambda priorities: st.tuples(
            st.lists(
                st.tuples(*[st.integers(0, len(priorities) - 1)] * 2).filter(
                    lambda pair: pair[0] != pair[1]
                ),
                max_size=120,
            ),
            st.just(priorities),
        )
    )
)
def test_settling_in_blocks_is_a_plain_greedy(drawn: tuple[list[Pair], list[Pair]]) -> None:
    assert removed(*drawn) == plainly_removed(*drawn)


def test_of_a_chain_every_second_document_stays() -> None:
    count = 400
    pairs = [(n, n + 1) for n in range(count - 1)]
    assert sorted(removed(pairs, [(0, 0)] * count)) == [*range(1, count, 2)]

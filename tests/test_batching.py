"""Batches: the oldest request is answered next, with others of similar length."""

import random
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxhpc.engines.base import Request
from proxhpc.engines.batching import DRAFT_PASSES, MAX_CANDIDATES, next_batch


def request(length: int, order: int = 0, *, draft: bool = True) -> Request:
    return Request("doc", [1] * length, (), 0, 2, order=order, steps=((1, 2),) if draft else ())


def least_work(lengths: list[int], size: int, overhead: int) -> int:
    """The least work over all divisions of sorted lengths into runs, each of up to `size`."""
    count = len(lengths)
    divisions = (
        [0, *cuts, count]
        for number in range(count)
        for cuts in combinations(range(1, count), number)
    )
    return min(
        sum((b - a) * lengths[b - 1] + overhead for a, b in pairwise(cuts))
        for cuts in divisions
        if all(b - a <= size for a, b in pairwise(cuts))
    )


@given(
    st.lists(st.tuples(st.integers(1, 600), st.integers(0, 9)), min_size=1, max_size=9),
    st.integers(1, 4),
    st.integers(0, 300),
)
def test_all_batches_together_are_the_least_work(
    prompts: list[tuple[int, int]], size: int, pass_tokens: int
) -> None:
    """Each batch has the oldest request left, and the first is of the best division."""
    requests = [request(*prompt) for prompt in prompts]
    overhead = DRAFT_PASSES * pass_tokens
    best = least_work(sorted(length for length, _ in prompts), size, overhead)
    batch = next_batch(requests, size, pass_tokens)
    assert 1 <= len(batch) == len(set(batch)) <= size
    assert min(order for _, order in prompts) in {prompts[n][1] for n in batch}
    work = len(batch) * max(prompts[n][0] for n in batch) + overhead
    rest = sorted(prompt[0] for n, prompt in enumerate(prompts) if n not in batch)
    assert work + (least_work(rest, size, overhead) if rest else 0) == best


def test_prompts_of_other_lengths_wait() -> None:
    lengths = [500, 40, 41, 480, 42, 490, 43, 470]
    requests = [request(length, order) for order, length in enumerate(lengths)]
    assert sorted(next_batch(requests, 8, 100)) == [0, 3, 5, 7]
    # Where a pass takes as long as thousands of tokens, batches are full.
    assert sorted(next_batch(requests, 8, 2048)) == list(range(8))
    # Decoding takes a pass for each token.
    decoding = [request(length, order, draft=False) for order, length in enumerate(lengths)]
    assert sorted(next_batch(decoding, 8, 100)) == list(range(8))


def test_of_equal_lengths_the_oldest_come_first() -> None:
    orders = random.Random(0).sample(range(100), 100)
    assert [orders[n] for n in next_batch([request(50, n) for n in orders], 8, 32)] == [*range(8)]


@pytest.mark.parametrize("size", [1, 8])
def test_new_requests_do_not_delay_old_ones(size: int) -> None:
    """However many requests of its own length a new document has, an old one is answered."""
    requests = [request(300, 0)] + [request(50, order) for order in range(1, 2 * MAX_CANDIDATES)]
    assert 0 in next_batch(requests, size, 32)
    far = [request(50 + order % 7, order) for order in range(4 * MAX_CANDIDATES)]
    assert max(next_batch(far, size, 32)) < MAX_CANDIDATES

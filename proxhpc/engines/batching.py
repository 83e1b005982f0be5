"""Chooses the requests that are answered at the same time."""

from collections.abc import Sequence
from itertools import accumulate

from proxhpc.engines.base import Request

MAX_CANDIDATES = 256
DRAFT_PASSES, DECODING_PASSES = 2, 32  # of a model over a batch, most of the time


def oldest_batch(requests: Sequence[Request], tokens: int) -> list[int]:
    """Indices of the oldest requests whose prompts have up to `tokens` tokens, at least of one."""
    oldest = sorted(range(len(requests)), key=lambda n: requests[n].order)
    totals = accumulate(len(requests[n].prompt) for n in oldest)
    return oldest[: max(1, sum(total <= tokens for total in totals))]


def next_batch(requests: Sequence[Request], size: int, pass_tokens: int) -> list[int]:
    """Indices of the next batch: the request of lowest order, and up to `size` of similar length.

    Prompts are padded to the longest of their batch. A pass over a batch takes as long as
    `pass_tokens` more tokens. Of the ways to divide the oldest requests into batches, the one
    with the least work is chosen, and of its batches the one with the oldest request.
    """
    oldest = sorted(range(len(requests)), key=lambda n: requests[n].order)[:MAX_CANDIDATES]
    by_length = sorted(oldest, key=lambda n: len(requests[n].prompt))
    lengths = [len(requests[n].prompt) for n in by_length]
    passes = DRAFT_PASSES if all(requests[n].steps for n in oldest) else DECODING_PASSES
    work, starts = [0], [0]  # for each number of the shortest requests; `starts` of the last batch
    for end, width in enumerate(lengths, 1):
        cost, start = min(
            (work[start] + (end - start) * width + passes * pass_tokens, -start)
            for start in range(max(0, end - size), end)
        )
        work.append(cost)
        starts.append(-start)
    first, end = by_length.index(oldest[0]), len(by_length)
    while starts[end] > first:
        end = starts[end]
    return by_length[starts[end] : end]

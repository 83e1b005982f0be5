"""The work that is left of a run, and how long it will take."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import inf

from proxhpc.run.lease import HEARTBEAT_SECONDS
from proxhpc.run.plan import BYTES_PER_TOKEN
from proxhpc.run.progress import Heartbeat, Work

MIN_SHARE = 0.05  # of the work that must be done before the remaining time is estimated


@dataclass(frozen=True, slots=True)
class Remaining:
    """Tokens answered and left to answer; the seconds that it will take, None if unknown."""

    answered: int
    left: float
    seconds: float | None = None

    @property
    def share(self) -> float:
        """The share of the work that is done, committed or not."""
        return self.answered / (self.answered + self.left) if self.left else 1.0


def estimate_remaining(
    shard_bytes: Sequence[int], pending: Collection[int], workers: Sequence[tuple[Heartbeat, float]]
) -> Remaining:
    """Estimate the work on the `pending` shards, which are not published.

    Workers are their last heartbeats with the seconds since then, infinite for those that do not
    work any more. The models will read as many tokens of each byte as they have read so far, and a
    worker that has finished its shards takes another one.
    """
    works = [beat.work for beat, _ in workers]
    answered = sum(work.answered for work in works)
    if not pending:
        return Remaining(answered, 0, 0.0)
    seen_bytes = sum(work.refined + work.asked for work in works)
    seen_tokens = answered + sum(work.pending for work in works)
    per_byte = seen_tokens / seen_bytes if seen_bytes else 1 / BYTES_PER_TOKEN
    refined: dict[int, int] = {}
    for shard, size in ((int(n), size) for work in works for n, size in work.shards.items()):
        refined[shard] = max(size, refined.get(shard, 0))
    left = {n: per_byte * max(0, shard_bytes[n] - refined.get(n, 0)) for n in pending}
    working = [(beat.work, age) for beat, age in workers if age < inf]
    own = [_take_own(work, left, per_byte) for work, _ in working]
    remaining = Remaining(answered, sum(own) + sum(left.values()))
    speeds = [work.speed for work, _ in working if work.speed]
    if not speeds or remaining.share < MIN_SHARE:
        return remaining
    mean = sum(speeds) / len(speeds)
    free: list[tuple[float, float]] = []  # when a worker is free, and its speed
    for (work, age), tokens in zip(working, own, strict=True):
        speed = work.speed or mean
        heappush(free, (max(0.0, tokens / speed - min(age, HEARTBEAT_SECONDS)), speed))
    for tokens in left.values():
        seconds, speed = heappop(free)
        heappush(free, (seconds + tokens / speed, speed))
    return replace(remaining, seconds=max(free)[0])


def _take_own(work: Work, left: dict[int, float], per_byte: float) -> float:
    """Remove the shards of a worker from those that are left; return its tokens."""
    tokens = sum(left.pop(int(shard), 0.0) for shard in work.shards)
    return work.pending + max(0.0, tokens - per_byte * work.asked)

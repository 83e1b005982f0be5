"""The work that is left of a run, and how long it will take."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush

from proxhpc.run.lease import HEARTBEAT_SECONDS
from proxhpc.run.plan import BYTES_PER_TOKEN
from proxhpc.run.progress import Work
from proxhpc.status.heartbeats import RecentHeartbeats

MIN_SHARE = 0.03  # of the work that must be done before the remaining time is estimated


@dataclass(frozen=True, slots=True)
class Refining:
    """A worker: its speed in tokens per second, None if unknown, and its work `age` seconds ago."""

    work: Work
    alive: bool
    speed: float | None = None
    age: float = 0.0

    @classmethod
    def of(cls, recent: RecentHeartbeats, alive: bool, now: float) -> "Refining":
        """Read a worker's heartbeats."""
        work, speed = _in_tokens(recent.last.work), None
        if alive and recent.earlier:
            before = _in_tokens(recent.earlier.work)
            speed = (work.answered - before.answered) / recent.seconds
        age = min(HEARTBEAT_SECONDS, max(0.0, now - recent.last.time))
        return cls(work, alive, speed or None, age)


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
    shard_bytes: Sequence[int], pending: Collection[int], workers: Sequence[Refining]
) -> Remaining:
    """Estimate the work on the `pending` shards, which are not published.

    The models will read as many tokens of each byte as they have read so far. A worker that has
    finished its shards takes another one.
    """
    works = [worker.work for worker in workers]
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
    alive = [worker for worker in workers if worker.alive]
    own = [_take_own(worker.work, left, per_byte) for worker in alive]
    remaining = Remaining(answered, sum(own) + sum(left.values()))
    speeds = [worker.speed for worker in alive if worker.speed]
    if not speeds or remaining.share < MIN_SHARE:
        return remaining
    mean = sum(speeds) / len(speeds)
    free = [
        (max(0.0, tokens / (worker.speed or mean) - worker.age), worker.speed or mean)
        for worker, tokens in zip(alive, own, strict=True)
    ]
    heapify(free)
    for tokens in left.values():
        seconds, speed = heappop(free)
        heappush(free, (seconds + tokens / speed, speed))
    return replace(remaining, seconds=max(seconds for seconds, _ in free))


def _take_own(work: Work, left: dict[int, float], per_byte: float) -> float:
    """Remove the shards of a worker from those that are left; return its tokens."""
    tokens = sum(left.pop(int(shard), 0.0) for shard in work.shards)
    return work.pending + max(0.0, tokens - per_byte * work.asked)


def _in_tokens(work: Work) -> Work:
    """Return the work with tokens estimated from bytes if no model has been asked."""
    if work.answered or work.pending:
        return work
    return replace(work, answered=(work.refined + work.asked) // BYTES_PER_TOKEN)

"""The remaining time of a run: on recorded runs, and where it must not be guessed.

tests/progress has the progress of real runs, numbers only: sizes of shards in bytes, when they were
published, and the lines of workers with their time, state and `Work`. `big` has two shards, `small`
fifty, `long` one document at its end that is a third of the corpus, `workers` three workers for
five shards; `rules` has two workers and no model.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxhpc.account.counts import Counts
from proxhpc.run.lease import LeaseOwner
from proxhpc.run.progress import Heartbeat, Work
from proxhpc.status.assess import ACTIVE_STATES
from proxhpc.status.remaining import MIN_SHARE, Remaining, estimate_remaining

RECORDED = sorted((Path(__file__).parent / "progress").glob("*.json"))
WORK = ("answered", "pending", "speed", "refined", "asked", "shards")


def beat(time: float = 0.0, state: str = "working", **work: Any) -> Heartbeat:
    line = {
        "time": time,
        "state": state,
        "role": "refine",
        "owner": asdict(LeaseOwner("w", "node7", 12, "99")),
        "shards": 0,
        "counts": Counts().to_dict(),
        "work": work,
    }
    parsed = Heartbeat.parse(orjson.dumps(line))
    assert parsed
    return parsed


@dataclass
class Recorded:
    """A real run, of which `at` returns what `status` would have estimated."""

    shards: list[int]
    published: list[float]
    workers: list[list[Heartbeat]]

    @classmethod
    def load(cls, path: Path) -> "Recorded":
        data = json.loads(path.read_text())
        workers = [
            [
                beat(time, state, **dict(zip(WORK, work, strict=True)))
                for time, state, *work in lines
            ]
            for lines in data["workers"]
        ]
        return cls(data["shards"], data["published"], workers)

    @property
    def start(self) -> float:
        lines = (line for lines in self.workers for line in lines)
        return min(line.time for line in lines if line.state == "working")

    @property
    def end(self) -> float:
        return max(self.published)

    def times(self) -> Iterator[float]:
        for lines in self.workers:
            for line in lines:
                yield from (line.time, line.time + 0.4)

    def at(self, now: float) -> Remaining:
        last = [
            [line for line in lines if line.time <= now][-1]
            for lines in self.workers
            if lines[0].time <= now
        ]
        ages = [now - line.time if line.state in ACTIVE_STATES else inf for line in last]
        pending = [shard for shard, time in enumerate(self.published) if time > now]
        return estimate_remaining(self.shards, pending, list(zip(last, ages, strict=True)))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_in_the_second_half_the_estimate_is_within_a_factor_of_two(path: Path) -> None:
    run = Recorded.load(path)
    checked = 0
    for now in filter(lambda time: (run.start + run.end) / 2 <= time < run.end, run.times()):
        seconds, truth = run.at(now).seconds, run.end - now
        assert seconds is not None
        assert truth / 2 - 1 <= seconds <= 2 * truth + 1, f"{now}: {seconds}, in truth {truth}"
        checked += 1
    assert checked >= 8


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_the_bar_moves_before_the_first_commit_and_ends_full(path: Path) -> None:
    run = Recorded.load(path)
    for lines in run.workers:
        first = next(line for line in lines if line.work.answered)
        started = next(line for line in lines if line.state == "working")
        assert first.time - started.time <= 2
    shares = [(now, run.at(now).share) for now in sorted(run.times()) if now < run.end]
    assert shares[0][1] == 0
    assert any(share > 0 for _, share in shares)
    assert run.at(run.end) == Remaining(run.at(run.end).answered, 0, 0.0)
    early = [now for now, share in shares if share < MIN_SHARE]
    assert early
    assert all(run.at(now).seconds is None for now in early)


def test_one_shard_may_take_longer_than_the_rest() -> None:
    """Three workers are nearly done, and the fourth shard begins only then."""
    work = {"answered": 900, "speed": 10.0, "refined": 3600, "asked": 0}
    workers = [beat(**work, shards={str(n): 3600}) for n in range(3)]
    remaining = estimate_remaining([4000] * 4, range(4), [(w, 0.0) for w in workers])
    assert remaining.left == 300 + 1000
    assert remaining.seconds == 10 + 100  # all workers at once would need 43
    with_faster = [*workers[:2], beat(**work | {"speed": 100.0}, shards={"2": 3600})]
    remaining = estimate_remaining([4000] * 4, range(4), [(w, 0.0) for w in with_faster])
    assert remaining.seconds == 1 + 10


def test_a_long_document_is_counted_by_its_windows() -> None:
    """Its requests that are pending are what is left; none of its bytes is counted again."""
    worker = beat(
        answered=1000, pending=500, speed=10.0, refined=4000, asked=6000, shards={"0": 4000}
    )
    assert estimate_remaining([10_000], [0], [(worker, 0.0)]) == Remaining(1000, 500, 50.0)


def test_committed_parts_of_shards_are_not_counted_again() -> None:
    """A launch resumes shards that workers had left, or died on."""
    left = beat(state="stopped", answered=1000, refined=4000, shards={"0": 3000, "1": 1000})
    working = beat(
        answered=250, pending=50, speed=25.0, refined=1000, asked=200, shards={"1": 2000}
    )
    remaining = estimate_remaining([4000] * 2, [0, 1], [(left, inf), (working, 0.0)])
    assert remaining.answered == 1250
    assert remaining.left == 50 + 0.25 * (2000 - 200) + 0.25 * 1000
    assert remaining.seconds == remaining.left / 25


def test_the_time_since_the_last_heartbeat_has_passed() -> None:
    worker = beat(answered=1000, speed=10.0, refined=4000, shards={"0": 4000})
    seconds = [
        estimate_remaining([8000], [0], [(worker, age)]).seconds for age in (0.0, 5.0, 500.0, inf)
    ]
    assert seconds == [100, 95, 85, None]


def test_nothing_is_known_before_a_worker_has_worked() -> None:
    assert estimate_remaining([4000], [0], []) == Remaining(0, 1000, None)
    assert estimate_remaining([4000], [0], [(beat(state="starting"), 1.0)]).seconds is None
    assert Work() == beat().work

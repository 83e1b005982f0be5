"""The pump: results in order, bounded work in flight, errors raised, nothing left running."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from proxhpc.corpus.document import Document
from proxhpc.refine.pump import Budget, Pace, in_order, take_batch
from proxhpc.worker.worker import BATCH, BATCH_BYTES, _items, event_weight


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


def test_results_come_in_the_order_of_the_events() -> None:
    async def slow_first(number: int) -> int:
        await asyncio.sleep(0.02 / (number + 1))
        return number * 10

    async def main() -> list[tuple[int, int]]:
        budget = Budget(8, 100)
        return [pair async for pair in in_order(numbers(20), slow_first, lambda _: 1, budget)]

    assert asyncio.run(main()) == [(n, n * 10) for n in range(20)]


@pytest.mark.parametrize(("items", "weight", "maximum"), [(3, 100, 3), (100, 10, 2), (100, 3, 1)])
def test_work_in_flight_is_bounded_by_number_and_weight(
    items: int, weight: int, maximum: int
) -> None:
    in_flight = highest = 0

    async def work(number: int) -> None:
        nonlocal in_flight, highest
        in_flight += 1
        highest = max(highest, in_flight)
        await asyncio.sleep(0.001)
        in_flight -= 1

    async def main() -> None:
        async for _ in in_order(numbers(30), work, lambda _: 5, Budget(items, weight)):
            pass

    asyncio.run(main())
    assert highest == maximum


class Engine:
    """Finishes one item after another, each in `seconds` of a clock of its own."""

    def __init__(self, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds, self.clock = seconds, 1000.0
        self.in_flight = self.highest = 0
        self.lock = asyncio.Lock()
        clock = SimpleNamespace(monotonic=lambda: self.clock)
        monkeypatch.setattr("proxhpc.refine.pump.time", clock)

    async def work(self, number: int) -> int:
        self.in_flight += 1
        if number > 100:  # the rate is known by then
            self.highest = max(self.highest, self.in_flight)
        async with self.lock:
            await asyncio.sleep(0)
            self.clock += self.seconds
        self.in_flight -= 1
        return number


@pytest.mark.parametrize(("seconds", "highest"), [(0.1, 50), (5, 4), (1e-6, 64)])
def test_what_is_in_flight_is_finished_within_the_time(
    seconds: float, highest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(seconds, monkeypatch)

    async def main() -> None:
        budget = Budget(64, 10**9, Pace(4, 5.0))
        async for _ in in_order(numbers(400), engine.work, lambda _: 1000, budget):
            pass

    asyncio.run(main())
    assert engine.highest == pytest.approx(highest, abs=1)


def test_the_pace_follows_an_engine_that_slows_down(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(0.01, monkeypatch)

    async def main() -> None:
        budget = Budget(64, 10**9, Pace(4, 1.0))
        async for number, _ in in_order(numbers(500), engine.work, lambda _: 1000, budget):
            if number == 300:
                assert engine.highest > 60
                engine.seconds = 10.0
            if number == 400:
                engine.highest = 0

    asyncio.run(main())
    assert engine.highest <= 4


def test_a_slow_first_item_does_not_leave_the_engine_idle() -> None:
    """Finished items wait for it, and others start: only unfinished ones count as its work."""
    finished: list[int] = []

    async def work(number: int) -> None:
        if number == 0:
            while len(finished) < 20:
                await asyncio.sleep(0)
        finished.append(number)

    async def main() -> None:
        budget = Budget(64, 10**9, Pace(4, 0.0))
        async for _ in in_order(numbers(30), work, lambda _: 1, budget):
            pass

    asyncio.run(asyncio.wait_for(main(), 10))
    assert 0 in finished[20:]


def test_an_error_of_the_work_is_raised_at_its_position() -> None:
    async def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    seen: list[int] = []

    async def main() -> None:
        async for event, _ in in_order(numbers(10), work, lambda _: 1, Budget(4, 100)):
            seen.append(event)

    with pytest.raises(ValueError, match="three"):
        asyncio.run(main())
    assert seen == [0, 1, 2]


def test_an_error_of_the_events_is_raised_after_earlier_results() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise OSError("gone")

    async def work(number: int) -> int:
        return number

    seen: list[int] = []

    async def main() -> None:
        async for event, _ in in_order(broken(), work, lambda _: 1, Budget(4, 100)):
            seen.append(event)

    with pytest.raises(OSError, match="gone"):
        asyncio.run(main())
    assert seen == [1]


def test_closing_cancels_what_is_in_flight() -> None:
    cancelled: list[int] = []

    async def work(number: int) -> int:
        if number == 0:
            return 0
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    async def main() -> None:
        async with aclosing(in_order(numbers(100), work, lambda _: 1, Budget(5, 100))) as results:
            async for _ in results:
                await asyncio.sleep(0.01)
                break
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert cancelled == [1, 2, 3, 4, 5]


def test_items_are_admitted_in_the_order_of_their_requests() -> None:
    async def main() -> list[int]:
        budget, admitted = Budget(4, 10), list[int]()

        async def take(weight: int) -> None:
            await budget.acquire(weight)
            admitted.append(weight)

        await take(8)
        waiting = [asyncio.create_task(take(weight)) for weight in (9, 1, 2, 30, 3)]
        await asyncio.sleep(0)
        assert admitted == [8]  # 1 would fit, but 9 comes first
        budget.release(8)
        await asyncio.sleep(0)
        assert admitted == [8, 9, 1]
        waiting[2].cancel()  # cancelled while it waits
        budget.release(9)
        budget.release(1)
        await asyncio.sleep(0.01)
        assert admitted == [8, 9, 1, 30]  # alone, because it exceeds the budget
        budget.release(30)
        await asyncio.gather(*waiting, return_exceptions=True)
        return admitted

    assert asyncio.run(main()) == [8, 9, 1, 30, 3]


def test_the_place_of_a_cancelled_item_goes_to_the_next() -> None:
    async def main() -> bool:
        budget = Budget(1, 10)
        await budget.acquire(1)
        first, second = (asyncio.create_task(budget.acquire(1)) for _ in range(2))
        await asyncio.sleep(0)
        budget.release(1)
        first.cancel()  # after it was admitted
        await asyncio.gather(first, second, return_exceptions=True)
        return second.done() and second.exception() is None

    assert asyncio.run(main())


def test_an_item_releases_the_weight_that_it_acquired() -> None:
    weights = iter([4, 9, 4, 9, 4, 9])

    async def work(number: int) -> int:
        return number

    async def main() -> Budget:
        budget = Budget(8, 10)
        async for _ in in_order(numbers(3), work, lambda _: next(weights), budget):
            pass
        return budget

    assert asyncio.run(main())._free_weight == 10


def test_a_batch_is_bounded_by_number_and_weight() -> None:
    items = iter(range(1, 10))
    assert take_batch(items, 3, 100, lambda item: item) == [1, 2, 3]
    assert take_batch(items, 9, 9, lambda item: item) == [4, 5]
    assert take_batch(items, 9, 1, lambda item: item) == [6]
    assert take_batch(items, 9, 100, lambda item: item) == [7, 8, 9]
    assert take_batch(items, 9, 100, lambda item: item) == []


@pytest.mark.parametrize(("text", "maximum"), [("x", BATCH), ("x" * (BATCH_BYTES // 4), 4)])
def test_a_worker_reads_little_ahead(text: str, maximum: int) -> None:
    read = 0

    def documents() -> Iterator[Document]:
        nonlocal read
        for number in range(1000):
            read += 1
            yield Document(str(number), text, 0, number)

    shard: Any = SimpleNamespace(items=documents, batch=None, lost=False)

    async def main() -> None:
        async with aclosing(_items(shard)) as items:
            await anext(items)

    asyncio.run(main())
    assert read == maximum


def test_the_weight_of_a_text_is_its_size_in_memory() -> None:
    plain, emoji = (Document("", text, 0, 0) for text in ("x" * 1000, "\U0001f98a" * 1000))
    assert 1000 < event_weight(plain) < 1100
    assert 4000 < event_weight(emoji) < 4100
    assert event_weight("else") == 1

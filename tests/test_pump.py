"""The pump: order kept, flight bounded, errors raised, nothing left running."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from proxhpc.corpus.document import Document
from proxhpc.refine.pump import Budget, in_order, take_batch
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


@pytest.mark.parametrize(("items", "weight", "most"), [(3, 100, 3), (100, 10, 2), (100, 3, 1)])
def test_flight_is_bounded_by_number_and_weight(items: int, weight: int, most: int) -> None:
    flying = highest = 0

    async def work(number: int) -> None:
        nonlocal flying, highest
        flying += 1
        highest = max(highest, flying)
        await asyncio.sleep(0.001)
        flying -= 1

    async def main() -> None:
        async for _ in in_order(numbers(30), work, lambda _: 5, Budget(items, weight)):
            pass

    asyncio.run(main())
    assert highest == most


def test_an_error_of_the_work_comes_in_its_place() -> None:
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


def test_an_error_of_the_events_comes_behind_what_was_there() -> None:
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


def test_places_are_given_in_the_order_of_asking() -> None:
    async def main() -> list[int]:
        budget, got = Budget(4, 10), list[int]()

        async def take(weight: int) -> None:
            await budget.acquire(weight)
            got.append(weight)

        await take(8)
        waiting = [asyncio.create_task(take(weight)) for weight in (9, 1, 2, 30, 3)]
        await asyncio.sleep(0)
        assert got == [8]  # 1 would fit, but 9 was first
        budget.release(8)
        await asyncio.sleep(0)
        assert got == [8, 9, 1]
        waiting[2].cancel()  # it gives way while it waits
        budget.release(9)
        budget.release(1)
        await asyncio.sleep(0.01)
        assert got == [8, 9, 1, 30]  # alone, for it fits no budget
        budget.release(30)
        await asyncio.gather(*waiting, return_exceptions=True)
        return got

    assert asyncio.run(main()) == [8, 9, 1, 30, 3]


def test_a_place_given_to_one_who_is_cancelled_is_given_on() -> None:
    async def main() -> bool:
        budget = Budget(1, 10)
        await budget.acquire(1)
        first, second = (asyncio.create_task(budget.acquire(1)) for _ in range(2))
        await asyncio.sleep(0)
        budget.release(1)
        first.cancel()  # its place was just given to it
        await asyncio.gather(first, second, return_exceptions=True)
        return second.done() and second.exception() is None

    assert asyncio.run(main())


def test_an_item_gives_back_the_weight_it_took() -> None:
    weights = iter([4, 9, 4, 9, 4, 9])

    async def work(number: int) -> int:
        return number

    async def main() -> Budget:
        budget = Budget(8, 10)
        async for _ in in_order(numbers(3), work, lambda _: next(weights), budget):
            pass
        return budget

    assert asyncio.run(main())._free_weight == 10


def test_a_batch_ends_by_number_and_by_weight() -> None:
    items = iter(range(1, 10))
    assert take_batch(items, 3, 100, lambda item: item) == [1, 2, 3]
    assert take_batch(items, 9, 9, lambda item: item) == [4, 5]
    assert take_batch(items, 9, 1, lambda item: item) == [6]
    assert take_batch(items, 9, 100, lambda item: item) == [7, 8, 9]
    assert take_batch(items, 9, 100, lambda item: item) == []


@pytest.mark.parametrize(("text", "most"), [("x", BATCH), ("x" * (BATCH_BYTES // 4), 4)])
def test_a_worker_reads_little_ahead(text: str, most: int) -> None:
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
    assert read == most


def test_a_text_weighs_what_it_takes_in_memory() -> None:
    plain, emoji = (Document("", text, 0, 0) for text in ("x" * 1000, "\U0001f98a" * 1000))
    assert 1000 < event_weight(plain) < 1100
    assert 4000 < event_weight(emoji) < 4100
    assert event_weight("else") == 1

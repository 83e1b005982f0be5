"""The pump: many items in flight, results in the order of the items, memory bounded."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from itertools import islice
from typing import TypeVar

IN_FLIGHT_DOCUMENTS = 2048  # twice what vLLM runs at a time on a large GPU

E = TypeVar("E")
R = TypeVar("R")


class Budget:
    """Bounds what is in flight by number and by weight, first come, first served.

    One item always fits.
    """

    def __init__(self, items: int, weight: int) -> None:
        self._items = items
        self._free_items, self._free_weight = items, weight
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, weight: int) -> None:
        """Wait until an item of `weight` fits."""
        if self._waiting or not self._take(weight):
            place = asyncio.get_running_loop().create_future()
            self._waiting.append((weight, place))
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self.release(weight)
                raise

    def release(self, weight: int) -> None:
        """Give the place of an item back."""
        self._free_items += 1
        self._free_weight += weight
        while self._waiting:
            weight, place = self._waiting[0]
            if not place.cancelled():
                if not self._take(weight):
                    return
                place.set_result(None)
            self._waiting.popleft()

    def _take(self, weight: int) -> bool:
        empty = self._free_items == self._items
        fits = empty or (self._free_items > 0 and self._free_weight >= weight)
        if fits:
            self._free_items -= 1
            self._free_weight -= weight
        return fits


def take_batch(items: Iterator[E], number: int, weight: int, weigh: Callable[[E], int]) -> list[E]:
    """The next items, `number` at most, ending with the one that brings them to `weight`.

    Empty when there are none left.
    """
    taken: list[E] = []
    for item in islice(items, number):
        taken.append(item)
        weight -= weigh(item)
        if weight <= 0:
            break
    return taken


async def in_order(
    events: AsyncIterator[E],
    work: Callable[[E], Awaitable[R]],
    weigh: Callable[[E], int],
    budget: Budget,
) -> AsyncGenerator[tuple[E, R], None]:
    """Pairs of event and result, in the order of the events.

    Events are taken ahead of their results as far as `budget` goes, so whatever does the work is
    kept full across batches, files and shards. An exception of `events` or of the work is raised
    in its place. Closing the iterator cancels what is in flight.
    """
    # The budget bounds this queue too: nothing enters it without a place.
    queue: asyncio.Queue[tuple[E, int, asyncio.Future[R]] | None] = asyncio.Queue()

    async def produce() -> None:
        try:
            async for event in events:
                weight = weigh(event)
                await budget.acquire(weight)
                queue.put_nowait((event, weight, asyncio.ensure_future(work(event))))
        finally:
            queue.put_nowait(None)

    producer = asyncio.create_task(produce())
    open_tasks: list[asyncio.Future[R]] = []
    try:
        while (item := await queue.get()) is not None:
            event, weight, task = item
            open_tasks = [task]
            result = await task
            open_tasks = []
            budget.release(weight)
            yield event, result
        await producer
    finally:
        producer.cancel()
        while not queue.empty():
            rest = queue.get_nowait()
            if rest is not None:
                open_tasks.append(rest[2])
        for task in open_tasks:
            task.cancel()
        await asyncio.gather(producer, *open_tasks, return_exceptions=True)

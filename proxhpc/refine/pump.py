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
    """Bounds the number and the weight of items in flight, first come, first served.

    One item always fits, whatever its weight.
    """

    def __init__(self, items: int, weight: int) -> None:
        self._items = items
        self._free_items, self._free_weight = items, weight
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, weight: int) -> None:
        """Wait until an item of `weight` fits."""
        if self._waiting or not self._try_acquire(weight):
            admitted = asyncio.get_running_loop().create_future()
            self._waiting.append((weight, admitted))
            try:
                await admitted
            except asyncio.CancelledError:
                if admitted.done() and not admitted.cancelled():
                    self.release(weight)
                raise

    def release(self, weight: int) -> None:
        """Return the weight of an item, and admit waiting ones."""
        self._free_items += 1
        self._free_weight += weight
        while self._waiting:
            weight, admitted = self._waiting[0]
            if not admitted.cancelled():
                if not self._try_acquire(weight):
                    return
                admitted.set_result(None)
            self._waiting.popleft()

    def _try_acquire(self, weight: int) -> bool:
        empty = self._free_items == self._items
        fits = empty or (self._free_items > 0 and self._free_weight >= weight)
        if fits:
            self._free_items -= 1
            self._free_weight -= weight
        return fits


def take_batch(
    items: Iterator[E], max_items: int, max_weight: int, weigh: Callable[[E], int]
) -> list[E]:
    """Return the next items: `max_items`, or fewer if they reach `max_weight`.

    Empty if there are none left.
    """
    batch: list[E] = []
    for item in islice(items, max_items):
        batch.append(item)
        max_weight -= weigh(item)
        if max_weight <= 0:
            break
    return batch


async def in_order(
    events: AsyncIterator[E],
    work: Callable[[E], Awaitable[R]],
    weigh: Callable[[E], int],
    budget: Budget,
) -> AsyncGenerator[tuple[E, R], None]:
    """Yield each event with its result, in the order of the events.

    Events are read ahead within the budget, so the engine stays busy across batches, files and
    shards. An exception of `events` or `work` is raised at its position. Closing the generator
    cancels what is in flight.
    """
    # Bounded by the budget, too: an event enters the queue only after it is admitted.
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

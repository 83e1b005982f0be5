"""The pump: many items in flight, results in the order of the items, memory bounded."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from itertools import islice
from typing import TypeVar

IN_FLIGHT_DOCUMENTS = 2048  # twice what vLLM runs at a time on a large GPU
IN_FLIGHT_BYTES = 64 * 1024 * 1024
RATE_SECONDS = 30.0  # after which an item's influence on a rate is halved

E = TypeVar("E")
R = TypeVar("R")


class Rate:
    """How much is done per second; what was done long ago counts less."""

    def __init__(self) -> None:
        self._amount = self._seconds = 0.0
        self._last = time.monotonic()

    @property
    def per_second(self) -> float:
        """The rate; 0 before anything is done."""
        return self._amount / self._seconds if self._seconds else 0.0

    def add(self, amount: int) -> None:
        """Count what was done since the last call."""
        now = time.monotonic()
        passed, self._last = now - self._last, now
        keep = 0.5 ** (passed / RATE_SECONDS)
        self._amount = self._amount * keep + amount
        self._seconds = self._seconds * keep + passed

    def skip(self) -> None:
        """Leave out the time since the last call."""
        self._last = time.monotonic()


class Pace:
    """Bounds the work in flight to what is finished within `seconds`, at the rate of late.

    `items` unfinished items always fit, since they keep the engine busy.
    """

    def __init__(self, items: int, seconds: float) -> None:
        self._items, self._seconds = items, seconds
        self._unfinished = 0
        self._rate = Rate()

    def has_room(self, weight: int) -> bool:
        """Return whether another item may start; `weight` is that of the items in flight."""
        return self._unfinished < self._items or weight < self._rate.per_second * self._seconds

    def start(self) -> None:
        """Count an item that starts."""
        if not self._unfinished:
            self._rate.skip()
        self._unfinished += 1

    def finish(self, weight: int) -> None:
        """Count an item that is finished."""
        self._rate.add(weight)
        self._unfinished -= 1


class Budget:
    """Bounds the number and the weight of items in flight, first come, first served.

    One item always fits, whatever its weight. With a pace, items fit only at that pace, too.
    """

    def __init__(self, items: int, weight: int, pace: Pace | None = None) -> None:
        self._items, self._weight, self._pace = items, weight, pace
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

    def finish(self, weight: int) -> None:
        """Count the work on an item as done; it stays in flight until its release."""
        if self._pace:
            self._pace.finish(weight)
            self._admit()

    def release(self, weight: int) -> None:
        """Return the weight of an item, and admit waiting ones."""
        self._free_items += 1
        self._free_weight += weight
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            weight, admitted = self._waiting[0]
            if not admitted.cancelled():
                if not self._try_acquire(weight):
                    return
                admitted.set_result(None)
            self._waiting.popleft()

    def _try_acquire(self, weight: int) -> bool:
        if self._free_items < self._items and not self._has_room(weight):
            return False
        if self._pace:
            self._pace.start()
        self._free_items -= 1
        self._free_weight -= weight
        return True

    def _has_room(self, weight: int) -> bool:
        if self._free_items <= 0 or self._free_weight < weight:
            return False
        return self._pace is None or self._pace.has_room(self._weight - self._free_weight)


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

    async def finish(event: E, weight: int) -> R:
        try:
            return await work(event)
        finally:
            budget.finish(weight)

    async def produce() -> None:
        try:
            async for event in events:
                weight = weigh(event)
                await budget.acquire(weight)
                queue.put_nowait((event, weight, asyncio.create_task(finish(event, weight))))
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

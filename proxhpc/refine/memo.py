"""A memo of answers, bounded in memory, so that the same prompt is not asked twice."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Generic, TypeVar

V = TypeVar("V")
ENTRY_BYTES = 400  # of an entry without its value, measured and rounded up


def memo_key(*parts: bytes) -> bytes:
    """Return a collision-resistant key: texts are untrusted."""
    key = blake2b(digest_size=16)
    for part in parts:
        key.update(len(part).to_bytes(8, "little"))
        key.update(part)
    return key.digest()


class Memo(Generic[V]):
    """Stores the most recently used values, up to `max_bytes`; `size` returns those of a value."""

    def __init__(self, max_bytes: int, size: Callable[[V], int]) -> None:
        self._free_bytes, self._size = max_bytes, size
        self._values: OrderedDict[bytes, V] = OrderedDict()
        self._pending: dict[bytes, asyncio.Event] = {}

    async def get(self, key: bytes, ask: Callable[[], Awaitable[V]]) -> tuple[V, bool]:
        """Return the value of `key`, and whether it was stored or pending.

        An exception of `ask` is raised to its caller only; others that wait for the key then ask.
        """
        while True:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key], True
            if key not in self._pending:
                break
            await self._pending[key].wait()
        self._pending[key] = answered = asyncio.Event()
        try:
            self._values[key] = value = await ask()
            self._free_bytes -= ENTRY_BYTES + self._size(value)
            while self._free_bytes < 0:
                _, oldest = self._values.popitem(last=False)
                self._free_bytes += ENTRY_BYTES + self._size(oldest)
        finally:
            del self._pending[key]
            answered.set()
        return value, False

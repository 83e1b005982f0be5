"""A memo of answers, bounded in memory: what was asked before is not asked again."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Generic, TypeVar

V = TypeVar("V")
ENTRY = 400  # bytes that an entry takes beside what it says itself, measured and rounded up


def digest(*parts: bytes) -> bytes:
    """A key for `parts`, which nobody can make two of: texts come from strangers."""
    sum_ = blake2b(digest_size=16)
    for part in parts:
        sum_.update(len(part).to_bytes(8, "little"))
        sum_.update(part)
    return sum_.digest()


class Memo(Generic[V]):
    """Remembers the values of latest use, up to `max_bytes`; `size` is what one takes itself."""

    def __init__(self, max_bytes: int, size: Callable[[V], int]) -> None:
        self._free, self._size = max_bytes, size
        self._known: OrderedDict[bytes, V] = OrderedDict()
        self._asked: dict[bytes, asyncio.Event] = {}

    async def get(self, key: bytes, ask: Callable[[], Awaitable[V]]) -> tuple[V, bool]:
        """The value of `key`, and whether it was there or on its way already.

        What `ask` raises goes to who called it; others who wait for this key ask themselves.
        """
        while True:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key], True
            if key not in self._asked:
                break
            await self._asked[key].wait()
        self._asked[key] = answered = asyncio.Event()
        try:
            value = await ask()
            self._keep(key, value)
        finally:
            del self._asked[key]
            answered.set()
        return value, False

    def _keep(self, key: bytes, value: V) -> None:
        self._known[key] = value
        self._free -= ENTRY + self._size(value)
        while self._free < 0:
            _, oldest = self._known.popitem(last=False)
            self._free += ENTRY + self._size(oldest)

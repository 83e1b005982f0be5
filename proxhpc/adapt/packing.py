"""Groups of items of like sizes, for batches without much padding."""

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Sized(Protocol):
    """What has a size in tokens."""

    @property
    def size(self) -> int:
        """Tokens."""
        ...


T = TypeVar("T", bound=Sized)


def packed(items: Sequence[T], tokens: int) -> list[list[T]]:
    """Items, shortest first, in groups of at most so many tokens with padding, or of one item."""
    groups: list[list[T]] = [[]]
    for item in items:
        if groups[-1] and (len(groups[-1]) + 1) * item.size > tokens:
            groups.append([])
        groups[-1].append(item)
    return groups if groups[-1] else []

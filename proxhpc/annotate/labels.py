"""What a teacher says of a document, whoever it is: the one interface behind all of them.

A source gives subjects, again from the start whenever it is read. Only where a subject is wanted
for an example is its lesson asked for.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from proxhpc.corpus.document import Bad
from proxhpc.corpus.hosts import Split, split_of


@dataclass(frozen=True, slots=True)
class Edit:
    """Lines [start, stop) of a document become `new`, which may be several; None: they go."""

    start: int
    stop: int
    new: str | None = None


@dataclass(frozen=True, slots=True)
class TeacherLabels:
    """What a teacher says of a document, as far as it says anything.

    `keep` is its verdict on the whole. `edits`, ascending and disjoint, is all that changes in
    its lines; what it says nothing reliable about are the lines in `unknown`. `aside` counts by
    level and reason the answers that were not understood or not believed.
    """

    keep: bool | None = None
    edits: tuple[Edit, ...] | None = None
    unknown: frozenset[int] = frozenset()
    aside: Mapping[tuple[str, str], int] = field(default_factory=Counter)


@dataclass(frozen=True)
class Subject:
    """A document to be taught. `teach` asks for the lesson; `host` and `source` may be empty."""

    id: str
    text: str
    source: str
    host: str
    teacher: str
    teach: Callable[[], TeacherLabels]

    @cached_property
    def split(self) -> Split:
        """Whether it is trained on or judged by."""
        return split_of(self.host, self.text)

    @cached_property
    def lines(self) -> list[str]:
        """Its lines."""
        return self.text.split("\n")


class LabelSource(Protocol):
    """Documents and what one teacher says of them."""

    def subjects(self) -> Iterator[Subject | Bad]:
        """Every document, in the order of the input; what could not be read is a Bad."""
        ...

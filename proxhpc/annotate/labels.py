"""A teacher's labels of a document: one interface for gold records, rules and models."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from proxhpc.corpus.document import BadRecord
from proxhpc.corpus.hosts import Split, split_of


@dataclass(frozen=True, slots=True)
class Edit:
    """Lines [start, stop) of a document become `new`, one or more lines; None removes them."""

    start: int
    stop: int
    new: str | None = None


@dataclass(frozen=True, slots=True)
class TeacherLabels:
    """A teacher's verdict and edits for a document; None if it gives none.

    `edits` are ascending and disjoint. Lines in `unknown` have no reliable label. `discarded`
    counts, by level and reason, answers that were invalid or not trusted.
    """

    keep: bool | None = None
    edits: tuple[Edit, ...] | None = None
    unknown: frozenset[int] = frozenset()
    discarded: Mapping[tuple[str, str], int] = field(default_factory=Counter)


@dataclass(frozen=True)
class SourceDocument:
    """A document with the function that computes its labels. `host` and `source` may be empty."""

    id: str
    text: str
    source: str
    host: str
    teacher: str
    read_labels: Callable[[], TeacherLabels]

    @cached_property
    def split(self) -> Split:
        """The split of the document's host."""
        return split_of(self.host, self.text)

    @cached_property
    def lines(self) -> list[str]:
        """The document's lines."""
        return self.text.split("\n")


class LabelSource(Protocol):
    """Documents with the labels of one teacher."""

    def documents(self) -> Iterator[SourceDocument | BadRecord]:
        """Every record in the order of the input, from the start at each call."""

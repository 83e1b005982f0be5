"""Decides which training examples to leave out where there are too many of a kind."""

import random
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from proxhpc.annotate.examples import is_untouched


class Balance:
    """Registers all examples, then names the ones to leave out at random, by seed.

    Only training examples are left out. It stores a few bytes for each example.
    """

    def __init__(
        self, seed: int, max_untouched: float, max_documents_per_source: int | None
    ) -> None:
        """`max_untouched` is the largest share of windows without an edit."""
        self._rng = random.Random(seed)  # noqa: S311
        self._max_untouched, self._max_documents = max_untouched, max_documents_per_source
        self._documents = array("Q")  # the document number of each example
        self._train_documents: defaultdict[str, array[int]] = defaultdict(lambda: array("Q"))
        self._untouched, self._edited = array("Q"), array("Q")  # numbers of training windows

    def add(self, document: int, row: Mapping[str, Any]) -> None:
        """Register the next example; `document` is the number of its document."""
        if row["split"] == "train":
            if not self._documents or self._documents[-1] != document:
                self._train_documents[row["source"]].append(document)
            if row["level"] == "chunk":
                windows = self._untouched if is_untouched(row) else self._edited
                windows.append(len(self._documents))
        self._documents.append(document)

    def reasons(self) -> Iterator[str]:
        """For each example in order, why it is left out; empty if it is not."""
        excess = set[int]()
        for documents in self._train_documents.values():
            if self._max_documents is not None and len(documents) > self._max_documents:
                excess.update(self._rng.sample(documents, len(documents) - self._max_documents))
        untouched = self._excess_untouched(excess)
        for number, document in enumerate(self._documents):
            if document in excess:
                yield "per_source"
            else:
                yield "untouched" if number in untouched else ""

    def _excess_untouched(self, excess_documents: set[int]) -> set[int]:
        """Surplus examples without an edit, by number."""
        if self._max_untouched >= 1:
            return set()
        untouched, edited = (
            [number for number in windows if self._documents[number] not in excess_documents]
            for windows in (self._untouched, self._edited)
        )
        limit = int(len(edited) * self._max_untouched / (1 - self._max_untouched))
        return set(self._rng.sample(untouched, max(0, len(untouched) - limit)))

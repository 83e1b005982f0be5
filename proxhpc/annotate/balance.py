"""Decides which training examples to leave out where there are too many of a kind."""

import random
from array import array
from collections.abc import Iterator

from proxhpc.annotate.examples import TrainingExample

_TRAIN_WINDOW, _UNTOUCHED = 1, 2


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
        self._kinds = bytearray()
        self._documents = array("Q")  # the document number of each example
        self._train_documents: dict[str, array[int]] = {}  # by source

    def add(self, document: int, example: TrainingExample) -> None:
        """Register the next example; `document` is the number of its document."""
        row = example.row
        is_train = row["split"] == "train"
        if is_train and (not self._documents or self._documents[-1] != document):
            self._train_documents.setdefault(row["source"], array("Q")).append(document)
        is_train_window = is_train and row["level"] == "chunk"
        self._kinds.append(_TRAIN_WINDOW * is_train_window | _UNTOUCHED * example.is_untouched)
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
        """The numbers of examples without an edit that are too many."""
        if self._max_untouched >= 1:
            return set()
        untouched, edited = array("Q"), 0
        for number, (kind, document) in enumerate(zip(self._kinds, self._documents, strict=True)):
            if kind & _TRAIN_WINDOW and document not in excess_documents:
                if kind & _UNTOUCHED:
                    untouched.append(number)
                else:
                    edited += 1
        limit = int(edited * self._max_untouched / (1 - self._max_untouched))
        return set(self._rng.sample(untouched, max(0, len(untouched) - limit)))

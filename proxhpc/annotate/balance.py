"""Which examples are written, where there are too many of a kind: by lot, the same for one seed."""

import random
from array import array
from collections.abc import Iterator

from proxhpc.annotate.examples import TrainingExample

_TRAIN, _UNTOUCHED = 1, 2


class Balance:
    """Takes every example that was made, then says of each whether it is one too many.

    Only training examples are. It keeps some bytes of each.
    """

    def __init__(self, seed: int, untouched: float, per_source: int | None) -> None:
        """`untouched`: largest share of windows without an edit; `per_source`: most documents."""
        self._chance = random.Random(seed)  # noqa: S311
        self._untouched, self._per_source = untouched, per_source
        self._kinds = bytearray()
        self._documents = array("Q")  # the number of each example's document
        self._sources: dict[str, array[int]] = {}  # of training documents by source

    def add(self, document: int, example: TrainingExample) -> None:
        """Take the next example, of the document that bears this number."""
        row = example.row
        train = row["split"] == "train"
        if train and (not self._documents or self._documents[-1] != document):
            self._sources.setdefault(row["source"], array("Q")).append(document)
        window = example.row["level"] == "chunk"
        self._kinds.append(_TRAIN * train * window | _UNTOUCHED * example.untouched)
        self._documents.append(document)

    def verdicts(self) -> Iterator[str]:
        """For each example, in order, why it is left out; empty for those to be written."""
        over = set[int]()
        for documents in self._sources.values():
            if self._per_source is not None and len(documents) > self._per_source:
                over.update(self._chance.sample(documents, len(documents) - self._per_source))
        without = self._too_untouched(over)
        for number, document in enumerate(self._documents):
            if document in over:
                yield "per_source"
            else:
                yield "untouched" if number in without else ""

    def _too_untouched(self, over: set[int]) -> set[int]:
        """Numbers of the examples without an edit that are too many."""
        if self._untouched >= 1:
            return set()
        untouched, edited = array("Q"), 0
        for number, (kind, document) in enumerate(zip(self._kinds, self._documents, strict=True)):
            if kind & _TRAIN and document not in over:
                if kind & _UNTOUCHED:
                    untouched.append(number)
                else:
                    edited += 1
        most = int(edited * self._untouched / (1 - self._untouched))
        return set(self._chance.sample(untouched, max(0, len(untouched) - most)))

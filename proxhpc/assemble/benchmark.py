"""Documents that contain runs of words of a benchmark, on which a model is to be tested."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.records import get_field
from proxhpc.dedup.shingles import Hashes, fold, shingles, word_hashes, words_of
from proxhpc.run.plan import Plan, keep_with_plan
from proxhpc.spec.sections import Against

_SLOTS = 16  # bits of the filter, for each hash of the benchmark
_FILTER_BITS = range(16, 33)
_BYTE, _IN_BYTE = np.uint64(3), np.uint64(7)
_MASKS = np.uint8(1) << np.arange(8, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class BenchmarkHit:
    """The item of a benchmark of which a document contains the largest share.

    `words` are the first run of words that they share.
    """

    id: str
    source: str
    share: float
    words: str

    @property
    def file(self) -> str:
        """The item's file."""
        return self.source.rpartition(":")[0]


@dataclass(slots=True)
class BenchmarkCounts:
    """Documents that contain parts of a benchmark, by its files.

    `left_out` of them, with `left_out_tokens`, are not written. `left_out_by_input` counts these by
    number of input file. `skipped` items of the benchmark are not searched for: they cannot be read
    or have fewer words than a run.
    """

    by_file: Counter[str] = field(default_factory=Counter)
    left_out: int = 0
    left_out_tokens: int = 0
    left_out_by_input: Counter[int] = field(default_factory=Counter)
    skipped: int = 0

    @property
    def documents(self) -> int:
        """All documents that contain parts of the benchmark."""
        return self.by_file.total()

    def add(self, other: "BenchmarkCounts") -> None:
        """Add the counts of other documents."""
        self.by_file += other.by_file
        self.left_out += other.left_out
        self.left_out_tokens += other.left_out_tokens
        self.left_out_by_input += other.left_out_by_input
        self.skipped = max(self.skipped, other.skipped)  # each group searches for all items


class Benchmark:
    """The runs of words of a benchmark's items, as a sorted array of hashes.

    `skipped` items cannot be read or have fewer words than a run.
    """

    def __init__(self, plan: Plan, settings: Against) -> None:
        self.settings = settings
        self._names: list[tuple[str, str]] = []
        self.skipped = 0
        runs, sizes = [np.empty(0, np.uint64)], []
        for record in _records(plan):
            folded = fold("" if isinstance(record, BadRecord) else _text(record, settings))
            if isinstance(record, BadRecord) or len(word_hashes(folded)) < settings.words:
                self.skipped += 1
                continue
            runs.append(np.unique(shingles(folded, settings.words)))
            sizes.append(len(runs[-1]))
            name = plan.against[record.file].name
            self._names.append((record.id, f"{name}:{record.position}"))
        self._sizes = np.array(sizes, np.int64)
        hashes = np.concatenate(runs)
        order = np.argsort(hashes, kind="stable")
        self._items = np.repeat(np.arange(len(sizes), dtype=np.uint32), self._sizes)[order]
        self._hashes, starts = np.unique(hashes[order], return_index=True)
        self._edges = np.append(starts, len(hashes)).astype(np.uint32)
        bits = min(max((_SLOTS * len(hashes)).bit_length(), _FILTER_BITS[0]), _FILTER_BITS[-1])
        self._shift = np.uint64(64 - bits)
        self._filter = np.zeros(1 << bits - 3, np.uint8)  # a bit for the first bits of a hash
        places = self._hashes >> self._shift
        np.bitwise_or.at(self._filter, places >> _BYTE, _MASKS[places & _IN_BYTE])

    def find(self, text: str) -> BenchmarkHit | None:
        """The item of which a text contains most; None if it contains less than the share."""
        folded = fold(text)
        runs = shingles(folded, self.settings.words)
        slots = runs >> self._shift
        places = np.flatnonzero(self._filter[slots >> _BYTE] & _MASKS[slots & _IN_BYTE])
        if not len(places) or not (found := self._found(runs[places])).any():
            return None
        places = places[found]
        numbers = np.searchsorted(self._hashes, runs[places])
        items, counts = np.unique(
            np.concatenate([self._of(number) for number in np.unique(numbers)]), return_counts=True
        )
        shares = counts / self._sizes[items]
        best = int(np.argmax(shares))
        if shares[best] < self.settings.share:
            return None
        item = int(items[best])
        first = next(p for p, n in zip(places, numbers, strict=True) if item in self._of(n))
        words = words_of(folded, int(first), self.settings.words)
        return BenchmarkHit(*self._names[item], round(float(shares[best]), 4), words)

    def _found(self, runs: Hashes) -> npt.NDArray[np.bool_]:
        places = np.searchsorted(self._hashes, runs)
        places[places == len(self._hashes)] = 0
        found: npt.NDArray[np.bool_] = self._hashes[places] == runs
        return found

    def _of(self, number: int) -> npt.NDArray[np.uint32]:
        """The items that have a hash, by its number."""
        return self._items[self._edges[number] : self._edges[number + 1]]


@keep_with_plan
def load_benchmark(plan: Plan) -> Benchmark | None:
    """The plan's benchmark, None if it has none."""
    settings = plan.manifest.dedup.against
    if settings is None or settings.mode != "contained":
        return None
    return Benchmark(plan, settings)


def _records(plan: Plan) -> Iterator[Document | BadRecord]:
    for file in range(len(plan.against)):
        for item in plan.read_against(Span(file)):
            if not isinstance(item, SpanEnd):
                yield item


def _text(item: Document, settings: Against) -> str:
    """The text of an item, and the texts in its further fields."""
    return "\n".join([item.text, *(_strings([get_field(item.fields, f) for f in settings.fields]))])


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings in lists and objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)

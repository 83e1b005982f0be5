"""Documents that contain runs of words of a benchmark, on which a model is to be tested.

An index is written in bounded memory, in a folder named by what it is made from, and all processes
map the same files. They are never replaced: another node may have mapped them.
"""

import shutil
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash

from proxhpc.account.quantity import memory_size
from proxhpc.corpus.disk import draft_path, sync_directory, writing
from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.records import get_field
from proxhpc.dedup.arrays import ArrayWriter, file_digest, load_json, save_json
from proxhpc.dedup.shingles import fold, shingles, word_hashes, words_of
from proxhpc.dedup.sorting import DEFAULT_MEMORY, Scratch, Sorter
from proxhpc.errors import StopError, UserError
from proxhpc.faults import fault_point
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.pool import Pool
from proxhpc.spec.sections import Against

MIN_MEMORY = 16 << 20  # bytes that the merge needs beside an index
_INDEX_BYTES = 6  # of an index for each byte of a benchmark, at most; 2 in English
_RECEIPT = "index.json"
_DAY = 86400  # seconds; no index takes that long, so an older draft is that of a killed process
# Hash of a run and number of its item, sorted; the filter; runs and name of each item.
_FILES = ("hashes.npy", "items.npy", "filter.npy", "sizes.npy", "ends.npy", "names.npy")
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


@dataclass(frozen=True, slots=True)
class BenchmarkIndex:
    """The digests of an index's files, their bytes, and items that it lacks."""

    digests: dict[str, str]
    bytes: int
    skipped: int


class Benchmark:
    """The runs of words of a benchmark's items: sorted hashes in files that processes share."""

    def __init__(self, folder: Path, settings: Against) -> None:
        index = _load_receipt(folder)
        self.settings, self.skipped = settings, index.skipped
        for name, digest in index.digests.items():
            if file_digest(folder / name) != digest:
                raise _damaged(folder / name)
        self._hashes, self._items, self._filter, self._sizes, self._ends, self._names = (
            np.load(folder / name, mmap_mode="r").view(np.ndarray) for name in _FILES
        )
        self._shift = np.uint64(64 - 3 - (len(self._filter) - 1).bit_length())

    def find(self, text: str) -> BenchmarkHit | None:
        """The item of which a text contains most; None if it contains less than the share."""
        folded = fold(text)
        runs = shingles(folded, self.settings.words)
        slots = runs >> self._shift
        places = np.flatnonzero(self._filter[slots >> _BYTE] & _MASKS[slots & _IN_BYTE])
        wanted = runs[places].view(np.int64)
        starts = np.searchsorted(self._hashes, wanted)
        stops = np.searchsorted(self._hashes, wanted, "right")
        if not (found := starts < stops).any():
            return None
        owners = [self._items[a:b] for a, b in zip(starts[found], stops[found], strict=True)]
        _, distinct = np.unique(starts[found], return_index=True)
        each = np.concatenate([owners[number] for number in distinct])
        items, counts = np.unique(each, return_counts=True)
        shares = counts / self._sizes[items]
        best = int(np.argmax(shares))
        if shares[best] < self.settings.share:
            return None
        item = int(items[best])
        first = next(p for p, of in zip(places[found], owners, strict=True) if item in of)
        words = words_of(folded, int(first), self.settings.words)
        start = self._ends[item - 1] if item else 0
        name, source = orjson.loads(self._names[start : self._ends[item]].tobytes())
        return BenchmarkHit(name, source, round(float(shares[best]), 4), words)


def write_indexes(pool: Pool, memory: int | None) -> int:
    """Write the missing indexes of a run's benchmarks; the bytes of memory left for sorting.

    `memory` is that of all processes; by default, DEFAULT_MEMORY is left. UserError if the indexes
    leave too little of it.
    """
    numbers = range(len(pool.plan.benchmarks))
    unit = partial(_write_index, memory=(memory or DEFAULT_MEMORY) // pool.processes)
    size = sum(pool.map("benchmark", unit, numbers))
    if memory is None or not numbers:
        return memory or DEFAULT_MEMORY
    if (needed := size + MIN_MEMORY) > memory:
        raise UserError(
            f"the hashes of the benchmark{'s' * (len(numbers) > 1)} in dedup.against take"
            f" {memory_size(size)} of memory; with the {memory_size(MIN_MEMORY)} that the merge"
            f" needs beside them that is more than --max-ram {memory_size(memory)}",
            hint=f"--max-ram {-(-needed >> 20)}MiB",
        )
    return memory - size


def estimate_index(plan: Plan) -> int:
    """About how many bytes the indexes of a plan's benchmarks take, on the disk and in memory."""
    files = (file for _, files in plan.benchmarks for file in files)
    return _INDEX_BYTES * sum(plan.against[file].estimated_bytes for file in files)


def open_benchmarks(run: RunDir, plan: Plan) -> list[Benchmark]:
    """The benchmarks of a run, whose indexes are written. StopError if one is damaged."""
    numbered = enumerate(plan.benchmarks)
    return [_open(_folder(run, plan, number), settings) for number, (settings, _) in numbered]


_open = lru_cache(maxsize=32)(Benchmark)  # files are checked once in a process


def _write_index(run: RunDir, plan: Plan, number: int, *, memory: int) -> int:
    """Write the index of a benchmark, unless there is one, and return its bytes."""
    (settings, files), folder = plan.benchmarks[number], _folder(run, plan, number)
    if not folder.exists():
        draft = draft_path(folder)
        try:
            with writing(folder):
                draft.mkdir(parents=True)
            _sweep(folder.parent)
            skipped = _write_files(plan, settings, files, Scratch(draft, memory))
            paths = [draft / name for name in _FILES]
            digests = {path.name: file_digest(path) for path in paths}
            size = sum(path.stat().st_size for path in paths)
            save_json(draft / _RECEIPT, BenchmarkIndex(digests, size, skipped))
            _publish(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return _load_receipt(folder).bytes


def _sweep(folder: Path) -> None:
    """Delete what killed processes left in the folder of all indexes."""
    for draft in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):
            if time.time() - draft.stat().st_mtime > _DAY:
                shutil.rmtree(draft, ignore_errors=True)


def _publish(draft: Path, folder: Path) -> None:
    """Give a finished index its name, unless another process was first."""
    with writing(folder):
        fault_point("draft written", folder.parent.name)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.exists():
                raise
        sync_directory(folder.parent)


def _folder(run: RunDir, plan: Plan, number: int) -> Path:
    """The folder of an index; its name has a hash of all that the index is made from."""
    settings, files = plan.benchmarks[number]
    infos = [(plan.against[file].name, plan.against[file].fingerprint) for file in files]
    source = xxhash.xxh3_64_hexdigest(orjson.dumps([settings.model_dump_json(), infos]))
    return run.benchmark_index(number, source)


def _load_receipt(folder: Path) -> BenchmarkIndex:
    path = folder / _RECEIPT
    try:
        index = load_json(path, BenchmarkIndex)
    except StopError:
        index = None
    if index is None:
        raise _damaged(path)
    return index


def _damaged(path: Path) -> StopError:
    hint = f"delete the folder {path.parent} and merge again, which rewrites it"
    return StopError(f"{path} is damaged", hint=hint)


def _write_files(plan: Plan, settings: Against, files: range, scratch: Scratch) -> int:
    """Write the files of an index; the number of items that are skipped."""
    hashes, items, bits, sizes, ends, names = (scratch.folder / name for name in _FILES)
    sorter, counts, stops, skipped = Sorter(scratch, 2), array("q"), array("q"), 0
    with ArrayWriter(names, np.uint8) as writer:
        for record in _records(plan, files):
            folded = fold("" if isinstance(record, BadRecord) else _text(record, settings))
            if isinstance(record, BadRecord) or len(word_hashes(folded)) < settings.words:
                skipped += 1
                continue
            runs = np.unique(shingles(folded, settings.words)).view(np.int64)
            sorter.add(np.stack([runs, np.full(len(runs), len(counts))], axis=1))
            name = record.id, f"{plan.against[record.file].name}:{record.position}"
            writer.write(np.frombuffer(orjson.dumps(name), np.uint8))
            counts.append(len(runs))
            stops.append(writer.rows)
    width = min(max((_SLOTS * sum(counts)).bit_length(), _FILTER_BITS[0]), _FILTER_BITS[-1])
    shift = np.uint64(64 - width)
    filled = np.zeros(1 << width - 3, np.uint8)  # a bit for the first bits of a hash
    with ArrayWriter(hashes, np.int64) as first, ArrayWriter(items, np.uint32) as second:
        for rows in sorter:
            first.write(rows[:, 0])
            second.write(rows[:, 1])
            places = rows[:, 0].astype(np.uint64) >> shift
            np.bitwise_or.at(filled, places >> _BYTE, _MASKS[places & _IN_BYTE])
    for path, values in ((bits, filled), (sizes, np.array(counts)), (ends, np.array(stops))):
        with ArrayWriter(path, values.dtype) as writer:
            writer.write(values)
    return skipped


def _records(plan: Plan, files: range) -> Iterator[Document | BadRecord]:
    for file in files:
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

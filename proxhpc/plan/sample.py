"""Documents drawn at random from all input files, for a calibration."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.plan.entry import enter
from proxhpc.run.plan import Plan

PLACES = 64  # where documents are read
_MAX_MISSES = 256  # draws in a row without a new record: few or none are left


@dataclass(frozen=True, slots=True)
class Place:
    """Consecutive records, and the size of the whole in the unit of the plan's estimates."""

    records: tuple[Document | BadRecord, ...]
    bytes: int


def draw_places(plan: Plan, documents: int, seed: int) -> Iterator[Place]:
    """Yield places that together have `documents` different records, or about all there are.

    A place begins with the first record at or after a random byte (or row), wherever that is in the
    inputs. So a record's own length does not change its chance. Places are read in the order of the
    files, so that none is decompressed more than once.
    """
    chooser = random.Random(seed)  # noqa: S311
    sizes = [info.estimated_bytes if info.size else 0 for info in plan.inputs]
    rows = [info.rows for info in plan.inputs]
    seen: set[tuple[int, int]] = set()
    per_place = -(-documents // PLACES)
    misses = 0
    while any(sizes) and misses < _MAX_MISSES and (missing := documents - len(seen)):
        files = chooser.choices(range(len(sizes)), sizes, k=-(-missing // per_place))
        draws = [(file, chooser.randrange(max(1, rows[file] or sizes[file]))) for file in files]
        for file, start in sorted(draws):
            count = min(per_place, documents - len(seen))
            place = _read_place(plan, file, start, count, seen)
            if not place.records and start:  # nothing begins after it: go round to the start
                place = _read_place(plan, file, 0, count, seen)
            misses = 0 if place.records else misses + 1
            if place.records:
                seen.update((file, record.position) for record in place.records)
                yield place


def _read_place(plan: Plan, file: int, start: int, count: int, seen: set[tuple[int, int]]) -> Place:
    """Read up to `count` records from `start` on, up to the first that was read before."""
    records: list[Document | BadRecord] = []
    info = plan.inputs[file]
    restarts, end = enter(info, start) or (None, start)
    for item in plan.read(Span(file, end), restarts=restarts):
        end = item.position
        # A checksum is wrong if not all that it is about was decompressed.
        is_damage = isinstance(item, BadRecord) and restarts and item.reason == "corrupt_input"
        if isinstance(item, SpanEnd) or len(records) == count or (file, end) in seen or is_damage:
            break
        records.append(item)
    size = end - records[0].position if records else 0
    if info.rows:
        size = round(size / info.rows * info.estimated_bytes)
    return Place(tuple(records), size)

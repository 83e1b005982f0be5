"""Finds rows in the ledgers of a run, including those of unfinished shards."""

import random
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from heapq import heappush, heappushpop
from itertools import islice
from pathlib import Path
from typing import TypeVar

import orjson

from proxhpc.assemble.rows import record_source
from proxhpc.corpus.frames import read_frames
from proxhpc.errors import RetryError, ShardError, UserError
from proxhpc.inspect.survivor import MergeEffects
from proxhpc.run.ledger import Row, parse_frame
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.shards import attempts
from proxhpc.status.terminal import safe

_MAX_SIMILAR_ROWS = 20_000  # rows searched for ids similar to one that does not exist
_MAX_TRIES = 100  # to open a file of a shard
Group = TypeVar("Group", bound=Hashable)


@dataclass(frozen=True, slots=True)
class FoundRow:
    """A ledger row, its shard, and its number among the shard's records.

    Not `published` if its shard is not finished.
    """

    shard: int
    number: int
    published: bool
    row: Row

    @property
    def source(self) -> tuple[int, int]:
        """Number of its input file, and its position there."""
        return self.row.file, self.row.position


def find_rows(run: RunDir, plan: Plan, query: str) -> Iterator[FoundRow]:
    """Every row of the document with this id, or at this `<input name>:<position>`.

    An id does not show the shard, so all ledgers are searched for it.
    """
    source = _parse_source(plan, query)
    if source is not None:
        shards = _shards_with(plan, *source)
        hits = [hit for n in shards for hit in _rows(run, n, b"") if hit.source == source]
        yield from hits
        if hits and plan.manifest.corpus.id is None:
            return
    needle = b'"id":' + orjson.dumps(query)
    for shard in range(len(plan.shards)):
        for hit in _rows(run, shard, needle):
            if hit.row.id == query and hit.source != source:
                yield hit


def sample_rows(
    run: RunDir, plan: Plan, effects: MergeEffects, number: int, outcome: str = "", seed: int = 0
) -> list[FoundRow]:
    """Rows chosen at random, of one outcome if given, as `sample_groups` does."""

    def group_of(hit: FoundRow) -> str | None:
        if not outcome:
            return ""
        found = hit.row.outcome
        if hit.published and found in ("kept", "edited"):
            source = record_source(plan, hit.row)
            found = effects.outcome(hit.shard, hit.number, source) or found
        return "" if found == outcome else None

    rows = sample_groups(run, plan, number, group_of, [""], seed)
    return sorted(rows.get("", []), key=lambda hit: hit.source)


def sample_groups(
    run: RunDir,
    plan: Plan,
    number: int,
    group_of: Callable[[FoundRow], Group | None],
    groups: Collection[Group],
    seed: int,
    max_shards: int = sys.maxsize,
) -> dict[Group, list[FoundRow]]:
    """Up to `number` rows of each group at random, in random order; the same for the same seed.

    `group_of` returns None for a row to leave out. Shards are read until each of `groups` has
    enough rows, or after `max_shards` if there is any row by then. So not every set of rows is
    equally likely.
    """
    rng = random.Random(seed)  # noqa: S311 - no secret depends on it
    shards = list(range(len(plan.shards)))
    rng.shuffle(shards)
    share = -(-number // max(1, min(len(shards), number)))
    picked: defaultdict[Group, list[FoundRow]] = defaultdict(list)
    spare: defaultdict[Group, list[FoundRow]] = defaultdict(list)
    for count, shard in enumerate(shards):
        is_enough = all(len(picked[group]) >= number for group in groups)
        if is_enough or (count >= max_shards and any(picked.values())):
            break
        drawn: defaultdict[Group, list[tuple[float, int, FoundRow]]] = defaultdict(list)
        for hit in _rows(run, shard, b""):
            if (group := group_of(hit)) is not None:
                push = heappush if len(drawn[group]) < number else heappushpop
                push(drawn[group], (rng.random(), hit.number, hit))
        for group, heap in drawn.items():
            rows = [hit for *_, hit in sorted(heap, reverse=True)]
            picked[group] += rows[:share]
            spare[group] += rows[share:]
    return {group: (rows + spare[group])[:number] for group, rows in picked.items() if rows}


def not_found(run: RunDir, plan: Plan, query: str) -> UserError:
    """The error for a document that does not exist; its hint names similar ids."""
    rows = (hit.row for shard in range(len(plan.shards)) for hit in _rows(run, shard, b""))
    first = next(rows, None)
    if first is None:
        return UserError(
            f"no document {query!r}: no shard has committed any yet",
            hint=f"proxhpc status {run.root} shows the run's progress",
        )
    ids = {row.id for row in (first, *islice(rows, _MAX_SIMILAR_ROWS)) if row.id}
    if similar := get_close_matches(query, ids, n=3, cutoff=0.5):
        hint = f"similar ids: {', '.join(map(safe, similar))}"
    else:
        hint = f"give an id, or FILE:POSITION as in {safe(record_source(plan, first))}"
    hint += f"; proxhpc inspect {run.root} --sample 5 shows some documents"
    return UserError(f"no document {query!r}", hint=hint)


def _parse_source(plan: Plan, query: str) -> tuple[int, int] | None:
    """Input file and position of `FILE:POSITION`; None for anything else."""
    name, _, position = query.rpartition(":")
    if not (position.isascii() and position.isdigit()):
        return None
    files = (n for n, info in enumerate(plan.inputs) if name in (info.name, str(info.path)))
    file = next(files, None)
    return None if file is None else (file, int(position))


def _shards_with(plan: Plan, file: int, position: int) -> Iterator[int]:
    for number, shard in enumerate(plan.shards):
        for span in shard.spans:
            inside = span.start <= position and (span.stop is None or position < span.stop)
            if span.file == file and inside:
                yield number


def _rows(run: RunDir, shard: int, needle: bytes) -> Iterator[FoundRow]:
    """Rows of one shard, from frames that contain `needle`.

    While a file is being opened, its shard may be published or leased by a new attempt, and
    `verify --repair` may delete its ledger. Then the shard's files are listed again.
    """
    for _ in range(_MAX_TRIES):
        try:
            if run.ledger(shard).exists():
                yield from _read(run.ledger(shard), shard, True, needle)
            elif best := _largest_attempt(run, shard):
                yield from _read(best, shard, False, needle)
        except FileNotFoundError:
            continue
        return
    raise RetryError(f"{run.shard_folder(shard)}: files of shard {shard} keep disappearing")


def _largest_attempt(run: RunDir, shard: int) -> Path | None:
    if not run.shard_folder(shard).is_dir():
        return None
    paths = [run.attempt(shard, number) for number in attempts(run, shard)]
    return max(paths, key=lambda path: path.stat().st_size, default=None)


def _read(path: Path, shard: int, published: bool, needle: bytes) -> Iterator[FoundRow]:
    number = 0
    # An attempt may end in a torn frame, which its writer is about to finish; a ledger may not.
    for frame in read_frames(path, strict=published):
        try:
            if needle in frame.payload:
                _, rows = parse_frame(frame.payload)
                for offset, row in enumerate(rows):
                    yield FoundRow(shard, number + offset, published, row)
                number += len(rows)
            else:
                number += frame.payload.count(b"\n")
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ShardError(f"{path}: a row cannot be read: {error!r}") from error

"""Finds rows in the ledgers of a run, those of unfinished shards included."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

import orjson

from proxhpc.assemble.rows import record_source
from proxhpc.corpus.frames import read_frames
from proxhpc.errors import ShardError, UserError
from proxhpc.run.ledger import Row, parse_frame
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.shards import attempts
from proxhpc.status.terminal import safe

NEARBY = 20_000  # rows to look through for the ids nearest to one that is not there


@dataclass(frozen=True, slots=True)
class FoundRow:
    """A ledger row and where it is. Not `published`: its shard is not finished yet."""

    shard: int
    published: bool
    row: Row


def find(run: RunDir, plan: Plan, query: str) -> Iterator[FoundRow]:
    """Every row of the document with this id, or at this `<input name>:<position>`.

    An id alone does not say where its document is: then all ledgers are looked through.
    """
    seen: set[tuple[int, int]] = set()
    if (place := _place(plan, query)) is not None:
        for shard in _shards_of(plan, *place):
            for found in _rows(run, shard, b""):
                if (found.row.file, found.row.position) == place:
                    seen.add(place)
                    yield found
        if seen and plan.manifest.corpus.id is None:
            return
    needle = b'"id":' + orjson.dumps(query)
    for shard in range(len(plan.shards)):
        for found in _rows(run, shard, needle):
            if found.row.id == query and (found.row.file, found.row.position) not in seen:
                yield found


def sample_rows(
    run: RunDir, plan: Plan, number: int, status: str = "", seed: int = 0
) -> list[FoundRow]:
    """Rows picked at random, of one status if given; the same ones each time for one seed.

    Few shards are read: not every set of rows is equally likely. UserError for less than one.
    """
    if number < 1:
        raise UserError(f"--sample {number} asks for no document", hint="give 1 or more")
    draw = random.Random(seed)  # noqa: S311 - nobody's secret depends on it
    shards = list(range(len(plan.shards)))
    draw.shuffle(shards)
    share = -(-number // max(1, min(len(shards), number)))
    picked: list[FoundRow] = []
    spare: list[FoundRow] = []
    for shard in shards:
        if len(picked) >= number:
            break
        rows = _reservoir(
            (found for found in _rows(run, shard, b"") if status in ("", found.row.outcome)),
            number,
            draw,
        )
        picked += rows[:share]
        spare += rows[share:]
    picked = (picked + spare)[:number]
    return sorted(picked, key=lambda found: (found.row.file, found.row.position))


def not_found(run: RunDir, plan: Plan, query: str) -> UserError:
    """What to tell a person whose document is not there."""
    rows = (found.row for shard in range(len(plan.shards)) for found in _rows(run, shard, b""))
    first = next(rows, None)
    ids = {row.id for row in islice(rows, NEARBY) if row.id}
    if first is not None and first.id:
        ids.add(first.id)
    near = get_close_matches(query, ids, n=3, cutoff=0.5)
    list_some = f"proxhpc inspect {run.root} --sample 5 shows some documents"
    if near:
        return UserError(
            f"no document {query!r}", hint=f"near it: {', '.join(map(safe, near))}; {list_some}"
        )
    if first is None:
        return UserError(
            f"no document {query!r}: no shard has committed any yet",
            hint=f"proxhpc status {run.root} shows how far the run is",
        )
    hint = f"give an id, or FILE:POSITION as in {safe(record_source(plan, first))}; {list_some}"
    return UserError(f"no document {query!r}", hint=hint)


def _place(plan: Plan, query: str) -> tuple[int, int] | None:
    name, _, position = query.rpartition(":")
    if not (position.isascii() and position.isdigit()):
        return None
    files = (n for n, info in enumerate(plan.inputs) if name in (info.name, str(info.path)))
    file = next(files, None)
    return None if file is None else (file, int(position))


def _shards_of(plan: Plan, file: int, position: int) -> Iterator[int]:
    for number, shard in enumerate(plan.shards):
        for span in shard.spans:
            inside = span.start <= position and (span.stop is None or position < span.stop)
            if span.file == file and inside:
                yield number


def _rows(run: RunDir, shard: int, needle: bytes) -> Iterator[FoundRow]:
    """Rows of one shard, from frames that contain `needle`."""
    while True:
        try:
            if run.ledger(shard).exists():
                yield from _read(run.ledger(shard), shard, True, needle)
            elif best := _best_attempt(run, shard):
                yield from _read(best, shard, False, needle)
        except FileNotFoundError:
            continue  # published, or taken over by the next attempt, while we came to it
        return


def _best_attempt(run: RunDir, shard: int) -> Path | None:
    if not run.shard_folder(shard).is_dir():
        return None
    paths = [run.attempt(shard, number) for number in attempts(run, shard)]
    return max(paths, key=lambda path: path.stat().st_size, default=None)


def _read(path: Path, shard: int, published: bool, needle: bytes) -> Iterator[FoundRow]:
    # An attempt may end in a torn frame, which its writer is about to finish; a ledger may not.
    for frame in read_frames(path, strict=published):
        if needle not in frame.payload:
            continue
        try:
            head, rows = parse_frame(frame.payload)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ShardError(f"{path}: a row cannot be read: {error!r}") from error
        if "summary" not in head:
            yield from (FoundRow(shard, published, row) for row in rows)


def _reservoir(rows: Iterator[FoundRow], number: int, draw: random.Random) -> list[FoundRow]:
    """`number` of the rows, each as likely as any other (algorithm R)."""
    kept: list[FoundRow] = []
    for count, row in enumerate(rows):
        if count < number:
            kept.append(row)
        elif (place := draw.randrange(count + 1)) < number:
            kept[place] = row
    draw.shuffle(kept)
    return kept

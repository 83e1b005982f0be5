"""The rounds of the match phase: which units they have, and the files they exchange.

A round's units each read their slice of what earlier rounds wrote, sort it in bounded memory, and
write exchange files for later rounds. How many units a round has depends on the plan only, so every
process of a run agrees. A document is numbered GROUP << 32 | INDEX: numbers are in input order, and
external documents come last. Lines are numbered in the same way.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from proxhpc.dedup.exchange import ExchangeWriter, read_slices
from proxhpc.dedup.hashes import INDEX_BITS
from proxhpc.dedup.sorting import IntRows, Scratch, Sorter
from proxhpc.errors import StopError
from proxhpc.run.paths import MatchFiles, RunDir
from proxhpc.run.plan import Plan, Shard, keep_with_plan, split_into_shards
from proxhpc.run.shards import group_bytes, shard_groups

Documents = npt.NDArray[np.int64]
"""Numbers of documents, in input order."""

UnitKind = Literal["group", "exact", "key", "one"]
RowKind = Literal[
    "hashes", "url_copies", "url_leaders", "texts", "copies", "leaders", "keys", "stars", "members",
    "edges", "undecided", "shingles", "text_edges", "removed", "claims", "named", "lines",
    "repeated", "ids",
]  # fmt: skip


class Exchange(NamedTuple):
    """The units that write a kind of rows and those that read it, and the rows' columns.

    Rows of `members` have more: those of a signature.
    """

    writers: UnitKind
    readers: UnitKind
    columns: int


NO_DOCUMENT = -1
SHINGLE_COLUMNS = 60  # shingles in a row
NAME_COLUMNS = 12  # of 8 bytes in a row
EXCHANGES: dict[RowKind, Exchange] = {
    "hashes": Exchange("group", "exact", 5),  # high, low, p0, p1, document
    "url_copies": Exchange("exact", "group", 2),  # document, leader with the same URL
    "url_leaders": Exchange("exact", "group", 5),  # leader, p0, p1, document, 1
    "texts": Exchange("group", "exact", 6),  # high, low, p0, p1, document, is linked by its URL
    "copies": Exchange("exact", "group", 2),  # document, leader with the same text or URL
    "leaders": Exchange("exact", "group", 5),  # leader, p0, p1, document, is linked by its URL
    "keys": Exchange("group", "key", 2),  # key of a band, packed document
    "stars": Exchange("key", "group", 2),  # document, packed leader of one of its keys
    "members": Exchange("group", "key", 5),  # packed leader, p0, p1, document, home, signature
    "edges": Exchange("key", "one", 7),  # p0, p1, document, the same of a worse one, thousandths
    "undecided": Exchange("key", "group", 7),  # like edges, for each group of the two documents
    "shingles": Exchange("group", "group", 6 + SHINGLE_COLUMNS),  # document, other, shingles, …
    "text_edges": Exchange("group", "one", 7),
    "removed": Exchange("one", "group", 4),  # document, order of survivor, survivor, share
    "claims": Exchange("group", "group", 6),  # survivor, p0, p1, document, thousandths, likeness
    "named": Exchange("group", "group", 5 + NAME_COLUMNS),  # document, piece of the name, …
    "lines": Exchange("group", "key", 2),  # hash, line
    "repeated": Exchange("key", "group", 1),  # line
    "ids": Exchange("group", "exact", 2),  # hash of the id, document
}
_EXACT_BYTES, _KEY_BYTES = 32 << 30, 2 << 30  # of raw corpus, for one unit
_MAX_UNITS = 4096
MAX_GROUP_FILES = 10_000  # in a group of the external corpus


@keep_with_plan
def external_pieces(plan: Plan) -> list[Shard]:
    """The external corpora, split into pieces of about the size of a group."""
    size = group_bytes(sum(info.estimated_bytes for info in plan.external))
    return [
        piece
        for _, files in plan.against_files_of("duplicates")
        for piece in split_into_shards(
            plan.against[files.start : files.stop], size, MAX_GROUP_FILES, files.start
        )
    ]


def all_groups(plan: Plan) -> range:
    """Numbers of all groups: the run's, then those of the external corpus."""
    return range(len(shard_groups(plan)) + len(external_pieces(plan)))


def compared_bytes(plan: Plan) -> int:
    """Estimated bytes of the raw corpus and the external one."""
    return plan.estimated_bytes + sum(info.estimated_bytes for info in plan.external)


def unit_count(plan: Plan, kind: UnitKind) -> int:
    """How many units of a kind the match phase of a run has."""
    if kind == "group":
        return len(all_groups(plan))
    if kind == "one":
        return 1
    per_unit = _EXACT_BYTES if kind == "exact" else _KEY_BYTES
    return min(_MAX_UNITS, 1 + compared_bytes(plan) // per_unit)


def group_of(documents: Documents) -> Documents:
    """The group of each document."""
    return documents >> INDEX_BITS


@dataclass(frozen=True, slots=True)
class RoundFiles:
    """Reads and writes exchange files; `memory` is what one unit may use, in bytes."""

    run: RunDir
    plan: Plan
    folder: Path
    memory: int

    @property
    def scratch(self) -> Scratch:
        """Where rows are sorted that do not fit into memory."""
        return Scratch(self.folder, self.memory)

    @property
    def files(self) -> MatchFiles:
        """The files of the match phase."""
        return MatchFiles(self.folder)

    def path(self, kind: RowKind, unit: int) -> Path:
        """The exchange file that a unit writes; the sketch phase writes `hashes`."""
        return self.run.sketch_hashes(unit) if kind == "hashes" else self.files.of_unit(kind, unit)

    def writer(self, kind: RowKind, unit: int) -> ExchangeWriter:
        """A writer of a unit's exchange file."""
        readers = unit_count(self.plan, EXCHANGES[kind].readers)
        return ExchangeWriter(self.path(kind, unit), self.columns(kind), readers, self.scratch)

    def columns(self, kind: RowKind) -> int:
        """The number of columns of a kind."""
        columns, near = EXCHANGES[kind].columns, self.plan.manifest.dedup.near
        if kind == "members" and near:
            columns += signature_columns(near.bands * near.rows)
        return columns

    def read(self, kind: RowKind, unit: int) -> Iterator[IntRows]:
        """Yield blocks of a unit's rows of a kind, in no order."""
        writers = unit_count(self.plan, EXCHANGES[kind].writers)
        paths = (self.path(kind, writer) for writer in range(writers))
        try:
            yield from read_slices(paths, unit, self.scratch.max_rows(self.columns(kind)))
        except StopError as error:
            if kind == "hashes":
                raise
            raise StopError(
                error.message, hint=f"delete {self.folder} and merge again; sketches are not lost"
            ) from error

    def sorted(self, kind: RowKind, unit: int, keys: int | None = None) -> Sorter:
        """A unit's rows of a kind, sorted by their first `keys` columns."""
        sorter = Sorter(self.scratch, self.columns(kind), keys)
        for rows in self.read(kind, unit):
            sorter.add(rows)
        return sorter


def signature_columns(slots: int) -> int:
    """How many int64 columns hold a signature of 16-bit slots."""
    return -(-slots // 4)

"""What the match phase found, and a group's documents that survive."""

from dataclasses import astuple, dataclass
from typing import NamedTuple

import numpy as np

from proxhpc.assemble.parts import PartRange
from proxhpc.assemble.sketch import load_chosen, require_receipt
from proxhpc.dedup.arrays import load_array, load_json
from proxhpc.dedup.hashes import Sketch
from proxhpc.dedup.sorting import Flags, IntRows
from proxhpc.errors import StopError
from proxhpc.run.paths import RunDir


@dataclass(frozen=True, slots=True)
class LineCounts:
    """What the removal of repeated lines did: `documents` lost `lines` in all.

    `left_out` further documents, with `left_out_tokens`, are not written, because too little is
    left of them.
    """

    documents: int = 0
    lines: int = 0
    left_out: int = 0
    left_out_tokens: int = 0

    def __add__(self, other: "LineCounts") -> "LineCounts":
        """The sums of both."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return LineCounts(*(left + right for left, right in pairs))


@dataclass(frozen=True, slots=True)
class GroupResult:
    """A group's duplicates and repeated lines.

    `flags`, `clusters`, `listing` and `line_programs` are digests of files, "" for none.
    `survivors` counts the documents that are written, `left_out` those of which too little is left,
    by number of input file.
    """

    flags: str
    clusters: str
    listing: str
    duplicates: int
    near: int
    same_url: int
    external: dict[int, int]
    survivors: dict[int, int]
    left_out: dict[int, int]
    lines: LineCounts
    line_programs: str


@dataclass(frozen=True, slots=True)
class MatchResult:
    """What the match phase found. `digest` identifies what it was made from.

    `duplicates` are removed; of these, `near` differ in text from their survivor, `same_url` are
    left out by their URL, and for `external` the survivor is in another corpus, by its number in
    `dedup.against`. `survivors` counts the documents that are written, by input file. `shared_ids`
    are documents whose id (by a 64-bit hash) an earlier survivor has too; `shared_id_examples` are
    some of them, as (shard, record). `set_sizes` counts duplicate sets by the `log2_bucket` of
    their size. `largest_sets` describes the largest ones: the size of each, and shard and record of
    its best duplicate. `further` documents of all sets stay beside the survivor. `flags`,
    `clusters`, `listings` and `line_programs` are digests of each group's files: which documents
    are duplicates or left out, the sets of those that stay, what the duplicates are like, and the
    programs that remove repeated lines. `left_out` counts documents of which these leave too
    little, by input file. `partly_compared` counts documents of large families, which were compared
    with the likeliest others only, once for each leader that they share.
    """

    digest: str
    documents: int
    duplicates: int
    near: int
    same_url: int
    external: dict[int, int]
    shared_ids: int
    shared_id_examples: tuple[tuple[int, int], ...]
    survivors: tuple[int, ...]
    left_out: tuple[int, ...]
    lines: LineCounts
    line_programs: tuple[str, ...]
    parts: tuple[PartRange, ...]
    flags: tuple[str, ...]
    clusters: tuple[str, ...]
    listings: tuple[str, ...]
    set_sizes: tuple[int, ...]
    largest_sets: tuple[tuple[int, int, int], ...]
    further: int
    partly_compared: int


def read_match(run: RunDir) -> MatchResult | None:
    """The result of an earlier match phase, None if there is none."""
    return load_json(run.match, MatchResult)


def require_match(run: RunDir) -> MatchResult:
    """The result of the match phase. StopError if there is none."""
    result = read_match(run)
    if result is None:
        raise StopError(f"there is no {run.match}", hint="merge again from the start")
    return result


class Survivors(NamedTuple):
    """A group's documents that are written, in input order, each with its cluster.

    A cluster is the size and the id of a duplicate set; the size is 0 for a document without one.
    `row_bytes` of the documents counts the digits of the size.
    """

    documents: Sketch
    clusters: IntRows


def load_survivors(
    run: RunDir, digest: str, group: int, flags_digest: str, clusters_digest: str
) -> Survivors:
    """A group's documents that are written by the match with this digest."""
    duplicate, left_out = load_flags(run, digest, group, flags_digest)
    kept = ~(duplicate | left_out)
    documents = load_chosen(run, group, kept)
    clusters = np.zeros((len(documents), 2), np.int64)
    if clusters_digest:
        rows = load_array(run.match_files(digest).clusters(group), clusters_digest)
        rows = rows[kept[rows[:, 0]]]
        at = np.cumsum(kept)[rows[:, 0]] - 1
        clusters[at] = rows[:, 1:]
        digits = np.searchsorted(10 ** np.arange(1, 11), rows[:, 1], "right")  # beyond the first
        documents["row_bytes"][at] += digits.astype(np.uint32)
    return Survivors(documents, clusters)


def load_flags(run: RunDir, digest: str, group: int, flags_digest: str) -> Flags:
    """Which of a group's documents are duplicates, and which are left out otherwise: two rows."""
    bits = load_array(run.match_files(digest).flags(group), flags_digest)
    documents = require_receipt(run, group).documents
    return np.unpackbits(bits, axis=1, count=documents).astype(np.bool_)

"""What the match phase found, and a group's documents that survive."""

from dataclasses import dataclass
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
class GroupResult:
    """A group's duplicates; `flags`, `clusters` and `listing` are digests of files, "" for none.

    `survivors` counts the documents that are written, by number of input file.
    """

    flags: str
    clusters: str
    listing: str
    duplicates: int
    near: int
    same_url: int
    external: int
    survivors: dict[int, int]


@dataclass(frozen=True, slots=True)
class MatchResult:
    """What the match phase found. `digest` identifies what it was made from.

    `duplicates` are removed; of these, `near` differ in text from their survivor, `same_url` are
    left out by their URL, and for `external` the survivor is in the external corpus. `survivors`
    counts the documents that are written, by input file. `shared_ids` are documents whose id (by a
    64-bit hash) an earlier survivor has too; `shared_id_examples` are some of them, as (shard,
    record). `set_sizes` counts duplicate sets by the `log2_bucket` of their size. `largest_sets`
    describes the largest ones: the size of each, and shard and record of its best duplicate.
    `further` documents of all sets stay beside the survivor. `flags`, `clusters` and `listings` are
    digests of each group's files: which documents are duplicates, the sets of those that stay, and
    what the duplicates are like. `partly_compared` counts documents of large families, which were
    compared with the likeliest others only, once for each leader that they share.
    """

    digest: str
    documents: int
    duplicates: int
    near: int
    same_url: int
    external: int
    shared_ids: int
    shared_id_examples: tuple[tuple[int, int], ...]
    survivors: tuple[int, ...]
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
    """A group's documents that survive, in input order, each with its cluster.

    A cluster is the size and the id of a duplicate set; the size is 0 for a document without one.
    `row_bytes` of the documents counts the digits of the size.
    """

    documents: Sketch
    clusters: IntRows


def load_survivors(
    run: RunDir, digest: str, group: int, flags_digest: str, clusters_digest: str
) -> Survivors:
    """A group's documents that survive in the match with this digest."""
    kept = ~_load_flags(run, digest, group, flags_digest)
    documents = load_chosen(run, group, kept)
    clusters = np.zeros((len(documents), 2), np.int64)
    if clusters_digest:
        rows = load_array(run.match_files(digest).clusters(group), clusters_digest)
        at = np.cumsum(kept)[rows[:, 0]] - 1
        clusters[at] = rows[:, 1:]
        digits = np.searchsorted(10 ** np.arange(1, 11), rows[:, 1], "right")  # beyond the first
        documents["row_bytes"][at] += digits.astype(np.uint32)
    return Survivors(documents, clusters)


def load_duplicates(run: RunDir, digest: str, group: int, flags_digest: str) -> Sketch:
    """A group's documents that do not survive."""
    return load_chosen(run, group, _load_flags(run, digest, group, flags_digest))


def _load_flags(run: RunDir, digest: str, group: int, flags_digest: str) -> Flags:
    bits = load_array(run.match_files(digest).flags(group), flags_digest)
    documents = require_receipt(run, group).documents
    return np.unpackbits(bits, count=documents).astype(np.bool_)

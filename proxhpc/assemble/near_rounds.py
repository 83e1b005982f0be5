"""Rounds of the match phase that find near-duplicates by their signatures.

`bands` gives each document a key for each band of its signature. `candidates` links documents that
share a key to the best of them, their leader. `ship` sends the signature of each linked document to
its leaders. So `verify` has all that it compares: the best of each leader's members with the
others, and those that are unlike it with each other.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from proxhpc.assemble.families import ALL_COMPARED, Indices, similar_pairs
from proxhpc.assemble.rounds import Documents, RoundFiles, group_of, signature_columns
from proxhpc.assemble.sketch import require_receipt
from proxhpc.corpus.disk import write_atomic
from proxhpc.dedup.arrays import read_blocks
from proxhpc.dedup.exchange import partition_of
from proxhpc.dedup.hashes import EXTERNAL, INDEX_BITS, Sketch, document_numbers, priorities
from proxhpc.dedup.minhash import Signatures, band_keys, similarity_bounds
from proxhpc.dedup.shingles import mix_bits
from proxhpc.dedup.sorting import IntRows, SortedCursor, group_leaders, with_leaders
from proxhpc.errors import StopError
from proxhpc.spec.sections import Near

_NUMBER_BITS = INDEX_BITS + 16
_NUMBER = (1 << _NUMBER_BITS) - 1  # of a packed document
_BLOCK = 1 << 12  # documents that are read at a time
# Columns of members.
_LEADER, _HOME, _SIGNATURE = 0, 4, 5
_PRIORITY = slice(1, 4)  # p0, p1, document


def pack_documents(numbers: Documents, ranks: IntRows, *, by_field: bool) -> Documents:
    """Documents as numbers whose order is about that of their priorities: the best is the first.

    External documents are below 1 << 48, all others above.
    """
    if by_field:
        coarse = (ranks[:, 0] >> 49) + (1 << 14)  # the 15 highest bits of a signed number
    else:
        length = (-np.maximum(ranks[:, 1], -(1 << 32))).astype(np.float32).view(np.uint32)
        coarse = (1 << 15) - 1 - (length >> np.uint32(16)).astype(np.int64)
    coarse = np.maximum(coarse, 1)
    coarse[ranks[:, 0] == EXTERNAL] = 0
    packed: Documents = coarse << _NUMBER_BITS | numbers
    return packed


def write_band_keys(files: RoundFiles, group: int) -> None:
    """Write a key for each band of the group's documents that are no copies of others."""
    bands, dedup = _near(files).bands, files.plan.manifest.dedup
    keys, copies = files.writer("keys", group), SortedCursor(files.sorted("copies", group), 2)
    for numbers, documents, signatures in _signed_documents(files, group):
        chosen = documents["shingles"] == 1
        chosen[copies.take(int(numbers[-1]))[:, 0] - numbers[0]] = False
        packed = pack_documents(
            numbers[chosen], priorities(documents[chosen], dedup), by_field=dedup.by is not None
        )
        hashes = band_keys(signatures[chosen], bands).view(np.int64).ravel()
        keys.add(
            partition_of(hashes, keys.units), np.stack([hashes, np.repeat(packed, bands)], axis=1)
        )
    keys.finish()


def link_to_leaders(files: RoundFiles, unit: int) -> None:
    """Link documents that share a key, and their leader itself, to the leader."""
    stars = files.writer("stars", unit)
    for rows, leaders in with_leaders(files.sorted("keys", unit)):
        packed, leading = rows[:, 1], leaders[:, 1]
        follows = (packed != leading) & (packed > _NUMBER)  # external documents follow none
        packed, leading = packed[follows], leading[follows]
        if len(packed):
            own = leading[group_leaders(leading)[0]]
            links = np.stack([np.r_[packed, own] & _NUMBER, np.r_[leading, own]], axis=1)
            stars.add(group_of(links[:, 0]), links)
    stars.finish()


def ship_signatures(files: RoundFiles, group: int) -> None:
    """Send the signature of each linked document of a group to each of its leaders."""
    members, dedup = files.writer("members", group), files.plan.manifest.dedup
    stars = with_leaders(files.sorted("stars", group))
    links = SortedCursor((np.column_stack([rows, home[:, 1]]) for rows, home in stars), 3)
    for numbers, documents, signatures in _signed_documents(files, group):
        rows = links.take(int(numbers[-1]))
        at, leading = rows[:, 0] - numbers[0], rows[:, 1]
        ranks = priorities(documents[at], dedup)
        columns = [leading, ranks, rows[:, 0], rows[:, 2], _as_columns(signatures[at])]
        units = partition_of(mix_bits(leading.view(np.uint64)).view(np.int64), members.units)
        members.add(units, np.column_stack(columns))
    if len(links.take(_NUMBER)):
        raise StopError(f"group {group} has fewer documents than were matched", hint="merge again")
    members.finish()


def compare_signatures(files: RoundFiles, unit: int) -> None:
    """Write the pairs whose signatures are similar, and those that their texts must decide."""
    comparison = _Comparison(files, unit)
    for rows in _families(comparison.unlike_the_best(), files.scratch.max_rows(_SIGNATURE)):
        pairs, counts = similar_pairs(comparison.signatures(rows), comparison.least)
        left, right = rows[pairs[:, 0]], rows[pairs[:, 1]]
        home = left[:, _HOME]
        here = (home != right[:, _HOME]) | (home == left[:, _LEADER])  # else compared at home
        comparison.write(left[here], right[here], counts[here])
        if len(rows) > ALL_COMPARED:
            comparison.partly_compared += len(rows)
    comparison.finish()


class _Comparison:
    """Compares the members that one unit received, and writes the results."""

    def __init__(self, files: RoundFiles, unit: int) -> None:
        self._near, self._files, self._unit = _near(files), files, unit
        self._edges, self._undecided = files.writer("edges", unit), files.writer("undecided", unit)
        self._slots = self._near.bands * self._near.rows
        # By the number of slots in which two signatures agree.
        shares = np.arange(self._slots + 1) / self._slots
        low, high = similarity_bounds(shares, self._slots)
        if self._near.verify == "signature":
            low = high = shares
        self._similar, self._open = low >= self._near.threshold, high >= self._near.threshold
        self.least = (
            self._slots + 1 - int(self._open.sum())
        )  # slots of a pair that is worth writing
        self.partly_compared = 0  # documents of families that are too large

    def signatures(self, rows: IntRows) -> Signatures:
        """The signatures of members."""
        columns = np.ascontiguousarray(rows[:, _SIGNATURE:])
        return columns.view(np.uint16)[:, : self._slots]

    def unlike_the_best(self) -> Iterator[IntRows]:
        """Write the pairs of the best member of each leader and the others.

        Yield the members that may be no duplicates of it.
        """
        # A packed leader is only about the best: the first of its members is.
        members = self._files.sorted("members", self._unit, _PRIORITY.stop)
        for rows, best in with_leaders(members):
            worse = rows[:, 3] != best[:, 3]
            rows, best = rows[worse], best[worse]
            counts = np.count_nonzero(self.signatures(rows) == self.signatures(best), axis=1)
            self.write(best, rows, counts)
            yield rows[~self._similar[counts]]

    def write(self, left: IntRows, right: IntRows, counts: Indices) -> None:
        """Write pairs of members, the better one first, that are similar or undecided."""
        wanted = self._open[counts]
        counts, similar = counts[wanted], self._similar[counts[wanted]]
        thousandths = 1000 * counts // self._slots
        rows = np.column_stack([left[wanted, _PRIORITY], right[wanted, _PRIORITY], thousandths])
        self._edges.add(np.zeros(similar.sum(), np.int64), rows[similar])
        rows = rows[~similar]
        groups = group_of(rows[:, [2, 5]])
        self._undecided.add(groups[:, 0], rows)
        elsewhere = groups[:, 0] != groups[:, 1]
        self._undecided.add(groups[elsewhere, 1], rows[elsewhere])

    def finish(self) -> None:
        """Write the files."""
        path = self._files.files.of_unit("partly_compared", self._unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, b"%d" % self.partly_compared)
        self._undecided.finish()
        self._edges.finish()


def _families(blocks: Iterable[IntRows], limit: int) -> Iterator[IntRows]:
    """The rows of each leader that has several, in pieces of at most about `limit`."""
    held: list[IntRows] = []
    for rows in blocks:
        starts = np.flatnonzero(group_leaders(rows[:, _LEADER])[0]) if len(rows) else ()
        for piece in np.split(rows, starts):
            if not len(piece):
                continue
            if held and (held[0][0, _LEADER] != piece[0, _LEADER] or sum(map(len, held)) >= limit):
                yield from _several(held)
                held = []
            held.append(piece)
    yield from _several(held)


def _several(pieces: list[IntRows]) -> Iterator[IntRows]:
    if sum(map(len, pieces)) > 1:
        yield np.concatenate(pieces)


def _signed_documents(
    files: RoundFiles, group: int
) -> Iterator[tuple[Documents, Sketch, Signatures]]:
    """Yield blocks of a group's documents: their numbers, sketches and signatures."""
    receipt = require_receipt(files.run, group)
    run, digests, first = files.run, receipt.files, 0
    for documents, signatures in zip(
        read_blocks(run.sketch(group), digests.documents, _BLOCK),
        read_blocks(run.signatures(group), digests.signatures, _BLOCK),
        strict=True,
    ):
        yield document_numbers(group, first, len(documents)), documents, signatures
        first += len(documents)


def _as_columns(signatures: Signatures) -> IntRows:
    columns = np.zeros((len(signatures), 4 * signature_columns(signatures.shape[1])), np.uint16)
    columns[:, : signatures.shape[1]] = signatures
    return columns.view(np.int64)


def _near(files: RoundFiles) -> Near:
    near = files.plan.manifest.dedup.near
    if near is None:
        raise ValueError("this round needs dedup.near")
    return near

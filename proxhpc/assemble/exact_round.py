"""The first rounds of the match phase: documents with the same URL or text, found by its hash.

`urls` links documents with one URL to the best of them. `texts` sends the text hashes of the others
to `exact`, which links documents with one text, and what was linked by URL, to the best of these.
Without `dedup.url` the sketch phase has sent the text hashes, and there is only `exact`.
"""

import numpy as np

from proxhpc.assemble.rounds import RoundFiles, RowKind, group_of
from proxhpc.assemble.sketch import read_sketch
from proxhpc.dedup.exchange import partition_of
from proxhpc.dedup.hashes import EXTERNAL, document_numbers, priorities
from proxhpc.dedup.sorting import SortedCursor, with_leaders


def find_same_urls(files: RoundFiles, unit: int) -> None:
    """Link each document to the best one with the same URL."""
    _link_to_best(files, unit, "hashes", ("url_copies", "url_leaders"))


def write_text_hashes(files: RoundFiles, group: int) -> None:
    """Send the text hashes of a group's documents, and those of their leaders for linked ones."""
    out, dedup, first = files.writer("texts", group), files.plan.manifest.dedup, 0
    copies = SortedCursor(files.sorted("url_copies", group), 2)
    leaders = SortedCursor(files.sorted("url_leaders", group), files.columns("url_leaders"))
    for block in read_sketch(files.run, group):
        numbers = document_numbers(group, first, len(block))
        first += len(block)
        keys = np.column_stack([block[name].view(np.int64) for name in ("high", "low")])
        stays = np.ones(len(block), np.bool_)
        stays[copies.take(int(numbers[-1]))[:, 0] - numbers[0]] = False
        own = np.column_stack([keys, priorities(block, dedup), numbers, np.zeros_like(numbers)])
        linked = leaders.take(int(numbers[-1]))
        others = np.column_stack([keys[linked[:, 0] - numbers[0]], linked[:, 1:]])
        rows = np.concatenate([own[stays], others])
        out.add(partition_of(rows[:, 0], out.units), rows)
    out.finish()


def find_copies(files: RoundFiles, unit: int) -> None:
    """Link each document to the best one with the same text, or URL if only URLs are compared.

    Later rounds leave out the linked ones.
    """
    dedup = files.plan.manifest.dedup
    in_rounds = dedup.url and dedup.compares_texts
    _link_to_best(files, unit, "texts" if in_rounds else "hashes", ("copies", "leaders"))


def _link_to_best(
    files: RoundFiles, unit: int, kind: RowKind, written: tuple[RowKind, RowKind]
) -> None:
    """Link each document to the first one with the same 128-bit hash.

    External documents are linked to nothing.
    """
    copies, leaders = (files.writer(each, unit) for each in written)
    by_url = files.plan.manifest.dedup.url is not None
    for rows, first in with_leaders(files.sorted(kind, unit), 2):
        linked = (rows[:, 4] != first[:, 4]) & (rows[:, 2] != EXTERNAL)
        leading, rows = first[linked, 4], rows[linked]
        copies.add(group_of(rows[:, 4]), np.column_stack([rows[:, 4], leading]))
        if kind == "hashes":
            rows = np.column_stack([rows, np.full(len(rows), by_url)])
        leaders.add(group_of(leading), np.column_stack([leading, rows[:, 2:]]))
    leaders.finish()
    copies.finish()

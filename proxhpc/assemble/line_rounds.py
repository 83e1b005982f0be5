"""Rounds of the match phase that find lines which the corpus has several times.

Only lines of documents that stay count, so a line is not lost with a duplicate. `lines` sends their
hashes by range of hashes. `repeated` sends each occurrence that does not stay back to its group,
where `finish` writes the program that removes it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np

from proxhpc.assemble.match_result import LineCounts
from proxhpc.assemble.rounds import RoundFiles
from proxhpc.assemble.sketch import read_sketch, require_receipt
from proxhpc.corpus.writer import PartWriter
from proxhpc.dedup.arrays import file_digest, read_blocks
from proxhpc.dedup.exchange import partition_of
from proxhpc.dedup.hashes import INDEX_BITS, document_numbers
from proxhpc.dedup.lines import Lines
from proxhpc.dedup.sorting import Flags, SortedCursor, with_leaders
from proxhpc.program.syntax import removal_text
from proxhpc.spec.sections import RepeatedLines

_BLOCK = 1 << 14  # lines that are read at a time
_INDEX = (1 << INDEX_BITS) - 1


@dataclass(frozen=True, slots=True)
class LineEdits:
    """The programs that remove a group's repeated lines.

    `digest` is that of their file, "" if there are none. `left_out` are the documents of which too
    little is left.
    """

    digest: str
    counts: LineCounts
    left_out: Flags


def duplicate_flags(files: RoundFiles, group: int) -> Flags:
    """Which of a group's documents are removed as duplicates."""
    flags = np.zeros(require_receipt(files.run, group).documents, np.bool_)
    for rows in files.read("named", group):
        flags[rows[rows[:, 1] == 0, 0] & _INDEX] = True
    return flags


def send_lines(files: RoundFiles, group: int) -> None:
    """Send the lines of a group's documents that are no duplicates to the units of their hashes."""
    out, duplicate = files.writer("lines", group), duplicate_flags(files, group)
    for first, lines in _line_blocks(files, group):
        stay = ~duplicate[lines["document"]]
        hashes = lines["hash"][stay].view(np.int64)
        numbers = document_numbers(group, first, len(lines))[stay]
        out.add(partition_of(hashes, out.units), np.stack([hashes, numbers], axis=1))
    out.finish()


def find_repeated_lines(files: RoundFiles, unit: int) -> None:
    """Send each occurrence of a line that does not stay to its group."""
    out, settings = files.writer("repeated", unit), _settings(files)
    last, count = None, 0  # hash of the last line, and how often it has occurred
    for rows, first in with_leaders(files.sorted("lines", unit)):
        starts = np.flatnonzero(np.diff(rows[:, 0], prepend=~rows[0, 0]))
        ranks = np.arange(len(rows))
        ranks -= np.repeat(starts, np.diff(starts, append=len(rows)))
        if rows[0, 0] == last:
            ranks[: starts[1] if len(starts) > 1 else None] += count
        last, count = rows[-1, 0], int(ranks[-1]) + 1
        repeats = ranks >= max(1, settings.keep)
        numbers = rows[repeats, 1]
        if settings.keep == 0:
            numbers = np.concatenate([numbers, first[repeats, 1]])
        out.add(numbers >> INDEX_BITS, numbers[:, None])
    out.finish()


def edit_lines(files: RoundFiles, group: int) -> LineEdits:
    """Write the programs that remove a group's repeated lines."""
    path, settings = files.files.line_programs(group), _settings(files)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("shard", "record", "chars")
    columns = [np.zeros((len(names), 0), np.uint32)]
    columns += [np.stack([block[n] for n in names]) for block in read_sketch(files.run, group)]
    shards, records, chars = np.concatenate(columns, axis=1)
    left_out = np.zeros(len(chars), np.bool_)
    counts = LineCounts()
    with PartWriter(path) as writer:
        for document, rows in groupby(_removed_lines(files, group), itemgetter(1)):
            _, _, lines, sizes, tokens = zip(*rows, strict=True)
            program = removal_text(lines)
            key = {"shard": int(shards[document]), "record": int(records[document])}
            writer.write({**key, "program": program})
            # White space is collapsed, so a line and the one before it are one character apart.
            if int(chars[document]) - sum(sizes) - len(sizes) < settings.min_kept_chars:
                left_out[document] = True
                counts += LineCounts(left_out=1, left_out_tokens=tokens[0])
            else:
                counts += LineCounts(documents=1, lines=len(lines))
    if not writer.documents:
        path.unlink()
    return LineEdits(file_digest(path), counts, left_out)


def _removed_lines(files: RoundFiles, group: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield the lines of a group that are removed, in order: the fields of LINE_DTYPE."""
    numbers = SortedCursor(files.sorted("repeated", group), 1)
    for first, lines in _line_blocks(files, group):
        start = (group << INDEX_BITS) + first
        yield from lines[numbers.take(start + len(lines) - 1)[:, 0] - start].tolist()


def _line_blocks(files: RoundFiles, group: int) -> Iterator[tuple[int, Lines]]:
    """Yield the lines of a group in blocks, each with the number of its first line."""
    first, digest = 0, require_receipt(files.run, group).files.lines
    if digest:  # the external corpus has no lines
        for block in read_blocks(files.run.sketch_lines(group), digest, _BLOCK):
            yield first, block
            first += len(block)


def _settings(files: RoundFiles) -> RepeatedLines:
    lines = files.plan.manifest.dedup.lines
    if lines is None:
        raise ValueError("this round needs dedup.lines")
    return lines

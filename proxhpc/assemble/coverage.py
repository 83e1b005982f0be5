"""The proof that nothing was left out between spans, without counting a file's documents first.

A span [start, stop) of a file owns the records that begin in it, and reading it gives them all,
then its end: where the next record would begin. So the spans of a file hold each record once if

1. the plan's spans follow on each other from 0, and the last has no stop;
2. each span's records begin in it, and none behind its end;
3. a span that did not reach the end of the file ended at or behind its stop, so nothing of it was
   left, and no record of a later span begins before that end, so nothing was read twice;
4. behind a span that reached the end of the file no span has a record, and the last span has
   reached it.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from proxhpc.assemble.replay import SpanStats
from proxhpc.errors import StopError
from proxhpc.run.plan import Plan


def check_coverage(plan: Plan, tiles: Iterable[SpanStats]) -> None:
    """Raise StopError naming the input whose spans do not hold each of its records once."""
    for file, problem in coverage_problems(plan, tiles).items():
        raise StopError(
            f"input {plan.inputs[file].path} is not covered by the run: {problem}",
            hint="the plan or a ledger is damaged; proxhpc verify RUN --repair",
        )


def coverage_problems(plan: Plan, tiles: Iterable[SpanStats]) -> dict[int, str]:
    """Inputs, by number, whose spans do not hold each of their records once, and why."""
    by_file: dict[int, list[SpanStats]] = {}
    for tile in tiles:
        by_file.setdefault(tile.file, []).append(tile)
    found = {file: _problem(by_file.get(file, [])) for file in range(len(plan.inputs))}
    return {file: problem for file, problem in found.items() if problem}


def _problem(tiles: Sequence[SpanStats]) -> str:
    """Return which of the four conditions fails, and where; nothing if all hold."""
    if not tiles:
        return "no shard has read it"
    if tiles[0].start != 0:
        return f"its first span begins at {tiles[0].start}"
    for tile in tiles:
        if problem := _inside(tile):
            return problem
    for before, after in pairwise(tiles):
        if before.stop != after.start:
            return f"a span stops at {before.stop}, the next begins at {after.start}"
        if after.first >= 0 and (before.at_eof or after.first < before.end):
            return f"the record at {after.first} lies before the end of an earlier span"
        if before.at_eof and not after.at_eof:
            return f"it ends at {before.end}, and yet a later span ends at {after.end}"
    last = tiles[-1]
    if last.stop is not None or not last.at_eof:
        return f"nothing was read behind {last.end}"
    return ""


def _inside(tile: SpanStats) -> str:
    """Return what is wrong with one span by itself."""
    # What breaks off with nothing in it is a record of no bytes, at the end of the file itself.
    end = tile.end + 1 if tile.at_eof else tile.end
    if tile.first >= 0 and not tile.start <= tile.first <= tile.last < end:
        return f"records at {tile.first} to {tile.last} in a span [{tile.start}, {tile.end})"
    if tile.stop is not None and tile.last >= tile.stop:
        return f"the record at {tile.last} lies behind the span's stop {tile.stop}"
    if not tile.at_eof and (tile.stop is None or tile.end < tile.stop):
        return f"the span [{tile.start}, {tile.stop}) was read only up to {tile.end}"
    return ""

"""Proof that spans leave out no record, without counting a file's documents first.

A span [start, stop) of a file owns the records that begin in it. Reading a span yields all of them
and then its end, where the next record would begin. The spans of a file hold each record once if

1. the plan's spans are contiguous, the first starts at 0 and the last has no stop;
2. each span's records begin in it, and none after its end;
3. a span that did not reach the end of the file ended at or after its stop, so none of its records
   is missing, and no record of a later span begins before that end, so none was read twice;
4. after a span that reached the end of the file, no span has a record; the last span has reached
   it.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from proxhpc.assemble.replay import SpanStats
from proxhpc.errors import StopError
from proxhpc.run.plan import Plan


def check_coverage(plan: Plan, spans: Iterable[SpanStats]) -> None:
    """Raise StopError naming an input file if its spans do not hold each of its records once."""
    for file, problem in coverage_problems(plan, spans).items():
        raise StopError(
            f"input {plan.inputs[file].path} is not covered by the run: {problem}",
            hint="the plan or a ledger is damaged; run `proxhpc verify RUN --repair`",
        )


def coverage_problems(plan: Plan, spans: Iterable[SpanStats]) -> dict[int, str]:
    """By number, the input files whose spans do not hold each of their records once, and why."""
    by_file: dict[int, list[SpanStats]] = {file: [] for file in range(len(plan.inputs))}
    for span in spans:
        by_file[span.file].append(span)
    problems = {file: _file_problem(own_spans) for file, own_spans in by_file.items()}
    return {file: problem for file, problem in problems.items() if problem}


def _file_problem(spans: Sequence[SpanStats]) -> str:
    """Return which condition the spans of a file violate, and where; "" if none."""
    if not spans:
        return "no shard has read it"
    if spans[0].start != 0:
        return f"its first span begins at {spans[0].start}"
    for span in spans:
        if problem := _span_problem(span):
            return problem
    for before, after in pairwise(spans):
        if before.stop != after.start:
            return f"a span stops at {before.stop}, the next begins at {after.start}"
        if after.first >= 0 and (before.at_eof or after.first < before.end):
            return f"the record at {after.first} begins before the end of an earlier span"
        if before.at_eof and not after.at_eof:
            return f"the file ends at {before.end}, but a later span ends at {after.end}"
    last = spans[-1]
    if last.stop is not None or not last.at_eof:
        return f"nothing was read after {last.end}"
    return ""


def _span_problem(span: SpanStats) -> str:
    """Return which condition a span violates by itself; "" if none."""
    # A truncated compressed file may end in a record of no bytes, exactly at the end of the span.
    end = span.end + 1 if span.at_eof else span.end
    if span.first >= 0 and not span.start <= span.first <= span.last < end:
        return f"records at {span.first} to {span.last} in a span [{span.start}, {span.end})"
    if span.stop is not None and span.last >= span.stop:
        return f"the record at {span.last} begins after the span's stop {span.stop}"
    if not span.at_eof and (span.stop is None or span.end < span.stop):
        return f"the span [{span.start}, {span.stop}) was read only up to {span.end}"
    return ""

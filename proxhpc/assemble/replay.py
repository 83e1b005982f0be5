"""Replay a shard: read its raw records and its ledger in lock-step and execute the programs."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from proxhpc.account.quantity import quantity
from proxhpc.assemble.policy_change import PolicyChange
from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.dedup.hashes import Sketch
from proxhpc.errors import ShardError, StopError
from proxhpc.program.replay import ReplayResult
from proxhpc.run.ledger import Row, read_ledger
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan

FAR = 1 << 20  # bytes of text from which it is faster to open a file anew than to pass them over


@dataclass(slots=True)  # not frozen, which would take longer to make
class ReplayedRecord:
    """One record of the input with its ledger row; `number` counts a shard's records from 0.

    `document` is None if the record could not be read; `text`, the refined text, is None if the
    document does not reach the corpus. `result` is that of the row's programs, if they
    were replayed. `merge_program` removed repeated lines from the text, and with them
    `removed_tokens`.
    """

    number: int
    row: Row
    document: Document | None = None
    text: str | None = None
    result: ReplayResult | None = None
    merge_program: str = ""
    removed_tokens: int = 0


@dataclass(slots=True)
class SpanStats:
    """What was read of one span: its records by outcome, the first and the last, and its end.

    `first` and `last` are positions, -1 in a span without records.
    """

    file: int
    start: int
    stop: int | None
    end: int = 0
    at_eof: bool = False
    blank_lines: int = 0
    first: int = -1
    last: int = -1
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        """Count the next record."""
        if self.first < 0:
            self.first = row.position
        self.last = row.position
        self.outcomes[row.outcome] += 1

    def finish(self, end: SpanEnd) -> None:
        """Record where the span ended."""
        self.end, self.at_eof, self.blank_lines = end.position, end.at_eof, end.blank

    @property
    def records(self) -> int:
        """Records of this span, readable or not."""
        return self.outcomes.total()


def replay_shard(run: RunDir, plan: Plan, shard: int) -> Iterator[ReplayedRecord | SpanStats]:
    """Yield every record of a shard in input order, and after each span its SpanStats.

    StopError names the input or the ledger if the two do not agree.
    """
    replay = _Replay(run, plan, shard)
    number = 0
    for span in replay.spans:
        stats = SpanStats(span.file, span.start, span.stop)
        for item, row in replay.read(span):
            record = replay.execute(number, item, row)
            yield record
            stats.add(record.row)
            number += 1
        stats.finish(replay.ends[-1])
        yield stats
    replay.check_ends()


def replay_records(
    run: RunDir, plan: Plan, shard: int, numbers: Iterable[int]
) -> Iterator[ReplayedRecord]:
    """Yield the records of a shard with these ascending numbers; errors as in `replay_shard`.

    Other records are not parsed, and nothing is read before the first or after the last one. The
    shard stays open for the next call, because the parts of a corpus end within shards.
    """
    paused, _paused[:] = _paused[:], []
    key = (os.getpid(), run.ledger(shard), id(plan))
    replay = None
    for number in numbers:
        if replay is None:
            if paused and paused[0][0] == key and paused[0][1].next_number <= number:
                replay = paused[0][1]
            else:
                paused.clear()  # closes its file, which stays open for a later shard
                replay = _Replay(run, plan, shard)
        yield replay.execute(number, *replay.seek(number))
    if replay is not None:
        _paused[:] = [(key, replay)]


def replay_documents(run: RunDir, plan: Plan, documents: Sketch) -> Iterator[ReplayedRecord]:
    """Replay these documents of one group, in input order."""
    for shard in np.unique(documents["shard"]).tolist():
        numbers = documents["record"][documents["shard"] == shard].tolist()
        yield from replay_records(run, plan, shard, numbers)


def missing_ledger(path: Path) -> StopError:
    """The error for a ledger that does not exist."""
    return StopError(
        f"there is no ledger {path}", hint="run `proxhpc launch` again; it refines the shard again"
    )


def input_differs(plan: Plan, file: int, position: int, problem: str) -> StopError:
    """The error for a record that is not as it was refined."""
    return StopError(
        f"input {plan.inputs[file].path} has changed since it was refined: record at {position}:"
        f" {problem}",
        hint="restore the input and run `proxhpc launch` again, or start a new run",
    )


class _Replay:
    """One pass over a shard: of each record, by `read`, or of ascending numbers, by `seek`."""

    def __init__(self, run: RunDir, plan: Plan, shard: int) -> None:
        self.plan = plan
        self.spans = plan.shards[shard].spans
        self.policy = plan.refined_under or plan.manifest.policy
        self.policy_change = PolicyChange(plan) if plan.refined_under else None
        self.format = plan.manifest.program_format
        self.ledger = run.ledger(shard)
        self.items = read_ledger(self.ledger, plan.digest, shard)
        self.ends: list[SpanEnd] = []  # of the spans that were read
        self.ledger_ends: list[SpanEnd] = []
        self.next_number = 0  # of the next row of the ledger
        self._open = 0  # the span that is read by `seek`
        self._wanted = [0]  # position of the record there
        self._records: Iterator[Document | BadRecord | SpanEnd] = iter(())

    def read(self, span: Span) -> Iterator[tuple[Document | BadRecord, Row]]:
        """Yield every record of the next span with its ledger row."""
        self.plan.check_input(span.file)
        for item in self.plan.read(span, writable=True):
            if isinstance(item, SpanEnd):
                self.ends.append(item)
            else:
                yield item, self._row(item)

    def seek(self, number: int) -> tuple[Document | BadRecord, Row]:
        """Return a record, which must be after those read before, with its ledger row."""
        between = -1 if self.next_number else FAR  # bytes of text
        row = None
        while self.next_number <= number:
            between += row.bytes_in if row else 0
            row = self._next_row()
            if row is None:
                raise self.mismatch(f"it has no record number {number}")
        if row is None:
            raise ValueError(f"record {number} is before {self.next_number}")
        self._wanted[0] = row.position
        if between >= FAR or not holds(self.spans[self._open], row.file, row.position):
            self._start(row)
        item = next(self._records, None)
        if item is None or isinstance(item, SpanEnd):
            raise self.mismatch(f"the input has no record at {row.position} of file {row.file}")
        return item, self._checked(item, row)

    def _start(self, row: Row) -> None:
        """Read the row's span from its record on."""
        later = range(self._open, len(self.spans))
        place = row.file, row.position
        found = next((number for number in later if holds(self.spans[number], *place)), None)
        if found is None:
            raise self.mismatch(f"record {row.position} of file {row.file} is in none of its spans")
        self._open, span, wanted = found, self.spans[found], self._wanted
        self.plan.check_input(span.file)
        del self._records  # its file stays open for the next one
        # The reader must not refer to this object: it is closed as soon as nothing refers to it.
        self._records = self.plan.read(
            Span(span.file, row.position, span.stop),
            writable=True,
            wanted=lambda position: position >= wanted[0],
        )

    def check_ends(self) -> None:
        """Check that no row remains and that the spans ended where they ended for the worker."""
        if row := self._next_row():
            raise self.mismatch(
                f"it has a row for position {row.position} of file {row.file},"
                " where the input has no further record"
            )
        # Blank lines are left out: a worker that resumes does not count those it skips again.
        read, recorded = (
            [(end.file, end.position, end.at_eof) for end in ends]
            for ends in (self.ends, self.ledger_ends)
        )
        if read != recorded:
            raise self.mismatch(f"its spans end at {recorded}, the input's at {read}")

    def execute(self, number: int, item: Document | BadRecord, row: Row) -> ReplayedRecord:
        """Execute the programs of a record's row."""
        if isinstance(item, BadRecord):
            if (row.outcome, row.reason, row.digest) != ("quarantined", item.reason, ""):
                raise self._input_differs(item, f"it cannot be read now ({item.reason})")
            return ReplayedRecord(number, row)
        raw = item.text.encode("utf-8", "surrogatepass")
        if row.id != item.id or row.digest != xxhash.xxh3_64_hexdigest(raw):
            raise self._input_differs(item, "its id or text has changed")
        if row.outcome == "quarantined" and (self.policy_change is None or row.detail or row.head):
            return ReplayedRecord(number, row, item)  # the policy changes nothing here
        result = self._execute(item, row, len(raw))
        if self.policy_change is not None:
            row, result = self.policy_change.apply(item, row, result)
        text = result.text if result.outcome in ("kept", "edited") else None
        return ReplayedRecord(number, row, item, text, result)

    def mismatch(self, problem: str) -> StopError:
        """Return the error that this ledger does not belong to its input."""
        return StopError(
            f"ledger {self.ledger} does not match its input: {problem}",
            hint="delete this file, then run `proxhpc launch` again; it refines only this shard",
        )

    def _row(self, item: Document | BadRecord) -> Row:
        """Return the ledger's next row, which must be this record's."""
        row = self._next_row()
        if row is None:
            raise self._input_differs(item, "the ledger has no row for it")
        return self._checked(item, row)

    def _checked(self, item: Document | BadRecord, row: Row) -> Row:
        if (row.file, row.position) != (item.file, item.position):
            problem = f"the ledger's next row is of the record at {row.position} of file {row.file}"
            raise self._input_differs(item, problem)
        return row

    def _next_row(self) -> Row | None:
        """Return the ledger's next row, None after the last."""
        try:
            for item in self.items:
                if not isinstance(item, SpanEnd):
                    self.next_number += 1
                    return item
                self.ledger_ends.append(item)
            return None
        except FileNotFoundError:
            raise missing_ledger(self.ledger) from None
        except ShardError as error:
            raise StopError(error.message, hint=error.hint) from error
        except (KeyError, TypeError, ValueError) as error:
            raise self.mismatch(f"a row cannot be read: {error!r}") from error

    def _execute(self, item: Document, row: Row, size: int) -> ReplayResult:
        """Execute a row's programs on a text of `size` bytes, as the worker did."""
        try:
            result = row.replay(item.text, self.policy, self.format)
        except ShardError as error:
            raise self._input_differs(item, error.message) from error
        if result.text is not item.text:
            size = len(result.text.encode("utf-8", "surrogatepass"))
        now = (result.outcome, result.reason, size, result.rejected, result.lenient)
        edits = (result.lines_removed, result.strings_replaced)
        if (now, edits) != (
            (row.outcome, row.reason, row.bytes_out, row.rejected, row.lenient),
            (row.lines_removed, row.strings_replaced),
        ):
            raise self.mismatch(
                f"the programs of document {item.id!r} give outcome {result.outcome}"
                f" with {quantity(size, 'byte')}; the ledger has {row.outcome} with {row.bytes_out}"
            )
        return result

    def _input_differs(self, item: Document | BadRecord, problem: str) -> StopError:
        return input_differs(self.plan, item.file, item.position, f"{problem} ({self.ledger})")


def holds(span: Span | SpanStats, file: int, position: int) -> bool:
    """Whether a record begins in the span."""
    before_stop = span.stop is None or position < span.stop
    return span.file == file and span.start <= position and before_stop


# The shard that the latest call of `replay_records` has left open.
_paused: list[tuple[tuple[int, Path, int], _Replay]] = []

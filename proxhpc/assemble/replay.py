"""Replay a shard: read its raw records and its ledger in lock-step and execute the programs."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from proxhpc.assemble.policy_change import PolicyChange
from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.errors import ShardError, StopError
from proxhpc.program.replay import ReplayResult, replay
from proxhpc.run.ledger import Row, read_ledger, text_digest
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan


@dataclass(frozen=True, slots=True)
class ReplayedRecord:
    """One record of the input with its ledger row; `number` counts a shard's records from 0.

    `document` is None if the record could not be read; `text`, the refined text, is None if the
    document does not reach the corpus.
    """

    number: int
    row: Row
    document: Document | None = None
    text: str | None = None


class SpanStats(NamedTuple):
    """What was read of one span: where it ended, its first and last record, and counts.

    `first` and `last` are positions, -1 in a span without records.
    """

    file: int
    start: int
    stop: int | None
    end: int
    at_eof: bool
    blank_lines: int
    first: int
    last: int
    kept: int
    edited: int
    dropped: int
    quarantined: int

    @property
    def records(self) -> int:
        """Records of this span, readable or not."""
        return self.kept + self.edited + self.dropped + self.quarantined


class SpanCounter:
    """Counts the records of one span."""

    def __init__(self) -> None:
        self.first = self.last = -1
        self.outcomes: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        """Count the next record."""
        if self.first < 0:
            self.first = row.position
        self.last = row.position
        self.outcomes[row.outcome] += 1

    def stats(self, span: Span, end: SpanEnd) -> SpanStats:
        """The counts of the span, read up to its end."""
        return SpanStats(
            file=span.file,
            start=span.start,
            stop=span.stop,
            end=end.position,
            at_eof=end.at_eof,
            blank_lines=end.blank,
            first=self.first,
            last=self.last,
            kept=self.outcomes["kept"],
            edited=self.outcomes["edited"],
            dropped=self.outcomes["dropped"],
            quarantined=self.outcomes["quarantined"],
        )


def replay_shard(
    run: RunDir, plan: Plan, shard: int, wanted: Sequence[int] | None = None
) -> Iterator[ReplayedRecord | SpanStats]:
    """Yield every record of a shard in input order, and after each span its SpanStats.

    With `wanted`, ascending record numbers, only those records are yielded: the programs of the
    others are not executed, and nothing is read after the last one. StopError names the input or
    the ledger if the two do not agree.
    """
    return _Replay(run, plan, shard).records(wanted)


class _Replay:
    """One pass over a shard."""

    def __init__(self, run: RunDir, plan: Plan, shard: int) -> None:
        self.plan = plan
        self.spans = plan.shards[shard].spans
        self.ledger = _LedgerReader(run, plan, shard)
        self.policy = plan.refined_under or plan.manifest.policy
        self.policy_change = PolicyChange(plan) if plan.refined_under else None
        self.format = plan.manifest.program_format
        self.number = 0

    def records(self, wanted: Sequence[int] | None) -> Iterator[ReplayedRecord | SpanStats]:
        numbers = None if wanted is None else iter(wanted)
        next_wanted = 0 if numbers is None else next(numbers, None)
        ends: list[SpanEnd] = []
        for span in self.spans:
            if next_wanted is None:
                return
            self.plan.check_input(span.file)
            counter = SpanCounter()
            for item in self.plan.read(span):
                if isinstance(item, SpanEnd):
                    ends.append(item)
                    if numbers is None:
                        yield counter.stats(span, item)
                    continue
                row = self._row(item)
                if self.number == next_wanted:
                    record = self._replayed(item, row)
                    yield record
                    row = record.row
                    next_wanted = self.number + 1 if numbers is None else next(numbers, None)
                    if next_wanted is None:
                        return
                counter.add(row)
                self.number += 1
        if numbers is not None:
            raise self.ledger.mismatch(f"it has {self.number} records, not number {next_wanted}")
        self.ledger.finish(ends)

    def _row(self, item: Document | BadRecord) -> Row:
        """Return the ledger's next row, which must be this record's."""
        row = self.ledger.next_row()
        if row is None:
            raise self._input_differs(item, "the ledger has no row for it")
        if (row.file, row.position) != (item.file, item.position):
            problem = f"the ledger's next row is of the record at {row.position} of file {row.file}"
            raise self._input_differs(item, problem)
        return row

    def _replayed(self, item: Document | BadRecord, row: Row) -> ReplayedRecord:
        if isinstance(item, BadRecord):
            if (row.outcome, row.reason, row.digest) != ("quarantined", item.reason, ""):
                raise self._input_differs(item, f"it cannot be read now ({item.reason})")
            return ReplayedRecord(self.number, row)
        if row.id != item.id or row.digest != text_digest(item.text):
            raise self._input_differs(item, "its id or text has changed")
        if row.outcome == "quarantined" and (self.policy_change is None or row.detail or row.head):
            return ReplayedRecord(self.number, row, item)  # the policy changes nothing here
        result = self._execute(item, row)
        if self.policy_change is not None:
            row, result = self.policy_change.apply(item, row, result)
        text = result.text if result.outcome in ("kept", "edited") else None
        return ReplayedRecord(self.number, row, item, text)

    def _execute(self, item: Document, row: Row) -> ReplayResult:
        """Execute a row's programs; the result must be what the worker recorded."""
        doc = row.doc.output if row.doc else None
        windows = [call.window for call in row.windows]
        try:
            result = replay(item.text, doc, windows, self.policy, self.format)
        except ShardError as error:
            raise self._input_differs(item, error.message) from error
        text = result.text
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        now = (result.outcome, result.reason, size, result.rejected, result.lenient)
        edits = (result.lines_removed, result.strings_replaced)
        if (now, edits) != (
            (row.outcome, row.reason, row.bytes_out, row.rejected, row.lenient),
            (row.lines_removed, row.strings_replaced),
        ):
            raise self.ledger.mismatch(
                f"the programs of document {item.id!r} make it {result.outcome} with {size} bytes;"
                f" the ledger has {row.outcome} with {row.bytes_out}"
            )
        return result

    def _input_differs(self, item: Document | BadRecord, problem: str) -> StopError:
        path = self.plan.inputs[item.file].path
        return StopError(
            f"input {path} is not what was refined: record at {item.position}: {problem}"
            f" ({self.ledger.path})",
            hint="restore the input and run `proxhpc launch` again, or start a new run",
        )


class _LedgerReader:
    """Reads the rows of a published ledger one by one, and collects its span ends."""

    def __init__(self, run: RunDir, plan: Plan, shard: int) -> None:
        self.path = run.ledger(shard)
        self._items = read_ledger(self.path, plan.digest, shard)
        self._ends: list[SpanEnd] = []

    def next_row(self) -> Row | None:
        """Return the next row, None after the last."""
        while True:
            try:
                item = next(self._items, None)
            except FileNotFoundError:
                raise StopError(
                    f"there is no ledger {self.path}",
                    hint="run `proxhpc launch` again; it refines the shard again",
                ) from None
            except ShardError as error:
                raise StopError(error.message, hint=error.hint) from error
            except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise self.mismatch(f"a row cannot be read: {error!r}") from error
            if not isinstance(item, SpanEnd):
                return item
            self._ends.append(item)

    def finish(self, ends: list[SpanEnd]) -> None:
        """Check that no row remains and that the spans ended where they ended for the worker."""
        if row := self.next_row():
            raise self.mismatch(
                f"it has a row for position {row.position} of file {row.file},"
                " where the input has no further record"
            )
        # Blank lines are left out: a worker that resumes does not count those it skips again.
        read, recorded = (
            [(end.file, end.position, end.at_eof) for end in some] for some in (ends, self._ends)
        )
        if read != recorded:
            raise self.mismatch(f"its spans end at {recorded}, the input's at {read}")

    def mismatch(self, problem: str) -> StopError:
        """Return the error that this ledger does not belong to its input."""
        return StopError(
            f"ledger {self.path} does not fit its input: {problem}",
            hint="delete this file, then run `proxhpc launch` again; it refines only this shard",
        )

"""Replay: a shard's raw records and its ledger in lock-step, and the text that comes of them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from proxhpc.assemble.policy_change import PolicyChange
from proxhpc.corpus.document import Bad, Document, End, Span
from proxhpc.errors import ShardError, StopError
from proxhpc.program.replay import ReplayResult, replay
from proxhpc.run.ledger import Row, read_ledger, text_digest
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan


@dataclass(frozen=True, slots=True)
class ReplayedRecord:
    """One record of the input: its ledger row and, where it is a document, what became of it.

    `number` counts the records of the shard from 0. `document` is None for a record that could
    not be read; `text` is None for all that does not reach the corpus.
    """

    number: int
    row: Row
    document: Document | None = None
    text: str | None = None


class SpanStats(NamedTuple):
    """What was read of one span: where it ended, its first and last record, and its records.

    `first` and `last` are -1 in a span without records.
    """

    file: int
    start: int
    stop: int | None
    end: int
    at_eof: bool
    blank: int
    first: int
    last: int
    kept: int
    edited: int
    dropped: int
    quarantined: int

    @property
    def records(self) -> int:
        """Documents of this span, readable or not."""
        return self.kept + self.edited + self.dropped + self.quarantined


def replay_shard(
    run: RunDir, plan: Plan, shard: int, wanted: Sequence[int] | None = None
) -> Iterator[ReplayedRecord | SpanStats]:
    """Yield every record of a shard in input order, and behind each span its Tile.

    `wanted`, ascending record numbers, yields only those: the others are matched with the ledger
    but their programs do not run, and nothing is read behind the last. StopError names the input
    or the ledger where the two do not agree.
    """
    return _Replay(run, plan, shard).records(wanted)


class _Replay:
    """One pass over a shard."""

    def __init__(self, run: RunDir, plan: Plan, shard: int) -> None:
        self.plan = plan
        self.spans = plan.shards[shard].spans
        self.ledger = _Ledger(run, plan, shard)
        self.policy = plan.refined_under or plan.manifest.policy
        self.again = PolicyChange(plan) if plan.refined_under else None
        self.style = plan.manifest.chunk_style
        self.number = 0

    def records(self, wanted: Sequence[int] | None) -> Iterator[ReplayedRecord | SpanStats]:
        numbers = None if wanted is None else iter(wanted)
        following = 0 if numbers is None else next(numbers, None)
        ends: list[End] = []
        for span in self.spans:
            if following is None:
                return
            self.plan.check_input(span.file)
            seen = SpanCounter()
            for item in self.plan.read(span):
                if isinstance(item, End):
                    ends.append(item)
                    if numbers is None:
                        yield seen.stats(span, item)
                    continue
                row = self._row(item)
                if self.number == following:
                    refined = self._refined(item, row)
                    yield refined
                    row = refined.row
                    following = self.number + 1 if numbers is None else next(numbers, None)
                    if following is None:
                        return
                seen.add(row)
                self.number += 1
        if numbers is not None:
            raise self.ledger.mismatch(f"it has {self.number} records, not number {following}")
        self.ledger.finish(ends)

    def _row(self, item: Document | Bad) -> Row:
        """Return the ledger's next row, which must be this record's."""
        row = self.ledger.next_row()
        if row is None:
            raise self._differs(item, "the ledger has no row for it")
        if (row.file, row.position) != (item.file, item.position):
            what = f"the ledger goes on with the record at {row.position} of file {row.file}"
            raise self._differs(item, what)
        return row

    def _refined(self, item: Document | Bad, row: Row) -> ReplayedRecord:
        if isinstance(item, Bad):
            if (row.outcome, row.reason, row.digest) != ("quarantined", item.reason, ""):
                raise self._differs(item, f"it cannot be read now ({item.reason})")
            return ReplayedRecord(self.number, row)
        if row.id != item.id or row.digest != text_digest(item.text):
            raise self._differs(item, "its id or text is another now")
        if row.outcome == "quarantined" and (self.again is None or row.detail or row.head):
            return ReplayedRecord(self.number, row, item)  # no policy's doing, or as it was
        outcome = self._outcome(item, row)
        if self.again is not None:
            row, outcome = self.again.apply(item, row, outcome)
        text = outcome.text if outcome.outcome in ("kept", "edited") else None
        return ReplayedRecord(self.number, row, item, text)

    def _outcome(self, item: Document, row: Row) -> ReplayResult:
        """Run a row's programs; they must come to what the worker found."""
        doc = row.doc.emitted if row.doc else None
        windows = [call.window for call in row.windows]
        try:
            outcome = replay(item.text, doc, windows, self.policy, self.style)
        except ShardError as error:
            raise self._differs(item, error.message) from error
        text = outcome.text
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        now = (outcome.outcome, outcome.reason, size, outcome.rejected)
        edits = (outcome.lines_removed, outcome.strings_replaced)
        if (now, edits) != (
            (row.outcome, row.reason, row.bytes_out, row.rejected),
            (row.lines_removed, row.strings_replaced),
        ):
            raise self.ledger.mismatch(
                f"the programs of document {item.id!r} make it {outcome.outcome} with {size} bytes,"
                f" recorded is {row.outcome} with {row.bytes_out}"
            )
        return outcome

    def _differs(self, item: Document | Bad, what: str) -> StopError:
        path = self.plan.inputs[item.file].path
        return StopError(
            f"input {path} is not what was refined: record at {item.position}: {what}"
            f" ({self.ledger.path})",
            hint="put the old input back and launch again, or start a new run with this one",
        )


class _Ledger:
    """Rows of a published ledger one by one; its span ends are gathered on the way."""

    def __init__(self, run: RunDir, plan: Plan, shard: int) -> None:
        self.path = run.ledger(shard)
        self._items = read_ledger(self.path, plan.digest, shard)
        self._ends: list[End] = []

    def next_row(self) -> Row | None:
        """Return the next row, None behind the last."""
        while True:
            try:
                item = next(self._items, None)
            except FileNotFoundError:
                raise StopError(
                    f"there is no ledger {self.path}",
                    hint="launch again: the shard is refined anew",
                ) from None
            except ShardError as error:
                raise StopError(error.message, hint=error.hint) from error
            except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise self.mismatch(f"a row cannot be read: {error!r}") from error
            if not isinstance(item, End):
                return item
            self._ends.append(item)

    def finish(self, ends: list[End]) -> None:
        """Check that nothing is left and that the spans ended where the worker saw them end."""
        if left := self.next_row():
            raise self.mismatch(
                f"it has a row for position {left.position} of file {left.file},"
                " where the input has no further record"
            )
        # Blank lines passed over before a worker died are not counted again by the next one.
        places = [[(e.file, e.position, e.at_eof) for e in found] for found in (ends, self._ends)]
        if places[0] != places[1]:
            raise self.mismatch(f"its spans end at {places[1]}, the input's at {places[0]}")

    def mismatch(self, what: str) -> StopError:
        """Return the error that this ledger is not its input's."""
        return StopError(
            f"ledger {self.path} does not fit its input: {what}",
            hint="delete this file and launch again: only this shard is refined anew",
        )


class SpanCounter:
    """Records of one span so far."""

    def __init__(self) -> None:
        self.first = self.last = -1
        self.status: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        """Take the next record's row."""
        if self.first < 0:
            self.first = row.position
        self.last = row.position
        self.status[row.outcome] += 1

    def stats(self, span: Span, end: End) -> SpanStats:
        """The span, read up to its end."""
        return SpanStats(
            file=span.file,
            start=span.start,
            stop=span.stop,
            end=end.position,
            at_eof=end.at_eof,
            blank=end.blank,
            first=self.first,
            last=self.last,
            kept=self.status["kept"],
            edited=self.status["edited"],
            dropped=self.status["dropped"],
            quarantined=self.status["quarantined"],
        )

"""One leased shard: its remaining records, rows on their way to the ledger, and publishing."""

import errno
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from proxhpc.account.counts import Counts
from proxhpc.corpus.disk import publish
from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.frames import FrameWriter
from proxhpc.errors import RetryError
from proxhpc.faults import fault_point
from proxhpc.refine.pump import IN_FLIGHT_DOCUMENTS
from proxhpc.run.crash_backoff import CrashBackoff
from proxhpc.run.lease import Lease
from proxhpc.run.ledger import LedgerState, LedgerWriter, Row, quarantine, resume
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.shards import attempts

ShardItem = Document | BadRecord | SpanEnd | Row
"""An item of a shard. A Row is that of a quarantined document, which no model reads."""


@dataclass(slots=True, eq=False)
class OpenShard:
    """A shard under lease, with the ledger of this attempt."""

    run: RunDir
    plan: Plan
    index: int
    lease: Lease
    writer: LedgerWriter
    rows: list[Row] = field(default_factory=list)
    span_ends: list[SpanEnd] = field(default_factory=list)
    recorded_death: bool = False  # the lease was taken over from a dead worker
    lost: bool = False
    committed_at: float = field(default_factory=time.monotonic)
    resumed_bytes: int = 0  # estimated bytes of the records that earlier attempts committed

    _spans_read: int = 0
    _read_at: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self.resumed_bytes = self.refined_bytes
        self._spans_read = len(self.writer.state.span_ends)

    def items(self) -> Iterator[ShardItem]:
        """Yield the records after the last commit, and the end of each span."""
        state = self.writer.state
        poison = state.backoff.poison
        for span in self.plan.shards[self.index].spans[len(state.span_ends) :]:
            last = state.last_position
            skip = last[1] if last and last[0] == span.file else -1
            self.plan.check_input(span.file)
            # Committed records are read too: what SpanEnd counts (blank lines of the whole span)
            # must not depend on where an attempt died.
            for item in self.plan.read(span, writable=True):
                if isinstance(item, SpanEnd) or item.position > skip:
                    if poison and isinstance(item, Document):
                        poison = False
                        yield quarantine(item, "poison", state.backoff.log_tail)
                    else:
                        yield item

    def count_read(self, item: ShardItem) -> None:
        """Count an item that is on its way to the engine."""
        self._read_at = (item.file, item.position)
        self._spans_read += isinstance(item, SpanEnd)

    @property
    def read_bytes(self) -> int:
        """Estimated bytes of the records that are on their way to the engine, or further."""
        return max(self._bytes_before(self._spans_read, self._read_at), self.refined_bytes)

    @property
    def refined_bytes(self) -> int:
        """Estimated bytes of the records whose rows are here, committed or not."""
        state = self.writer.state
        at = (self.rows[-1].file, self.rows[-1].position) if self.rows else state.last_position
        return self._bytes_before(len(state.span_ends) + len(self.span_ends), at)

    def _bytes_before(self, ended_spans: int, at: tuple[int, int] | None) -> int:
        """Return the size of the first spans and of the next one before a record."""
        spans = self.plan.shards[self.index].spans
        size = sum(map(self.plan.estimated_bytes_of, spans[:ended_spans]))
        if at and ended_spans < len(spans) and at[0] == spans[ended_spans].file:
            start = spans[ended_spans].start
            size += self.plan.estimated_bytes_of(Span(at[0], start, at[1]))
        return round(size)

    @property
    def batch(self) -> int | None:
        """Documents that may be in flight, with nothing else; None for no limit."""
        return self.writer.state.backoff.batch

    def commit_due(self) -> bool:
        """Return whether it is time to commit."""
        limits = self.plan.manifest.commit
        waited = time.monotonic() - self.committed_at
        return len(self.rows) >= limits.documents or waited >= limits.seconds

    def commit(self) -> Counts:
        """Make the waiting rows durable; return their counts, zero if the lease was lost."""
        counts = Counts()
        self.lost = self.lost or self.lease.is_lost()
        if not self.lost and (self.rows or self.span_ends):
            rows, ends, self.rows, self.span_ends = self.rows, self.span_ends, [], []
            with self._removed_is_lost():
                counts = self.writer.commit(rows, tuple(ends))
        self.committed_at = time.monotonic()
        return counts

    @contextmanager
    def _removed_is_lost(self) -> Iterator[None]:
        """Count an error of a removed attempt as the loss of the lease.

        A file system with caches, such as NFS, may show the removal of the lease later than that.
        """
        try:
            yield
        except (OSError, RetryError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError) or cause.errno != errno.ESTALE:
                raise
            self.lost = True

    def drop_from(self, reasons: Collection[str]) -> None:
        """Drop the waiting rows from the first with one of these reasons on: they are not final."""
        kept = [*takewhile(lambda row: row.reason not in reasons, self.rows)]
        if len(kept) < len(self.rows):
            self.rows, self.span_ends = kept, []

    def publish(self) -> bool:
        """Finish and publish the ledger, remove all attempts, release the lease.

        Return whether this attempt's ledger is the published one: the first to finish wins, and may
        have removed this attempt.
        """
        with self._removed_is_lost():
            if not self.lost:
                self.writer.finish()
            self.writer.close()
        if self.lost:
            self.lease.release()
            return False
        attempt = self.run.attempt(self.index, self.lease.attempt)
        try:
            first = publish(attempt, self.run.ledger(self.index))
        except RetryError:
            if attempt.exists():
                raise
            self.lost = True  # another worker took over the lease and removed this attempt
            self.lease.release()
            return False
        fault_point("ledger published")
        _remove_attempts(self.run, self.index)
        fault_point("attempts removed")
        self.lease.release()
        return first

    def leave(self, error: str = "") -> None:
        """Give the shard back; the next attempt resumes after the last commit.

        `error` describes the death of an engine while documents of the shard were in flight.
        """
        try:
            if error and not self.lost:
                backoff = self.writer.state.backoff.died(error, IN_FLIGHT_DOCUMENTS)
                with self._removed_is_lost():
                    self.writer.write_backoff(backoff)
        finally:
            with self._removed_is_lost():
                self.writer.close()
            fault_point("shard left")
            self.lease.release()


def open_shard(
    run: RunDir, plan: Plan, index: int, lease: Lease, log_tail: str = ""
) -> OpenShard | None:
    """Start an attempt on a leased shard after the commits of the best earlier attempt.

    `log_tail` is that of the dead worker whose lease was taken over. None if the shard has been
    finished, the attempt number is used, or the lease is lost.
    """
    if run.ledger(index).exists():
        _remove_attempts(run, index)  # of a worker that died after publishing
        lease.release()
        return None
    path = run.attempt(index, lease.attempt)
    numbers = [number for number in attempts(run, index) if number < lease.attempt]
    earlier = [run.attempt(index, number) for number in numbers]
    try:
        frames = FrameWriter(path)
    except FileExistsError:
        lease.release()
        return None
    fault_point("attempt created")
    try:
        writer = _resume_best(earlier, frames, plan, index)
        if writer is not None:
            _check_backoff(writer, log_tail)
            if lease.is_lost():  # this process was frozen, and the files are another's now
                writer = None
    except BaseException:
        frames.close()
        lease.release()
        raise
    if writer is None:
        frames.close()
        path.unlink(missing_ok=True)
        lease.release()
        return None
    if earlier:
        fault_point("attempt resumed")
    for old in earlier:
        old.unlink(missing_ok=True)
    return OpenShard(run, plan, index, lease, writer, recorded_death=bool(log_tail))


def _resume_best(
    earlier: list[Path], frames: FrameWriter, plan: Plan, index: int
) -> LedgerWriter | None:
    """Copy the largest earlier attempt; None if another worker has finished and removed it."""
    state = LedgerState()
    if earlier:
        try:
            best = max(earlier, key=lambda attempt: attempt.stat().st_size)
            state = resume(best, frames, plan.digest, index)
        except FileNotFoundError:
            return None
    return LedgerWriter(frames, plan.digest, index, state)


def _check_backoff(writer: LedgerWriter, log_tail: str) -> None:
    """Record the death of the last holder, if it died; StopError if there were too many."""
    if log_tail:
        writer.write_backoff(writer.state.backoff.died(log_tail, IN_FLIGHT_DOCUMENTS))
    if error := writer.state.backoff.stop_error(writer.shard):
        # The next launch starts anew: by then somebody has read the logs.
        writer.write_backoff(CrashBackoff())
        raise error


def _remove_attempts(run: RunDir, index: int) -> None:
    for attempt in attempts(run, index):
        run.attempt(index, attempt).unlink(missing_ok=True)

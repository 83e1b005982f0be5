"""One leased shard: what is left of it, the rows on their way into its ledger, publishing."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from proxhpc.account.counts import Counts
from proxhpc.corpus.disk import publish
from proxhpc.corpus.document import Bad, Document, End
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

ShardItem = Document | Bad | End | Row
"""What a shard holds; a row is that of a document about which nobody is asked any more."""


@dataclass(slots=True)
class OpenShard:
    """A shard under lease, with the ledger of this attempt."""

    run: RunDir
    plan: Plan
    index: int
    lease: Lease
    writer: LedgerWriter
    rows: list[Row] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    stolen: bool = False  # from a worker whose death was noted
    lost: bool = False
    committed_at: float = field(default_factory=time.monotonic)

    def items(self) -> Iterator[ShardItem]:
        """Records behind the last commit, and the end of each span."""
        progress = self.writer.progress
        poison = progress.backoff.poison
        for span in self.plan.shards[self.index].spans[len(progress.span_ends) :]:
            last = progress.last_position
            skip = last[1] if last and last[0] == span.file else -1
            self.plan.check_input(span.file)
            # From the span's start, though rows up to `skip` are committed: what End says of the
            # span (its blank lines) must not depend on where an attempt died.
            for item in self.plan.read(span):
                if isinstance(item, End) or item.position > skip:
                    if poison and isinstance(item, Document):
                        poison = False
                        yield quarantine(item, "poison", progress.backoff.log_tail)
                    else:
                        yield item

    @property
    def batch(self) -> int | None:
        """Documents that may be in flight, alone, for fear of one of them; None for no limit."""
        return self.writer.progress.backoff.batch

    def add(self, row: Row) -> None:
        """Take the next row, in input order."""
        self.rows.append(row)

    def due(self) -> bool:
        """Whether it is time to commit."""
        rule = self.plan.manifest.commit
        waited = time.monotonic() - self.committed_at
        return len(self.rows) >= rule.documents or waited >= rule.seconds

    def commit(self) -> Counts:
        """Make the waiting rows durable; what was committed, nothing when the lease was lost."""
        share = Counts()
        self.lost = self.lost or self.lease.is_lost()
        if not self.lost and (self.rows or self.ends):
            rows, ends, self.rows, self.ends = self.rows, self.ends, [], []
            share = self.writer.commit(rows, tuple(ends))
        self.committed_at = time.monotonic()
        return share

    def publish(self) -> bool:
        """Finish the ledger and publish it, then tidy up; whether this attempt still counted.

        The first finisher wins, and may have tidied this attempt away.
        """
        self.writer.finish()
        self.writer.close()
        mine = self.run.attempt(self.index, self.lease.attempt)
        try:
            publish(mine, self.run.ledger(self.index))
        except RetryError:
            if mine.exists():
                raise
            self.lost = True
            self.lease.release()
            return False
        fault_point("ledger published")
        for attempt in attempts(self.run, self.index):
            self.run.attempt(self.index, attempt).unlink(missing_ok=True)
        fault_point("attempts removed")
        self.lease.release()
        return True

    def leave(self, died: str = "") -> None:
        """Give the shard back; what was committed waits for the next attempt.

        `died` are the last words of an engine that died while documents of it were in flight.
        """
        try:
            if died and not self.lost:
                self.writer.note(self.writer.progress.backoff.died(died, IN_FLIGHT_DOCUMENTS))
        finally:
            self.writer.close()
            fault_point("shard left")
            self.lease.release()


def open_shard(
    run: RunDir, plan: Plan, index: int, lease: Lease, died: str = ""
) -> OpenShard | None:
    """Start an attempt on a leased shard behind the best earlier one.

    `died` are the last words of the worker that the lease was taken from. None when the shard was
    finished meanwhile, or this attempt number has been used.
    """
    if run.ledger(index).exists():
        _tidy(run, index, lease)
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
    writer = None
    try:
        progress = _resumed(earlier, frames, plan, index)
        if progress is not None:
            writer = LedgerWriter(frames, plan.digest, index, progress)
            if died:
                writer.note(progress.backoff.died(died, IN_FLIGHT_DOCUMENTS))
            if problem := progress.backoff.stop_error(index):
                writer.note(CrashBackoff())  # whoever launches again has looked
                raise problem
            if lease.is_lost():  # frozen since the lease was taken: the files are another's now
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
    return OpenShard(run, plan, index, lease, writer, stolen=bool(died))


def _resumed(
    earlier: list[Path], frames: FrameWriter, plan: Plan, index: int
) -> LedgerState | None:
    """What the best earlier attempt came to; None where a finisher has tidied it up meanwhile."""
    if not earlier:
        return LedgerState()
    try:
        best = max(earlier, key=lambda attempt: attempt.stat().st_size)
        return resume(best, frames, plan.digest, index)
    except FileNotFoundError:
        return None


def _tidy(run: RunDir, index: int, lease: Lease) -> None:
    """Remove what a worker left that died between publishing and tidying up."""
    for attempt in attempts(run, index):
        run.attempt(index, attempt).unlink(missing_ok=True)
    lease.release()

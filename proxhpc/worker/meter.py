"""Measures what a worker has done and has in hand, committed or not."""

import time
from collections.abc import Sequence

from proxhpc.account.flops import Usage
from proxhpc.corpus.document import Document
from proxhpc.refine.refiner import Refiner
from proxhpc.run.ledger import Row
from proxhpc.run.progress import ProgressLog, Work
from proxhpc.worker.shard import OpenShard


class Meter:
    """Adds the work on one engine to what is in the worker's progress log."""

    def __init__(self, refiner: Refiner, log: ProgressLog, shards: Sequence[OpenShard]) -> None:
        """`shards` are the open ones at any time."""
        self._refiner, self._log, self._shards = refiner, log, shards
        self._busy_before, self._bytes_before = log.busy_seconds, log.counts.bytes_in
        self._usage_before, self._refined_before = log.usage, log.work.refined
        self._refined = 0  # bytes of published shards
        self._chars_out = self._chars_waiting = 0  # of documents with a row
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the engine was ready."""
        return time.monotonic() - self._start

    @property
    def bytes_per_second(self) -> float:
        """Text that was committed in this time."""
        return (self._log.counts.bytes_in - self._bytes_before) / self.seconds

    async def refine(self, document: Document) -> Row:
        """Return the document's row."""
        row = await self._refiner.refine(document)
        self._chars_waiting += len(document.text)
        return row

    def count_out(self, document: Document) -> None:
        """Count a document whose row is next in the order of the input."""
        self._chars_waiting -= len(document.text)
        self._chars_out += len(document.text)

    def count_published(self, shard: OpenShard) -> None:
        """Count a shard that is no longer open."""
        self._refined += shard.refined_bytes - shard.resumed_bytes

    def update_log(self) -> None:
        """Write into the log what is done."""
        log, refiner = self._log, self._refiner
        log.busy_seconds = self._busy_before + self.seconds
        log.usage = {
            level: usage + self._usage_before.get(level, Usage())
            for level, usage in refiner.usage.items()
        }
        sizes = {shard: shard.refined_bytes for shard in self._shards}
        refined = self._refined + sum(size - s.resumed_bytes for s, size in sizes.items())
        bytes_per_char = refined / self._chars_out if self._chars_out else 1.0
        log.work = Work(
            answered=sum(usage.prompt_tokens for usage in log.usage.values()),
            pending=refiner.pending_tokens,
            refined=self._refined_before + refined,
            asked=round(bytes_per_char * (refiner.asked_chars + self._chars_waiting)),
            shards={str(shard.index): size for shard, size in sizes.items()},
        )

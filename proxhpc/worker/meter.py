"""Measures what a worker has done and has in hand, committed or not."""

import time
from collections.abc import Sequence

from proxhpc.account.flops import Usage
from proxhpc.corpus.document import Document
from proxhpc.refine.pump import Rate
from proxhpc.refine.refiner import Refiner
from proxhpc.run.ledger import Row
from proxhpc.run.plan import BYTES_PER_TOKEN
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
        # Of the documents that are read; of those, those with a row; of those, those in order.
        self._chars_read = self._chars_done = self._chars_out = 0
        self._start, self._rate = time.monotonic(), Rate()
        self._documents, self._documents_out = Rate(), 0  # in order since the last update

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
        self._chars_done += len(document.text)
        return row

    def count_read(self, document: Document) -> None:
        """Count a document that is on its way to the engine."""
        self._chars_read += len(document.text)

    def count_out(self, document: Document) -> None:
        """Count a document whose row is next in the order of the input."""
        self._chars_out += len(document.text)
        self._documents_out += 1

    def count_published(self, shard: OpenShard) -> None:
        """Count a shard that is no longer open."""
        self._refined += shard.refined_bytes - shard.resumed_bytes

    def update_log(self) -> None:
        """Write into the log what is done."""
        log, refiner = self._log, self._refiner
        log.busy_seconds = round(self._busy_before + self.seconds, 3)
        log.usage = {
            level: usage + self._usage_before.get(level, Usage())
            for level, usage in refiner.usage.items()
        }
        refined = self._refined + sum(s.refined_bytes - s.resumed_bytes for s in self._shards)
        answered = sum(usage.prompt_tokens for usage in log.usage.values())
        pending = refiner.pending_tokens
        asked = self._asked_bytes(refined)
        if not answered and not pending:  # no model is asked
            answered = (self._refined_before + refined + asked) // BYTES_PER_TOKEN
        if asked or pending or answered != log.work.answered:
            self._rate.add(answered - log.work.answered)
            self._documents.add(self._documents_out)
        else:
            self._rate.skip()
            self._documents.skip()
        self._documents_out = 0
        log.work = Work(
            answered=answered,
            pending=pending,
            speed=round(self._rate.per_second, 3),
            documents=round(self._documents.per_second, 3),
            refined=self._refined_before + refined,
            asked=asked,
            shards={str(shard.index): shard.refined_bytes for shard in self._shards},
        )

    def _asked_bytes(self, refined: int) -> int:
        """Estimate the bytes in flight about which the engine has been asked everything.

        Documents before their last stage count with the share of tokens that earlier stages take.
        """
        in_flight = sum(shard.read_bytes - shard.refined_bytes for shard in self._shards)
        chars = self._chars_read - self._chars_done - self._refiner.asked_chars
        bytes_per_char = refined / self._chars_out if self._chars_out else 1.0
        tokens = [usage.prompt_tokens for usage in self._refiner.usage.values()]
        last = tokens[-1] / sum(tokens) if any(tokens) else 1.0
        return max(0, round(in_flight - last * bytes_per_char * chars))

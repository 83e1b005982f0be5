"""A worker: lease shards, refine their documents, commit, publish, until nothing is left."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass
from typing import Literal

from proxhpc.account.flops import Usage
from proxhpc.corpus.document import Bad, Document, End
from proxhpc.engines.base import EngineDiedError
from proxhpc.engines.device import device_name
from proxhpc.errors import RetryError
from proxhpc.refine.pump import IN_FLIGHT_DOCUMENTS, Budget, in_order, take_batch
from proxhpc.refine.refiner import Refiner, open_refiner
from proxhpc.run.lease import STALE_AFTER, JobAlive, LeaseOwner, Leases
from proxhpc.run.ledger import Row, bad_row
from proxhpc.run.models import check_model
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.progress import ProgressLog
from proxhpc.worker.leaser import Leaser
from proxhpc.worker.shard import OpenShard, ShardItem

MAX_RESTARTS = 8  # engines that a worker outlives within one job
IN_FLIGHT_BYTES = 64 * 1024 * 1024
BATCH, BATCH_BYTES = 64, 4 * 1024 * 1024  # read per hop to the reading thread, ahead of budgets
COMMITS_WORTH_A_LEASE = 2
_POLL_SECONDS = 5.0  # seconds between two looks at an unclear lease
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where a worker stands: the `number`-th of `of`, and how long it may run.

    After `stale_after` seconds without a sign of life another worker counts as dead.
    """

    number: int = 0
    of: int = 1
    seconds: float | None = None
    stale_after: float = STALE_AFTER


@dataclass(frozen=True, slots=True)
class Closed:
    """Event: every record of the shard has been handed out."""

    shard: OpenShard


@dataclass(frozen=True, slots=True)
class Flush:
    """Event: whatever came before is to be done with, and committed, before anything follows."""

    done: asyncio.Event


Event = OpenShard | ShardItem | Closed | Flush


def run_worker(run: RunDir, assignment: Assignment, job_alive: JobAlive) -> str:
    """Work until no shard is left, time is nearly up or a signal comes; the final state.

    Errors are recorded in the worker's progress file and raised. An engine's death is noted in
    the ledgers of the shards at work, and the worker begins anew with another one, if there is
    time to load it.
    """
    plan = Plan.load(run)
    log = ProgressLog(run, LeaseOwner.current(), "refine")
    ends = None if assignment.seconds is None else time.monotonic() + assignment.seconds
    log.write("starting")
    try:
        for _ in range(MAX_RESTARTS - 1):
            booted = log.boot_seconds
            try:
                return asyncio.run(_main(run, plan, log, assignment, ends, job_alive))
            except EngineDiedError as error:
                log.write("starting", error=type(error).__name__, message=str(error)[:2000])
            if ends is not None and ends - time.monotonic() < log.boot_seconds - booted:
                log.write("stopped")
                return "stopped"
        return asyncio.run(_main(run, plan, log, assignment, ends, job_alive))
    except BaseException as error:
        with suppress(RetryError):  # on a full disk the error itself matters more
            log.write("failed", error=type(error).__name__, message=str(error)[:2000])
        raise


async def _main(
    run: RunDir,
    plan: Plan,
    log: ProgressLog,
    assignment: Assignment,
    ends: float | None,
    job_alive: JobAlive,
) -> str:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    if ends is not None:
        loop.call_later(max(0.0, ends - time.monotonic()), stop.set)
    began = time.monotonic()
    for model in plan.models.values():
        check_model(model)
    refiner = await open_refiner(plan.manifest, plan.models)
    log.boot_seconds += time.monotonic() - began
    log.device, log.devices = device_name(plan.manifest.engine.name)
    # Only now: an engine installs handlers of its own while it starts.
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    leases = Leases(run, log.owner, job_alive, assignment.stale_after)
    leaser = Leaser(run, plan, leases, (assignment.number, assignment.of))
    worker = Worker(refiner, leaser, log, ends)
    try:
        working = asyncio.create_task(worker.work())
        stopping = asyncio.create_task(stop.wait())
        beating = asyncio.create_task(_beat(log))
        await asyncio.wait({working, stopping, beating}, return_when=asyncio.FIRST_COMPLETED)
        state = "done" if working.done() and not worker.out_of_time else "stopped"
        working.cancel()
        stopping.cancel()
        beating.cancel()
        results = await asyncio.gather(working, beating, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
    finally:
        await refiner.close()
    log.write(state)
    return state


async def _beat(log: ProgressLog) -> None:
    while True:
        await asyncio.sleep(1.0)
        log.heartbeat()


class Worker:
    """Moves documents from leased shards through the refiner into their ledgers."""

    def __init__(
        self, refiner: Refiner, leaser: Leaser, log: ProgressLog, deadline: float | None = None
    ) -> None:
        """`deadline` is when it must have ended, on the monotonic clock."""
        self.refiner, self.leaser, self.log, self.deadline = refiner, leaser, log, deadline
        self.out_of_time = False
        self._open: list[OpenShard] = []
        self._leasing: asyncio.Future[OpenShard | Literal["wait"] | None] | None = None
        self._busy_before = log.busy_seconds  # in earlier lives
        self._done_before = log.counts.bytes_in
        self._asked_before = log.asked
        self._started = time.monotonic()

    async def work(self) -> None:
        """Until there is nothing left to lease. Cancelling commits and gives leases back.

        EngineDiedError: noted in the ledgers of the shards at work.
        """
        budget = Budget(IN_FLIGHT_DOCUMENTS, IN_FLIGHT_BYTES)
        shard: OpenShard | None = None
        died = ""
        self._started = time.monotonic()
        try:
            async with aclosing(
                in_order(self._events(), self._do, event_weight, budget)
            ) as results:
                async for event, row in results:
                    self._account()
                    if isinstance(event, OpenShard):
                        shard = event
                    elif isinstance(event, Closed):
                        self._publish(event.shard)
                    elif isinstance(event, Flush):
                        if shard is not None and shard in self._open:
                            self._commit(shard)
                        event.done.set()
                    elif shard is not None:
                        self._take(shard, event, row)
        except EngineDiedError as error:
            died = str(error)
            raise
        finally:
            self._account()
            with ExitStack() as leaving:
                for left in self._open:
                    leaving.callback(left.leave, died)
                    self.log.deaths += bool(died)
                for left in self._open:
                    self._commit(left)
            if self._leasing is not None:
                unused = await self._leasing
                if isinstance(unused, OpenShard):
                    unused.leave()

    def _account(self) -> None:
        self.log.busy_seconds = self._busy_before + self._seconds()
        self.log.asked = {
            level: usage + self._asked_before.get(level, Usage())
            for level, usage in self.refiner.asked.items()
        }

    def _take(self, shard: OpenShard, event: ShardItem, row: Row | None) -> None:
        if shard.lost:
            return
        if row is not None:
            shard.add(row)
        elif isinstance(event, End):
            shard.ends.append(event)
        if shard.due():
            self._commit(shard)

    def _commit(self, shard: OpenShard) -> None:
        self.log.counts += shard.commit()
        self.log.write("working", shard=shard.index)

    def _publish(self, shard: OpenShard) -> None:
        self._commit(shard)
        if shard.lost:
            shard.writer.close()
        elif shard.publish():
            self.log.shards += 1
        self._open.remove(shard)

    async def _do(self, event: Event) -> Row | None:
        if isinstance(event, Document):
            return await self.refiner.refine(event)
        if isinstance(event, Row):
            return event
        return bad_row(event) if isinstance(event, Bad) else None

    async def _lease(self) -> OpenShard | Literal["wait"] | None:
        # A thread cannot be cancelled, and may wait for Slurm: `work` gives back what it leases.
        self._leasing = asyncio.ensure_future(asyncio.to_thread(self.leaser.next))
        shard = await asyncio.shield(self._leasing)
        self._leasing = None
        if isinstance(shard, OpenShard):
            self._open.append(shard)
            if shard.stolen:  # told at once: this worker may die of it, too
                self.log.deaths += 1
                self.log.write("working", shard=shard.index)
        return shard

    def _ends_soon(self) -> bool:
        """Whether another shard would come to nothing in what is left of the job's time.

        A shard that fits is worth its lease; so is one that does not, for what is committed of
        it stays done, unless there is not even time for that.
        """
        plan, done = self.leaser.plan, self.log.counts.bytes_in - self._done_before
        if self.deadline is None or not done:  # a job too short for one shard must get on, too
            return False
        size = sum(shard.estimated_bytes for shard in plan.shards) / len(plan.shards)
        shard_seconds = size * self._seconds() / done
        commits_seconds = COMMITS_WORTH_A_LEASE * plan.manifest.commit.seconds
        return self.deadline - time.monotonic() < min(shard_seconds, commits_seconds)

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    async def _events(self) -> AsyncIterator[Event]:
        while True:
            if self._ends_soon():
                self.out_of_time = True
                return
            shard = await self._lease()
            if shard is None:
                return
            if shard == "wait":
                await asyncio.sleep(_POLL_SECONDS)
                continue
            if shard.batch:  # alone from its first document on
                async for flush in _flush():
                    yield flush
            yield shard
            async for item in _items(shard):
                yield item
            yield Closed(shard)


async def _flush() -> AsyncIterator[Flush]:
    done = asyncio.Event()
    yield Flush(done)
    await done.wait()


async def _items(shard: OpenShard) -> AsyncIterator[ShardItem | Flush]:
    """What a shard holds; where it needs care in batches, each done with before the next."""
    items = shard.items()
    number = shard.batch or BATCH
    while read := await asyncio.to_thread(take_batch, items, number, BATCH_BYTES, event_weight):
        for item in read:
            yield item
        if shard.batch:
            async for event in _flush():
                yield event
        if shard.lost:
            break


def event_weight(event: object) -> int:
    """Bytes of memory that a document's text takes; 1 for anything else."""
    return sys.getsizeof(event.text) if isinstance(event, Document) else 1

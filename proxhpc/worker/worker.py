"""A worker: leases shards, refines their documents, commits and publishes until none are left."""

import asyncio
import gc
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass, field
from typing import Literal

from proxhpc.corpus.document import BadRecord, Document, SpanEnd
from proxhpc.engines.base import EngineDiedError
from proxhpc.engines.device import device_name
from proxhpc.errors import RetryError, StopError
from proxhpc.refine.canary import REFUSAL_REASONS
from proxhpc.refine.pump import (
    IN_FLIGHT_BYTES,
    IN_FLIGHT_DOCUMENTS,
    Budget,
    Pace,
    in_order,
    take_batch,
)
from proxhpc.refine.refiner import Refiner, open_refiner
from proxhpc.run.lease import STALE_AFTER, JobAlive, LeaseOwner, Leases
from proxhpc.run.ledger import Row, bad_row
from proxhpc.run.models import check_model
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.progress import ProgressLog
from proxhpc.worker.leaser import Leaser
from proxhpc.worker.meter import Meter
from proxhpc.worker.shard import OpenShard, ShardItem

_log = logging.getLogger(__name__)

MAX_ENGINES = 8  # engines that a worker starts, one after another, before it gives up
IN_FLIGHT_SHARE = 0.5  # of the time between commits: the work that may be in flight
BATCH, BATCH_BYTES = 64, 4 * 1024 * 1024  # read ahead at a time, in a thread
MIN_COMMITS = 2  # for which a shard is worth leasing if there is no time for all of it
TICK_SECONDS = 0.5  # between two looks at the clock, for commits and heartbeats
_POLL_SECONDS = 5.0  # between two checks of lease holders
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which of the `workers` workers this one is, and how long it may run.

    Other workers count as dead after `stale_after` seconds without a heartbeat.
    """

    worker: int = 0
    workers: int = 1
    seconds: float | None = None
    stale_after: float = STALE_AFTER


@dataclass(frozen=True, slots=True)
class ShardEnd:
    """Event: every item of the shard has been read."""

    shard: OpenShard


@dataclass(frozen=True, slots=True)
class Flush:
    """Event: everything before it must be committed before anything after it starts."""

    done: asyncio.Event = field(default_factory=asyncio.Event)


Event = OpenShard | ShardItem | ShardEnd | Flush


def run_worker(run: RunDir, assignment: Assignment, job_alive: JobAlive) -> str:
    """Work until no shard is left, time is short, or a signal comes; return the final state.

    If the engine dies, the ledgers of open shards record it, and the worker starts another engine
    if there is time. Errors are written to the worker's progress file and raised.
    """
    plan = Plan.load(run)
    log = ProgressLog(run, LeaseOwner.current(), "refine")
    limit = assignment.seconds
    deadline = None if limit is None else time.monotonic() + limit
    log.write("starting")
    try:
        for _ in range(MAX_ENGINES - 1):
            boot_before = log.boot_seconds
            try:
                return asyncio.run(_main(run, plan, log, assignment, deadline, job_alive))
            except EngineDiedError as error:
                log.write("starting", error)
            boot_seconds = log.boot_seconds - boot_before
            if deadline is not None and deadline - time.monotonic() < boot_seconds:
                log.write("stopped")
                return "stopped"
        return asyncio.run(_main(run, plan, log, assignment, deadline, job_alive))
    except BaseException as error:
        with suppress(RetryError):  # if the disk is full, the first error matters more
            log.write("failed", error)
        raise


async def _main(
    run: RunDir,
    plan: Plan,
    log: ProgressLog,
    assignment: Assignment,
    deadline: float | None,
    job_alive: JobAlive,
) -> str:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    if deadline is not None:
        loop.call_later(max(0.0, deadline - time.monotonic()), stop.set)
    started = time.monotonic()
    for model in plan.models.values():
        check_model(model)
    refiner = await open_refiner(plan.frozen_manifest, plan.models, plan.prompts)
    gc.freeze()  # libraries and models stay: no later collection looks at them
    log.boot_seconds = round(log.boot_seconds + time.monotonic() - started, 3)
    log.device, log.devices = device_name(plan.manifest.engine.name)
    # Not earlier, because an engine installs its own handlers while it starts.
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    leases = Leases(run, log.owner, job_alive, assignment.stale_after)
    leaser = Leaser(run, plan, leases, (assignment.worker, assignment.workers))
    worker = Worker(refiner, leaser, log, deadline)
    try:
        working = asyncio.create_task(worker.work())
        stopping = asyncio.create_task(stop.wait())
        heartbeats = asyncio.create_task(worker.send_heartbeats())
        await asyncio.wait({working, stopping, heartbeats}, return_when=asyncio.FIRST_COMPLETED)
        state = "done" if working.done() and not worker.out_of_time else "stopped"
        working.cancel()
        stopping.cancel()
        heartbeats.cancel()
        results = await asyncio.gather(working, heartbeats, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
    finally:
        gc.unfreeze()  # else libraries in C++ report leaks when the process ends
        await refiner.close()
    for warning in refiner.canary.warnings():
        _log.warning("%s", warning)
    log.write(state)
    return state


class Worker:
    """Moves documents from leased shards through the refiner into their ledgers."""

    def __init__(
        self, refiner: Refiner, leaser: Leaser, log: ProgressLog, deadline: float | None = None
    ) -> None:
        """`deadline`, on the monotonic clock, is when the worker must have ended."""
        self.refiner, self.leaser, self.log, self.deadline = refiner, leaser, log, deadline
        self.out_of_time = False
        self._open: list[OpenShard] = []
        self._leasing: asyncio.Future[OpenShard | Literal["wait"] | None] | None = None
        self._meter = Meter(refiner, log, self._open)

    async def send_heartbeats(self) -> None:
        """Report the progress, and commit even while the next row takes long. Never ends."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._meter.update_log()
            for shard in self._open:
                if shard.rows and shard.commit_due():
                    self._commit(shard)
            self.log.heartbeat()

    async def work(self) -> None:
        """Work until no shard is left. If cancelled, commit and give back the leases.

        EngineDiedError is recorded in the ledgers of the open shards.
        """
        seconds = IN_FLIGHT_SHARE * self.leaser.plan.manifest.commit.seconds
        pace = Pace(self.refiner.min_in_flight, seconds)
        budget = Budget(IN_FLIGHT_DOCUMENTS, IN_FLIGHT_BYTES, pace)
        shard: OpenShard | None = None
        engine_error = ""
        try:
            async with aclosing(
                in_order(self._events(), self._row, event_weight, budget)
            ) as results:
                async for event, row in results:
                    if isinstance(event, Document):
                        self._meter.count_out(event)
                    if isinstance(event, OpenShard):
                        shard = event
                    elif isinstance(event, ShardEnd):
                        self._publish(event.shard)
                    elif isinstance(event, Flush):
                        if shard is not None and shard in self._open:
                            self._commit(shard)
                        event.done.set()
                    elif shard is not None:
                        self._add(shard, event, row)
        except EngineDiedError as error:
            engine_error = str(error)
            raise
        except StopError:
            for unfinished in self._open:
                unfinished.drop_from(REFUSAL_REASONS)
            raise
        finally:
            self._meter.update_log()
            with ExitStack() as leaving:
                for unfinished in self._open:
                    leaving.callback(unfinished.leave, engine_error)
                    self.log.deaths += bool(engine_error)
                for unfinished in self._open:
                    self._commit(unfinished)
            if self._leasing is not None:
                unused = await self._leasing
                if isinstance(unused, OpenShard):
                    unused.leave()

    def _add(self, shard: OpenShard, event: ShardItem, row: Row | None) -> None:
        if shard.lost:
            return
        if row is not None:
            shard.rows.append(row)
        elif isinstance(event, SpanEnd):
            shard.span_ends.append(event)
        if shard.commit_due():
            self.refiner.canary.check_refusals()
            self._commit(shard)

    def _commit(self, shard: OpenShard) -> None:
        self.log.counts += shard.commit()
        self._meter.update_log()
        self.log.write("working", shard=shard.index)

    def _publish(self, shard: OpenShard) -> None:
        self.refiner.canary.check_refusals()
        self._commit(shard)
        if shard.lost:
            shard.writer.close()
        elif shard.publish():
            self.log.shards += 1
        self._meter.count_published(shard)
        self._open.remove(shard)

    async def _row(self, event: Event) -> Row | None:
        if isinstance(event, Document):
            return await self._meter.refine(event)
        if isinstance(event, Row):
            return event
        return bad_row(event) if isinstance(event, BadRecord) else None

    async def _lease(self) -> OpenShard | Literal["wait"] | None:
        # The thread may wait for Slurm and cannot be cancelled; `work` gives its shard back.
        self._leasing = asyncio.ensure_future(asyncio.to_thread(self.leaser.next))
        shard = await asyncio.shield(self._leasing)
        self._leasing = None
        if isinstance(shard, OpenShard):
            self._open.append(shard)
            if shard.recorded_death:  # logged at once, because this worker may die of it, too
                self.log.deaths += 1
                self.log.write("working", shard=shard.index)
        return shard

    def _too_late(self) -> bool:
        """Return whether the remaining time is too short for another shard.

        A shard is worth leasing if all of it fits, or at least a few commits, which stay done.
        """
        plan, speed = self.leaser.plan, self._meter.bytes_per_second
        if self.deadline is None or not speed:  # always one shard, or short jobs would do nothing
            return False
        size = sum(shard.estimated_bytes for shard in plan.shards) / len(plan.shards)
        shard_seconds = size / speed
        commits_seconds = MIN_COMMITS * plan.manifest.commit.seconds
        return self.deadline - time.monotonic() < min(shard_seconds, commits_seconds)

    async def _events(self) -> AsyncIterator[Event]:
        while True:
            if self._too_late():
                self.out_of_time = True
                return
            shard = await self._lease()
            if shard is None:
                return
            if shard == "wait":
                await asyncio.sleep(_POLL_SECONDS)
                continue
            if shard.batch:  # nothing of other shards may be in flight with its first batch
                yield (flush := Flush())
                await flush.done.wait()
            yield shard
            async for item in _items(shard):
                if not isinstance(item, Flush):
                    shard.count_read(item)
                if isinstance(item, Document):
                    self._meter.count_read(item)
                yield item
            yield ShardEnd(shard)


async def _items(shard: OpenShard) -> AsyncIterator[ShardItem | Flush]:
    """Yield the items of a shard, with a flush after each batch if it is in crash backoff."""
    items = shard.items()
    number = shard.batch or BATCH
    while batch := await asyncio.to_thread(take_batch, items, number, BATCH_BYTES, event_weight):
        for item in batch:
            yield item
        if shard.batch:
            yield (flush := Flush())
            await flush.done.wait()
        if shard.lost:
            break


def event_weight(event: object) -> int:
    """Return the bytes of memory of a document's text; 1 for other events."""
    return sys.getsizeof(event.text) if isinstance(event, Document) else 1

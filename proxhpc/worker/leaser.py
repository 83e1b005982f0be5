"""Chooses the next shard of a worker."""

import os
import time
from collections.abc import Iterator
from typing import Literal

from proxhpc.run.crash_backoff import TAIL_CHARS
from proxhpc.run.lease import LeaseOwner, Leases
from proxhpc.run.paths import SHARDS_PER_FOLDER, RunDir, shard_name
from proxhpc.run.plan import Plan
from proxhpc.run.shards import ShardFolder, list_folder
from proxhpc.worker.shard import OpenShard, open_shard

MAX_CHECKS = 64  # lease holders that one call checks

LeasedShard = tuple[int, int]  # number of the shard, attempt of the lease


class Leaser:
    """Hands out shards: free ones, from the worker's own range on, then those of dead workers.

    Each of `workers` workers starts at another position, so workers rarely meet, and an
    undisturbed run gives each worker the same shards every time. Workers that would start within a
    compressed file start side by side at its first shard instead: who reads a shard finds the point
    from which the next one can be decompressed.

    A call lists the leases and usually one folder of shards. Finished shards are remembered; shards
    under lease are not looked at until their lease is gone or no shard is free. Then a call checks
    up to MAX_CHECKS holders, and those that are alive again only after `stale_after` seconds.
    """

    def __init__(self, run: RunDir, plan: Plan, leases: Leases, position: tuple[int, int]) -> None:
        self.run, self.plan, self.leases = run, plan, leases
        worker, workers = position
        count = len(plan.shards)
        first = first_shard(plan, worker % workers, workers)
        # Unfinished shards in order of preference. A dict removes a shard in O(1).
        self._unfinished = dict.fromkeys([*range(first, count), *range(first)])
        self._alive_until: dict[LeasedShard, float] = {}
        self._last_checked = -1

    def next(self) -> OpenShard | Literal["wait"] | None:
        """Return a shard to work on, or "wait" while it is unclear whether a holder is alive.

        None if all unfinished shards are leased by workers that are alive.
        """
        attempts = self.leases.highest_attempts()
        folders: dict[int, ShardFolder] = {}
        finished: list[int] = []
        leased: list[LeasedShard] = []
        try:
            for shard in self._unfinished:
                if attempt := attempts.get(shard_name(shard)):
                    leased.append((shard, attempt))
                    continue
                number = shard // SHARDS_PER_FOLDER
                if number not in folders:
                    folders[number] = list_folder(self.run, shard)
                if shard in folders[number].finished:
                    finished.append(shard)
                elif opened := self._open_free(shard, folders[number]):
                    return opened
        finally:
            for shard in finished:
                del self._unfinished[shard]
        return self._open_dead(leased)

    def _open_free(self, shard: int, folder: ShardFolder) -> OpenShard | None:
        last = max(folder.attempts[shard], default=0)
        lease = self.leases.take(shard_name(shard), last + 1)
        if lease and last and self.run.lease(shard_name(shard), last).exists():
            # The shard was leased after the leases were listed: its holder writes attempt `last`.
            lease.release()
            return None
        return open_shard(self.run, self.plan, shard, lease) if lease else None

    def _open_dead(self, leased: list[LeasedShard]) -> OpenShard | Literal["wait"] | None:
        now = time.monotonic()
        self._alive_until = {key: end for key, end in self._alive_until.items() if end > now}
        wait = False
        for checks, key in enumerate(self._unclear(leased)):
            if checks == MAX_CHECKS:
                return "wait"
            shard, attempt = key
            self._last_checked = shard
            if self.run.ledger(shard).exists():
                del self._unfinished[shard]
                continue
            owner = self.leases.holder(shard_name(shard), attempt)
            alive = self.leases.is_alive(owner) if owner else None
            if alive:
                self._alive_until[key] = now + self.leases.stale_after
                continue
            wait = True  # also if another worker is faster now
            if owner and alive is False and (opened := self._take_over(shard, attempt, owner)):
                return opened
        return "wait" if wait else None

    def _unclear(self, leased: list[LeasedShard]) -> Iterator[LeasedShard]:
        """Yield the leases whose holders may be dead, those after the last checked one first."""
        checked = [
            number for number, (shard, _) in enumerate(leased) if shard == self._last_checked
        ]
        start = checked[0] + 1 if checked else 0
        yield from (key for key in leased[start:] + leased[:start] if key not in self._alive_until)

    def _take_over(self, shard: int, attempt: int, dead: LeaseOwner) -> OpenShard | None:
        lease = self.leases.take_over(shard_name(shard), attempt, dead)
        tail = log_tail(self.run, dead)
        return open_shard(self.run, self.plan, shard, lease, tail) if lease else None


def first_shard(plan: Plan, worker: int, workers: int) -> int:
    """Return the shard at which one of several workers starts."""
    count = len(plan.shards)
    starts = [number * count // workers for number in range(worker + 1)]
    first = starts[-1]
    info = plan.inputs[plan.shards[first].spans[0].file]
    if info.compression == "none" or not info.enterable:
        return first
    while plan.shards[first].spans[0].start:
        first -= 1
    beside = sum(start >= first for start in starts[:-1])
    return min(first + beside, count - 1)


def log_tail(run: RunDir, owner: LeaseOwner) -> str:
    """Return who a dead worker was, and the end of its log."""
    description = f"{owner.worker} on {owner.node or owner.host} died without an error message"
    try:
        with max(run.job_logs(owner.job, owner.pid), key=os.path.getmtime).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_CHARS))
            tail = file.read(TAIL_CHARS).decode("utf-8", "replace").strip()
    except (OSError, ValueError):  # there is no log, or it has been deleted
        return description
    return f"{description}; its log ends with:\n{tail}" if tail else description


def sweep(run: RunDir, plan: Plan) -> None:
    """Remove leases and attempts of workers that died after a publication.

    Only for a run whose shards all have their ledger: a worker still on one of them has lost it.
    """
    for entry in os.scandir(run.leases):
        if entry.name.partition(".")[0].isdigit():
            run.leases.joinpath(entry.name).unlink(missing_ok=True)
    for first in range(0, len(plan.shards), SHARDS_PER_FOLDER):
        for shard, numbers in list_folder(run, first).attempts.items():
            for number in numbers:
                run.attempt(shard, number).unlink(missing_ok=True)

"""Which shard a worker takes next."""

import os
import re
from typing import Literal

from proxhpc.run.crash_backoff import TAIL_CHARS
from proxhpc.run.lease import Lease, LeaseOwner, Leases
from proxhpc.run.paths import SHARDS_PER_FOLDER, RunDir, shard_name
from proxhpc.run.plan import Plan
from proxhpc.run.shards import attempts
from proxhpc.worker.shard import OpenShard, open_shard


class Leaser:
    """Hands out shards: this worker's own stretch first, then what is free, then dead ones'.

    Each of `of` workers starts at its own place in the list, so that workers rarely meet and an
    undisturbed run gives every worker the same shards each time.
    """

    def __init__(self, run: RunDir, plan: Plan, leases: Leases, place: tuple[int, int]) -> None:
        self.run, self.plan, self.leases = run, plan, leases
        number, of = place
        count = len(plan.shards)
        first = (number % of) * count // of
        # Insertion order is the order of preference; a dict forgets a finished shard in O(1).
        self._open = dict.fromkeys([*range(first, count), *range(first)])

    def next(self) -> OpenShard | Literal["wait"] | None:
        """A shard to work on; "wait" while it is unclear whether a lease holder lives."""
        held = self.leases.highest_attempts()
        taken: list[tuple[int, int]] = []
        for shard in list(self._open):
            if self.run.ledger(shard).exists():
                del self._open[shard]
            elif attempt := held.get(shard_name(shard)):
                taken.append((shard, attempt))
            elif opened := self._begin(shard, self._fresh(shard)):
                return opened
        return self._from_the_dead(taken)

    def _from_the_dead(self, taken: list[tuple[int, int]]) -> OpenShard | Literal["wait"] | None:
        unclear = False
        for shard, attempt in taken:
            owner = self.leases.holder(shard_name(shard), attempt)
            alive = self.leases.is_alive(owner) if owner else None
            if owner and alive is False:
                lease = self.leases.take_over(shard_name(shard), attempt)
                if opened := self._begin(shard, lease, log_tail(self.run, owner)):
                    return opened
            unclear = unclear or alive is None
        return "wait" if unclear else None

    def _fresh(self, shard: int) -> Lease | None:
        last = max(attempts(self.run, shard), default=0)
        lease = self.leases.take(shard_name(shard), last + 1)
        if lease and last and self.run.lease(shard_name(shard), last).exists():
            # Somebody took it since we looked; that file is what he is writing.
            lease.release()
            return None
        return lease

    def _begin(self, shard: int, lease: Lease | None, died: str = "") -> OpenShard | None:
        return open_shard(self.run, self.plan, shard, lease, died) if lease else None


def log_tail(run: RunDir, owner: LeaseOwner) -> str:
    """What a worker that is gone left in its log, behind who it was."""
    who = f"{owner.worker} on {owner.node or owner.host} ended without a word"
    try:
        with max(run.job_logs(owner.job, owner.pid), key=os.path.getmtime).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_CHARS))
            tail = file.read(TAIL_CHARS).decode("utf-8", "replace").strip()
    except (OSError, ValueError):  # no log, or it is gone by now
        return who
    return f"{who}; its log ends with:\n{tail}" if tail else who


def sweep(run: RunDir, plan: Plan) -> None:
    """Remove leases and attempts of workers that died behind a publication.

    Only for a run of which every shard has its ledger: whoever still works on one has lost it.
    """
    for entry in os.scandir(run.leases):
        if entry.name.partition(".")[0].isdigit():
            run.leases.joinpath(entry.name).unlink(missing_ok=True)
    for first in range(0, len(plan.shards), SHARDS_PER_FOLDER):
        folder = run.shard_folder(first)
        for entry in os.scandir(folder):
            if re.fullmatch(r"\d+\.a\d+", entry.name):
                folder.joinpath(entry.name).unlink(missing_ok=True)

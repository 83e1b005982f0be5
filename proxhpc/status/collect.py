"""Collects the status of a run from its directory and the queue. It only reads."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from math import inf
from typing import Protocol

from proxhpc.cluster.backend import recorded_site, stale_after
from proxhpc.cluster.journal import Journal
from proxhpc.cluster.queue import QueuedJob
from proxhpc.cluster.silent import find_silent
from proxhpc.errors import RetryError
from proxhpc.outputs import UsageTotals
from proxhpc.run.lease import LeaseOwner, Leases
from proxhpc.run.paths import RunDir, shard_name
from proxhpc.run.plan import Plan
from proxhpc.run.progress import Heartbeat
from proxhpc.run.shards import missing_shards
from proxhpc.status.assess import ACTIVE_STATES, Evidence, assess, group_failures
from proxhpc.status.heartbeats import latest_heartbeats
from proxhpc.status.model import (
    MergeProgress,
    ShardProgress,
    Status,
    Throughput,
    WorkerStatus,
    WorkProgress,
)
from proxhpc.status.remaining import estimate_remaining
from proxhpc.status.totals import load_merge, run_counts, run_totals


class QueueView(Protocol):
    """The part of the queue that status needs."""

    def jobs(self, run_id: str, submitted: Mapping[str, str]) -> Sequence[QueuedJob]:
        """Return the pending and running jobs of a run. RetryError without an answer."""


class Collector:
    """Collects the status of one run repeatedly; the plan, which never changes, is read once."""

    def __init__(self, run: RunDir, queue: QueueView | None) -> None:
        self.run, self.queue = run, queue
        self.plan = Plan.load(run)
        self._leases = Leases(run, LeaseOwner.current("status"), lambda job: None)
        self._shard_bytes = [shard.estimated_bytes for shard in self.plan.shards]

    def collect(self) -> Status:
        """Return the status of the run now."""
        is_local = self.run.site.exists() and recorded_site(self.run).kind == "local"
        jobs, queue_problem = (None, "") if is_local else self._read_queue()
        now = time.time()
        heartbeats = latest_heartbeats(self.run)
        workers = self._workers(heartbeats, jobs, now)
        pending = list(missing_shards(self.run, self.plan))
        leases = self._leases.highest_attempts() if self.run.leases.is_dir() else {}
        leased = [shard for shard in pending if shard_name(shard) in leases]
        merged = load_merge(self.run)
        counts = run_counts(merged, heartbeats)
        submissions = Journal(self.run).read()
        rounds = [entry for entry in submissions if entry.phase in ("refine", "merge")]
        silent = None
        if rounds and jobs is not None:
            spoke = {beat.owner.job for beat in heartbeats}
            silent = find_silent(self.run, rounds[-1], spoke, {job.id for job in jobs})
        evidence = Evidence(
            run=self.run,
            workers=workers,
            jobs=jobs,
            is_local=is_local,
            submissions=len(submissions),
            pending_shards=len(pending),
            is_advancing=self._is_advancing(leases),
            silent=silent,
        )
        phase, reason, next_step = assess(evidence)
        refinements = [entry for entry in submissions if entry.phase == "refine"]
        total = len(self._shard_bytes)
        pairs = zip(heartbeats, workers, strict=True)
        refining = [(beat, worker) for beat, worker in pairs if worker.role == "refine"]
        ages = [(b, w.age_s if w.state in ACTIVE_STATES else inf) for b, w in refining]
        remaining = estimate_remaining(self._shard_bytes, pending, ages)
        return Status(
            **dict(run_totals(counts, merged)),
            run=str(self.run.root),
            name=self.plan.manifest.name,
            run_id=self.plan.run_id,
            time=round(now, 3),
            phase=phase,
            reason=reason,
            next_step=next_step,
            exact=merged is not None,
            shards=ShardProgress(total=total, done=total - len(pending), leased=len(leased)),
            merge=() if pending or merged else self._merge_progress(),
            token_unit=self.plan.token_unit,
            doc=UsageTotals.model_validate(counts.doc),
            chunk=UsageTotals.model_validate(counts.chunk),
            work=WorkProgress(
                tokens_answered=remaining.answered,
                tokens_estimated=round(remaining.answered + remaining.left),
                share=round(remaining.share, 4),
            ),
            speed=Throughput(
                documents_per_s=_total([worker.documents_per_s for _, worker in refining]),
                tokens_per_s=_total([beat.work.speed or None for beat, age in ages if age < inf]),
                eta_s=remaining.seconds,
            ),
            workers=workers,
            deaths=sum(beat.deaths for beat in heartbeats),
            excluded_nodes=tuple(refinements[-1].excluded_nodes) if refinements else (),
            failures=group_failures(evidence),
            queue=None if jobs is None else _count_jobs(jobs),
            queue_problem=queue_problem,
        )

    def _read_queue(self) -> tuple[list[QueuedJob] | None, str]:
        if self.queue is None:
            return None, ""
        try:
            submitted = Journal(self.run).job_phases()
            return list(self.queue.jobs(self.plan.run_id, submitted)), ""
        except RetryError as error:
            return None, error.message.partition("\n")[0]

    def _is_advancing(self, leases: dict[str, int]) -> bool:
        """Return True if a launcher or control job is taking a step."""
        attempt = leases.get("advance")
        if attempt is None:
            return False
        owner = self._leases.holder("advance", attempt)
        return owner is not None and owner.is_running() is not False

    def _merge_progress(self) -> tuple[MergeProgress, ...]:
        from proxhpc.assemble.phases import merge_progress  # numpy: not while a run is refined

        return tuple(
            MergeProgress(phase=phase, total=total, done=done)
            for phase, done, total in merge_progress(self.run, self.plan)
        )

    def _workers(
        self, heartbeats: list[Heartbeat], jobs: list[QueuedJob] | None, now: float
    ) -> tuple[WorkerStatus, ...]:
        by_id = None if jobs is None else {job.id: job for job in jobs}
        max_age = stale_after(self.run)
        return tuple(_worker_status(beat, by_id, now, max_age) for beat in heartbeats)


def collect(run: RunDir, queue: QueueView | None) -> Status:
    """Return the status of a run now. `queue` is None where there is no Slurm."""
    return Collector(run, queue).collect()


def _worker_status(
    last: Heartbeat, jobs: dict[str, QueuedJob] | None, now: float, max_age: float
) -> WorkerStatus:
    owner = last.owner
    age = max(0.0, now - last.time)
    job = jobs.get(owner.job) if jobs and owner.job else None
    state = last.state
    if state in ACTIVE_STATES:
        is_queued = None if jobs is None else job is not None
        state = _worker_state(owner, state, is_queued, age > max_age)
    return WorkerStatus(
        worker=owner.worker,
        role=last.role,
        host=owner.host,
        job=owner.job,
        state=state,
        age_s=round(age, 1),
        shard=last.shard,
        shards=last.shards,
        documents=last.counts.documents,
        documents_per_s=(last.work.documents or None) if state == "working" else None,
        busy_s=last.busy_seconds,
        boot_s=last.boot_seconds,
        slurm=job.state if job else "",
        error=last.error,
        message=last.message,
    )


def _worker_state(owner: LeaseOwner, state: str, is_queued: bool | None, is_stale: bool) -> str:
    """Return `state`, or `gone` if its process or job has ended, or `silent` if it may have."""
    is_running = owner.is_running()
    if is_running is None and owner.job:
        is_running = is_queued
    if is_running is False:
        return "gone"
    return "silent" if is_running is None and is_stale else state


def _count_jobs(jobs: Sequence[QueuedJob]) -> dict[str, int]:
    """Count jobs by phase and state, and pending ones by Slurm's reason, too."""
    numbers: Counter[str] = Counter()
    for job in jobs:
        reason = f" ({job.reason})" if job.state == "PENDING" and job.reason else ""
        numbers[f"{job.phase} {job.state}{reason}".strip()] += 1
    return dict(sorted(numbers.items()))


def _total(rates: Sequence[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    return round(sum(known), 2) if known else None

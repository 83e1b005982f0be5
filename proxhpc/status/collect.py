"""What a run directory and the queue say of a run at this moment. Reads, and never writes."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson

from proxhpc.account.counts import Counts
from proxhpc.cluster.backend import stale_after
from proxhpc.cluster.journal import Journal
from proxhpc.cluster.slurm import QueuedJob
from proxhpc.errors import RetryError, StopError
from proxhpc.run.lease import LeaseOwner, Leases
from proxhpc.run.paths import RunDir, shard_name
from proxhpc.run.plan import Plan
from proxhpc.run.shards import missing_shards
from proxhpc.status.assess import ALIVE, Evidence, assess, failures
from proxhpc.status.heartbeats import Recent, recent_heartbeats
from proxhpc.status.model import MergeProgress, Shards, Status, Throughput, WorkerStatus
from proxhpc.status.totals import load_merge, run_counts


class QueueView(Protocol):
    """The queue, as far as status asks it."""

    def jobs(self, run_id: str) -> Sequence[QueuedJob]:
        """Jobs of a run that wait or run. RetryError when the queue does not answer."""
        ...


class Collector:
    """Looks at one run again and again; the plan, which never changes, is read once."""

    def __init__(self, run: RunDir, queue: QueueView | None) -> None:
        self.run, self.queue = run, queue
        self.plan = Plan.load(run)
        self._leases = Leases(run, LeaseOwner.current("status"), lambda job: None)
        self._sizes = [shard.estimated_bytes for shard in self.plan.shards]

    def collect(self) -> Status:
        """The state of the run now. UserError when the directory is no run."""
        local = _load(self.run.site).get("kind") == "local"
        jobs, problem = (None, "") if local else self._ask()
        now = time.time()
        beats = recent_heartbeats(self.run)
        states = {job.id: job for job in jobs or ()}
        quiet = stale_after(self.run)
        workers = tuple(
            self._worker(recent, states, jobs is not None, now, quiet) for recent in beats
        )
        left = list(missing_shards(self.run, self.plan))
        held = self._held()
        in_work = [shard for shard in left if shard_name(shard) in held]
        merged = load_merge(self.run)
        submissions = Journal(self.run).read()
        signs = Evidence(
            run=self.run,
            workers=workers,
            jobs=jobs,
            local=local,
            submissions=len(submissions),
            left=len(left),
            stepping=self._stepping(held),
        )
        phase, reason, next_step = assess(signs)
        refinements = [entry for entry in submissions if entry.phase == "refine"]
        return Status(
            run=str(self.run.root),
            name=self.plan.manifest.name,
            run_id=self.plan.run_id,
            time=round(now, 3),
            phase=phase,
            reason=reason,
            next_step=next_step,
            shards=Shards(len(self._sizes), len(self._sizes) - len(left), len(in_work)),
            merge=() if left or merged else self._merge(),
            counts=run_counts(merged, (recent.last for recent in beats)),
            exact=merged is not None,
            token_unit=self.plan.token_unit,
            duplicates=merged.duplicates.documents if merged else None,
            written=merged.written if merged else None,
            speed=self._speed(beats, workers, left, in_work),
            workers=workers,
            deaths=sum(recent.last.deaths for recent in beats),
            left_out=refinements[-1].exclude if refinements else (),
            failures=failures(signs),
            queue=None if jobs is None else _queue(jobs),
            queue_problem=problem,
        )

    def _ask(self) -> tuple[list[QueuedJob] | None, str]:
        if self.queue is None:
            return None, ""
        try:
            return list(self.queue.jobs(self.plan.run_id)), ""
        except RetryError as error:
            return None, error.message.partition("\n")[0]

    def _held(self) -> dict[str, int]:
        if not self.run.leases.is_dir():
            return {}
        return self._leases.highest_attempts()

    def _stepping(self, held: dict[str, int]) -> bool:
        """Whether a launcher or control job holds the lease on stepping the run forward."""
        attempt = held.get("advance")
        if attempt is None:
            return False
        owner = self._leases.holder("advance", attempt)
        return owner is not None and owner.is_running() is not False

    def _merge(self) -> tuple[MergeProgress, ...]:
        from proxhpc.assemble.phases import pending_units  # numpy: not while a run is refined

        phases = pending_units(self.run, self.plan)
        return tuple(MergeProgress(p.phase, p.total, p.total - len(p.units)) for p in phases)

    def _worker(
        self, recent: Recent, jobs: dict[str, QueuedJob], asked: bool, now: float, quiet: float
    ) -> WorkerStatus:
        beat, earlier, seconds = recent.last, recent.earlier, recent.seconds
        age = max(0.0, now - beat.time)
        job = jobs.get(beat.owner.job) if beat.owner.job else None
        state = beat.state
        if state in ALIVE:
            in_queue = (job is not None) if asked else None
            state = _liveness(beat.owner, state, in_queue, age > quiet)
        working = earlier is not None and state == "working"
        before = earlier.counts if earlier else Counts()
        return WorkerStatus(
            worker=beat.owner.worker,
            role=beat.role,
            host=beat.owner.host,
            job=beat.owner.job,
            state=state,
            age_s=round(age, 1),
            shard=beat.shard,
            shards=beat.shards,
            documents=beat.counts.documents,
            documents_per_s=(beat.counts.documents - before.documents) / seconds
            if working
            else None,
            tokens_per_s=(beat.counts.tokens_in - before.tokens_in) / seconds if working else None,
            busy_s=beat.busy_seconds,
            boot_s=beat.boot_seconds,
            slurm=job.state if job else "",
            error=beat.error,
            message=beat.message,
        )

    def _speed(
        self,
        beats: list[Recent],
        workers: Sequence[WorkerStatus],
        left: list[int],
        in_work: list[int],
    ) -> Throughput:
        """Sums over the workers that work, and how long what is left will take them.

        Shard sizes are estimates of decompressed bytes with all fields; rows count bytes of text.
        The ratio of the two is taken from what is done; a shard in work counts as half done.
        """
        pairs = [
            (recent, worker)
            for recent, worker in zip(beats, workers, strict=True)
            if worker.documents_per_s is not None and worker.role == "refine"
        ]
        if not pairs:
            return Throughput(None, None, 0.0 if not left else None)
        documents = sum(worker.documents_per_s or 0.0 for _, worker in pairs)
        tokens = sum(worker.tokens_per_s or 0.0 for _, worker in pairs)
        read = sum(_bytes_per_second(recent) for recent, _ in pairs)
        seen = sum(r.last.counts.bytes_in for r in beats if r.last.role == "refine")
        remaining = float(sum(self._sizes[shard] for shard in left))
        done = sum(self._sizes) - remaining
        if done and seen:
            half = sum(self._sizes[shard] for shard in in_work) / 2
            remaining = max(0.0, remaining - half) * min(1.0, seen / (done + half))
        else:
            remaining = max(0.0, remaining - seen)
        return Throughput(round(documents, 2), round(tokens, 1), remaining / read if read else None)


def collect(run: RunDir, queue: QueueView | None) -> Status:
    """The state of a run now. `queue` is None where nobody can ask Slurm."""
    return Collector(run, queue).collect()


def _load(path: Path) -> dict[str, Any]:
    """A JSON file that is written whole; empty while it is not there."""
    try:
        data = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except orjson.JSONDecodeError as error:
        raise StopError(
            f"{path} is damaged: {error}", hint="proxhpc verify says what else is, and mends it"
        ) from error
    return data if isinstance(data, dict) else {}


def _queue(jobs: Sequence[QueuedJob]) -> dict[str, int]:
    """Jobs by phase and state; a waiting one with the reason that Slurm gives."""
    found: Counter[str] = Counter()
    for job in jobs:
        reason = f" ({job.reason})" if job.state == "PENDING" and job.reason else ""
        found[f"{job.phase} {job.state}{reason}".strip()] += 1
    return dict(sorted(found.items()))


def _liveness(owner: LeaseOwner, state: str, in_queue: bool | None, stale: bool) -> str:
    """`state`, or `gone` when its process or job is known to be, or `silent` when it may be."""
    alive = owner.is_running()
    if alive is None and owner.job:
        alive = in_queue
    if alive is False:
        return "gone"
    return "silent" if alive is None and stale else state


def _bytes_per_second(recent: Recent) -> float:
    if recent.earlier is None:
        return 0.0
    return (recent.last.counts.bytes_in - recent.earlier.counts.bytes_in) / recent.seconds

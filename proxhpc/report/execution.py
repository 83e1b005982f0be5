"""How a run went: its workers, their time and their GPUs."""

from collections.abc import Sequence

import orjson
from pydantic import ValidationError

from proxhpc.account.counts import Counts
from proxhpc.account.devices import peak_flops
from proxhpc.account.flops import Usage, flops, sum_or_none
from proxhpc.outputs import UsageTotals
from proxhpc.report.model import ExecutionReport, GpuReport, RequestWork, Timeline, WorkerReport
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.spec.site import Site
from proxhpc.status.heartbeats import Heartbeat

_MFU_COUNTED_AS = (
    "exact FLOPs, including work done twice, as a share of the GPUs' dense bfloat16 peak over the "
    "time at work; loading models is left out"
)


def execution_report(
    run: RunDir,
    plan: Plan,
    counts: Counts,
    heartbeats: Sequence[Heartbeat],
    timeline: Timeline | None,
) -> ExecutionReport:
    """Workers and times of a run, from their last heartbeats."""
    refining = [beat for beat in heartbeats if beat.role == "refine"]
    busy = sum(beat.busy_seconds for beat in refining)
    boot = sum(beat.boot_seconds for beat in refining)
    return ExecutionReport(
        run_id=plan.run_id,
        plan=plan.digest,
        created=plan.created,
        last_heard=max((beat.time for beat in heartbeats), default=None),
        workers=len(refining),
        busy_seconds=round(busy, 3),
        boot_seconds=round(boot, 3),
        gpus=_gpus(refining, _site_gpus(run), plan),
        redone=_redone(refining, plan, counts),
        documents_per_worker_second=_rate(counts.documents, busy),
        tokens_per_worker_second=_rate(counts.tokens_in, busy),
        by_worker=tuple(map(_worker, heartbeats)),
        timeline=timeline,
    )


def _gpus(heartbeats: Sequence[Heartbeat], site_gpus: int | None, plan: Plan) -> GpuReport:
    """GPU time: the workers' time, loading included, times the GPUs of each.

    It is None if neither a worker nor the latest launch's site knows the number of GPUs. The
    utilization is None unless every GPU's peak is known.
    """
    numbers = (beat.devices if beat.device else site_gpus for beat in heartbeats)
    pairs = [(beat, n) for beat, n in zip(heartbeats, numbers, strict=True) if n is not None]
    busy = boot = None
    if len(pairs) == len(heartbeats):
        busy = round(sum(beat.busy_seconds * number for beat, number in pairs), 3)
        boot = round(sum(beat.boot_seconds * number for beat, number in pairs), 3)
    done = sum_or_none([_request_flops(plan, beat) for beat in heartbeats])
    peaks = [peak_flops(beat.device) for beat in heartbeats]
    possible = sum(
        (peak or 0) * beat.devices * beat.busy_seconds
        for peak, beat in zip(peaks, heartbeats, strict=True)
    )
    utilization = None
    if done is not None and possible > 0 and None not in peaks:
        utilization = round(done / possible, 6)
    return GpuReport(
        devices=tuple(sorted({beat.device for beat in heartbeats if beat.device})),
        busy_seconds=busy,
        boot_seconds=boot,
        model_flops_utilization=utilization,
        counted_as=None if utilization is None else _MFU_COUNTED_AS,
    )


def _request_flops(plan: Plan, beat: Heartbeat) -> int | None:
    """FLOPs of all requests to a worker's engines, whether or not their answers were committed."""
    shapes = {level: model.shape for level, model in plan.models.items()}
    return sum_or_none(
        [
            flops(shape, usage) if (shape := shapes.get(level)) else None
            for level, usage in beat.usage.items()
        ]
    )


def _redone(heartbeats: Sequence[Heartbeat], plan: Plan, counts: Counts) -> dict[str, RequestWork]:
    """By stage: requests beyond the counts. What a worker did after its last heartbeat is lost."""
    work = {}
    for level, model in plan.models.items():
        usage = sum((beat.usage.get(level, Usage()) for beat in heartbeats), Usage())
        beyond = usage.excess_over(getattr(counts, level))
        exact = flops(model.shape, beyond) if model.shape else None
        work[level] = RequestWork(usage=UsageTotals.model_validate(beyond), flops=exact)
    return work


def _worker(beat: Heartbeat) -> WorkerReport:
    return WorkerReport(
        worker=beat.owner.worker,
        role=beat.role,
        host=beat.owner.host,
        job=beat.owner.job,
        device=beat.device,
        state=beat.state,
        shards=beat.shards,
        documents=beat.counts.documents,
        busy_seconds=beat.busy_seconds,
        boot_seconds=beat.boot_seconds,
        tokens_per_second=_rate(beat.counts.tokens_in, beat.busy_seconds),
        message=beat.message,
    )


def _site_gpus(run: RunDir) -> int | None:
    """GPUs of a worker on the latest launch's site."""
    try:
        resources = Site.model_validate(orjson.loads(run.site.read_bytes())).resources("refine")
    except (FileNotFoundError, orjson.JSONDecodeError, ValidationError):
        return None  # launched without a site of ours, for example by plain sbatch
    return None if resources.gres else resources.gpus


def _rate(amount: int, seconds: float) -> float | None:
    return round(amount / seconds, 3) if seconds > 0 else None

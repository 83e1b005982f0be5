"""How a run went: its workers, their time and their GPUs."""

from collections import defaultdict
from collections.abc import Sequence
from operator import mul

from proxhpc.account.counts import Counts
from proxhpc.account.devices import peak_flops
from proxhpc.account.flops import Usage, flops, sum_or_none
from proxhpc.cluster.backend import recorded_site
from proxhpc.errors import UserError
from proxhpc.outputs import UsageTotals
from proxhpc.report.model import (
    CostReport,
    EstimateReport,
    ExecutionReport,
    GpuReport,
    RequestWork,
    Timeline,
    WorkerReport,
)
from proxhpc.run.calibration import load_calibration
from proxhpc.run.estimate import MODEL_FLOPS_UTILIZATION
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.progress import Heartbeat
from proxhpc.spec.site import PhaseName, Site

_PAID: tuple[PhaseName, ...] = ("refine", "merge")  # control jobs cost next to nothing


def execution_report(
    run: RunDir,
    plan: Plan,
    counts: Counts,
    heartbeats: Sequence[Heartbeat],
    timeline: Timeline | None,
    estimate: EstimateReport,
) -> ExecutionReport:
    """Workers and times of a run, from their last heartbeats."""
    refining = [beat for beat in heartbeats if beat.role == "refine"]
    busy = sum(beat.busy_seconds for beat in refining)
    boot = sum(beat.boot_seconds for beat in refining)
    site = _read_site(run)
    numbers = _gpu_numbers(refining, site)
    return ExecutionReport(
        run_id=plan.run_id,
        plan=plan.digest,
        run=str(run.root),
        corpus=str(run.corpus),
        created=plan.created,
        last_heard=max((beat.time for beat in heartbeats), default=None),
        workers=len(refining),
        busy_seconds=round(busy, 3),
        boot_seconds=round(boot, 3),
        gpus=_gpus(refining, numbers, plan),
        cost=_cost(heartbeats, numbers, site, _estimated_hours(run, plan, refining, estimate)),
        redone=_redone(refining, plan, counts),
        tokens_per_worker_second=_rate(counts.tokens_in, busy),
        by_worker=tuple(map(_worker, heartbeats)),
        timeline=timeline,
    )


def _cost(
    heartbeats: Sequence[Heartbeat],
    gpus: Sequence[float] | None,
    site: Site | None,
    estimated: tuple[float | None, float | None],
) -> CostReport:
    """Time that workers held their GPUs and cores, and the plan's estimate of both."""
    held: defaultdict[str, list[float]] = defaultdict(list)
    for beat in heartbeats:
        seconds = max(beat.up_seconds, beat.busy_seconds + beat.boot_seconds)
        held[beat.role].append(seconds / 3600)
    gpu_hours = None if gpus is None else round(sum(map(mul, held["refine"], gpus)), 6)
    core_hours = refining = rate = price = None
    if site is not None:
        refining = round(sum(held["refine"]) * site.resources("refine").cpus, 6)
        core_hours = round(sum(sum(held[role]) * site.resources(role).cpus for role in _PAID), 6)
        rate = site.price_per_gpu_hour
    if rate and gpu_hours is not None:
        amount, currency = rate.split(" ")
        price = f"{float(amount) * gpu_hours:,.2f} {currency}"
    return CostReport(
        gpu_hours=gpu_hours,
        estimated_gpu_hours=estimated[0],
        core_hours=core_hours,
        refining_core_hours=refining,
        estimated_core_hours=estimated[1],
        price_per_gpu_hour=rate,
        price=price,
    )


def _estimated_hours(
    run: RunDir, plan: Plan, refining: Sequence[Heartbeat], estimate: EstimateReport
) -> tuple[float | None, float | None]:
    """The plan's GPU-hours and core-hours for the same texts and number of workers.

    They come from the calibration, if the workers had the same kind of GPU, else from FLOPs.
    """
    devices = {beat.device for beat in refining if beat.device}
    calibration = load_calibration(run, plan)
    if calibration is not None and devices == {calibration.device} - {None}:
        size = estimate.share * plan.estimated_bytes
        hours = calibration.worker_seconds(size, len(refining)) / 3600
        gpu_hours = round(hours * calibration.devices, 6) if devices else None
        return gpu_hours, round(hours * calibration.cores, 6)
    work = estimate.estimated.flops
    if work and len(devices) == 1 and (peak := peak_flops(*devices)):
        return round(work / (peak * MODEL_FLOPS_UTILIZATION * 3600), 6), None
    return None, None


def _gpu_numbers(heartbeats: Sequence[Heartbeat], site: Site | None) -> list[float] | None:
    """GPUs of each worker, or its part of one.

    None if neither a worker nor the latest launch's site knows them.
    """
    resources = site.resources("refine") if site else None
    default = None if resources is None or resources.gres else resources.gpus
    sharing = resources.workers_per_gpu if resources else 1
    numbers = [beat.devices if beat.device else default for beat in heartbeats]
    known = [number / sharing for number in numbers if number is not None]
    return known if len(known) == len(numbers) else None


def _gpus(
    heartbeats: Sequence[Heartbeat], numbers: Sequence[float] | None, plan: Plan
) -> GpuReport:
    """GPU time: the workers' time, loading included, times the GPUs of each.

    The utilization is None unless every GPU's peak is known.
    """
    busy = boot = None
    if numbers is not None:
        busy = round(sum(map(mul, (beat.busy_seconds for beat in heartbeats), numbers)), 3)
        boot = round(sum(map(mul, (beat.boot_seconds for beat in heartbeats), numbers)), 3)
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


def _read_site(run: RunDir) -> Site | None:
    """The latest launch's site; None without a site of ours, for example after a plain sbatch."""
    try:
        return recorded_site(run)
    except (FileNotFoundError, UserError):
        return None


def _rate(amount: int, seconds: float) -> float | None:
    return round(amount / seconds, 3) if seconds > 0 else None

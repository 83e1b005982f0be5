"""Estimates what a run will need: time, tokens kept, disk space and memory."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from proxhpc.account.counts import Counts
from proxhpc.account.devices import named_gpu, peak_flops
from proxhpc.account.quantity import memory_size
from proxhpc.corpus.disk import free_space
from proxhpc.engines.device import gpu_names
from proxhpc.evaluate.bootstrap import resample, score
from proxhpc.evaluate.metrics import MetricLevel, Ratio
from proxhpc.plan.model import CostEstimate, KeptEstimate, ModelFigures, PhaseSpace, PlanEstimate
from proxhpc.plan.space import Sizes, estimate_memory, estimate_space
from proxhpc.run.calibration import Calibration, calibration_problem, load_calibration
from proxhpc.run.estimate import MODEL_FLOPS_UTILIZATION, WorkFigures, count_work, estimate_work
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import BYTES_PER_TOKEN, Plan, input_notes
from proxhpc.spec.site import Resources, Site
from proxhpc.spec.slurm_notation import memory_bytes
from proxhpc.status.terminal import short

if TYPE_CHECKING:
    from proxhpc.evaluate.bootstrap import Table

# Without a calibration. Measured on ledgers of web pages by rules and models: about 80 compressed
# bytes a document.
_LEDGER_BYTES = 120
_COMPRESSION = 2.8  # measured on extracted web pages with zstd level 3, the output's default
_DOCUMENT_BYTES = 4000  # if the number of documents is not known
_DEFAULT_GPU = "A100"
_FLOPS_COUNTED_AS = (
    "2·N·D, D being all raw tokens for each stage; without prompt frames, line numbers and decoding"
)
_ROUNDS = 1000  # of the bootstrap
_SHARE = MetricLevel((Ratio("tokens", ("tokens_kept",), ("tokens",)),))


def estimate_run(plan: Plan, site: Site, run: RunDir, counts: Counts | None = None) -> PlanEstimate:
    """Estimate a run; `counts` are those of a run that has started."""
    calibration = load_calibration(run, plan)
    work = estimate_work(plan, calibration)
    workers = min(site.resources("refine").workers, len(plan.shards))
    timed = calibration if calibration and calibration.site == site.name else None
    seconds = timed.worker_seconds(plan.estimated_bytes, workers) if timed else 0.0
    sizes = _sizes(plan, work, calibration, seconds)
    space, memory = estimate_space(plan, site, sizes), estimate_memory(plan, site, sizes)
    near = plan.manifest.dedup.near
    return PlanEstimate(
        name=plan.manifest.name,
        run_dir=str(run.root),
        site=site.name,
        engine=plan.manifest.engine.name,
        models={
            level: ModelFigures(
                name=model.name,
                parameters=model.shape.parameters if model.shape else None,
                engine=_engine_settings(plan, level),
            )
            for level, model in plan.models.items()
        },
        workers=workers,
        workers_per_gpu=site.workers_per_gpu,
        shards=len(plan.shards),
        files=len(plan.inputs),
        bytes_on_disk=sum(info.size for info in plan.inputs),
        estimated_bytes=plan.estimated_bytes,
        estimated_work=work,
        measured_work=count_work(plan, counts) if counts else None,
        tokens_counted_as=f"as in the calibration, by {plan.token_unit}"
        if calibration
        else f"UTF-8 bytes of the records / {BYTES_PER_TOKEN}",
        flops_counted_as=_FLOPS_COUNTED_AS if work.flops else None,
        cost=_cost(site, work, timed, seconds, workers),
        kept=_kept(plan, calibration, sizes.documents_kept) if calibration else None,
        corpus_bytes=sizes.corpus_bytes,
        space=space,
        merge_memory_bytes=memory,
        comparison_probability=None
        if near is None
        else {f"{s / 10:.1f}": round(near.compared(s / 10), 3) for s in range(5, 10)},
        notes=(
            *input_notes(plan, run),
            *_shortages(run, space),
            *_memory_shortage(site, memory),
            *filter(None, [calibration_problem(run)]),
        ),
    )


def _shortages(run: RunDir, space: tuple[PhaseSpace, ...]) -> Iterator[str]:
    """Yield what the file system of the run directory lacks."""
    folder, *available = free_space(run.root)
    for unit, number in zip(("bytes", "inodes"), available, strict=True):
        needed = max(getattr(phase, unit) for phase in space)
        # A started run uses some of it.
        if number is not None and needed > number and not run.plan.exists():
            room = f"{short(number)} free {unit}"
            yield f"{folder} has {room}; the run needs about {short(needed)}"


def _memory_shortage(site: Site, needed: int) -> Iterator[str]:
    mem = site.resources("merge").mem
    if mem and 0 < memory_bytes(mem) < needed:
        text = f"the merge needs about {memory_size(needed)} of memory in one job"
        yield f"{text}, and site {site.name} gives it {mem}"


def _sizes(plan: Plan, work: WorkFigures, calibration: Calibration | None, seconds: float) -> Sizes:
    """Scale what was measured by bytes; without a calibration nothing is dropped."""
    total = plan.estimated_bytes
    documents = total // _DOCUMENT_BYTES if work.documents is None else work.documents
    if calibration is None:
        return Sizes(
            documents=documents,
            documents_kept=documents,
            ledger_bytes=documents * _LEDGER_BYTES,
            corpus_bytes=round(total / _COMPRESSION),
            corpus_bytes_raw=total,
            worker_seconds=seconds,
        )
    scale = total / max(1, calibration.total("bytes"))
    per_document = documents / max(1, calibration.total("documents"))
    return Sizes(
        documents=documents,
        documents_kept=round(per_document * calibration.total("documents_kept")),
        ledger_bytes=round(per_document * calibration.ledger_bytes),
        corpus_bytes=round(scale * calibration.corpus_bytes),
        corpus_bytes_raw=round(scale * calibration.corpus_bytes_raw),
        worker_seconds=seconds,
    )


def _kept(plan: Plan, calibration: Calibration, documents: int) -> KeptEstimate:
    import numpy as np

    scale = plan.estimated_bytes / max(1, calibration.total("bytes"))
    table: Table = np.array(
        [(place.tokens_kept, place.tokens) for place in calibration.places], float
    ).reshape(-1, 2)
    few = len(table) < 2  # a single place has no interval
    rounds, seed = 0 if few else _ROUNDS, plan.manifest.seed
    (resampled,) = resample([table], _SHARE.values, rounds, seed)
    return KeptEstimate(
        share=score(_SHARE.values(table.sum(axis=0))[0], resampled[:, 0]),
        tokens=round(scale * calibration.total("tokens_kept")),
        documents=documents,
    )


def _cost(
    site: Site, work: WorkFigures, calibration: Calibration | None, seconds: float, workers: int
) -> CostEstimate:
    resources = site.resources("refine")
    if calibration is not None:
        hours = calibration.devices * seconds / 3600 if calibration.devices else None
        return CostEstimate(
            basis="calibration",
            documents=calibration.total("documents"),
            host=calibration.host,
            device=calibration.device,
            gpu_hours=hours,
            core_hours=calibration.cores * seconds / 3600,
            days=seconds / max(1, workers) / 86400,
            price=_price(site, hours),
        )
    named = named_gpu(gpu_names()) if site.kind == "local" else named_gpu(_gpu_options(resources))
    device = named or _DEFAULT_GPU
    hours = None
    if work.flops and (peak := peak_flops(device)):
        hours = work.flops / (peak * MODEL_FLOPS_UTILIZATION * 3600)
    gpus = _gpus_per_worker(resources)
    return CostEstimate(
        basis="flops" if hours else None,
        device=device if hours else None,
        device_is_assumed=bool(hours) and named is None,
        gpu_hours=hours,
        days=hours / (gpus * max(1, workers) * 24) if hours and gpus and named else None,
        price=_price(site, hours) if named else None,
    )


def _engine_settings(plan: Plan, level: str) -> dict[str, str]:
    """Return the engine settings of a stage that differ from the run's."""
    (own,) = (stage.engine for stage in plan.manifest.stages if stage.level == level)
    if own is None:
        return {}
    settings = own.model_dump(mode="json", exclude={"options"}, exclude_none=True)
    return {key: str(value) for key, value in {**settings, **own.options}.items()}


def _gpu_options(resources: Resources) -> list[str]:
    values = [resources.gres, resources.constraint, resources.partition]
    return [*filter(None, values), *(str(value) for value in resources.sbatch.values())]


def _gpus_per_worker(resources: Resources) -> float:
    """Return the GPUs of a worker; 0 if the site does not say."""
    if resources.gpus or not resources.gres:
        return resources.gpus / resources.workers_per_gpu
    count = re.search(r":(\d+)(?:\(|$)", resources.gres)
    return (int(count[1]) if count else 1) / resources.tasks_per_node


def _price(site: Site, hours: float | None) -> str | None:
    if site.price_per_gpu_hour is None or hours is None:
        return None
    amount, currency = site.price_per_gpu_hour.split(" ")
    return f"{float(amount) * hours:.2f} {currency}"

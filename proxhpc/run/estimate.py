"""What a run will need: documents, tokens, model work, workers and disk space."""

from typing import TYPE_CHECKING, Literal

from proxhpc.account.counts import Counts
from proxhpc.account.devices import peak_flops
from proxhpc.account.flops import paper_flops, sum_or_none
from proxhpc.account.quantity import quantity
from proxhpc.outputs import OutputModel
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import BYTES_PER_TOKEN, Plan
from proxhpc.run.shards import shard_groups
from proxhpc.spec.site import Resources, Site

if TYPE_CHECKING:
    from rich.console import Group

# Measured on ledgers of web pages by rules and models: about 80 compressed bytes a document.
LEDGER_BYTES_PER_DOCUMENT = 120
# Measured on extracted web pages with zstd level 3, the output's default.
CORPUS_COMPRESSION = 2.8
LOG_FILES = 4  # of a job: script, pickled task, standard output and error
RUN_FILES = 20  # plan, merge, report, card and others that a run has once
MODEL_FLOPS_UTILIZATION = 0.4  # of a GPU's peak; about that of a 0.3B model's prefill

_TOKENS_COUNTED_AS = f"UTF-8 bytes of the records / {BYTES_PER_TOKEN}"
_FLOPS_COUNTED_AS = (
    "2·N·D, D being all raw tokens for each stage; without prompt frames, line numbers and decoding"
)


class WorkFigures(OutputModel):
    """Size of a run's work, estimated or counted by the same rules."""

    documents: int | None
    """Documents."""
    tokens: int
    """Raw tokens."""
    flops: int | None
    """FLOPs in the paper's short form, over all stages; null without a model."""
    a100_hours: float | None
    """A100 hours for these FLOPs at 40 % of the GPU's peak."""


class ModelFigures(OutputModel):
    """The model of a stage."""

    name: str
    """Directory or hub id."""
    parameters: int | None
    """Number of its weights; null if its architecture is not known."""


class PlanEstimate(OutputModel):
    """What `proxhpc plan` prints. Estimates are neither upper nor lower bounds."""

    format: Literal["proxhpc.plan/1"] = "proxhpc.plan/1"
    """Kind and version of this document."""
    name: str
    """Name of the run."""
    run_dir: str
    """Run directory."""
    site: str
    """Name of the site."""
    engine: str
    """Name of the engine."""
    models: dict[str, ModelFigures]
    """Models by level, `doc` and `chunk`."""
    workers: int
    """Workers at the same time."""
    shards: int
    """Shards, the units that workers lease."""
    files: int
    """Input files."""
    bytes_on_disk: int
    """Size of the input files."""
    estimated_bytes: int
    """Their size after decompression."""
    estimated_work: WorkFigures
    """Work of the whole run."""
    measured_work: WorkFigures | None
    """Work done so far, if the run has started."""
    tokens_counted_as: str
    """How tokens are estimated."""
    flops_counted_as: str | None
    """How FLOPs are estimated; null without a model."""
    estimated_ledger_bytes: int | None
    """Disk space of the ledgers."""
    estimated_corpus_bytes: int
    """Disk space of the corpus if nothing is dropped."""
    estimated_run_files: int
    """Files in the run directory of the finished run."""
    comparison_probability: dict[str, float] | None
    """Probability that two documents are compared, by similarity; null without `dedup.near`."""
    notes: list[str]
    """Remarks about single input files."""
    problems: list[str] = []
    """Why a launch would not work, as far as it is known before one."""


def estimate_work(plan: Plan) -> WorkFigures:
    """Estimate a run's work from the inputs; every stage is assumed to read all of them."""
    tokens = plan.estimated_tokens
    documents = sum_or_none([info.estimated_records for info in plan.inputs])
    return _figures(plan, documents, tokens, dict.fromkeys(plan.models, tokens))


def count_work(plan: Plan, counts: Counts) -> WorkFigures:
    """Return the work that counts show, by the same rules."""
    read = {level: counts.tokens_read(level) for level in plan.models}
    return _figures(plan, counts.documents, counts.tokens_in, read)


def _figures(plan: Plan, documents: int | None, tokens: int, read: dict[str, int]) -> WorkFigures:
    """Add the paper's 2·N·D for each stage, over the tokens that it reads."""
    by_stage = [
        paper_flops(model.shape, read[level]) if model.shape else None
        for level, model in plan.models.items()
    ]
    flops = sum_or_none(by_stage) or None
    flops_per_hour = (peak_flops("A100") or 0) * MODEL_FLOPS_UTILIZATION * 3600
    hours = round(flops / flops_per_hour, 3) if flops else None
    return WorkFigures(documents=documents, tokens=tokens, flops=flops, a100_hours=hours)


def estimate_run(plan: Plan, site: Site, run: RunDir, counts: Counts | None = None) -> PlanEstimate:
    """Estimate a run; `counts` are those of a run that has started."""
    work = estimate_work(plan)
    resources = site.resources("refine")
    shards, documents = len(plan.shards), work.documents
    near = plan.manifest.dedup.near
    return PlanEstimate(
        name=plan.manifest.name,
        run_dir=str(run.root),
        site=site.name,
        engine=plan.manifest.engine.name,
        models={
            level: ModelFigures(
                name=model.name, parameters=model.shape.parameters if model.shape else None
            )
            for level, model in plan.models.items()
        },
        workers=min(resources.workers, shards),
        shards=shards,
        files=len(plan.inputs),
        bytes_on_disk=sum(info.size for info in plan.inputs),
        estimated_bytes=plan.estimated_bytes,
        estimated_work=work,
        measured_work=count_work(plan, counts) if counts else None,
        tokens_counted_as=_TOKENS_COUNTED_AS,
        flops_counted_as=_FLOPS_COUNTED_AS if work.flops else None,
        estimated_ledger_bytes=documents and documents * LEDGER_BYTES_PER_DOCUMENT,
        estimated_corpus_bytes=round(plan.estimated_bytes / CORPUS_COMPRESSION),
        estimated_run_files=_run_files(plan, resources, site.resources("merge").workers),
        comparison_probability=None
        if near is None
        else {f"{s / 10:.1f}": round(near.compared(s / 10), 3) for s in range(5, 10)},
        notes=[f"{info.name}: {info.note}" for info in plan.inputs if info.note],
    )


def _run_files(plan: Plan, resources: Resources, merge_workers: int) -> int:
    """Return the files of a finished run whose workers were submitted once.

    There is a ledger for each shard, a progress file for each worker, logs for each job, up to six
    files for each group of shards in the merge, and two for each part of the corpus.
    """
    shards = len(plan.shards)
    workers = min(resources.workers, shards)
    jobs = -(-workers // resources.tasks_per_node) + 3  # the merge, and a control job after each
    groups = len(shard_groups(plan))
    parts = -(-plan.estimated_bytes // plan.manifest.output.part_size)
    if 1 < merge_workers <= groups:  # arrays for sketch and write, a match job, more control jobs
        workers, jobs = workers + 2 * merge_workers, jobs + 2 * merge_workers + 4
    return shards + workers + LOG_FILES * jobs + 6 * groups + 2 * parts + RUN_FILES


def render_estimate(estimate: PlanEstimate) -> "Group":
    """Return the estimate for a terminal."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    title = f"plan of {escape(estimate.name)}"
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _rows(estimate).items():
        table.add_row(name, escape(value))
    problems = (f"a launch would not work: {problem}" for problem in estimate.problems)
    return Group(table, *map(escape, (*estimate.notes, *problems)))


def _rows(estimate: PlanEstimate) -> dict[str, str]:
    work, measured = estimate.estimated_work, estimate.measured_work
    rows = {
        "run directory": estimate.run_dir,
        "input": f"{quantity(estimate.files, 'file')}, {_size(estimate.bytes_on_disk)} on disk, "
        f"about {_size(estimate.estimated_bytes)} decompressed",
        "documents": _about(work.documents),
        "tokens": f"{_about(work.tokens)} ({estimate.tokens_counted_as})",
        "shards": f"{estimate.shards:,}",
        "workers": f"{estimate.workers:,} on site {estimate.site}, engine {estimate.engine}",
    }
    for level, model in estimate.models.items():
        parameters = "unknown" if model.parameters is None else f"{model.parameters:,}"
        rows[f"{level} model"] = f"{model.name}, {parameters} parameters"
    rows["disk"] = (
        f"corpus about {_size(estimate.estimated_corpus_bytes)} if nothing is dropped, "
        f"ledgers about {_size(estimate.estimated_ledger_bytes)}; "
        f"about {quantity(estimate.estimated_run_files, 'file')}"
    )
    rows["model work"] = _model_work(estimate)
    if estimate.comparison_probability is not None:
        curve = (
            f"{p:.1%} at {similarity}" for similarity, p in estimate.comparison_probability.items()
        )
        rows["near-duplicates"] = (
            f"probability that two are compared, by similarity: {', '.join(curve)}"
        )
    if measured is not None:
        parts = [quantity(measured.documents or 0, "document"), quantity(measured.tokens, "token")]
        if measured.flops:
            parts.append(f"{measured.flops:.2e} FLOPs, {measured.a100_hours:,} A100 hours")
        rows["measured so far"] = ", ".join(parts)
    return rows


def _model_work(estimate: PlanEstimate) -> str:
    work = estimate.estimated_work
    if not estimate.models:
        return "none"
    if work.flops is None:
        return "unknown: the model's shape is not known"
    return (
        f"about {work.flops:.2e} FLOPs, {work.a100_hours:,} A100 hours at "
        f"{MODEL_FLOPS_UTILIZATION:.0%} of peak ({estimate.flops_counted_as})"
    )


def _about(number: int | None) -> str:
    return "unknown" if number is None else f"about {number:,}"


def _size(number: float | None) -> str:
    if number is None:
        return "unknown"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:,.4g} TiB"

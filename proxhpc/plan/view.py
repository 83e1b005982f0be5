"""The estimate of a run on a terminal."""

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from proxhpc.account.devices import named_gpu
from proxhpc.account.quantity import memory_size, quantity, rounded
from proxhpc.plan.model import CostEstimate, KeptEstimate, PlanEstimate
from proxhpc.run.estimate import MODEL_FLOPS_UTILIZATION
from proxhpc.status.terminal import duration, safe, short


def render_estimate(estimate: PlanEstimate) -> Group:
    """Return the estimate for a terminal."""
    title = f"plan of {escape(safe(estimate.name))}"
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _rows(estimate).items():
        table.add_row(name, escape(safe(value)))
    problems = (f"a launch would not work: {problem}" for problem in estimate.problems)
    lines = (safe(line) for line in (*estimate.notes, *problems))
    return Group(table, *map(escape, lines))


def cost_line(estimate: PlanEstimate) -> str:
    """Return what refining takes, as in `about 2,100 H200-hours, 5.5 days with 16 workers`."""
    cost = estimate.cost
    if cost.basis is None:
        return "unknown: --calibrate 200 refines 200 documents and measures it"
    amount, unit = cost.core_hours or 0.0, "core"
    if cost.gpu_hours is not None:
        amount, unit = cost.gpu_hours, _short_name(cost.device)
    if amount >= 1:
        text = f"about {rounded(amount)} {unit}-hours"
    else:
        text = f"{'about ' if amount >= 1 / 3600 else ''}{_time(3600 * amount)} of {unit} time"
    if cost.days is not None:
        text += f", {_time(86400 * cost.days)} with {quantity(estimate.workers, 'worker')}"
    if cost.price is not None:
        price, currency = cost.price.split(" ")
        text += f", {rounded(float(price))} {currency}"
    return text


def _rows(estimate: PlanEstimate) -> dict[str, str]:
    work, measured = estimate.estimated_work, estimate.measured_work
    documents = "unknown" if work.documents is None else f"about {short(work.documents)}"
    rows = {
        "run directory": estimate.run_dir,
        "input": f"{quantity(estimate.files, 'file')}, "
        f"{memory_size(estimate.bytes_on_disk)} on disk, "
        f"about {memory_size(estimate.estimated_bytes)} decompressed",
        "documents": documents,
        "tokens": f"about {short(work.tokens)} ({estimate.tokens_counted_as})",
        "shards": f"{estimate.shards:,}",
        "workers": f"{estimate.workers:,} on site {estimate.site}, engine {estimate.engine}"
        + (f", {estimate.workers_per_gpu} on a GPU" if estimate.workers_per_gpu > 1 else ""),
    }
    for level, model in estimate.models.items():
        parameters = "unknown" if model.parameters is None else short(model.parameters)
        settings = "".join(f", {key}: {value}" for key, value in model.engine.items())
        rows[f"{level} model"] = f"{model.name}, {parameters} parameters{settings}"
    rows["refining"] = f"{cost_line(estimate)}{_basis(estimate)}"
    rows["kept"] = _kept(estimate.kept)
    rows["corpus"] = f"about {memory_size(estimate.corpus_bytes)}" + (
        "" if estimate.kept else ", if nothing is dropped"
    )
    rows["disk"] = _disk(estimate)
    rows["memory"] = f"about {memory_size(estimate.merge_memory_bytes)} for the merge"
    if estimate.comparison_probability is not None:
        curve = (
            f"{p:.1%} at {similarity}" for similarity, p in estimate.comparison_probability.items()
        )
        rows["near-duplicates"] = (
            f"probability that two are compared, by similarity: {', '.join(curve)}"
        )
    if measured is not None:
        parts = [quantity(measured.documents or 0, "document"), quantity(measured.tokens, "token")]
        parts += [f"{short(measured.flops)} FLOPs"] if measured.flops else []
        rows["measured so far"] = ", ".join(parts)
    return rows


def _basis(estimate: PlanEstimate) -> str:
    cost: CostEstimate = estimate.cost
    if cost.basis == "calibration":
        return f" (measured: {quantity(cost.documents or 0, 'document')} on {cost.host})"
    if cost.basis is None:
        return ""
    text = (
        f"not measured: about {short(estimate.estimated_work.flops)} FLOPs "
        f"({estimate.flops_counted_as}) at {MODEL_FLOPS_UTILIZATION:.0%} of the GPU's peak"
    )
    if cost.device_is_assumed:
        text += f"; site {estimate.site} names no GPU that is known"
    return f" ({text}; --calibrate 200 measures it)"


def _kept(kept: KeptEstimate | None) -> str:
    if kept is None:
        return "unknown: --calibrate 200 measures it"
    share = kept.share
    if share.value is None:
        return "unknown: no tokens"
    interval = ""
    if share.low is not None and share.high is not None:
        interval = f" (95 % interval: {100 * share.low:.0f} to {100 * share.high:.0f} %)"
    return (
        f"about {100 * share.value:.0f} % of the tokens{interval}: {short(kept.tokens)} tokens in "
        f"{short(kept.documents)} documents, before duplicates are removed"
    )


def _disk(estimate: PlanEstimate) -> str:
    """Return the space at the peak and at the end, and the phases below it."""
    peak, finished = estimate.peak, estimate.space[-1]
    inodes = max(phase.inodes for phase in estimate.space)
    phases = ", ".join(f"{phase.phase} {memory_size(phase.bytes)}" for phase in estimate.space)
    return (
        f"about {memory_size(peak.bytes)} at the peak, {memory_size(finished.bytes)} in the end; "
        f"{rounded(inodes)} inodes (by phase: {phases})"
    )


def _short_name(device: str | None) -> str:
    return named_gpu([device or ""]) or device or "GPU"


def _time(seconds: float) -> str:
    if seconds < 1:
        return "under 1 s"
    days = seconds / 86400
    return f"{rounded(days)} days" if days >= 2 else duration(seconds)

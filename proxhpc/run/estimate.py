"""What a launch would do: files, documents, tokens, shards, workers, disk and GPU-hours."""

from dataclasses import asdict, dataclass
from typing import Any

from proxhpc.account.counts import Counts
from proxhpc.account.devices import peak_flops
from proxhpc.account.flops import paper_flops
from proxhpc.account.summary import sum_or_none, tokens_read
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import BYTES_PER_TOKEN, Plan
from proxhpc.spec.site import Resources, Site

# Measured on rule-made and model-made ledgers of web pages: about 80 bytes a document, compressed.
LEDGER_BYTES_PER_DOCUMENT = 120
# Measured on extracted web pages with zstd level 3, the output's default.
CORPUS_COMPRESSION = 2.8
LOG_FILES = 4  # of a job: script, pickled task, standard output and error
RUN_FILES = 20  # plan, merge, report, card and so on: once a run
MODEL_FLOPS_UTILISATION = 0.4  # of that peak; prefill of a 0.3B model reaches about this much

FLOPS_COUNTED_AS = (
    "2·N·D, D being all raw tokens for each stage; left out: prompt frames, line numbers, decoding"
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a run takes, foreseen or counted; null is unknown.

    `flops` are the paper's short form, 2·N·D for each stage, and `a100_hours` what they take at
    MODEL_FLOPS_UTILISATION: the same rules before and after.
    """

    documents: int | None
    tokens: int
    flops: int | None

    @property
    def a100_hours(self) -> float | None:
        """GPU-hours; None without a model."""
        speed = (peak_flops("A100") or 0) * MODEL_FLOPS_UTILISATION
        return round(self.flops / speed / 3600, 3) if self.flops else None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self) | {"a100_hours": self.a100_hours}


def predicted_tokens(plan: Plan) -> Figures:
    """From the inputs alone, every stage reading all of them."""
    tokens = plan.estimated_tokens
    return Figures(
        documents=sum_or_none([info.estimated_records for info in plan.inputs]),
        tokens=tokens,
        flops=_flops(plan, dict.fromkeys(plan.models, tokens)),
    )


def counted(plan: Plan, counts: Counts) -> Figures:
    """From what was read."""
    read = {level: tokens_read(level, counts) for level in plan.models}
    return Figures(counts.documents, counts.tokens_in, _flops(plan, read))


def estimate_run(
    plan: Plan, site: Site, run: RunDir, counts: Counts | None = None
) -> dict[str, Any]:
    """Every figure of the plan; null where nobody can know.

    What is called estimated is about right, and no bound. `counts` are those of a run that has
    begun.
    """
    about = predicted_tokens(plan)
    documents = about.documents
    resources = site.resources("refine")
    shards = len(plan.shards)
    return {
        "name": plan.manifest.name,
        "run_dir": str(run.root),
        "files": len(plan.inputs),
        "bytes_on_disk": sum(info.size for info in plan.inputs),
        "estimated_bytes": plan.estimated_bytes,
        "estimated_documents": documents,
        "estimated_tokens": plan.estimated_tokens,
        "tokens_counted_as": f"UTF-8 bytes of the records / {BYTES_PER_TOKEN}",
        "shards": shards,
        "site": site.name,
        "workers": min(resources.workers, shards),
        "engine": plan.manifest.engine.name,
        "models": {level: _model(plan, level) for level in plan.models},
        "estimated_ledger_bytes": documents and documents * LEDGER_BYTES_PER_DOCUMENT,
        "estimated_corpus_bytes": round(plan.estimated_bytes / CORPUS_COMPRESSION),
        "estimated_run_files": _files(plan, resources, site.resources("merge").workers),
        "estimated_flops": about.flops,
        "estimated_a100_hours": about.a100_hours,
        "near_duplicates_compared": _compared(plan),
        "flops_counted_as": about.flops and FLOPS_COUNTED_AS,
        "measured": counted(plan, counts).to_dict() if counts else None,
        "notes": [f"{info.name}: {info.note}" for info in plan.inputs if info.note],
    }


def render_estimate(figures: dict[str, Any]) -> Any:
    """The same for a terminal."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=f"plan of {escape(figures['name'])}", show_header=False, title_justify="left"
    )
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    rows = {
        "run directory": figures["run_dir"],
        "input": f"{figures['files']:,} files, {_size(figures['bytes_on_disk'])} on disk, "
        f"about {_size(figures['estimated_bytes'])} decompressed",
        "documents": _about(figures["estimated_documents"]),
        "tokens": f"{_about(figures['estimated_tokens'])} ({figures['tokens_counted_as']})",
        "shards": f"{figures['shards']:,}",
        "workers": f"{figures['workers']:,} on site {figures['site']}, engine {figures['engine']}",
        **{
            f"{level} model": f"{model['name']}, {_about(model['parameters'])} parameters"
            for level, model in figures["models"].items()
        },
        "disk": f"corpus about {_size(figures['estimated_corpus_bytes'])} if nothing is dropped, "
        f"ledgers about {_size(figures['estimated_ledger_bytes'])}; "
        f"about {figures['estimated_run_files']:,} files",
        "model work": _work(figures),
        **_near(figures),
        **_measured(figures["measured"]),
    }
    for name, value in rows.items():
        table.add_row(name, escape(str(value)))
    return Group(table, *(escape(note) for note in figures["notes"]))


def _work(figures: dict[str, Any]) -> str:
    if not figures["models"]:
        return "none"
    if figures["estimated_flops"] is None:
        return "unknown: the model's shape is not known"
    return (
        f"about {figures['estimated_flops']:.2e} FLOPs, {figures['estimated_a100_hours']:,} A100 "
        f"hours at {MODEL_FLOPS_UTILISATION:.0%} of peak ({figures['flops_counted_as']})"
    )


def _measured(found: dict[str, Any] | None) -> dict[str, str]:
    """What a run that has begun has read so far, in the estimate's own terms."""
    if found is None:
        return {}
    parts = [f"{found['documents']:,} documents", f"{found['tokens']:,} tokens"]
    if found["flops"]:
        parts.append(f"{found['flops']:.2e} FLOPs, {found['a100_hours']:,} A100 hours")
    return {"measured so far": ", ".join(parts)}


def _compared(plan: Plan) -> dict[str, float] | None:
    """How probably two documents are compared, by their similarity."""
    near = plan.manifest.dedup.near
    if near is None:
        return None
    return {f"{s / 10:.1f}": round(near.compared(s / 10), 3) for s in range(5, 10)}


def _near(figures: dict[str, Any]) -> dict[str, str]:
    curve = figures["near_duplicates_compared"]
    if curve is None:
        return {}
    shown = ", ".join(f"{chance:.1%} at {alike}" for alike, chance in curve.items())
    return {"near-duplicates": f"chance that two are compared, by similarity: {shown}"}


def _files(plan: Plan, resources: Resources, mergers: int) -> int:
    """Files of a finished run whose workers were submitted once, and those of its merge, too.

    A ledger for each shard, logs for each job, a progress file for each worker, up to six files of
    the merge for each group of shards (see `assemble.sketch.groups`), and two for each part.
    """
    shards = len(plan.shards)
    workers = min(resources.workers, shards)
    jobs = -(-workers // resources.tasks_per_node) + 3  # the merge, and a control job after each
    group = max(32 << 20, plan.estimated_bytes // 4096)
    groups = min(shards, -(-plan.estimated_bytes // group) + shards // 64)
    parts = -(-plan.estimated_bytes // plan.manifest.output.part_size)
    if 1 < mergers <= groups:  # arrays that sketch and write; the match, and more control jobs
        workers, jobs = workers + 2 * mergers, jobs + 2 * mergers + 4
    return shards + workers + LOG_FILES * jobs + 6 * groups + 2 * parts + RUN_FILES


def _flops(plan: Plan, tokens: dict[str, int]) -> int | None:
    """The paper's 2·N·D for every stage over the tokens that it reads; None without a model."""
    return (
        sum_or_none(
            [
                paper_flops(ref.shape, tokens[level]) if ref.shape else None
                for level, ref in plan.models.items()
            ]
        )
        or None
    )


def _model(plan: Plan, level: str) -> dict[str, Any]:
    ref = plan.models[level]
    return {"name": ref.name, "parameters": ref.shape.parameters if ref.shape else None}


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

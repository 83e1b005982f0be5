"""What a launch would do: files, documents, tokens, shards, workers, disk and GPU-hours."""

from typing import Any

from proxhpc.account.flops import paper_flops
from proxhpc.plan import BYTES_PER_TOKEN, Plan
from proxhpc.rundir import RunDir
from proxhpc.site import Site

# Measured on rule-made and model-made ledgers of web pages: about 80 bytes a document, compressed.
LEDGER_BYTES_PER_DOCUMENT = 120
A100_BF16_FLOPS = 312e12  # dense peak of the A100 datasheet
MODEL_FLOPS_UTILISATION = 0.4  # of that peak; prefill of a 0.3B model reaches about this much


def estimate(plan: Plan, site: Site, run: RunDir) -> dict[str, Any]:
    """Every figure of the plan; null where nobody can know. Estimates are named so."""
    records = [info.estimated_records for info in plan.inputs]
    documents = None if None in records else sum(r for r in records if r is not None)
    resources = site.resources("refine")
    shards = len(plan.shards)
    flops = _flops(plan)
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
        "disk_ledgers_bytes": documents and documents * LEDGER_BYTES_PER_DOCUMENT,
        "disk_corpus_bytes_at_most": sum(info.size for info in plan.inputs),
        "files_at_most": 3 * shards + 5 * resources.workers,
        "flops_at_most": flops,
        "a100_hours_at_most": flops
        and round(flops / (A100_BF16_FLOPS * MODEL_FLOPS_UTILISATION) / 3600, 3),
        "notes": [f"{info.name}: {info.note}" for info in plan.inputs if info.note],
    }


def render(figures: dict[str, Any]) -> Any:
    """The same for a terminal."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=f"plan of {escape(figures['name'])}", show_header=False, title_justify="left"
    )
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    hours = figures["a100_hours_at_most"]
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
        "disk": f"corpus at most about {_size(figures['disk_corpus_bytes_at_most'])}, ledgers "
        f"about {_size(figures['disk_ledgers_bytes'])}; at most {figures['files_at_most']:,} files",
        "model work": "none"
        if not figures["models"]
        else f"at most {figures['flops_at_most']:.2e} FLOPs, {hours:,} A100 hours at "
        f"{MODEL_FLOPS_UTILISATION:.0%} of peak"
        if hours is not None
        else "unknown: the model's shape is not known",
    }
    for name, value in rows.items():
        table.add_row(name, escape(str(value)))
    return Group(table, *(escape(note) for note in figures["notes"]))


def _flops(plan: Plan) -> int | None:
    """The paper's 2·N·D for every stage over all raw tokens: nothing is dropped, so at most."""
    shapes = [ref.shape for ref in plan.models.values()]
    if not shapes or None in shapes:
        return None
    return sum(paper_flops(shape, plan.estimated_tokens) for shape in shapes if shape)


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

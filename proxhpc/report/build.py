"""The account of a merged run: where every document went, tokens, FLOPs, what training saves."""

from dataclasses import asdict
from typing import Any

from proxhpc.assemble.examples import read_examples
from proxhpc.assemble.summary import FileCounts, MergeSummary
from proxhpc.assemble.write import PartReceipt
from proxhpc.errors import UserError
from proxhpc.report.compute import compute
from proxhpc.report.execution import execution
from proxhpc.report.stats import statistics
from proxhpc.report.timeline import timeline
from proxhpc.run.models import short_name
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.status.totals import ratio, run_totals

REPORT_VERSION = 1


def build_report(run: RunDir) -> dict[str, Any]:
    """Everything the report says, as plain JSON data; null is unknown.

    The same for the same ledgers, but for `execution`, which holds what depends on time and
    machines. UserError when the run is not merged yet, StopError when it does not balance.
    """
    plan, merged = Plan.load(run), MergeSummary.load(run)
    if merged is None:
        raise UserError(
            f"{run.root} is not merged yet, so there is nothing to report",
            hint=f"proxhpc status {run.root} shows how far it is",
        )
    merged.check()
    counts = merged.counts
    return {
        "version": REPORT_VERSION,
        "name": plan.manifest.name,
        "code": plan.code,
        "engine": plan.manifest.engine.name,
        **_totals(plan, merged),
        **statistics(merged, read_examples(run)),
        **compute(plan, counts, merged.tokens),
        "inputs": [_input(file) for file in merged.files],
        "parts": [_part(part) for part in merged.parts],
        "execution": execution(run, plan, counts) | {"timeline": timeline(run)},
    }


def _totals(plan: Plan, merged: MergeSummary) -> dict[str, Any]:
    """Documents, tokens, bytes and edits, with what only a merged run can tell."""
    totals = run_totals(merged.counts, merged).model_dump()
    totals["documents"] |= {
        "duplicate_sets": merged.duplicates.sets,
        "largest_duplicate_set": merged.duplicates.largest_set,
        "shared_ids": merged.shared_ids.documents,
    }
    totals["tokens"]["counted"] = short_name(plan.token_unit)
    totals["bytes"]["stored"] = sum(part.bytes_stored for part in merged.parts)
    return totals


def _input(file: FileCounts) -> dict[str, Any]:
    return asdict(file) | {"written_ratio": ratio(file.written, file.documents)}


def _part(part: PartReceipt) -> dict[str, Any]:
    keys = ("name", "documents", "tokens", "text_bytes", "bytes_stored", "sha256")
    return {key: getattr(part, key) for key in keys}

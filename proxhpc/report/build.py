"""The account of a merged run: where every document went, tokens, FLOPs, what training saves."""

from dataclasses import asdict
from typing import Any

from proxhpc.account.counts import Counts
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
        "documents": _documents(merged),
        "tokens": _tokens(plan, merged),
        "bytes": _bytes(merged),
        "edits": _edits(counts),
        **statistics(merged, read_examples(run)),
        **compute(plan, counts, merged.tokens),
        "inputs": [_input(file) for file in merged.files],
        "parts": [_part(part) for part in merged.parts],
        "execution": execution(run, plan, counts) | {"timeline": timeline(run)},
    }


def _documents(merged: MergeSummary) -> dict[str, Any]:
    counts = merged.counts
    return {
        "in": counts.documents,
        "kept": counts.kept,
        "edited": counts.edited,
        "dropped": dict(sorted(counts.dropped.items())),
        "quarantined": dict(sorted(counts.quarantined.items())),
        "refined": counts.in_corpus,
        "duplicates": merged.duplicates.documents,
        "near_duplicates": merged.duplicates.near,
        "written": merged.written,
        "kept_ratio": _ratio(merged.written, counts.documents),
        "duplicate_sets": merged.duplicates.clusters,
        "largest_duplicate_set": merged.duplicates.largest_cluster,
        "shared_ids": merged.shared_ids.documents,
    }


def _tokens(plan: Plan, merged: MergeSummary) -> dict[str, Any]:
    """Tokens of what was read, of what was refined, and of the corpus."""
    return {
        "counted": short_name(plan.token_unit),
        "in": merged.counts.tokens_in,
        "refined": merged.counts.tokens_out,
        "written": merged.tokens,
        "kept_ratio": _ratio(merged.tokens, merged.counts.tokens_in),
    }


def _bytes(merged: MergeSummary) -> dict[str, Any]:
    """UTF-8 bytes of texts, and of whole records where they could not be read."""
    return {
        "in": merged.counts.bytes_in,
        "refined": merged.counts.bytes_out,
        "written": merged.text_bytes,
        "stored": sum(part.bytes_stored for part in merged.parts),
        "kept_ratio": _ratio(merged.text_bytes, merged.counts.bytes_in),
    }


def _input(file: FileCounts) -> dict[str, Any]:
    return asdict(file) | {"kept_ratio": _ratio(file.written, file.documents)}


def _part(part: PartReceipt) -> dict[str, Any]:
    keys = ("name", "documents", "tokens", "text_bytes", "bytes_stored", "sha256")
    return {key: getattr(part, key) for key in keys}


def _edits(counts: Counts) -> dict[str, Any]:
    return {
        "lines_removed": counts.lines_removed,
        "strings_replaced": counts.strings_replaced,
        "windows": counts.windows,
        "rejected": dict(sorted(counts.rejected.items())),
        "flags": dict(sorted(counts.flags.items())),
        "blank_lines": counts.blank_lines,
    }


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None

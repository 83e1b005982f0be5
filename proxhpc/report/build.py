"""The account of a merged run: where every document went, tokens, FLOPs, what training saves."""

import json
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from proxhpc.account.counts import Counts
from proxhpc.account.flops import ModelShape, Usage
from proxhpc.account.summary import (
    NO_MODEL,
    StageFlops,
    added,
    compare_training,
    stage_flops,
    tokens_read,
)
from proxhpc.assemble.summary import FileCounts, MergeSummary
from proxhpc.assemble.write import PartReceipt
from proxhpc.errors import UserError
from proxhpc.manifest import Comparison, Stage
from proxhpc.plan import Plan
from proxhpc.report.execution import execution
from proxhpc.rundir import RunDir

VERSION = 1
LONGEST_CONFIG = 1 << 20  # bytes; a model's config.json is a few KiB


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
    stages = [_Stage(plan, stage, counts) for stage in plan.manifest.stages]
    tokens = _tokens(plan, merged)
    total = {
        name: added([getattr(stage.flops, name) for stage in stages])
        for name in StageFlops.__slots__
    }
    return {
        "version": VERSION,
        "name": plan.manifest.name,
        "code": plan.code,
        "engine": plan.manifest.engine.name,
        "documents": _documents(merged),
        "tokens": tokens,
        "bytes": _bytes(merged),
        "edits": _edits(counts),
        "stages": [stage.to_dict() for stage in stages],
        "flops": total,
        "comparison": _comparison(plan.manifest.comparison, tokens, total["exact"]),
        "inputs": [_input(file) for file in merged.files],
        "parts": [_part(part) for part in merged.parts],
        "execution": execution(run, plan, counts.documents, counts.tokens_in),
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
        "counted": _short(plan.token_unit),
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


class _Stage:
    """One stage: its model, what it did, and what that cost."""

    def __init__(self, plan: Plan, stage: Stage, counts: Counts) -> None:
        self.stage = stage
        self.model = plan.models.get(stage.level)
        doc = stage.level == "doc"
        self.usage: Usage = counts.doc if doc else counts.chunk
        self.saved: Usage = counts.doc_saved if doc else counts.chunk_saved
        self.shape = self.model.shape if self.model else None
        self.tokens_read = tokens_read(stage.level, counts)
        if plan.manifest.engine.name == "rules":
            self.flops = self.saved_flops = NO_MODEL
        else:
            self.flops = stage_flops(self.shape, self.usage, self.tokens_read)
            self.saved_flops = stage_flops(self.shape, self.saved, None)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "level": self.stage.level,
            "model": _short(self.model.name) if self.model else None,
            "snapshot": self.model.snapshot if self.model else None,
            "parameters": self.shape.parameters if self.shape else None,
            "paper_parameters": self.shape.paper_parameters if self.shape else None,
            "tokens_read": self.tokens_read,
            "usage": self.usage.to_dict(),
            "flops": self.flops.to_dict(),
            "saved_usage": self.saved.to_dict(),
            "saved_flops": self.saved_flops.to_dict(),
        }


def _comparison(
    wanted: Comparison | None, tokens: dict[str, Any], refining: int | None
) -> dict[str, Any] | None:
    if wanted is None:
        return None
    parameters, note = wanted.parameters, ""
    if wanted.model is not None:
        parameters, note = _parameters(Path(wanted.model))
    if parameters is None:
        return {"name": wanted.title, "parameters": None, "note": note}
    found = compare_training(wanted.title, parameters, tokens["in"], tokens["written"], refining)
    return found.to_dict() | {"note": note}


def _parameters(folder: Path) -> tuple[int | None, str]:
    """N of the model in a directory: all weights but the input embedding; or why not."""
    try:
        with (folder / "config.json").open("rb") as file:
            config = json.loads(file.read(LONGEST_CONFIG))
        if not isinstance(config, dict):
            return None, "its config.json is not an object"
        return ModelShape.from_config(config).paper_parameters, ""
    except OSError as error:
        return None, f"its config.json cannot be read: {error.strerror}"
    except ValueError:
        return None, "its config.json is not JSON"
    except UserError as error:
        return None, error.message


def _short(model: str) -> str:
    """A model's name without the folders of the machine it lies on."""
    return PurePath(model).name if model.startswith("/") else model


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None

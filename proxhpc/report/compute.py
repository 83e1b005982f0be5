"""What refining took and spared in FLOPs, what training gains by it, and what was foreseen."""

import json
from pathlib import Path
from typing import Any

from proxhpc.account.counts import Counts
from proxhpc.account.flops import ModelShape, Usage, cached_flops
from proxhpc.account.summary import (
    NO_MODEL,
    StageFlops,
    added,
    compare_training,
    stage_flops,
    tokens_read,
)
from proxhpc.errors import UserError
from proxhpc.report.execution import execution
from proxhpc.run.estimate import MODEL_FLOPS_UTILISATION, counted, predicted_tokens
from proxhpc.run.models import short_name
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.spec.manifest import Comparison, Stage
from proxhpc.status.heartbeats import latest
from proxhpc.status.totals import load_merge, run_counts

LONGEST_CONFIG = 1 << 20  # bytes; a model's config.json is a few KiB


def account(run: RunDir) -> dict[str, Any]:
    """The account of a run's compute at any time, as plain JSON data; null is unknown.

    `partial` before the merge: then the counts are what the workers say that they have committed,
    and the refined corpus still has its duplicates.
    """
    plan, merged = Plan.load(run), load_merge(run)
    counts = run_counts(merged, latest(run))
    written = merged.tokens if merged else counts.tokens_out
    return {
        "name": plan.manifest.name,
        "partial": merged is None,
        "token_unit": short_name(plan.token_unit),
        "documents": counts.documents,
        "tokens": {"read": counts.tokens_in, "written": written},
        **compute(plan, counts, written),
        "execution": execution(run, plan, counts),
    }


def compute(plan: Plan, counts: Counts, written: int) -> dict[str, Any]:
    """Stages, sums, comparison and estimate; `written` tokens are left to train on."""
    stages = [_Stage(plan, stage, counts) for stage in plan.manifest.stages]
    total = {
        name: added([getattr(stage.flops, name) for stage in stages])
        for name in StageFlops.__slots__
    }
    exact = total["exact"]
    return {
        "stages": [stage.to_dict() for stage in stages],
        "flops": total,
        "comparison": _comparison(plan.manifest.comparison, counts.tokens_in, written, exact),
        "estimate": {
            "foreseen": predicted_tokens(plan).to_dict(),
            "counted": counted(plan, counts).to_dict(),
            "utilisation": MODEL_FLOPS_UTILISATION,
        },
    }


class _Stage:
    """One stage: its model, what it did, and what that cost and spared."""

    def __init__(self, plan: Plan, stage: Stage, counts: Counts) -> None:
        self.stage, level = stage, stage.level
        self.model = plan.models.get(level)
        self.shape = self.model.shape if self.model else None
        self.usage: Usage = getattr(counts, level)
        self.memo: Usage = getattr(counts, f"{level}_saved")
        self.copies: Usage = getattr(counts, f"{level}_copied")
        self.tokens_read = tokens_read(level, counts)
        self.flops = self._flops(self.usage, self.tokens_read)

    def _flops(self, usage: Usage, read: int | None = None) -> StageFlops:
        return stage_flops(self.shape, usage, read) if self.model else NO_MODEL

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        cached = cached_flops(self.shape, self.usage) if self.shape else None
        return {
            "level": self.stage.level,
            "model": short_name(self.model.name) if self.model else None,
            "snapshot": self.model.snapshot if self.model else None,
            "parameters": self.shape.parameters if self.shape else None,
            "paper_parameters": self.shape.paper_parameters if self.shape else None,
            "tokens_read": self.tokens_read,
            "usage": self.usage.to_dict(),
            "flops": self.flops.to_dict(),
            "saved": {
                "memo": self._saved(self.memo),
                "copies": self._saved(self.copies),
                "prefix_cache": {
                    "tokens": self.usage.cached_tokens,
                    "flops": cached if self.model else 0,
                },
            },
        }

    def _saved(self, usage: Usage) -> dict[str, Any]:
        return {"usage": usage.to_dict(), "flops": self._flops(usage).exact}


def _comparison(
    wanted: Comparison | None, raw: int, written: int, refining: int | None
) -> dict[str, Any] | None:
    if wanted is None:
        return None
    parameters, note = wanted.parameters, ""
    if wanted.model is not None:
        parameters, note = _parameters(Path(wanted.model))
    if parameters is None:
        return {"name": wanted.title, "parameters": None, "note": note}
    found = compare_training(wanted.title, parameters, raw, written, refining)
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

"""Model work in FLOPs: what it cost, what was saved, and what training saves by it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from proxhpc.account.counts import Counts
from proxhpc.account.flops import ModelShape, Usage, cached_flops
from proxhpc.account.summary import (
    NO_MODEL,
    compare_training,
    stage_flops,
    sum_or_none,
    tokens_read,
)
from proxhpc.errors import UserError
from proxhpc.outputs import UsageTotals
from proxhpc.report.model import (
    CachedWork,
    EstimateReport,
    FlopsTotals,
    RequestWork,
    SavedWork,
    StageReport,
    TrainingReport,
)
from proxhpc.run.estimate import MODEL_FLOPS_UTILISATION, count_work, estimate_work
from proxhpc.run.models import short_name
from proxhpc.run.plan import Plan
from proxhpc.spec.manifest import Comparison, Stage

_MAX_CONFIG_BYTES = 1 << 20  # a model's config.json has a few KiB


def stage_report(plan: Plan, stage: Stage, counts: Counts) -> StageReport:
    """One stage: its model, what that did, and what it cost."""
    model = plan.models.get(stage.level)
    shape = model.shape if model else None
    usage: Usage = getattr(counts, stage.level)
    memo: Usage = getattr(counts, f"{stage.level}_saved")
    read = tokens_read(stage.level, counts)
    flops = stage_flops(shape, usage, read) if model else NO_MODEL
    memo_flops = stage_flops(shape, memo, None) if model else NO_MODEL
    cached = cached_flops(shape, usage) if shape else None
    return StageReport(
        level=stage.level,
        model=short_name(model.name) if model else None,
        snapshot=model.snapshot if model else None,
        parameters=shape.parameters if shape else None,
        paper_parameters=shape.paper_parameters if shape else None,
        tokens_read=read,
        usage=UsageTotals.model_validate(usage),
        flops=FlopsTotals.model_validate(flops),
        saved=SavedWork(
            memo=RequestWork(usage=UsageTotals.model_validate(memo), flops=memo_flops.exact),
            prefix_cache=CachedWork(
                tokens=usage.cached_tokens, flops=cached if model else NO_MODEL.exact
            ),
        ),
    )


def total_flops(stages: Sequence[StageReport]) -> FlopsTotals:
    """Sums over all stages."""
    names = FlopsTotals.model_fields
    return FlopsTotals(
        **{name: sum_or_none([getattr(stage.flops, name) for stage in stages]) for name in names}
    )


def compare(
    comparison: Comparison | None, raw: int, refined: int, refining: int | None
) -> TrainingReport | None:
    """Training on `raw` and on `refined` tokens against the FLOPs of refining."""
    if comparison is None:
        return None
    parameters, note = comparison.parameters, ""
    if comparison.model is not None:
        parameters, note = _parameters(Path(comparison.model))
    if parameters is None:
        return TrainingReport(name=comparison.title, parameters=None, note=note)
    costs = compare_training(comparison.title, parameters, raw, refined, refining)
    return TrainingReport(note=note, **asdict(costs))


def _parameters(folder: Path) -> tuple[int | None, str]:
    """N of the model in a directory: all weights but the input embedding; or why it is unknown."""
    try:
        with (folder / "config.json").open("rb") as file:
            config = json.loads(file.read(_MAX_CONFIG_BYTES))
        if not isinstance(config, dict):
            return None, "its config.json is not an object"
        return ModelShape.from_config(config).paper_parameters, ""
    except OSError as error:
        return None, f"its config.json cannot be read: {error.strerror}"
    except ValueError:
        return None, "its config.json is not JSON"
    except UserError as error:
        return None, error.message


def estimate_report(plan: Plan, counts: Counts) -> EstimateReport:
    """The plan's estimate beside what was counted."""
    return EstimateReport(
        estimated=estimate_work(plan),
        counted=count_work(plan, counts),
        utilisation=MODEL_FLOPS_UTILISATION,
    )

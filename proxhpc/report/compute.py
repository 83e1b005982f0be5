"""Model work in FLOPs: what it cost, what was saved, and what training saves by it."""

from collections.abc import Sequence
from pathlib import Path

from proxhpc.account.counts import Counts
from proxhpc.account.flops import (
    ModelShape,
    Usage,
    break_even_parameters,
    cached_flops,
    decode_flops,
    flops,
    paper_flops,
    prefill_flops,
    sum_or_none,
    training_flops,
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
from proxhpc.run.calibration import Calibration
from proxhpc.run.estimate import count_work, estimate_work
from proxhpc.run.models import short_name
from proxhpc.run.plan import Plan
from proxhpc.run.weights import read_model_json
from proxhpc.spec.sections import Comparison, Stage


def stage_report(plan: Plan, stage: Stage, counts: Counts) -> StageReport:
    """One stage: its model, what that did, and what it cost."""
    model = plan.models.get(stage.level)
    shape = model.shape if model else None
    usage: Usage = getattr(counts, stage.level)
    memo: Usage = getattr(counts, f"{stage.level}_saved")
    read = counts.tokens_read(stage.level)
    otherwise = None if model else 0  # a model of unknown shape, or no model and no work
    return StageReport(
        level=stage.level,
        model=short_name(model.name) if model else None,
        snapshot=model.snapshot if model else None,
        parameters=shape.parameters if shape else None,
        paper_parameters=shape.paper_parameters if shape else None,
        tokens_read=read,
        usage=UsageTotals.model_validate(usage),
        flops=_stage_flops(shape, usage, read)
        if shape
        else FlopsTotals(**dict.fromkeys(FlopsTotals.model_fields, otherwise)),
        saved=SavedWork(
            memo=RequestWork(
                usage=UsageTotals.model_validate(memo),
                flops=flops(shape, memo) if shape else otherwise,
            ),
            prefix_cache=CachedWork(
                tokens=usage.cached_tokens,
                flops=cached_flops(shape, usage) if shape else otherwise,
            ),
        ),
    )


def _stage_flops(shape: ModelShape, usage: Usage, read: int) -> FlopsTotals:
    return FlopsTotals(
        exact=flops(shape, usage),
        prefill=prefill_flops(shape, usage),
        decode=decode_flops(shape, usage),
        paper_measured=paper_flops(shape, usage.prompt_tokens + usage.new_tokens),
        paper_corpus=paper_flops(shape, read),
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
        try:
            config = read_model_json(comparison.model, Path(comparison.model) / "config.json")
            parameters = ModelShape.from_config(config).paper_parameters
        except UserError as error:
            note = error.message
    if parameters is None:
        return TrainingReport(name=comparison.title, parameters=None, note=note)
    raw_flops, refined_flops = (training_flops(parameters, tokens) for tokens in (raw, refined))
    return TrainingReport(
        name=comparison.title,
        parameters=parameters,
        note=note,
        raw_flops=raw_flops,
        refined_flops=refined_flops,
        saved_flops=raw_flops - refined_flops,
        refining_flops=refining,
        break_even_parameters=None
        if refining is None
        else break_even_parameters(refining, raw, refined),
    )


def estimate_report(
    plan: Plan, counts: Counts, calibration: Calibration | None = None, *, is_finished: bool
) -> EstimateReport:
    """The plan's estimate beside what was counted; of an unfinished run, for the same texts.

    Workers need not start with typical documents, so the share that is refined is one of bytes.
    """
    estimated, part = estimate_work(plan, calibration), 1.0
    if not is_finished:
        part = min(1.0, counts.bytes_in / max(1, plan.estimated_bytes))
        whole = estimated.model_dump(exclude={"documents"}, exclude_none=True)
        scaled = {name: type(value)(part * value) for name, value in whole.items()}
        estimated = estimated.model_copy(update={"documents": None, **scaled})
    return EstimateReport(
        share=round(part, 6),
        estimated=estimated,
        counted=count_work(plan, counts),
    )

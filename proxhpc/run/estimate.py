"""The work of a run, estimated and counted by the same rules: documents, tokens, FLOPs."""

from proxhpc.account.counts import Counts
from proxhpc.account.flops import paper_flops, sum_or_none
from proxhpc.outputs import OutputModel
from proxhpc.run.calibration import Calibration
from proxhpc.run.plan import Plan

MODEL_FLOPS_UTILIZATION = 0.4  # of a GPU's peak; about that of a 0.3B model's prefill


class WorkFigures(OutputModel):
    """Size of a run's work, estimated or counted by the same rules."""

    documents: int | None
    """Documents."""
    tokens: int
    """Raw tokens."""
    flops: int | None
    """FLOPs in the paper's short form, over all stages; null without a model."""


def estimate_work(plan: Plan, calibration: Calibration | None = None) -> WorkFigures:
    """Estimate a run's work from the inputs; every stage is assumed to read all of them.

    The calibration tells how many tokens the bytes have, and how many documents, if that is not
    known.
    """
    tokens = plan.estimated_tokens
    documents = sum_or_none([info.estimated_records for info in plan.inputs])
    if calibration is not None:
        scale = plan.estimated_bytes / max(1, calibration.total("bytes"))
        tokens = round(scale * calibration.total("tokens"))
        if documents is None:
            documents = round(scale * calibration.total("documents"))
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
    return WorkFigures(documents=documents, tokens=tokens, flops=sum_or_none(by_stage) or None)

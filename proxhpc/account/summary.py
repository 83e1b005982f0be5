"""FLOPs of a refinement, and what training on the refined corpus saves."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from proxhpc.account.counts import Counts
from proxhpc.account.flops import (
    ModelShape,
    Usage,
    affordable_tokens,
    break_even_parameters,
    decode_flops,
    flops,
    paper_flops,
    prefill_flops,
    training_flops,
)


@dataclass(frozen=True, slots=True)
class StageFlops:
    """FLOPs of one stage, counted in three ways; None is unknown.

    `exact` = `prefill` + `decode` is computed from token sums and the model's shape.
    `paper_measured` is the ProX paper's 2·N·D with all prompt tokens (cached ones too) and new
    tokens as D. `paper_corpus` is the same with the tokens of the documents read as D.
    """

    exact: int | None
    prefill: int | None
    decode: int | None
    paper_measured: int | None
    paper_corpus: int | None

    def to_dict(self) -> dict[str, int | None]:
        """JSON form."""
        return asdict(self)


NO_MODEL = StageFlops(0, 0, 0, 0, 0)


def stage_flops(shape: ModelShape | None, usage: Usage, documents_tokens: int | None) -> StageFlops:
    """Return the FLOPs of a stage whose model has `shape`; None is an unknown shape."""
    if shape is None:
        return StageFlops(None, None, None, None, None)
    return StageFlops(
        exact=flops(shape, usage),
        prefill=prefill_flops(shape, usage),
        decode=decode_flops(shape, usage),
        paper_measured=paper_flops(shape, usage.prompt_tokens + usage.new_tokens),
        paper_corpus=None if documents_tokens is None else paper_flops(shape, documents_tokens),
    )


def tokens_read(level: str, counts: Counts) -> int:
    """Return the raw tokens of the documents that a stage reads."""
    return counts.tokens_in if level == "doc" else counts.tokens_chunk


def sum_or_none(numbers: Sequence[int | None]) -> int | None:
    """Return the sum, or None if one of the numbers is None."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


@dataclass(frozen=True, slots=True)
class TrainingComparison:
    """Cost of one training epoch, 6·N·D, on raw and on refined tokens; None is unknown.

    `net_saved_flops` is the saving minus the cost of refining; it may be negative.
    `break_even_parameters` is the size of the smallest model for which it is not, or None if the
    refined corpus is not smaller. `refining_as_tokens` is the cost of refining in training tokens.
    The quality of the trained model is not considered.
    """

    name: str
    parameters: int
    raw_tokens: int
    refined_tokens: int | None
    raw_flops: int
    refined_flops: int | None
    saved_flops: int | None
    refining_flops: int | None
    net_saved_flops: int | None
    refining_as_tokens: int | None
    break_even_parameters: int | None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def compare_training(
    name: str, parameters: int, raw: int, refined: int | None, refining: int | None
) -> TrainingComparison:
    """Compare training on `raw` and on `refined` tokens, given the FLOPs of `refining`."""
    raw_flops = training_flops(parameters, raw)
    refined_flops = None if refined is None else training_flops(parameters, refined)
    saved = None if refined_flops is None else raw_flops - refined_flops
    known = refined is not None and refining is not None
    return TrainingComparison(
        name=name,
        parameters=parameters,
        raw_tokens=raw,
        refined_tokens=refined,
        raw_flops=raw_flops,
        refined_flops=refined_flops,
        saved_flops=saved,
        refining_flops=refining,
        net_saved_flops=None if saved is None or refining is None else saved - refining,
        refining_as_tokens=None if refining is None else affordable_tokens(refining, parameters),
        break_even_parameters=break_even_parameters(refining or 0, raw, refined or 0)
        if known
        else None,
    )

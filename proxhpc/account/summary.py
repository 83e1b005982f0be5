"""FLOPs of a refinement from its counts, and what they buy: training on the refined corpus."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from proxhpc.account.counts import Counts
from proxhpc.account.flops import (
    ModelShape,
    Usage,
    break_even_parameters,
    decode_flops,
    flops,
    paper_flops,
    prefill_flops,
    tokens_for,
    training_flops,
)


@dataclass(frozen=True, slots=True)
class StageFlops:
    """FLOPs of one stage, counted in three ways; null is unknown.

    `exact` = `prefill` + `decode` follows from the token sums and the model's shape.
    `paper_measured` is the ProX paper's 2·N·(prefill + decode) on the tokens that went in and out,
    prompts included, cached ones too. `paper_corpus` is its short form 2·N·D, D the tokens of the
    documents read.
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
    """FLOPs of a stage whose model has `shape`; None where that is not known."""
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
    """Raw tokens of the documents that a stage reads: all, or what a doc stage before it keeps."""
    return counts.tokens_in if level == "doc" else counts.tokens_chunk


def added(numbers: Sequence[int | None]) -> int | None:
    """The sum, unknown if one of them is."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


@dataclass(frozen=True, slots=True)
class TrainingComparison:
    """One epoch of training, 6·N·D, on the raw tokens and on the refined ones; null is unknown.

    `net_saved_flops` is what remains of the saving when refining is paid; below zero, refining
    cost more than this model's training saves. `break_even_parameters` is the smallest model for
    which it does not, null when the refined corpus is not smaller. `refining_as_tokens` are the
    training tokens that refining would have paid for. None of it says how good the model is.
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
    """Training on `raw` and on `refined` tokens, and what `refining` FLOPs are against that."""
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
        refining_as_tokens=None if refining is None else tokens_for(refining, parameters),
        break_even_parameters=break_even_parameters(refining or 0, raw, refined or 0)
        if known
        else None,
    )

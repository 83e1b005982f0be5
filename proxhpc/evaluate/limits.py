"""What each limit of the policy overruled, and whether that was right.

The stored programs of a document are executed again under a policy in which one limit is off, and
both texts are compared with the gold text. That needs no model.
"""

from collections.abc import Sequence
from itertools import compress
from statistics import fmean

from proxhpc.evaluate.baselines import keep_all
from proxhpc.evaluate.gold import GoldRecord
from proxhpc.evaluate.metrics import GoldLines, MetricCounts, line_counts
from proxhpc.outputs import OutputModel
from proxhpc.program.lines import first_parts, whole_lines
from proxhpc.program.policy import AnyPolicy, Policy
from proxhpc.program.replay import ProgramFormat, ReplayResult
from proxhpc.run.ledger import Row
from proxhpc.spec.sections import Level

_NO_LIMIT = 1_000_000
OFF: dict[str, tuple[str, float]] = {
    "error_budget": ("max_error_share", 1.0),
    "removed_share": ("max_removed_share", 1.0),
    "short": ("min_kept_words", 0),
    "inside_word": ("whole_words", False),
    "too_many_matches": ("max_matches", _NO_LIMIT),
    "growth": ("max_growth", _NO_LIMIT),
    "too_many_strings": ("max_strings", _NO_LIMIT),
}
"""By reason, the key of the policy that sets the limit, and a value with which it has no effect."""


class LimitEffect(OutputModel):
    """What a limit of the policy, or another reason, overruled of what a refiner wrote."""

    level: Level
    """The level of the records."""
    name: str
    """The refiner, as in `groups`."""
    reason: str
    """The reason in ledger rows, such as `short`."""
    key: str
    """The key of the policy that sets the limit; empty if no key does."""
    overruled: int
    """How often it overruled something: statements, windows or documents."""
    documents: int
    """Documents in which it did."""
    as_set: float
    """Their mean token F1 or, at level doc, share of correct verdicts."""
    without: float | None
    """The same if only this limit were off; null where nothing else could be done."""
    right: int
    """Documents that are better because of the limit."""
    wrong: int
    """Documents that are worse because of the limit."""


def refined_counts(
    lines: GoldLines, result: ReplayResult, cuts: Sequence[int] = ()
) -> MetricCounts:
    """The counts of a document that a chunk stage refined; of a dropped one no line is kept."""
    raw = lines.gold.text.split("\n")
    if result.outcome not in ("kept", "edited"):
        return line_counts(lines, bytes(len(raw)))
    kept = bytearray(b"\1" * len(raw))
    for start, stop in whole_lines(result.removed, first_parts(lines.gold.text, cuts)):
        kept[start:stop] = bytes(stop - start)
    is_whole_lines = result.text == "\n".join(compress(raw, kept))
    return line_counts(lines, kept, None if is_whole_lines else result.text)


def chunk_effects(
    name: str,
    documents: Sequence[GoldLines],
    rows: Sequence[Row],
    scores: Sequence[float],
    policy: AnyPolicy,
    program_format: ProgramFormat,
) -> list[LimitEffect]:
    """What was overruled of chunk programs, by reason; nothing if the policy has no limits.

    `scores` are the token F1 of the documents as they were refined.
    """
    if not isinstance(policy, Policy):
        return []

    def without(index: int, reason: str) -> float | None:
        lines, row = documents[index], rows[index]
        if reason == "emptied":  # the alternative is the original text
            return line_counts(lines, keep_all(lines.gold))["token_f1"]
        if reason not in OFF:
            return None
        key, value = OFF[reason]
        unlimited = policy.model_copy(update={key: value})
        result = row.replay(lines.gold.text, unlimited, program_format)
        return refined_counts(lines, result, row.cuts)["token_f1"]

    effects = []
    for reason, indices in _by_reason(rows).items():
        pairs = [(scores[index], without(index, reason)) for index in indices]
        effects.append(_effect("chunk", name, reason, [rows[index] for index in indices], pairs))
    return effects


def doc_effects(name: str, records: Sequence[GoldRecord], rows: Sequence[Row]) -> list[LimitEffect]:
    """How often it is right to drop what a verdict drops, and to keep where it is unclear."""
    effects = []
    for reason, indices in _by_reason(rows).items():
        if reason in ("doc_program", "unclear_verdict"):
            kept = reason == "unclear_verdict"
            right = [float(records[index].keep == kept) for index in indices]
            pairs = [(value, 1 - value) for value in right]
            effects.append(_effect("doc", name, reason, [rows[index] for index in indices], pairs))
    return effects


def _by_reason(rows: Sequence[Row]) -> dict[str, list[int]]:
    """The indices of the rows with each reason, the most frequent reason first."""
    indices: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        for reason in dict.fromkeys((*row.rejected, row.reason)):
            if reason:
                indices.setdefault(reason, []).append(index)
    return dict(sorted(indices.items(), key=lambda item: -len(item[1])))


def _effect(
    level: Level,
    name: str,
    reason: str,
    rows: Sequence[Row],
    scores: Sequence[tuple[float, float | None]],
) -> LimitEffect:
    pairs = [(score, other) for score, other in scores if other is not None]
    return LimitEffect(
        level=level,
        name=name,
        reason=reason,
        key=OFF.get(reason, ("", 0))[0],
        overruled=sum(row.rejected.get(reason, 0) + (row.reason == reason) for row in rows),
        documents=len(rows),
        as_set=fmean(score for score, _ in scores),
        without=fmean(other for _, other in pairs) if pairs else None,
        right=sum(score > other for score, other in pairs),
        wrong=sum(score < other for score, other in pairs),
    )

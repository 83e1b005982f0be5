"""Outcomes, sizes, programs, duplicate sets and examples of a merged run."""

from collections import Counter
from collections.abc import Mapping, Sequence

from proxhpc.account.counts import Counts
from proxhpc.assemble.benchmark import BenchmarkCounts
from proxhpc.assemble.match_result import LineCounts
from proxhpc.assemble.stats import LARGEST, CorpusStats, ExampleTexts
from proxhpc.assemble.summary import DuplicateCounts, MergeSummary
from proxhpc.report.model import (
    Distributions,
    DuplicateReport,
    ExampleChoice,
    ExampleReport,
    LargeSet,
    OutcomeTokens,
    ProgramTotals,
    SizeBin,
)

_MAX_EXAMPLE_REASONS = 4  # of which the report shows documents


def outcome_tokens(counts: Counts, merged: MergeSummary | None) -> tuple[OutcomeTokens, ...]:
    """Documents by what became of them; after the merge, tokens add up to the run's raw tokens."""
    lost = merged.stats.lost_tokens if merged else Counter[str]()
    rows: list[tuple[str, str, int, int | None]] = [
        (outcome, reason, documents, lost[f"{outcome} {reason}"] if merged else None)
        for outcome, reasons in (("dropped", counts.dropped), ("quarantined", counts.quarantined))
        for reason, documents in reasons.most_common()
    ]
    removed = counts.tokens_in - lost.total() - counts.tokens_out
    rows.append(("edited", "", counts.edited, removed if merged else None))
    if merged:
        lines, benchmark = merged.lines or LineCounts(), merged.benchmark or BenchmarkCounts()
        left_out = [
            ("left_out", "benchmark", benchmark.left_out, benchmark.left_out_tokens),
            ("left_out", "repeated_lines", lines.left_out, lines.left_out_tokens),
            ("shortened", "repeated_lines", lines.documents, merged.removed_tokens),
        ]
        tokens = counts.tokens_out - merged.tokens - sum(row[3] for row in left_out)
        rows.append(("duplicate", "", merged.duplicates.documents, tokens))
        rows += [row for row in left_out if row[2]]
        rows.append(("written", "", merged.written, merged.tokens))
    names = OutcomeTokens.model_fields
    return tuple(OutcomeTokens.model_validate(dict(zip(names, row, strict=True))) for row in rows)


def distributions(stats: CorpusStats) -> Distributions:
    """Sizes of the documents that could be read, and of the refined ones, duplicates included."""
    return Distributions(
        tokens=_bins(stats.raw_tokens, stats.refined_tokens),
        lines=_bins(stats.raw_lines, stats.refined_lines),
    )


def _bins(raw: Mapping[int, int], refined: Mapping[int, int]) -> tuple[SizeBin, ...]:
    """Both counters bin by bin, from the lowest non-empty bin to the highest one."""
    filled = {*raw, *refined}
    return tuple(
        SizeBin(**_limits(bucket), raw=raw.get(bucket, 0), refined=refined.get(bucket, 0))
        for bucket in range(min(filled, default=0), max(filled, default=-1) + 1)
    )


def _limits(bucket: int) -> dict[str, int]:
    """The smallest and the largest number in a bucket of `assemble.stats.log2_bucket`."""
    return {"min": 1 << bucket - 1 if bucket else 0, "max": (1 << bucket) - 1}


def program_totals(stats: CorpusStats) -> dict[str, ProgramTotals]:
    """Calls and ends of programs, by stage."""
    return {
        level: ProgramTotals(
            calls=_of_level(level, stats.calls), finishes=_of_level(level, stats.finishes)
        )
        for level in ("doc", "chunk")
    }


def _of_level(level: str, counter: Counter[str]) -> dict[str, int]:
    """The counts of one stage, the largest first; keys of `counter` begin with the stage."""
    prefix = f"{level} "
    counts = {
        name.removeprefix(prefix): count
        for name, count in counter.items()
        if name.startswith(prefix)
    }
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def duplicate_sets(duplicates: DuplicateCounts) -> DuplicateReport:
    """How many duplicate sets there are, and the largest ones."""
    return DuplicateReport(
        sets=duplicates.sets,
        further_survivors=duplicates.further,
        largest_size=duplicates.largest_set,
        partly_compared=duplicates.partly_compared,
        ranked=duplicates.ranked,
        with_url=duplicates.with_url,
        largest=tuple(
            LargeSet(size=size, id=name[0], source=name[1])
            for size, name in duplicates.largest_sets
        ),
    )


def example_reports(
    stats: CorpusStats, counts: Counts, texts: Sequence[ExampleTexts]
) -> tuple[ExampleReport, ...]:
    """The documents that are shown: those that lost most, then each main reason, then any edits."""
    by_key = {(text.shard, text.number): text for text in texts}
    reasons = Counter({f"dropped {reason}": n for reason, n in counts.dropped.items()})
    reasons.update({f"quarantined {reason}": n for reason, n in counts.quarantined.items()})
    kinds: dict[str, ExampleChoice] = {LARGEST: "largest"}
    kinds |= {kind: "reason" for kind, _ in reasons.most_common(_MAX_EXAMPLE_REASONS)}
    kinds["edited "] = "random"
    chosen: dict[ExampleTexts, ExampleChoice] = {}
    for kind, why in kinds.items():
        for example in stats.examples:
            if example.kind == kind and (text := by_key.get((example.shard, example.number))):
                chosen.setdefault(text, why)
    return tuple(
        ExampleReport(
            id=text.id,
            source=text.source,
            outcome=text.outcome,
            reason=text.reason,
            chosen=why,
            raw_tokens=text.tokens_in,
            refined_tokens=0 if text.after is None else text.tokens_out,
        )
        for text, why in chosen.items()
    )

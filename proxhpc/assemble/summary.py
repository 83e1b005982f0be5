"""The counts of a merge, and the check that they balance."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from proxhpc.account.counts import Counts
from proxhpc.account.quantity import quantity
from proxhpc.assemble.benchmark import BenchmarkCounts
from proxhpc.assemble.listings import DocumentName
from proxhpc.assemble.match_result import LineCounts, MatchResult
from proxhpc.assemble.sketch import SketchReceipt, SortedCounts
from proxhpc.assemble.stats import CorpusStats
from proxhpc.assemble.write import PartReceipt
from proxhpc.dedup.arrays import load_json, save_json
from proxhpc.dedup.hashes import RecordKey
from proxhpc.errors import StopError
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan


@dataclass(frozen=True, slots=True)
class FileCounts:
    """What became of the documents of one input file."""

    name: str
    documents: int
    kept: int
    edited: int
    dropped: int
    quarantined: int
    duplicates: int
    written: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Refined documents that are no duplicates, but not written, by reason."""

    def check(self) -> None:
        """Raise StopError unless every document is accounted for exactly once."""
        reached = self.kept + self.edited
        if self.documents != reached + self.dropped + self.quarantined:
            raise StopError(f"input {self.name}: {self} does not add up")
        _check_merged(f"input {self.name}", reached, self)


@dataclass(frozen=True, slots=True)
class DuplicateCounts:
    """Removed duplicates and their sets.

    `near` of them differ in text from their survivor; `same_url` have the URL of a better document.
    For `external` of them the survivor is in another corpus, by its number in `dedup.against`.
    These corpora have `external_documents`, and `external_unreadable` records that could not be
    read. `partly_compared` is that of `MatchResult`, `ranked` and `with_url` of all receipts, None
    without `dedup.by` and `dedup.url`. `further` documents of all sets stay beside the survivor, by
    `dedup.survivors`. `set_sizes` counts sets by the `log2_bucket` of their size; `largest_sets`
    has the size and the best duplicate of the largest ones.
    """

    documents: int = 0
    near: int = 0
    same_url: int = 0
    sets: int = 0
    largest_set: int = 0
    further: int = 0
    partly_compared: int = 0
    ranked: int | None = None
    with_url: int | None = None
    external: dict[int, int] = field(default_factory=dict)
    external_documents: int = 0
    external_unreadable: int = 0
    set_sizes: tuple[int, ...] = ()
    largest_sets: tuple[tuple[int, DocumentName], ...] = ()


@dataclass(frozen=True, slots=True)
class SharedIds:
    """Documents in the corpus that have the id of an earlier one, with another text."""

    documents: int = 0
    examples: tuple[DocumentName, ...] = ()


@dataclass(frozen=True, slots=True)
class MergeSummary:
    """Counts of a merged run. `text_bytes` and `tokens` are of the corpus's texts.

    `lines` counts repeated lines that were removed, None without `dedup.lines`; `removed_tokens`
    were in those of written documents. `benchmark` counts documents with parts of a benchmark, None
    without one.
    """

    match_digest: str
    counts: SortedCounts
    duplicates: DuplicateCounts
    shared_ids: SharedIds
    written: int
    text_bytes: int
    tokens: int
    files: tuple[FileCounts, ...]
    parts: tuple[PartReceipt, ...]
    stats: CorpusStats = field(default_factory=CorpusStats)
    lines: LineCounts | None = None
    removed_tokens: int = 0
    benchmark: BenchmarkCounts | None = None

    @property
    def left_out(self) -> dict[str, int]:
        """Refined documents that are no duplicates, but not written, by reason."""
        lines, benchmark = self.lines, self.benchmark
        in_benchmark = benchmark.left_out if benchmark else 0
        return left_out_by_reason(lines.left_out if lines else 0, in_benchmark)

    def check(self) -> None:
        """Raise StopError unless files, phases and the run balance."""
        self.counts.check("run")
        for file in self.files:
            file.check()
        totals = {
            "documents": self.counts.documents,
            "kept": self.counts.kept,
            "edited": self.counts.edited,
            "dropped": self.counts.dropped.total(),
            "quarantined": self.counts.quarantined.total(),
            "duplicates": self.duplicates.documents,
            "written": self.written,
        }
        for name, total in totals.items():
            if (by_file := sum(getattr(file, name) for file in self.files)) != total:
                raise StopError(
                    f"run: {quantity(total, 'document')} {name}, by input file {by_file}"
                )
        for reason, total in self.left_out.items():
            if (by_file := sum(file.left_out.get(reason, 0) for file in self.files)) != total:
                raise StopError(f"run: {total} documents left out ({reason}), by file {by_file}")
        run = FileCounts("", 0, 0, 0, 0, 0, totals["duplicates"], self.written, self.left_out)
        _check_merged("run", self.counts.in_corpus, run)

    def save(self, run: RunDir) -> None:
        """Write the file that marks a run as merged, with its checksum."""
        save_json(run.merge_summary, self)

    @classmethod
    def load(cls, run: RunDir) -> "MergeSummary | None":
        """The summary of a merged run, None if the merge is not finished. StopError if damaged."""
        return load_json(run.merge_summary, cls)


def left_out_by_reason(lines: int, benchmark: int) -> dict[str, int]:
    """Numbers of documents that are left out, without reasons that no document has."""
    reasons = {"benchmark": benchmark, "repeated_lines": lines}
    return {reason: number for reason, number in reasons.items() if number}


def _check_merged(name: str, reached: int, counts: FileCounts) -> None:
    left_out = sum(counts.left_out.values())
    if reached != counts.written + counts.duplicates + left_out:
        raise StopError(
            f"{name}: {quantity(reached, 'document')} reached the merge,"
            f" but {counts.written} written + {quantity(counts.duplicates, 'duplicate')}"
            + (f" + {left_out} left out" if left_out else "")
        )


def summarize_merge(
    plan: Plan,
    receipts: Sequence[SketchReceipt],
    match: MatchResult,
    parts: Sequence[PartReceipt],
    names: Mapping[RecordKey, DocumentName],
) -> MergeSummary:
    """Add up the phases. StopError unless they balance, by file and for the run."""
    counts, stats, benchmark = Counts(), CorpusStats(), BenchmarkCounts()
    for receipt in receipts:
        counts += receipt.counts
        benchmark.add(receipt.benchmark)
        stats += receipt.stats
    written: Counter[int] = Counter()
    for part in parts:
        written.update(part.files)
    summary = MergeSummary(
        match_digest=match.digest,
        counts=counts,
        duplicates=DuplicateCounts(
            documents=match.duplicates,
            near=match.near,
            same_url=match.same_url,
            partly_compared=match.partly_compared,
            ranked=sum(r.ranked for r in receipts) if plan.manifest.dedup.by else None,
            with_url=sum(r.with_url for r in receipts) if plan.manifest.dedup.url else None,
            external=match.external,
            external_documents=sum(r.documents for r in receipts) - match.documents,
            external_unreadable=sum(r.unreadable for r in receipts),
            sets=sum(match.set_sizes),
            further=match.further,
            largest_set=max((size for size, *_ in match.largest_sets), default=0),
            set_sizes=match.set_sizes,
            largest_sets=tuple(
                (size, names[shard, record]) for size, shard, record in match.largest_sets
            ),
        ),
        shared_ids=SharedIds(
            match.shared_ids, tuple(names[key] for key in match.shared_id_examples)
        ),
        written=sum(part.documents for part in parts),
        text_bytes=sum(part.text_bytes for part in parts),
        tokens=sum(part.tokens for part in parts),
        files=tuple(_count_files(plan, receipts, match, written)),
        parts=tuple(parts),
        stats=stats,
        lines=match.lines if plan.manifest.dedup.lines else None,
        removed_tokens=sum(part.removed_tokens for part in parts),
        benchmark=benchmark if plan.benchmarks else None,
    )
    summary.check()
    return summary


def _count_files(
    plan: Plan, receipts: Sequence[SketchReceipt], match: MatchResult, written: Mapping[int, int]
) -> list[FileCounts]:
    counts, benchmark = [Counter[str]() for _ in plan.inputs], Counter[int]()
    for receipt in receipts:
        for span in receipt.spans:
            counts[span.file].update(span.outcomes)
        benchmark += receipt.benchmark.left_out_by_input
    return [
        FileCounts(
            name=info.name,
            documents=outcomes.total(),
            kept=outcomes["kept"],
            edited=outcomes["edited"],
            dropped=outcomes["dropped"],
            quarantined=outcomes["quarantined"],
            duplicates=outcomes["kept"]
            + outcomes["edited"]
            - survivors
            - left_out
            - benchmark[file],
            written=written.get(file, 0),
            left_out=left_out_by_reason(left_out, benchmark[file]),
        )
        for file, (info, outcomes, survivors, left_out) in enumerate(
            zip(plan.inputs, counts, match.survivors, match.left_out, strict=True)
        )
    ]

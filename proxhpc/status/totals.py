"""What became of a run's documents, tokens and bytes; `status` and `report` both count here."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from proxhpc.account.counts import Counts
from proxhpc.account.quantity import quantity
from proxhpc.outputs import OutputModel
from proxhpc.refine.canary import REFUSAL_REASONS, UNUSABLE_FLAG
from proxhpc.run.paths import RunDir
from proxhpc.run.progress import Heartbeat

if TYPE_CHECKING:
    from proxhpc.assemble.summary import MergeSummary


class DocumentTotals(OutputModel):
    """Documents by outcome: read = kept + edited + dropped + quarantined."""

    read: int
    """Records of the input, those that could not be read included."""
    kept: int
    """Documents that stay as they were."""
    edited: int
    """Documents whose text was changed."""
    dropped: dict[str, int]
    """Documents that were dropped, by reason."""
    quarantined: dict[str, int]
    """Documents that could not be refined, by reason."""
    refined: int
    """Documents that reach the merge: kept + edited."""
    duplicates: int | None
    """Refined documents left out because another one has the same or nearly the same text; null
    before the merge."""
    near_duplicates: int | None
    """Those of the duplicates whose text is not identical; null before the merge."""
    url_duplicates: int | None
    """Those left out by their URL, whatever their texts; null before the merge."""
    left_out: dict[str, int] | None
    """Refined documents that are no duplicates, but left out of the corpus, by reason; null before
    the merge."""
    written: int | None
    """Documents in the corpus: refined - duplicates - left out; null before the merge."""
    written_ratio: float | None
    """Documents in the corpus, as a share of those read."""


class SizeTotals(OutputModel):
    """Tokens, or bytes of UTF-8 text."""

    read: int
    """Of the input."""
    refined: int
    """Of the documents that reach the merge."""
    written: int | None
    """Of the corpus; null before the merge."""
    written_ratio: float | None
    """Of the corpus, as a share of those read."""


class EditTotals(OutputModel):
    """What programs did to texts."""

    lines_removed: int
    """Lines that programs removed."""
    strings_replaced: int
    """Strings that programs replaced."""
    windows: int
    """Windows that the chunk stage wrote a program for."""
    blank_lines: int
    """Blank lines between the records of the input; no documents."""
    rejected: dict[str, int]
    """Statements that were not executed, by reason."""
    lenient: dict[str, int]
    """What was overlooked to read and execute programs, by name, such as `list_marker`."""
    flags: dict[str, int]
    """Documents by flag: what was unusual in them or in their programs, such as `looped`."""


class RunTotals(OutputModel):
    """Documents, tokens, bytes and edits of a run."""

    documents: DocumentTotals
    """Documents by outcome."""
    tokens: SizeTotals
    """Tokens, as the refiner's tokenizer counts them, or UTF-8 bytes / 4 without one."""
    bytes: SizeTotals
    """Bytes of text in UTF-8; of whole records where a text could not be read."""
    edits: EditTotals
    """What programs did."""


def load_merge(run: RunDir) -> "MergeSummary | None":
    """The merge's summary, None before the merge has ended. StopError if it is damaged."""
    if not run.merge_summary.exists():
        return None
    from proxhpc.assemble.summary import MergeSummary  # numpy: not while a run is refined

    return MergeSummary.load(run)


def run_counts(merged: "MergeSummary | None", heartbeats: Iterable[Heartbeat]) -> Counts:
    """The merge's verified counts or, before it, the sum of what workers have committed.

    The sum counts a document twice where a worker died between a commit and its heartbeat.
    """
    if merged:
        return merged.counts
    return sum((beat.counts for beat in heartbeats if beat.role == "refine"), Counts())


def run_totals(counts: Counts, merged: "MergeSummary | None") -> RunTotals:
    """Totals of a run from its counts, with the corpus's where it is merged."""
    written = merged.written if merged else None
    return RunTotals(
        documents=DocumentTotals(
            read=counts.documents,
            kept=counts.kept,
            edited=counts.edited,
            dropped=_sorted(counts.dropped),
            quarantined=_sorted(counts.quarantined),
            refined=counts.in_corpus,
            duplicates=merged.duplicates.documents if merged else None,
            near_duplicates=merged.duplicates.near if merged else None,
            url_duplicates=merged.duplicates.same_url if merged else None,
            left_out=merged.left_out if merged else None,
            written=written,
            written_ratio=ratio(written, counts.documents),
        ),
        tokens=_size(counts.tokens_in, counts.tokens_out, merged.tokens if merged else None),
        bytes=_size(counts.bytes_in, counts.bytes_out, merged.text_bytes if merged else None),
        edits=EditTotals(
            lines_removed=counts.lines_removed,
            strings_replaced=counts.strings_replaced,
            windows=counts.windows,
            blank_lines=counts.blank_lines,
            rejected=_sorted(counts.rejected),
            lenient=_sorted(counts.lenient),
            flags=_sorted(counts.flags),
        ),
    )


def unusable_warning(documents: DocumentTotals, edits: EditTotals) -> str:
    """Return a warning if more than half of the documents have an unusable answer, or ""."""
    refused = (documents.quarantined.get(reason, 0) for reason in REFUSAL_REASONS)
    number = edits.flags.get(UNUSABLE_FLAG, 0) + sum(refused)
    if number <= documents.read / 2:
        return ""
    return (
        f"answers of a model cannot be used in {number:,} of {quantity(documents.read, 'document')}"
        ": is the stage's prompt that of the model? `proxhpc inspect RUN --sample 3` shows answers"
    )


def ratio(part: int | None, total: int) -> float | None:
    """Return part / total, rounded to six digits; None if it is unknown or the total is 0."""
    return None if part is None or not total else round(part / total, 6)


def _size(read: int, refined: int, written: int | None) -> SizeTotals:
    return SizeTotals(
        read=read, refined=refined, written=written, written_ratio=ratio(written, read)
    )


def _sorted(counter: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counter.items()))

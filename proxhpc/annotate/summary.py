"""What became of every document, window and example, as counts that add up."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

from proxhpc.account.quantity import quantity
from proxhpc.annotate.examples import DROPPED, EDITED_WITHIN, UNKNOWN, is_untouched
from proxhpc.corpus.hosts import Split
from proxhpc.errors import StopError
from proxhpc.outputs import OutputModel
from proxhpc.spec.sections import Level

GroupKey = tuple[str, str, Level, Split]
"""Teacher, source, level and split."""


class SourceDocumentCounts(OutputModel):
    """Documents of the sources: read = used + the sum of left_out."""

    read: int
    """Documents that were read."""
    used: int
    """Documents that gave examples."""
    left_out: dict[str, int]
    """Documents without examples, by reason."""


class ExampleCounts(OutputModel):
    """Examples: created = written + the sum of left_out."""

    created: int
    """Examples that were created."""
    written: int
    """Examples that were written."""
    left_out: dict[str, int]
    """Examples that were left out to balance the file, by reason."""


class ExampleGroup(OutputModel):
    """The written examples of one teacher, source, level and split."""

    teacher: str
    """`gold`, `rules` or the names of the models."""
    source: str
    """The documents' source."""
    level: Level
    """The examples' level."""
    split: Split
    """The split of the documents' hosts."""
    examples: int
    """Examples in this group."""
    dropped: int | None = None
    """Level doc: documents to drop."""
    untouched: int | None = None
    """Level chunk: windows whose program edits nothing."""
    with_strings: int | None = None
    """Level chunk: windows whose program edits strings."""
    lines: int | None = None
    """Level chunk: lines of the windows."""
    lines_dropped: int | None = None
    """Level chunk: lines labelled as dropped."""
    lines_unknown: int | None = None
    """Level chunk: lines without a label."""


class HostCounts(OutputModel):
    """Hosts of the written examples by split; no host is in both."""

    train: int
    """Hosts of the training split."""
    validation: int
    """Hosts of the validation split."""


class AnnotationSummary(OutputModel):
    """The result of `proxhpc annotate`, also written beside the examples."""

    format: Literal["proxhpc.annotate/1"] = "proxhpc.annotate/1"
    """Kind and version of this document."""
    documents: SourceDocumentCounts
    """Documents of the sources."""
    discarded: dict[str, dict[str, int]]
    """By level and reason: answers that were invalid or not trusted, windows without an example."""
    held_out: int
    """Records in the files of --held-out."""
    without_host: int
    """Documents without a known host; they are split by their text."""
    examples: ExampleCounts
    """Examples that were created and written."""
    groups: tuple[ExampleGroup, ...]
    """The written examples by teacher, source, level and split."""
    hosts: HostCounts
    """Hosts of the written examples."""
    sha256: str
    """SHA-256 of the examples file."""


@dataclass(slots=True)
class SummaryCounter:
    """Counts for an AnnotationSummary, whose fields they explain."""

    documents: int = 0
    used: int = 0
    documents_left_out: Counter[str] = field(default_factory=Counter)
    held_out: int = 0
    without_host: int = 0
    discarded: Counter[tuple[str, str]] = field(default_factory=Counter)
    created: int = 0
    examples_left_out: Counter[str] = field(default_factory=Counter)
    groups: defaultdict[GroupKey, Counter[str]] = field(
        default_factory=lambda: defaultdict(Counter)
    )
    hosts: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def add_written(self, row: dict[str, Any]) -> None:
        """Count an example that is written."""
        counts = self.groups[row["teacher"], row["source"], row["level"], row["split"]]
        counts["examples"] += 1
        if row["level"] == "chunk":
            labels = row["keep"]
            counts["untouched"] += is_untouched(row)
            counts["with_strings"] += EDITED_WITHIN in labels
            counts["lines"] += len(row["lines"])
            counts["lines_dropped"] += labels.count(DROPPED)
            counts["lines_unknown"] += labels.count(UNKNOWN)
        else:
            counts["dropped"] += row["program"] == "drop_doc()"
        if row["host"]:
            self.hosts[row["split"]].add(row["host"])

    def check(self) -> None:
        """Raise StopError unless all counts add up and no host is in both splits."""
        if self.documents != self.used + self.documents_left_out.total():
            raise StopError(
                f"{quantity(self.documents, 'document')}, but {self.used} used and "
                + _left_out(self.documents_left_out)
            )
        written = sum(counts["examples"] for counts in self.groups.values())
        if self.created != written + self.examples_left_out.total():
            raise StopError(
                f"{quantity(self.created, 'example')}, but {written} written and "
                + _left_out(self.examples_left_out)
            )
        if both := self.hosts["train"] & self.hosts["validation"]:
            raise StopError(f"hosts in both splits: {sorted(both)[:3]}")

    def summary(self, sha256: str) -> AnnotationSummary:
        """The counts with the checksum of the examples file."""
        discarded: dict[str, dict[str, int]] = {}
        for (level, reason), number in sorted(self.discarded.items()):
            discarded.setdefault(level, {})[reason] = number
        return AnnotationSummary(
            documents=SourceDocumentCounts(
                read=self.documents,
                used=self.used,
                left_out=dict(sorted(self.documents_left_out.items())),
            ),
            discarded=discarded,
            held_out=self.held_out,
            without_host=self.without_host,
            examples=ExampleCounts(
                created=self.created,
                written=self.created - self.examples_left_out.total(),
                left_out=dict(sorted(self.examples_left_out.items())),
            ),
            groups=tuple(
                ExampleGroup(teacher=teacher, source=source, level=level, split=split, **counts)
                for (teacher, source, level, split), counts in sorted(self.groups.items())
            ),
            hosts=HostCounts(
                train=len(self.hosts["train"]), validation=len(self.hosts["validation"])
            ),
            sha256=sha256,
        )


def _left_out(reasons: Counter[str]) -> str:
    """`3 left out (too short: 2, no labels: 1)`."""
    details = ", ".join(f"{reason}: {number:,}" for reason, number in sorted(reasons.items()))
    return f"{reasons.total():,} left out" + (f" ({details})" if details else "")

"""What became of every document, window and example: integers that add up."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from proxhpc.errors import StopError
from proxhpc.program.syntax import NO_EDIT

_KEYS = ("teacher", "source", "level", "split")


@dataclass(slots=True)
class Summary:
    """Counts of one annotation.

    A document gives examples (`taught`) or is `left_out`; an example is written or `not_chosen`.
    `aside` counts answers of teachers that were not understood or not believed, and windows that
    have no example, by level and reason; `groups` the written examples by teacher, source, level
    and split; `held_out` the records of files to be kept clear of; `without_host` the documents of
    which no host is known, so that only their text can tell what they are like.
    """

    documents: int = 0
    taught: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    held_out: int = 0
    without_host: int = 0
    aside: Counter[tuple[str, str]] = field(default_factory=Counter)
    made: int = 0
    not_chosen: Counter[str] = field(default_factory=Counter)
    groups: defaultdict[tuple[str, ...], Counter[str]] = field(
        default_factory=lambda: defaultdict(Counter)
    )
    hosts: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    sha256: str = ""

    def write(self, row: dict[str, Any]) -> None:
        """Count an example that is written."""
        counts = self.groups[tuple(row[key] for key in _KEYS)]
        counts["examples"] += 1
        if row["level"] == "chunk":
            counts["lines"] += len(row["lines"])
            counts["lines_dropped"] += (row["keep"] or "").count("D")
            counts["lines_unknown"] += (row["keep"] or "").count("?")
            counts["with_strings"] += row["keep"] is None
            counts["untouched"] += row["program"].removesuffix("()") in NO_EDIT
        else:
            counts["dropped"] += row["program"] == "drop_doc()"
        if row["host"]:
            self.hosts[row["split"]].add(row["host"])

    def check(self) -> None:
        """Raise StopError unless everything adds up and no host is in both splits."""
        if self.documents != self.taught + self.left_out.total():
            raise StopError(f"{self.documents} documents: {self.taught} taught, {self.left_out}")
        written = sum(counts["examples"] for counts in self.groups.values())
        if self.made != written + self.not_chosen.total():
            raise StopError(f"{self.made} examples: {written} written, {self.not_chosen}")
        if both := self.hosts["train"] & self.hosts["validation"]:
            raise StopError(f"hosts in both splits: {sorted(both)[:3]}")

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        aside: dict[str, dict[str, int]] = {}
        for (level, reason), number in sorted(self.aside.items()):
            aside.setdefault(level, {})[reason] = number
        return {
            "documents": {
                "read": self.documents,
                "taught": self.taught,
                "left_out": dict(sorted(self.left_out.items())),
            },
            "set_aside": aside,
            "held_out": self.held_out,
            "without_host": self.without_host,
            "examples": {
                "made": self.made,
                "written": self.made - self.not_chosen.total(),
                "left_out": dict(sorted(self.not_chosen.items())),
            },
            "groups": [
                dict(zip(_KEYS, key, strict=True)) | dict(counts)
                for key, counts in sorted(self.groups.items())
            ],
            "hosts": {split: len(self.hosts[split]) for split in ("train", "validation")},
            "sha256": self.sha256,
        }

"""Counts of outcomes, bytes, tokens and model usage, as additive integers."""

from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from proxhpc.account.flops import Usage
from proxhpc.account.quantity import quantity
from proxhpc.errors import StopError


@dataclass(slots=True)
class Counts:
    """Totals over ledger rows; each document has one outcome and is counted once.

    `documents` = `kept` (unchanged) + `edited` + `dropped` + `quarantined`; the last two are by
    reason. Quarantined records count as documents even if they could not be read. Tokens are
    counted by the refiner's tokenizer, line by line with one more for each line end, or as UTF-8
    bytes / 4 if the engine has no tokenizer; the plan records which.
    """

    documents: int = 0
    kept: int = 0
    edited: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    lenient: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    bytes_in: int = 0
    bytes_out: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_chunk: int = 0  # raw tokens of the documents that the chunk stage reads
    lines_removed: int = 0
    strings_replaced: int = 0
    windows: int = 0
    blank_lines: int = 0
    doc: Usage = field(default_factory=Usage)
    chunk: Usage = field(default_factory=Usage)
    # Usage of earlier requests with the same prompt, whose answers were reused.
    doc_saved: Usage = field(default_factory=Usage)
    chunk_saved: Usage = field(default_factory=Usage)

    def __add__(self, other: "Counts") -> "Counts":
        total = Counts()
        total += self
        total += other
        return total

    def __iadd__(self, other: "Counts") -> "Counts":
        for name in _NAMES:
            value = getattr(self, name)
            if isinstance(value, Counter):
                value.update(getattr(other, name))
            else:
                setattr(self, name, value + getattr(other, name))
        return self

    @property
    def in_corpus(self) -> int:
        """Documents that enter the merge: kept unchanged or edited."""
        return self.kept + self.edited

    def tokens_read(self, level: str) -> int:
        """Return the raw tokens of the documents that a stage reads."""
        return self.tokens_in if level == "doc" else self.tokens_chunk

    def check(self, where: str) -> None:
        """Raise StopError unless the outcomes add up to the number of documents."""
        outcomes = self.in_corpus + self.dropped.total() + self.quarantined.total()
        if outcomes != self.documents:
            raise StopError(
                f"{where}: {quantity(self.documents, 'document')},"
                f" but {quantity(outcomes, 'outcome')}",
                hint="the ledger is damaged or was written by other code; do not merge it",
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON form; counters with sorted keys."""
        out: dict[str, Any] = {}
        for name in _NAMES:
            value = getattr(self, name)
            if isinstance(value, Counter):
                value = dict(sorted(value.items()))
            elif isinstance(value, Usage):
                value = asdict(value)
            out[name] = value
        return out


_NAMES = tuple(f.name for f in fields(Counts))

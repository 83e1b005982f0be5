"""The metrics of an evaluation: counts for each document, and ratios of their sums.

Every document has a row of counts, and every metric except the AUC is a ratio of sums over rows.
So the metrics of any group or resampling of documents are one matrix product.

These are pure functions that training can use, too: prepare `GoldLines` once, then `score_lines`
scores decisions on a whole evaluation set in a fraction of a second. A decision is a byte or bool
for each line, true if the line is kept.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxhpc.account.quantity import quantity
from proxhpc.evaluate.bootstrap import auc
from proxhpc.evaluate.gold import BOILERPLATE, CONTENT, EDITED, GoldRecord
from proxhpc.program.execute import UNSPACED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from proxhpc.evaluate.bootstrap import Table

    LineDecisions = bytes | bytearray | Sequence[bool] | NDArray[np.bool_]

LONG_LINE = 20
"""The minimum number of tokens of a long line."""

MetricCounts = dict[str, float]
"""A document's counts by name."""

MetricScores = dict[str, float | None]
"""Metrics by name; None if undefined, as a share of nothing."""

_UNSPACED_CHARS = UNSPACED.pattern[1:-1]
_TOKEN = re.compile(rf"[{_UNSPACED_CHARS}]|[^\W{_UNSPACED_CHARS}]+")
_ASCII_TOKEN = re.compile(r"\w+", re.ASCII)


def tokens(text: str) -> list[str]:
    r"""Words (runs of `\w`) in lower case; in scripts without spaces each character is a token."""
    lower = text.lower()
    return (_ASCII_TOKEN if lower.isascii() else _TOKEN).findall(lower)


def token_f1(text: str, gold_text: str) -> float:
    """The F1 of two texts as multisets of tokens; 1 if both are empty."""
    counts, gold_counts = Counter(tokens(text)), Counter(tokens(gold_text))
    return f1((counts & gold_counts).total(), counts.total(), gold_counts.total())


def f1(correct: int, predicted: int, expected: int) -> float:
    """The F1 of a set of `predicted` elements, of which `correct` are among the `expected`."""
    return 2 * correct / (predicted + expected) if predicted + expected else 1.0


@dataclass(frozen=True, slots=True)
class Ratio:
    """A metric: the sum of some counts divided by the sum of others. A count may occur twice."""

    name: str
    numerator: tuple[str, ...]
    denominator: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MetricLevel:
    """A level's metrics, and the counts of which they are computed."""

    ratios: tuple[Ratio, ...]

    @property
    def counts(self) -> list[str]:
        """The names of the counts."""
        names = [name for r in self.ratios for name in (*r.numerator, *r.denominator)]
        return list(dict.fromkeys(names))

    def values(self, sums: "Table") -> "Table":
        """The metrics (…, number of ratios) for sums (…, number of counts); NaN for 0/0."""
        import numpy as np

        numerators, denominators = (
            np.array([[names.count(name) for names in sides] for name in self.counts], float)
            for sides in (
                [ratio.numerator for ratio in self.ratios],
                [ratio.denominator for ratio in self.ratios],
            )
        )
        divisor = sums @ denominators
        ratios: Table = np.full(divisor.shape, np.nan)
        np.divide(sums @ numerators, divisor, out=ratios, where=divisor > 0)
        return ratios

    def scores(self, table: "Table") -> MetricScores:
        """The metrics of documents by name, from their rows."""
        values = self.values(table.sum(axis=0)).tolist()
        pairs = zip(self.ratios, values, strict=True)
        return {ratio.name: None if value != value else value for ratio, value in pairs}


_OF_BOTH_LEVELS = (
    Ratio("bytes_kept", ("bytes_kept",), ("bytes",)),
    Ratio("tokens_kept", ("tokens_kept",), ("tokens",)),
    Ratio("valid_programs", ("valid",), ("programs",)),
)


def _detection(correct: str, wrong: str, missed: str, prefix: str = "") -> tuple[Ratio, ...]:
    return (
        Ratio(f"{prefix}precision", (correct,), (correct, wrong)),
        Ratio(f"{prefix}recall", (correct,), (correct, missed)),
        Ratio(f"{prefix}f1", (correct, correct), (correct, correct, wrong, missed)),
    )


LINE_METRICS = MetricLevel(
    (
        Ratio("token_f1", ("token_f1",), ("documents",)),
        *_detection("removed_right", "removed_wrong", "missed", "line_"),
        Ratio("long_lines_lost", ("long_removed",), ("long",)),
        *_OF_BOTH_LEVELS,
    ),
)
DOCUMENT_METRICS = MetricLevel(
    (
        Ratio("accuracy", ("right",), ("documents",)),
        *_detection("dropped_right", "dropped_wrong", "missed"),
        Ratio("documents_kept", ("kept",), ("documents",)),
        *_OF_BOTH_LEVELS,
    ),
)


@dataclass(frozen=True, slots=True)
class GoldLines:
    """A chunk-level record as arrays, prepared once for any number of decisions.

    By line: whether it is labelled `boilerplate`, `content`, or content of at least LONG_LINE
    tokens (`long`); its `tokens`; its UTF-8 `bytes` with the newline. By token of the text:
    `line_of`, and `type_of`, the index of its distinct token. By distinct token: `gold_counts`,
    how often the gold text has it. `gold_total` counts all tokens of the gold text.
    """

    gold: GoldRecord
    boilerplate: "NDArray[np.bool_]"
    content: "NDArray[np.bool_]"
    long: "NDArray[np.bool_]"
    tokens: "NDArray[np.int64]"
    bytes: "NDArray[np.int64]"
    line_of: "NDArray[np.int32]"
    type_of: "NDArray[np.int32]"
    gold_counts: "NDArray[np.int64]"
    gold_total: int

    @classmethod
    def of(cls, gold: GoldRecord) -> "GoldLines":
        """Prepare a chunk-level record."""
        import numpy as np

        lines = gold.text.split("\n")
        by_line = [tokens(line) for line in lines]
        sizes = np.fromiter(map(len, by_line), np.int64, len(lines))
        flat = [token for line in by_line for token in line]
        types = {token: number for number, token in enumerate(dict.fromkeys(flat))}
        gold_counts = Counter(tokens(gold.gold_text or ""))
        labels = np.array(list(gold.labels or " " * len(lines)))  # characters: any Unicode letter
        content = (labels == CONTENT) | (labels == EDITED)
        return cls(
            gold=gold,
            boilerplate=labels == BOILERPLATE,
            content=content,
            long=content & (sizes >= LONG_LINE),
            tokens=sizes,
            bytes=np.array([len(line.encode("utf-8", "surrogatepass")) + 1 for line in lines]),
            line_of=np.repeat(np.arange(len(lines), dtype=np.int32), sizes),
            type_of=np.fromiter(map(types.__getitem__, flat), np.int32, len(flat)),
            gold_counts=np.fromiter((gold_counts[token] for token in types), np.int64, len(types)),
            gold_total=gold_counts.total(),
        )

    def decision_array(self, kept: "LineDecisions") -> "NDArray[np.bool_]":
        """A decision as an array. ValueError unless it has as many lines as the text."""
        import numpy as np

        if isinstance(kept, bytes | bytearray):
            kept = np.frombuffer(kept, np.bool_)
        decisions = np.asarray(kept, bool)
        if decisions.shape != self.content.shape:
            lines = quantity(len(self.content), "line")
            size = quantity(decisions.size, "decision")
            raise ValueError(f"{self.gold.location}: {size} for {lines}")
        return decisions

    def token_f1(self, kept: "NDArray[np.bool_]") -> float:
        """The token F1 of the kept lines."""
        import numpy as np

        types = self.type_of[kept[self.line_of]]
        counts = np.bincount(types, minlength=len(self.gold_counts))
        shared = int(np.minimum(counts, self.gold_counts).sum())
        return f1(shared, len(types), self.gold_total)


def line_counts(lines: GoldLines, kept: "LineDecisions", text: str | None = None) -> MetricCounts:
    """The counts of a decision on lines; `text` is the refined text if lines were edited."""
    is_kept = lines.decision_array(kept)
    is_removed = ~is_kept
    if text is None:
        f1, tokens_kept = lines.token_f1(is_kept), int(lines.tokens[is_kept].sum())
        bytes_kept = max(0, int(lines.bytes[is_kept].sum()) - 1)
    else:
        f1, tokens_kept = token_f1(text, lines.gold.gold_text or ""), len(tokens(text))
        bytes_kept = len(text.encode("utf-8", "surrogatepass"))
    return {
        "documents": 1,
        "token_f1": f1,
        "removed_right": int((lines.boilerplate & is_removed).sum()),
        "removed_wrong": int((lines.content & is_removed).sum()),
        "missed": int((lines.boilerplate & is_kept).sum()),
        "long": int(lines.long.sum()),
        "long_removed": int((lines.long & is_removed).sum()),
        "bytes": int(lines.bytes.sum()) - 1,
        "bytes_kept": bytes_kept,
        "tokens": int(lines.tokens.sum()),
        "tokens_kept": tokens_kept,
    }


def document_counts(gold: GoldRecord, kept: bool) -> MetricCounts:
    """The counts of a decision on a doc-level record."""
    size, length = len(gold.text.encode("utf-8", "surrogatepass")), len(tokens(gold.text))
    return {
        "documents": 1,
        "kept": kept,
        "right": kept == gold.keep,
        "dropped_right": not kept and not gold.keep,
        "dropped_wrong": not kept and bool(gold.keep),
        "missed": kept and not gold.keep,
        "bytes": size,
        "bytes_kept": size * kept,
        "tokens": length,
        "tokens_kept": length * kept,
    }


def count_table(level: MetricLevel, rows: Sequence[MetricCounts]) -> "Table":
    """Rows as an array (documents, counts); missing counts are 0."""
    import numpy as np

    names = level.counts
    cells = [[row.get(name, 0) for name in names] for row in rows]
    return np.array(cells, float).reshape(len(rows), len(names))


def score_lines(
    documents: Sequence[GoldLines], decisions: "Sequence[LineDecisions]"
) -> MetricScores:
    """The metrics of one decision on the lines of each document.

    ValueError unless the numbers of documents and of their lines match.
    """
    pairs = zip(documents, decisions, strict=True)
    return LINE_METRICS.scores(
        count_table(LINE_METRICS, [line_counts(lines, kept) for lines, kept in pairs])
    )


def score_documents(
    records: Sequence[GoldRecord], kept: Sequence[bool], scores: Sequence[float] | None = None
) -> MetricScores:
    """The metrics of decisions on doc-level records; a higher score means rather drop."""
    pairs = zip(records, kept, strict=True)
    metrics = DOCUMENT_METRICS.scores(
        count_table(DOCUMENT_METRICS, [document_counts(gold, bool(k)) for gold, k in pairs])
    )
    drop = [not gold.keep for gold in records]
    return metrics | {"auc": None if scores is None else auc(drop, scores)}

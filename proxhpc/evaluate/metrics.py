"""The metrics: what decisions on a document count for, and ratios of sums of such counts.

A decision is a byte or bool for each line, true where the line is kept. Every document becomes one
row of counts; every metric but the AUC is a ratio of sums over rows. So a metric of any set of
documents, or of any resampling of them, is one matrix product.

Pure functions, also for training: prepare `GoldLines` once, then `score_lines` scores decisions on
all documents of an evaluation set in a fraction of a second.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxhpc.evaluate.gold import BOILERPLATE, CONTENT, GoldRecord
from proxhpc.evaluate.ranking import auc
from proxhpc.program.execute import UNSPACED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Flags = bytes | bytearray | Sequence[bool] | NDArray[np.bool_]
    Table = NDArray[np.float64]

LONG_LINE = 20
"""Tokens from which a line counts as a long one."""

Cells = dict[str, float]
"""What a document counts for, by the names of its level's counts."""

MetricScores = dict[str, float | None]
"""Metrics by name; None where there is nothing to have a share of."""

_INNER = UNSPACED.pattern[1:-1]
_TOKEN = re.compile(rf"[{_INNER}]|[^\W{_INNER}]+")
_ASCII_TOKEN = re.compile(r"\w+", re.ASCII)


def tokens(text: str) -> list[str]:
    r"""Words in lower case, runs of `\w`; of scripts without spaces each character is one."""
    lower = text.lower()
    return (_ASCII_TOKEN if lower.isascii() else _TOKEN).findall(lower)


def token_f1(text: str, wanted: str) -> float:
    """F1 of two texts as multisets of tokens; 1 for two texts without any."""
    ours, theirs = Counter(tokens(text)), Counter(tokens(wanted))
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def _f1(shared: int, ours: int, theirs: int) -> float:
    return 2 * shared / (ours + theirs) if ours + theirs else 1.0


@dataclass(frozen=True, slots=True)
class Ratio:
    """A metric: the sum of the counts `over`, divided by that of `under`; named twice, twice."""

    name: str
    over: tuple[str, ...]
    under: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MetricLevel:
    """What is counted of a document at a level, and the metrics made of it."""

    counts: tuple[str, ...]
    ratios: tuple[Ratio, ...]

    def of(self, sums: "Table") -> "Table":
        """Metrics (…, number of ratios) of sums of counts (…, number of counts); NaN for 0/0."""
        import numpy as np

        over, under = (
            np.array([[side.count(name) for side in sides] for name in self.counts], float)
            for sides in ([r.over for r in self.ratios], [r.under for r in self.ratios])
        )
        divisor = sums @ under
        ratios: Table = np.full(divisor.shape, np.nan)
        np.divide(sums @ over, divisor, out=ratios, where=divisor > 0)
        return ratios

    def scores(self, table: "Table") -> MetricScores:
        """The metrics of documents, from their rows."""
        values = self.of(table.sum(axis=0)).tolist()
        pairs = zip(self.ratios, values, strict=True)
        return {ratio.name: None if value != value else value for ratio, value in pairs}


_SIZES = ("bytes", "bytes_kept", "tokens", "tokens_kept")
_VALID = Ratio("valid_programs", ("valid",), ("programs",))
_KEPT = (
    Ratio("bytes_kept", ("bytes_kept",), ("bytes",)),
    Ratio("tokens_kept", ("tokens_kept",), ("tokens",)),
)


def _detection(true: str, false: str, missed: str) -> tuple[Ratio, Ratio, Ratio]:
    """Precision, recall and F1, named `…precision`."""
    return (
        Ratio("precision", (true,), (true, false)),
        Ratio("recall", (true,), (true, missed)),
        Ratio("f1", (true, true), (true, true, false, missed)),
    )


LINE_METRICS = MetricLevel(
    (
        *("documents", "token_f1", "removed_right", "removed_wrong", "missed"),
        *("long", "long_removed", *_SIZES, "programs", "valid"),
    ),
    (
        Ratio("token_f1", ("token_f1",), ("documents",)),
        *(
            Ratio(f"line_{ratio.name}", ratio.over, ratio.under)
            for ratio in _detection("removed_right", "removed_wrong", "missed")
        ),
        Ratio("long_lines_lost", ("long_removed",), ("long",)),
        *(*_KEPT, _VALID),
    ),
)
DOCUMENT_METRICS = MetricLevel(
    (
        *("documents", "kept", "right", "dropped_right", "dropped_wrong", "missed"),
        *(*_SIZES, "programs", "valid"),
    ),
    (
        Ratio("accuracy", ("right",), ("documents",)),
        *_detection("dropped_right", "dropped_wrong", "missed"),
        Ratio("documents_kept", ("kept",), ("documents",)),
        *(*_KEPT, _VALID),
    ),
)


@dataclass(frozen=True, slots=True)
class GoldLines:
    """A chunk-level record as arrays, taken apart once for any number of decisions.

    By line: whether it is labelled `boilerplate`, `content`, or content of at least LONG_LINE
    tokens (`long`), its `tokens`, and its UTF-8 `bytes` with the newline. By token of the text:
    `line_of` and `type_of`, its number among the different tokens; `wanted` is how often the
    wanted text has each of those, `wanted_total` how many tokens that has in all.
    """

    gold: GoldRecord
    boilerplate: "NDArray[np.bool_]"
    content: "NDArray[np.bool_]"
    long: "NDArray[np.bool_]"
    tokens: "NDArray[np.int64]"
    bytes: "NDArray[np.int64]"
    line_of: "NDArray[np.int32]"
    type_of: "NDArray[np.int32]"
    wanted: "NDArray[np.int64]"
    wanted_total: int

    @classmethod
    def of(cls, gold: GoldRecord) -> "GoldLines":
        """Take a chunk-level record apart."""
        import numpy as np

        lines = gold.text.split("\n")
        by_line = [tokens(line) for line in lines]
        sizes = np.fromiter(map(len, by_line), np.int64, len(lines))
        flat = [token for line in by_line for token in line]
        types = {token: number for number, token in enumerate(dict.fromkeys(flat))}
        theirs = Counter(tokens(gold.wanted or ""))
        labels = np.array(list(gold.labels or " " * len(lines)))  # no byte a letter: any letter
        content = labels == CONTENT
        return cls(
            gold=gold,
            boilerplate=labels == BOILERPLATE,
            content=content,
            long=content & (sizes >= LONG_LINE),
            tokens=sizes,
            bytes=np.array([len(line.encode("utf-8", "surrogatepass")) + 1 for line in lines]),
            line_of=np.repeat(np.arange(len(lines), dtype=np.int32), sizes),
            type_of=np.fromiter(map(types.__getitem__, flat), np.int32, len(flat)),
            wanted=np.fromiter((theirs.get(token, 0) for token in types), np.int64, len(types)),
            wanted_total=theirs.total(),
        )

    def flags(self, kept: "Flags") -> "NDArray[np.bool_]":
        """A decision as an array. ValueError where it is not of as many lines as the text."""
        import numpy as np

        if isinstance(kept, bytes | bytearray):
            kept = np.frombuffer(kept, np.bool_)
        flags = np.asarray(kept, bool)
        if flags.shape != self.content.shape:
            number = len(self.content)
            raise ValueError(f"{self.gold.place}: {flags.size} decisions for {number} lines")
        return flags

    def overlap(self, flags: "NDArray[np.bool_]") -> float:
        """Token F1 of the lines that are kept."""
        import numpy as np

        here = self.type_of[flags[self.line_of]]
        counts = np.bincount(here, minlength=len(self.wanted))
        shared = int(np.minimum(counts, self.wanted).sum())
        return _f1(shared, len(here), self.wanted_total)


def line_row(lines: GoldLines, kept: "Flags", text: str | None = None) -> Cells:
    """The counts of LINES of one decision; `text` is what came out where lines changed as well."""
    flags = lines.flags(kept)
    removed = ~flags
    if text is None:
        f1, left = lines.overlap(flags), int(lines.tokens[flags].sum())
        size = max(0, int(lines.bytes[flags].sum()) - 1)
    else:
        f1, left = token_f1(text, lines.gold.wanted or ""), len(tokens(text))
        size = len(text.encode("utf-8", "surrogatepass"))
    return {
        "documents": 1,
        "token_f1": f1,
        "removed_right": _count(lines.boilerplate & removed),
        "removed_wrong": _count(lines.content & removed),
        "missed": _count(lines.boilerplate & flags),
        "long": _count(lines.long),
        "long_removed": _count(lines.long & removed),
        "bytes": int(lines.bytes.sum()) - 1,
        "bytes_kept": size,
        "tokens": int(lines.tokens.sum()),
        "tokens_kept": left,
    }


def _count(flags: "NDArray[np.bool_]") -> int:
    return int(flags.sum())


def document_row(gold: GoldRecord, kept: bool) -> Cells:
    """The counts of DOCUMENTS of one decision on a doc-level record."""
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


def count_table(level: MetricLevel, rows: Sequence[Cells]) -> "Table":
    """Rows as an array (documents, counts); what a row does not name is 0."""
    import numpy as np

    cells = [[row.get(name, 0) for name in level.counts] for row in rows]
    return np.array(cells, float).reshape(len(rows), len(level.counts))


def score_lines(documents: Sequence[GoldLines], decisions: "Sequence[Flags]") -> MetricScores:
    """The metrics of decisions on the lines of documents, one decision each, in their order.

    ValueError where numbers of documents, or of lines, differ.
    """
    pairs = zip(documents, decisions, strict=True)
    return LINE_METRICS.scores(
        count_table(LINE_METRICS, [line_row(lines, kept) for lines, kept in pairs])
    )


def score_documents(
    records: Sequence[GoldRecord], kept: Sequence[bool], scores: Sequence[float] | None = None
) -> MetricScores:
    """The metrics of decisions on doc-level records; `auc` of `scores`, higher for rather drop."""
    pairs = zip(records, kept, strict=True)
    found = DOCUMENT_METRICS.scores(
        count_table(DOCUMENT_METRICS, [document_row(gold, bool(k)) for gold, k in pairs])
    )
    drop = [not gold.keep for gold in records]
    return found | {"auc": None if scores is None else auc(drop, scores)}

"""Reads the examples that `annotate` wrote."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from proxhpc.annotate.examples import DROPPED, KEPT, UNKNOWN
from proxhpc.corpus.document import BadRecord, Span, SpanEnd
from proxhpc.corpus.hosts import Split
from proxhpc.corpus.readers import Fields, read_span
from proxhpc.errors import UserError
from proxhpc.spec.sections import Level

_MAX_ROW_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ExampleRow:
    """One example: a window or, at level doc, a document.

    `line_labels` has a letter for each line (kept, dropped or unknown); it is None if the program
    edits strings. `drop_probabilities` has a teacher's probability for each line. At level doc
    both have one entry, for the document.
    """

    id: str
    level: Level
    source: str
    split: Split
    teacher: str
    program: str
    weight: float
    lines: list[str]
    line_labels: str | None = None
    drop_probabilities: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Examples:
    """The rows of files that `annotate` wrote; each iteration reads the files again."""

    paths: tuple[Path, ...]

    def __iter__(self) -> Iterator[ExampleRow]:
        """UserError naming the first invalid row."""
        for path in self.paths:
            for item in read_span(path, "jsonl", Span(0), Fields("program", "id"), _MAX_ROW_BYTES):
                if isinstance(item, SpanEnd):
                    continue
                if isinstance(item, BadRecord):
                    raise _invalid(path, item.position, item.reason)
                try:
                    yield _row(item.fields, item.text)
                except (AttributeError, KeyError, TypeError, ValueError) as error:
                    reason = f"{type(error).__name__}: {error}"
                    raise _invalid(path, item.position, reason) from error


def sample_examples(rows: Sequence[ExampleRow], max_rows: int, seed: int) -> Sequence[ExampleRow]:
    """At most `max_rows` random rows in their order, the same ones for the same seed."""
    import numpy as np

    if len(rows) <= max_rows:
        return rows
    chosen = np.random.default_rng(seed).choice(len(rows), max_rows, replace=False)
    return [rows[index] for index in sorted(chosen)]


def _row(data: dict[str, Any], program: str) -> ExampleRow:
    is_document = data["level"] == "doc"
    lines = data["text"].split("\n") if is_document else data["lines"]
    labels, probabilities = data.get("keep"), data.get("chance")
    if is_document:
        labels = {"keep_doc()": KEPT, "drop_doc()": DROPPED}[program]
    _check(data, lines, labels, probabilities)
    return ExampleRow(
        id=data["id"],
        level=data["level"],
        source=data["source"],
        split=data["split"],
        teacher=data["teacher"],
        program=program,
        weight=float(data["weight"]),
        lines=lines,
        line_labels=labels,
        drop_probabilities=None if probabilities is None else tuple(map(float, probabilities)),
    )


def _check(data: dict[str, Any], lines: Any, labels: Any, probabilities: Any) -> None:
    """Raise ValueError or TypeError unless the values make one example."""
    for key, choices in (("level", get_args(Level)), ("split", get_args(Split))):
        if data[key] not in choices:
            raise ValueError(f"{key} {data[key]!r:.20} is none of {', '.join(choices)}")
    if not isinstance(lines, list) or not lines or not all(isinstance(n, str) for n in lines):
        raise ValueError("lines is not a list of one or more strings")
    size = 1 if data["level"] == "doc" else len(lines)
    for key, values in (("keep", labels), ("chance", probabilities)):
        if values is not None and len(values) != size:
            raise ValueError(f"{key} has {len(values)} entries for {size} lines")
    if labels is not None and not set(labels) <= {KEPT, DROPPED, UNKNOWN}:
        raise ValueError(f"keep {labels[:20]!r} has letters other than K, D and ?")
    if probabilities is not None and not all(0 <= value <= 1 for value in probabilities):
        raise ValueError("chance is not between 0 and 1")


def _invalid(path: Path, position: int, reason: str) -> UserError:
    return UserError(
        f"{path}, at byte {position}: not an example: {reason}",
        hint="make examples with proxhpc annotate",
    )

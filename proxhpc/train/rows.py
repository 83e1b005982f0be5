"""Reads the examples that `annotate` wrote."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from proxhpc.account.quantity import quantity
from proxhpc.annotate.examples import DROPPED, KEPT
from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.hosts import Split
from proxhpc.corpus.readers import Fields, read_span
from proxhpc.errors import UserError
from proxhpc.spec.sections import Level

_MAX_ROW_BYTES = 64 << 20
_Probability = Annotated[float, Field(ge=0, le=1)]


class ExampleRow(BaseModel):
    """One example: a window or, at level doc, a document.

    `line_labels` has a letter for each line: kept, dropped, edited within or unknown.
    `drop_probabilities` has a teacher's probability for each line. At level doc both have one
    entry, for the document.
    """

    model_config = ConfigDict(frozen=True)

    id: str = Field(coerce_numbers_to_str=True)
    level: Level
    source: str
    split: Split
    teacher: str
    program: str
    weight: float
    lines: list[str] = Field(min_length=1)
    line_labels: str | None = Field(None, alias="keep", pattern="^[KDE?]*$")
    drop_probabilities: tuple[_Probability, ...] | None = Field(None, alias="chance")

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        size = 1 if self.level == "doc" else len(self.lines)
        for key, values in (("keep", self.line_labels), ("chance", self.drop_probabilities)):
            if values is not None and len(values) != size:
                entries = quantity(len(values), "entry", "entries")
                raise ValueError(f"{key} has {entries} for {quantity(size, 'line')}")
        return self


@dataclass(frozen=True, slots=True)
class Examples:
    """The rows of files that `annotate` wrote; each iteration reads the files again."""

    paths: tuple[Path, ...]

    def __iter__(self) -> Iterator[ExampleRow]:
        """UserError naming the first invalid row."""
        for path in self.paths:
            fields = Fields(("program",), "id")
            for item in read_span(path, "jsonl", Span(0), fields, _MAX_ROW_BYTES):
                if isinstance(item, SpanEnd):
                    continue
                if isinstance(item, BadRecord):
                    raise _invalid(path, item.position, item.reason)
                try:
                    yield ExampleRow.model_validate(_keys(item))
                except ValidationError as error:
                    first = error.errors()[0]
                    reason = first["msg"].removeprefix("Value error, ")
                    if key := ".".join(map(str, first["loc"])):
                        reason = f"{key}: {reason} (it is {first['input']!r:.40})"
                    raise _invalid(path, item.position, reason) from error


def sample_examples(rows: Sequence[ExampleRow], max_rows: int, seed: int) -> Sequence[ExampleRow]:
    """At most `max_rows` random rows in their order, the same ones for the same seed."""
    import numpy as np

    if len(rows) <= max_rows:
        return rows
    chosen = np.random.default_rng(seed).choice(len(rows), max_rows, replace=False)
    return [rows[index] for index in sorted(chosen)]


def _keys(document: Document) -> dict[str, Any]:
    """The keys of an ExampleRow; a document has its text as lines and its verdict as label."""
    keys = document.fields | {"program": document.text}
    if keys.get("level") == "doc":
        label = {"keep_doc()": KEPT, "drop_doc()": DROPPED}.get(document.text, document.text)
        text = keys.get("text")
        keys |= {"keep": label, "lines": text.split("\n") if isinstance(text, str) else text}
    return keys


def _invalid(path: Path, position: int, reason: str) -> UserError:
    return UserError(
        f"{path}, at byte {position}: not an example: {reason}",
        hint="make examples with proxhpc annotate",
    )

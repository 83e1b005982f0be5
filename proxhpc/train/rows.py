"""Example files read again: what a refiner is taught, row by row."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from proxhpc.annotate.examples import DROPPED, KEPT, UNKNOWN
from proxhpc.corpus.document import Bad, End, Span
from proxhpc.corpus.hosts import Split
from proxhpc.corpus.readers import Fields, read_span
from proxhpc.engines.base import Level
from proxhpc.errors import UserError

_MAX_ROW_BYTES = 64 << 20  # of a row


@dataclass(frozen=True, slots=True)
class ExampleRow:
    """One example.

    `lines` are the window's or, at level doc, the document's. `marks` says of each line of a
    window whether it is kept, dropped or unknown, where removals are all there is; `chances` is a
    teacher's chance from 0 to 1 that it should go. At level doc there is one of either.
    """

    id: str
    level: Level
    source: str
    split: Split
    teacher: str
    program: str
    weight: float
    lines: list[str]
    before: list[str]
    after: list[str]
    first: int
    of: int
    marks: str | None = None
    chances: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Examples:
    """The rows of files, read again whenever they are asked for."""

    paths: tuple[Path, ...]

    def __iter__(self) -> Iterator[ExampleRow]:
        return read_example_rows(self.paths)


def read_example_rows(paths: Iterable[Path]) -> Iterator[ExampleRow]:
    """The rows of files that `annotate` wrote; UserError names the first line that is none."""
    for path in paths:
        for item in read_span(path, "jsonl", Span(0), Fields("program", "id"), _MAX_ROW_BYTES):
            if isinstance(item, End):
                continue
            if isinstance(item, Bad):
                raise _refused(path, item.position, item.reason)
            try:
                yield _row(item.fields, item.text)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise _refused(path, item.position, f"{type(error).__name__}: {error}") from error


def some(rows: Sequence[ExampleRow], most: int, seed: int) -> Sequence[ExampleRow]:
    """So many of the rows at random, the same for one seed, in their order."""
    import numpy as np

    if len(rows) <= most:
        return rows
    chosen = np.random.default_rng(seed).choice(len(rows), most, replace=False)
    return [rows[number] for number in sorted(chosen)]


def _row(data: dict[str, Any], program: str) -> ExampleRow:
    doc = data["level"] == "doc"
    lines = data["text"].split("\n") if doc else data["lines"]
    chances = data.get("chance")
    marks = data.get("keep")
    if doc:
        marks = {"keep_doc()": KEPT, "drop_doc()": DROPPED}[program]
    _check(data, lines, marks, chances)
    return ExampleRow(
        id=data["id"],
        level=data["level"],
        source=data["source"],
        split=data["split"],
        teacher=data["teacher"],
        program=program,
        weight=float(data["weight"]),
        lines=lines,
        before=data.get("before", []),
        after=data.get("after", []),
        first=data.get("first", 0),
        of=data["of"],
        marks=marks,
        chances=None if chances is None else tuple(float(c) for c in chances),
    )


def _check(data: dict[str, Any], lines: Any, marks: Any, chances: Any) -> None:
    """Raise ValueError, or TypeError, unless these are of one example."""
    for key, choices in (("level", get_args(Level)), ("split", get_args(Split))):
        if data[key] not in choices:
            raise ValueError(f"{key} {data[key]!r:.20} is none of {', '.join(choices)}")
    if not isinstance(lines, list) or not lines or not all(isinstance(n, str) for n in lines):
        raise ValueError("lines is no list of one or more strings")
    size = 1 if data["level"] == "doc" else len(lines)
    if (marks is not None and len(marks) != size) or (chances is not None and len(chances) != size):
        raise ValueError(f"marks or chances do not fit {size} lines")
    if marks is not None and not set(marks) <= {KEPT, DROPPED, UNKNOWN}:
        raise ValueError(f"marks {marks[:20]!r}")
    if chances is not None and not all(0 <= chance <= 1 for chance in chances):
        raise ValueError("a chance that is not from 0 to 1")


def _refused(path: Path, position: int, why: str) -> UserError:
    return UserError(
        f"{path}, at byte {position}: no example: {why}", hint="examples come from proxhpc annotate"
    )

"""Training examples: JSON rows with a window or a document and the program for it.

    {"id", "level", "source", "host", "split", "teacher", "of", "program", "weight",
     "first", "lines", "before", "after", "keep"}       level chunk
    {…, "text"}                                          level doc

A window's program numbers the lines within the window. Each program was executed: its result is
exactly the text that the teacher's labels ask for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxhpc.annotate.labels import Edit, SourceDocument, TeacherLabels
from proxhpc.errors import UserError
from proxhpc.program.derive import NoProgram, derive
from proxhpc.program.lines import runs
from proxhpc.program.syntax import (
    DIALECTS,
    FIRST_LINE,
    Dialect,
    Keep,
    Program,
    RemoveLines,
    Verdict,
    format_program,
)
from proxhpc.spec.sections import Level

BEFORE, AFTER = 4, 3  # lines of the document around a window that an example includes
KEPT, DROPPED, EDITED_WITHIN, UNKNOWN = "KDE?"
_NO_EDIT = {rules.no_edit for rules in DIALECTS.values()}


@dataclass(frozen=True, slots=True)
class WindowLimits:
    """The maximum lines and characters of a window; 0 is no limit.

    A line with more characters than `chars` is in no example.
    """

    lines: int = 0
    chars: int = 0

    @classmethod
    def parse(cls, option: str) -> "WindowLimits":
        """Read `document` (no limits), `LINES` or `LINES,CHARS`. UserError."""
        if option == "document":
            return cls()
        numbers = option.split(",")
        if len(numbers) > 2 or not all(part.isdecimal() and int(part) for part in numbers):
            raise UserError(
                f"--windows {option}: it must be document, LINES or LINES,CHARS",
                hint="for example --windows 64,6000",
            )
        return cls(*map(int, numbers))


def make_examples(
    document: SourceDocument, labels: TeacherLabels, limits: WindowLimits, dialect: Dialect
) -> Iterator[dict[str, Any] | str]:
    """A row for the document's verdict and one for each window, where there are labels.

    A window that gives no example yields the reason instead.
    """
    if labels.keep is not None:
        program = str(Verdict(not labels.keep))
        yield _row(document, "doc", program) | {"text": document.text}
    if labels.edits is None:
        return
    for start, stop in split_windows(document.lines, labels.edits, limits):
        yield _window_example(document, labels, (start, stop), limits, dialect)


def is_untouched(row: Mapping[str, Any]) -> bool:
    """Return True for a window whose program edits nothing."""
    return row["level"] == "chunk" and row["program"] in _NO_EDIT


def split_windows(
    lines: Sequence[str], edits: Sequence[Edit], limits: WindowLimits
) -> Iterator[tuple[int, int]]:
    """Consecutive line ranges of a document within the limits; edits that join lines stay whole."""
    joined = {n for edit in edits if edit.new is not None for n in range(edit.start + 1, edit.stop)}
    start = chars = 0
    for number, line in enumerate(lines):
        is_full = (limits.lines and number - start >= limits.lines) or (
            limits.chars and chars + len(line) + 1 > limits.chars
        )
        if is_full and number > start and number not in joined:
            yield start, number
            start, chars = number, 0
        chars += len(line) + 1
    yield start, len(lines)


def _window_example(
    document: SourceDocument,
    labels: TeacherLabels,
    window: tuple[int, int],
    limits: WindowLimits,
    dialect: Dialect,
) -> dict[str, Any] | str:
    start, stop = window
    lines = document.lines[start:stop]
    if not any(map(str.strip, lines)):
        return "blank"
    if limits.chars and sum(map(len, lines)) + len(lines) - 1 > limits.chars:
        return "too_long"
    edits = [e for e in labels.edits or () if e.start < stop and e.stop > start]
    line_labels = _line_labels(edits, labels.unknown, start, stop)
    if set(line_labels) == {UNKNOWN}:
        return "unknown"
    if all(edit.new is None for edit in edits):
        program: Program | NoProgram = removal_program(lines, line_labels, dialect)
    else:
        program = derive("\n".join(lines), "\n".join(_edited(lines, edits, start)), dialect)
    if isinstance(program, NoProgram):
        return "no_program"
    return _row(document, "chunk", format_program(program, dialect)) | {
        "first": start,
        "lines": lines,
        "before": document.lines[max(0, start - BEFORE) : start],
        "after": document.lines[stop : stop + AFTER],
        "keep": line_labels,
    }


def _row(document: SourceDocument, level: Level, program: str) -> dict[str, Any]:
    return {
        "id": document.id,
        "level": level,
        "source": document.source,
        "host": document.host,
        "split": document.split,
        "teacher": document.teacher,
        "of": len(document.lines),
        "program": program,
        "weight": 1.0,
    }


def _line_labels(edits: list[Edit], unknown: frozenset[int], start: int, stop: int) -> str:
    labels = [UNKNOWN if line in unknown else KEPT for line in range(start, stop)]
    for edit in edits:
        for line in range(max(edit.start, start), min(edit.stop, stop)):
            labels[line - start] = DROPPED if edit.new is None else EDITED_WITHIN
    return "".join(labels)


def removal_program(lines: Sequence[str], line_labels: str, dialect: Dialect) -> Program:
    """The program that removes the lines labelled as dropped, one statement for each run."""
    if dialect == "rescraper":  # its blank lines have no numbers
        line_labels = "".join(c for line, c in zip(lines, line_labels, strict=True) if line.strip())
    dropped = (n for n, label in enumerate(line_labels, FIRST_LINE[dialect]) if label == DROPPED)
    calls = [RemoveLines(first, stop - 1) for first, stop in runs(dropped)]
    return Program(tuple(calls) or (Keep(),))


def _edited(lines: list[str], edits: list[Edit], first: int) -> Iterator[str]:
    """A window's lines after edits, which number the lines from `first` on."""
    next_line = first
    for edit in edits:
        yield from lines[next_line - first : max(0, edit.start - first)]
        if edit.new is not None:
            yield edit.new
        next_line = edit.stop
    yield from lines[max(0, next_line - first) :]

"""Examples: rows that a refiner is trained on, one for a window or for a whole document.

    {"id", "level", "source", "host", "split", "teacher", "of", "program", "weight",
     "first", "lines", "before", "after", "keep"}       level chunk
    {…, "text"}                                          level doc

A window's program numbers its lines as if there were no others. It was executed: it makes what
the teacher wants of them, and nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from proxhpc.annotate.labels import Edit, Subject, TeacherLabels
from proxhpc.errors import UserError
from proxhpc.program.derive import NoProgram, derive
from proxhpc.program.syntax import (
    FIRST_LINE,
    Dialect,
    Keep,
    Program,
    RemoveLines,
    Statement,
    Verdict,
    format_program,
)

BEFORE, AFTER = 4, 3  # lines of the document around a window that an example shows
KEPT, DROPPED, UNKNOWN = "KD?"


@dataclass(frozen=True, slots=True)
class WindowCutter:
    """How documents are cut into windows of whole lines; 0 is no limit.

    A line with more characters than `chars` is in no window.
    """

    lines: int = 0
    chars: int = 0

    @classmethod
    def parse(cls, text: str) -> "WindowCutter":
        """From `document` (no cutting), `LINES` or `LINES,CHARS`; UserError for anything else."""
        if text == "document":
            return cls()
        numbers = text.split(",")
        if len(numbers) > 2 or not all(part.isdecimal() and int(part) for part in numbers):
            raise UserError(
                f"--windows {text}: it must be document, LINES or LINES,CHARS",
                hint="as in --windows 64,6000",
            )
        return cls(*map(int, numbers))


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """One row, and whether its program edits nothing."""

    row: dict[str, Any]
    untouched: bool = False


@dataclass(frozen=True, slots=True)
class UnmatchedLines:
    """A window without an example, for `reason`."""

    reason: str


def examples(
    subject: Subject, lesson: TeacherLabels, cut: WindowCutter, dialect: Dialect
) -> Iterator[TrainingExample | UnmatchedLines]:
    """What a lesson gives: an example of the document's verdict, and one for each window."""
    if lesson.keep is not None:
        text, program = subject.text, str(Verdict(not lesson.keep))
        yield TrainingExample(_about(subject, "doc", program) | {"text": text})
    if lesson.edits is None:
        return
    for start, stop in windows(subject.lines, lesson.edits, cut):
        yield _window(subject, lesson, (start, stop), cut, dialect)


def windows(
    lines: list[str], edits: tuple[Edit, ...], cut: WindowCutter
) -> Iterator[tuple[int, int]]:
    """Ranges of lines that tile a document, within the limits; none parts an edit's lines."""
    glued = {n for edit in edits if edit.new is not None for n in range(edit.start + 1, edit.stop)}
    start = chars = 0
    for number, line in enumerate(lines):
        full = (cut.lines and number - start >= cut.lines) or (
            cut.chars and chars + len(line) + 1 > cut.chars
        )
        if full and number > start and number not in glued:
            yield start, number
            start, chars = number, 0
        chars += len(line) + 1
    yield start, len(lines)


def _window(
    subject: Subject,
    lesson: TeacherLabels,
    span: tuple[int, int],
    cut: WindowCutter,
    dialect: Dialect,
) -> TrainingExample | UnmatchedLines:
    start, stop = span
    lines = subject.lines[start:stop]
    if not any(map(str.strip, lines)):
        return UnmatchedLines("blank")
    if cut.chars and sum(map(len, lines)) + len(lines) - 1 > cut.chars:
        return UnmatchedLines("too_long")
    edits = [e for e in lesson.edits or () if e.start < stop and e.stop > start]
    marks = _marks(edits, lesson.unknown, start, stop)
    if set(marks) == {UNKNOWN}:
        return UnmatchedLines("unknown")
    only_removes = all(edit.new is None for edit in edits)
    if only_removes:
        program: Program | NoProgram = removal(marks, dialect)
    else:
        before, after = "\n".join(lines), "\n".join(_edited(lines, edits, start))
        program = derive(before, after, dialect)
    if isinstance(program, NoProgram):
        return UnmatchedLines("no_program")
    around = {
        "first": start,
        "lines": lines,
        "before": subject.lines[max(0, start - BEFORE) : start],
        "after": subject.lines[stop : stop + AFTER],
        "keep": marks if only_removes else None,
    }
    row = _about(subject, "chunk", format_program(program, dialect)) | around
    return TrainingExample(row, untouched=not edits)


def _about(subject: Subject, level: str, program: str) -> dict[str, Any]:
    return {
        "id": subject.id,
        "level": level,
        "source": subject.source,
        "host": subject.host,
        "split": subject.split,
        "teacher": subject.teacher,
        "of": len(subject.lines),
        "program": program,
        "weight": 1.0,
    }


def _marks(edits: list[Edit], unknown: frozenset[int], start: int, stop: int) -> str:
    marks = [UNKNOWN if line in unknown else KEPT for line in range(start, stop)]
    for edit in edits:
        if edit.new is None:
            for line in range(max(edit.start, start), min(edit.stop, stop)):
                marks[line - start] = DROPPED
    return "".join(marks)


def removal(marks: str, dialect: Dialect) -> Program:
    """The program that removes the lines marked as dropped, runs of them at once."""
    calls: list[Statement] = []
    at = FIRST_LINE[dialect]
    for mark, run in groupby(marks):
        size = len(list(run))
        if mark == DROPPED:
            calls.append(RemoveLines(at, at + size - 1))
        at += size
    return Program(tuple(calls) or (Keep("untouch_doc" if dialect == "prox" else "keep_all"),))


def _edited(lines: list[str], edits: list[Edit], first: int) -> Iterator[str]:
    at = first
    for edit in edits:
        yield from lines[at - first : max(0, edit.start - first)]
        if edit.new is not None:
            yield edit.new
        at = edit.stop
    yield from lines[max(0, at - first) :]

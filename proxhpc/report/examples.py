"""Documents before and after, as the page shows them."""

from dataclasses import replace

from proxhpc.assemble.examples import ExampleTexts
from proxhpc.inspect.diff import LineChange, Piece, diff_excerpt

_CONTEXT = 2  # unchanged lines around a change
_MAX_LINES = 32  # of one document
_MAX_DROPPED_LINES = 15  # of one that was dropped
_MAX_PIECE_CHARS = 240  # a longer piece of a line is shown without its middle
_MAX_PROGRAM_CHARS = 1500
_MAX_START_CHARS = 160  # of the beginning of a duplicate
DiffRow = tuple[LineChange | None, LineChange | None] | int


def program_lines(example: ExampleTexts) -> list[str]:
    """The beginning of a document's programs; no lines without a program."""
    program = "\n".join(example.programs).strip()[:_MAX_PROGRAM_CHARS]
    return program.split("\n") if program else []


def first_characters(example: ExampleTexts | None) -> str:
    """The beginning of a document: of its refined text, if there is one."""
    if example is None:
        return ""
    chosen = example.before if example.after is None else example.after
    return chosen[:_MAX_START_CHARS].replace("\t", " ").replace("\n", " ¶ ")


def diff_rows(example: ExampleTexts) -> list[DiffRow]:
    """Lines before and after side by side, None where there is none, or a number of lines."""
    max_lines = _MAX_DROPPED_LINES if example.after is None else _MAX_LINES
    rows: list[DiffRow] = []
    for change in diff_excerpt(example.before, example.after, _CONTEXT, max_lines):
        if isinstance(change, int):
            rows.append(change)
            continue
        line = replace(change, pieces=tuple(map(_shortened, change.pieces)))
        last = rows[-1] if rows else 0
        if line.kind != "added":
            rows.append((line, line if line.kind == "same" else None))
        elif isinstance(last, tuple) and last[1] is None:
            rows[-1] = (last[0], line)  # an edited line is removed, then added
        else:
            rows.append((None, line))
    return rows


def _shortened(piece: Piece) -> Piece:
    text, half = piece.text, _MAX_PIECE_CHARS // 2
    if len(text) > _MAX_PIECE_CHARS:
        text = f"{text[:half]} … {text[-half:]}"
    return replace(piece, text=text.replace("\t", "    "))

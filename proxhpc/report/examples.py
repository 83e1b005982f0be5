"""Documents before and after, as the page shows them."""

from collections.abc import Iterator
from dataclasses import replace

from proxhpc.assemble.examples import ExampleTexts
from proxhpc.inspect.diff import LineChange, Piece, diff_excerpt

_CONTEXT = 2  # unchanged lines around a change
_MAX_LINES = 40  # of one document
_MAX_DROPPED_LINES = 15  # of one that was dropped
_MAX_PIECE_CHARS = 240  # a longer piece of a line is shown without its middle
_MAX_PROGRAM_CHARS = 1500
_MAX_START_CHARS = 300  # of the beginning of a duplicate


def program_lines(example: ExampleTexts) -> list[str]:
    """The beginning of a document's programs; no lines without a program."""
    program = "\n".join(example.programs).strip()[:_MAX_PROGRAM_CHARS]
    return program.split("\n") if program else []


def first_characters(example: ExampleTexts | None) -> str:
    """The beginning of a document: of its refined text, if there is one."""
    if example is None:
        return ""
    chosen = example.before if example.after is None else example.after
    return chosen[:_MAX_START_CHARS].replace("\n", " ¶ ")


def changed_lines(example: ExampleTexts) -> Iterator[LineChange | int]:
    """Lines with what changed in them; lines left out come as their number."""
    max_lines = _MAX_DROPPED_LINES if example.after is None else _MAX_LINES
    for change in diff_excerpt(example.before, example.after, _CONTEXT, max_lines):
        if isinstance(change, int):
            yield change
        else:
            yield replace(change, pieces=tuple(map(_shortened, change.pieces)))


def _shortened(piece: Piece) -> Piece:
    if len(piece.text) <= _MAX_PIECE_CHARS:
        return piece
    half = _MAX_PIECE_CHARS // 2
    return replace(piece, text=f"{piece.text[:half]} … {piece.text[-half:]}")

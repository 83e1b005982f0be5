"""Documents before and after, as the page shows them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from proxhpc.account.reasons import reason_text
from proxhpc.assemble.examples import ExampleTexts
from proxhpc.inspect.diff import LineChange, Piece, diff_excerpt

_CONTEXT = 2  # unchanged lines around a change
_MAX_LINES = 40  # of one document
_MAX_DROPPED_LINES = 15  # of one that was dropped
_MAX_PIECE_CHARS = 240  # a longer piece of a line is shown without its middle
_MAX_PROGRAM_CHARS = 1500
_MAX_START_CHARS = 300  # of the beginning of a duplicate


@dataclass(frozen=True, slots=True)
class ExampleView:
    """A document that opens to what changed in it."""

    outcome: str
    id: str
    source: str
    is_truncated: bool
    program: list[str]
    diff: list[LineChange | int]
    """Lines, and numbers of lines left out."""


def view_example(text: ExampleTexts) -> ExampleView:
    """What the page shows of one document."""
    program = "\n".join(text.programs).strip()[:_MAX_PROGRAM_CHARS]
    return ExampleView(
        outcome=f"{text.outcome}: {reason_text(text.reason)}" if text.reason else text.outcome,
        id=text.id,
        source="" if text.id == text.source else text.source,
        is_truncated=text.truncated,
        program=program.split("\n") if program else [],
        diff=[*_diff(text)],
    )


def first_characters(text: ExampleTexts | None) -> str:
    """The beginning of a document: of its refined text, if there is one."""
    if text is None:
        return ""
    chosen = text.before if text.after is None else text.after
    return chosen[:_MAX_START_CHARS].replace("\n", " ¶ ")


def _diff(text: ExampleTexts) -> Iterator[LineChange | int]:
    max_lines = _MAX_DROPPED_LINES if text.after is None else _MAX_LINES
    for change in diff_excerpt(text.before, text.after, _CONTEXT, max_lines):
        if isinstance(change, int):
            yield change
        else:
            yield replace(change, pieces=tuple(map(_shortened, change.pieces)))


def _shortened(piece: Piece) -> Piece:
    if len(piece.text) <= _MAX_PIECE_CHARS:
        return piece
    half = _MAX_PIECE_CHARS // 2
    return replace(piece, text=f"{piece.text[:half]} … {piece.text[-half:]}")

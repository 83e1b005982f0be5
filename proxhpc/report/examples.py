"""Documents before and after, as the page and the terminal show them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter

from proxhpc.assemble.stats import ExampleTexts
from proxhpc.inspect.diff import LineChange, Piece, diff_excerpt, diff_lines

_CONTEXT = 2  # unchanged lines around a change
_MAX_LINES = 32  # of one document
_MAX_DROPPED_LINES = 15  # of one that was dropped
_MAX_PIECE_CHARS = 240  # a longer piece of a line is shown without its middle
_MAX_PROGRAM_CHARS = 1500
_MAX_SHORT_LINES = 16  # of a document on the terminal
_ENDS = 2  # lines shown at either end of many lines with the same change
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


def typical_example(examples: Sequence[ExampleTexts]) -> ExampleTexts | None:
    """The edited document that lost most tokens, if possible one that kept more than it lost."""
    edited = [one for one in examples if one.outcome == "edited" and one.after]
    return max(edited, key=_kept_most_and_lost, default=None)


def _kept_most_and_lost(example: ExampleTexts) -> tuple[bool, int]:
    lost = example.tokens_in - example.tokens_out
    return example.tokens_out > lost, lost


def short_diff(example: ExampleTexts) -> list[LineChange | int]:
    """The changes of a document; lines left out of many with the same change as their number."""
    changes = [*diff_lines(example.before.split("\n"), (example.after or "").split("\n"))]
    shown: list[LineChange | int] = []
    done = 0
    for _, group in groupby(changes, key=attrgetter("kind")):
        lines = [*group]
        middle = len(lines) - 2 * _ENDS
        shown += [*lines[:_ENDS], middle, *lines[-_ENDS:]] if middle > 1 else lines
        done += len(lines)
        if len(shown) >= _MAX_SHORT_LINES:
            break
    return [*shown, len(changes) - done] if done < len(changes) else shown

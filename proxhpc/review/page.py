"""The document on the screen: what the reviewer decides about its lines, and which are visible."""

from functools import lru_cache

from rich.console import Console
from rich.text import Text

from proxhpc.inspect.diff import Piece, diff_lines
from proxhpc.inspect.view import change_text
from proxhpc.review.document import NewLine, ReviewDocument, differing
from proxhpc.status.terminal import safe_line

_MAX_CHARS = 2000  # shown at each end of a long line
_CONTEXT = 300  # shown at each end of a long part of a line that did not change
_SIGNS = {"same": "  ", "removed": "~ ", "added": "+ "}
ScreenRow = tuple[int, int]
"""A line, and one of the rows that it takes on the screen."""


class Page:
    """A document with a cursor, and the lines as the reviewer wants them."""

    def __init__(self, document: ReviewDocument, width: int = 80, height: int = 20) -> None:
        self.document, self.lines = document, list(document.refined)
        self.seen: set[int] = set()
        self.cursor, self._top = 0, (0, 0)
        self.width, self.height = width, height

    def resize(self, width: int, height: int) -> None:
        """Use so many columns and rows."""
        if (width, height) != (self.width, self.height):
            self.width, self.height = width, height
            self._top = (self._top[0], 0)
            self.go_to(self.cursor)

    @property
    def edits(self) -> list[int]:
        """Lines that were changed or removed."""
        return differing(self.document.lines, self.document.refined)

    @property
    def is_touched(self) -> bool:
        """Whether the reviewer wants other lines."""
        return tuple(self.lines) != self.document.refined

    def toggle(self) -> None:
        """Let the line at the cursor go, stay, or change as it did, in turn."""
        number = self.cursor
        refined, line = self.document.refined[number], self.document.lines[number]
        choices = [*dict.fromkeys((refined, line, None))]
        position = choices.index(self.lines[number]) + 1
        self.lines[number] = choices[position % len(choices)]

    def go_to(self, number: int) -> None:
        """Move the cursor to a line and show all of it, or its beginning if it is too long."""
        self.cursor = min(max(number, 0), len(self.lines) - 1)
        first, last = (self.cursor, 0), (self.cursor, len(self._rows(self.cursor)) - 1)
        self._top = min(first, max(self._top, self._step(last, 1 - self.height)))

    def move(self, step: int) -> None:
        """Move the cursor by a line, or scroll a line that is longer than the screen."""
        last = (self.cursor, len(self._rows(self.cursor)) - 1)
        if step > 0 and last > self.visible()[-1]:
            self._top = self._step(self._top, 1)
        elif step < 0 and self._top > (self.cursor, 0):
            self._top = self._step(self._top, -1)
        else:
            self.go_to(self.cursor + step)

    def turn(self, step: int) -> None:
        """Scroll by a screen, or move the cursor to the end on the last one."""
        before = self._top
        self._scroll(self._step(before, step * max(1, self.height - 1)))
        if step > 0 and self._top == before:
            self.cursor = len(self.lines) - 1

    def show(self, number: int) -> None:
        """Move the cursor to a line and the line to the top of the screen."""
        self._scroll((number, 0))
        self.cursor = number

    def _scroll(self, top: ScreenRow) -> None:
        """Show lines from `top` on, but no empty rows below the last line."""
        self._top = min(top, self._step((len(self.lines), 0), -self.height))
        self.cursor = next((line for line, row in self.visible() if not row), self._top[0])

    def visible(self) -> list[ScreenRow]:
        """The rows on the screen."""
        shown: list[ScreenRow] = []
        number, row = self._top
        while number < len(self.lines) and len(shown) < self.height:
            shown += [(number, n) for n in range(row, len(self._rows(number)))]
            number, row = number + 1, 0
        return shown[: self.height]

    def draw(self) -> list[Text]:
        """The rows on the screen as text. Their lines count as seen."""
        texts = []
        for number, row in self.visible():
            self.seen.add(number)
            cursor = "▶" if number == self.cursor and not row else " "
            texts.append(Text.assemble((cursor, "bold cyan"), self._rows(number)[row]))
        return texts

    def _step(self, position: ScreenRow, rows: int) -> ScreenRow:
        """The position so many rows further, from the first to the last one."""
        number, row = position
        row += rows
        while row < 0 and number > 0:
            number -= 1
            row += len(self._rows(number))
        while number < len(self.lines) - 1 and row >= len(self._rows(number)):
            row -= len(self._rows(number))
            number += 1
        return number, max(row, 0)

    def _rows(self, number: int) -> list[Text]:
        line, refined = self.document.lines[number], self.document.refined[number]
        label = f"{number + 1:>{len(str(len(self.lines)))}} "
        return _line_rows(label, line, refined, self.lines[number], self.width)


@lru_cache(2048)
def _line_rows(label: str, line: str, refined: NewLine, new: NewLine, width: int) -> list[Text]:
    """A line as it is on the screen, wrapped, with its number and a sign.

    The sign says what was done: `-` removed, `~` changed; `!` that the reviewer disagrees.
    """
    sign = "-" if refined is None else " " if refined == line else "~"
    sign += " " if new == refined else "!"
    if new is None:
        blocks = [
            (sign, Text(_clipped(line), "strike red" if new == refined else "strike magenta"))
        ]
    elif new == line:
        blocks = [(sign, Text(_clipped(line), "" if new == refined else "green"))]
    else:
        changes = diff_lines([line], new.split("\n"))
        blocks = [(_SIGNS[change.kind], change_text(change, _clipped_piece)) for change in changes]
    rows: list[Text] = []
    console = Console()  # wrapping asks for one
    for mark, text in blocks:
        for row in text.wrap(console, max(10, width - len(label) - 3), overflow="fold") or [Text()]:
            rows.append(Text.assemble((label, "dim"), (f"{mark:2}", "bold"), row))
            label, mark = " " * len(label), ""
    return rows


def _clipped_piece(piece: Piece) -> str:
    return _clipped(piece.text, _MAX_CHARS if piece.changed else _CONTEXT)


def _clipped(text: str, limit: int = _MAX_CHARS) -> str:
    """A text made safe; of a long one, both ends."""
    left_out = len(text) - 2 * limit
    if left_out > 0:
        text = f"{text[:limit]} … {left_out:,} characters … {text[-limit:]}"
    return safe_line(text)

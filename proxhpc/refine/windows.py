"""Lines and their tokens; windows: runs of whole lines that fit a model's token budget."""

from collections.abc import Sequence
from dataclasses import dataclass

from proxhpc.engines.base import Tokenizer
from proxhpc.refine.pump import take_batch
from proxhpc.run.plan import BYTES_PER_TOKEN

# A line of more characters a token than this is over any budget of its own length or is not text
# (one token of a long run of spaces or dashes covers 16 to 128).
MAX_CHARS_PER_TOKEN = 64
# Of one call of the tokenizer, whose answer takes some KiB a line and 100 bytes a token.
CALL_LINES, CALL_CHARS = 8192, 1 << 20


@dataclass(frozen=True, slots=True)
class Window:
    """Lines [start, stop) of a document and what they cost in a prompt.

    `too_long`: the one line is over the budget by itself and must not be sent to the model.
    `blank`: no line holds anything but whitespace, so there is nothing to ask about.
    """

    start: int
    stop: int
    tokens: int
    too_long: bool = False
    blank: bool = False


def pack(
    lines: Sequence[str], counts: Sequence[int], budget: int, most: int | None = None
) -> list[Window]:
    """Greedy windows, in order, that tile [0, len(lines)); no line is ever split.

    `counts` are the tokens of each line with its number; a line end costs one more. A line over
    the budget is a window by itself. `most` bounds the lines of a window.
    """
    windows: list[Window] = []
    start = tokens = 0
    for number, (_, count) in enumerate(zip(lines, counts, strict=True)):
        cost = count + 1
        if number > start and (tokens + cost > budget or number - start == most):
            windows.append(make_window(lines, counts, start, number, budget))
            start, tokens = number, 0
        tokens += cost
    if start < len(lines):
        windows.append(make_window(lines, counts, start, len(lines), budget))
    return windows


def make_window(
    lines: Sequence[str], counts: Sequence[int], start: int, stop: int, budget: int
) -> Window:
    """The window of lines [start, stop), of which `pack` tells what they cost."""
    tokens = sum(counts[start:stop]) + stop - start
    blank = not any(line.strip() for line in lines[start:stop])
    return Window(start, stop, tokens, too_long=tokens > budget, blank=blank)


class LineTokens:
    """A document's lines and the tokens of each, counted once.

    `total` is that of the document, one more for each line end. Without a tokenizer UTF-8 bytes
    stand for tokens.
    """

    def __init__(self, tokenizer: Tokenizer | None, text: str, longest: int) -> None:
        """A line that `longest` tokens cannot cover is counted in pieces."""
        self._tokenizer, self._longest = tokenizer, max(1, longest) * MAX_CHARS_PER_TOKEN
        self.lines = text.split("\n")
        self.counts = self._count(self.lines)
        self._known = dict(zip(self.lines, self.counts, strict=True))
        self.total = self.of(text)

    def of(self, text: str) -> int:
        """Tokens of a text most of whose lines are the document's."""
        if self._tokenizer is None:
            return _estimate(text)
        lines = text.split("\n")
        new = [line for line in lines if line not in self._known]
        if new:
            self._known.update(zip(new, self._count(new), strict=True))
        return sum(self._known[line] for line in lines) + len(lines) - 1

    def _count(self, lines: Sequence[str]) -> list[int]:
        """Tokens of each line; no call of the tokenizer with so much that it costs much memory."""
        if self._tokenizer is None:
            return [_estimate(line) for line in lines]
        pieces = (
            (number, line[at : at + self._longest])
            for number, line in enumerate(lines)
            for at in range(0, max(1, len(line)), self._longest)
        )
        counts = [0] * len(lines)
        while some := take_batch(pieces, CALL_LINES, CALL_CHARS, lambda piece: len(piece[1])):
            counted = self._tokenizer.count([piece for _, piece in some])
            for (number, _), count in zip(some, counted, strict=True):
                counts[number] += count
        return counts


def _estimate(text: str) -> int:
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)

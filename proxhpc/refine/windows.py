"""Token counts of lines, and windows: runs of whole lines within a token budget."""

from collections.abc import Sequence
from dataclasses import dataclass

from proxhpc.engines.base import Tokenizer
from proxhpc.refine.pump import take_batch
from proxhpc.run.plan import BYTES_PER_TOKEN

# A line with more characters a token exceeds any budget, or is no text: one token of a long run of
# spaces or dashes covers 16 to 128 characters.
MAX_CHARS_PER_TOKEN = 64
# Limits of one call of the tokenizer, whose result takes some KiB a line and 100 bytes a token.
CALL_LINES, CALL_CHARS = 8192, 1 << 20


@dataclass(frozen=True, slots=True)
class Window:
    """Lines [start, stop) of a document and their tokens in a prompt.

    `too_long`: a single line that exceeds the budget and must not be sent to the model. `blank`:
    there is only whitespace, so the model is not asked.
    """

    start: int
    stop: int
    tokens: int
    too_long: bool = False
    blank: bool = False


def pack(
    lines: Sequence[str], counts: Sequence[int], budget: int, max_lines: int | None = None
) -> list[Window]:
    """Pack lines greedily into consecutive windows of at most `budget` tokens and `max_lines`.

    `counts` are the tokens of each line with its number; a line feed takes one more. A line over
    the budget gets a separate window.
    """
    windows: list[Window] = []
    start = tokens = 0
    for number, (_, count) in enumerate(zip(lines, counts, strict=True)):
        cost = count + 1
        if number > start and (tokens + cost > budget or number - start == max_lines):
            windows.append(make_window(lines, counts, start, number, budget))
            start, tokens = number, 0
        tokens += cost
    if start < len(lines):
        windows.append(make_window(lines, counts, start, len(lines), budget))
    return windows


def make_window(
    lines: Sequence[str], counts: Sequence[int], start: int, stop: int, budget: int
) -> Window:
    """Return the window of lines [start, stop), with its tokens counted as in `pack`."""
    tokens = sum(counts[start:stop]) + stop - start
    blank = not any(line.strip() for line in lines[start:stop])
    return Window(start, stop, tokens, too_long=tokens > budget, blank=blank)


class LineTokens:
    """A document's lines and the tokens of each, counted once.

    `total` is the document's, with one more for each line feed. Without a tokenizer, tokens are
    estimated from UTF-8 bytes.
    """

    def __init__(self, tokenizer: Tokenizer | None, text: str, max_line_tokens: int) -> None:
        """Lines that `max_line_tokens` cannot cover are counted in pieces."""
        self._tokenizer = tokenizer
        self._piece_chars = max(1, max_line_tokens) * MAX_CHARS_PER_TOKEN
        self.lines = text.split("\n")
        self.counts = self._count(self.lines)
        self._count_by_line = dict(zip(self.lines, self.counts, strict=True))
        self.total = self.count_text(text)

    def count_text(self, text: str) -> int:
        """Return the tokens of a text that shares most of its lines with the document."""
        if self._tokenizer is None:
            return _estimate(text)
        lines = text.split("\n")
        new = [line for line in lines if line not in self._count_by_line]
        if new:
            self._count_by_line.update(zip(new, self._count(new), strict=True))
        return sum(self._count_by_line[line] for line in lines) + len(lines) - 1

    def _count(self, lines: Sequence[str]) -> list[int]:
        """Return the tokens of each line, with calls of the tokenizer that bound its memory."""
        if self._tokenizer is None:
            return [_estimate(line) for line in lines]
        pieces = (
            (number, line[start : start + self._piece_chars])
            for number, line in enumerate(lines)
            for start in range(0, max(1, len(line)), self._piece_chars)
        )
        counts = [0] * len(lines)
        while batch := take_batch(pieces, CALL_LINES, CALL_CHARS, lambda piece: len(piece[1])):
            batch_counts = self._tokenizer.count([piece for _, piece in batch])
            for (number, _), count in zip(batch, batch_counts, strict=True):
                counts[number] += count
        return counts


def _estimate(text: str) -> int:
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)

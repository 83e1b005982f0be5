"""Windows: runs of whole lines within limits; and the token counts of lines."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from proxhpc.engines.base import Tokenizer
from proxhpc.refine.pump import take_batch
from proxhpc.run.plan import BYTES_PER_TOKEN

# A line with more characters a token exceeds any budget, or is no text: one token of a long run of
# spaces or dashes covers 16 to 128 characters.
MAX_CHARS_PER_TOKEN = 64
# Limits of one call of the tokenizer, whose result takes some KiB a line and 100 bytes a token.
CALL_LINES, CALL_CHARS = 8192, 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What a window may show at most.

    `overlap` is the share of a window, in characters if they are limited and otherwise in tokens,
    that the next one shows again.
    """

    tokens: int
    lines: int | None = None
    chars: int | None = None
    overlap: float = 0.0


@dataclass(frozen=True, slots=True)
class Window:
    """Lines [start, stop) of a document, which belong to no other window.

    A prompt also shows the `overlap` lines before them. `tokens` are those of all shown lines, with
    their numbers. `blank`: there is only whitespace in the window's own lines.
    """

    start: int
    stop: int
    tokens: int
    overlap: int = 0
    blank: bool = False

    @property
    def first_shown(self) -> int:
        """The first line in its prompt."""
        return self.start - self.overlap


def pack(
    lines: Sequence[str], tokens: Sequence[int], limits: Limits, chars: Sequence[int] = ()
) -> list[Window]:
    """Pack lines greedily into consecutive windows within `limits`.

    `tokens` and `chars` are what each line takes in a prompt, with its number and what separates it
    from the next line. A line that exceeds the limits gets a separate window.
    """
    if len(lines) != len(tokens) or len(chars) not in (0, len(lines)):
        raise ValueError(f"{len(tokens)} and {len(chars)} sizes for {len(lines)} lines")
    sizes = [([0, *accumulate(tokens)], limits.tokens)]
    if limits.chars is not None:
        sizes.insert(0, ([0, *accumulate(chars)], limits.chars))

    def end(first: int) -> int:
        """Return where a window that shows the lines from `first` must end."""
        last = len(lines) if limits.lines is None else min(first + limits.lines, len(lines))
        for sums, limit in sizes:
            last = min(last, bisect_right(sums, sums[first] + limit) - 1)
        return last

    windows: list[Window] = []
    first = start = 0  # the first line that the next window shows, and the first that it owns
    while start < len(lines):
        stop = max(end(first), start + 1)
        windows.append(make_window(lines, tokens, start, stop, start - first))
        sums = sizes[0][0]
        shared = int((sums[stop] - sums[first]) * limits.overlap)
        earliest = bisect_left(sums, sums[stop] - shared, first + 1, stop)
        first = start = stop
        if shared:
            first = next((n for n in range(earliest, stop) if end(n) > stop), stop)
    return windows


def make_window(
    lines: Sequence[str], tokens: Sequence[int], start: int, stop: int, overlap: int = 0
) -> Window:
    """Return the window of lines [start, stop), with its tokens counted as in `pack`."""
    blank = not any(map(str.strip, lines[start:stop]))
    return Window(start, stop, sum(tokens[start - overlap : stop]), overlap, blank)


def count_tokens(tokenizer: Tokenizer, lines: Sequence[str], max_line_tokens: int) -> list[int]:
    """Return the tokens of each line, with calls of the tokenizer that bound its memory.

    Lines that `max_line_tokens` cannot cover are counted in pieces.
    """
    size = max(1, max_line_tokens) * MAX_CHARS_PER_TOKEN
    sizes = [*map(len, lines)]
    if len(lines) <= CALL_LINES and sum(sizes) <= CALL_CHARS and max(sizes, default=0) <= size:
        return tokenizer.count(lines)
    pieces = (
        (number, line[start : start + size])
        for number, line in enumerate(lines)
        for start in range(0, max(1, len(line)), size)
    )
    counts = [0] * len(lines)
    while batch := take_batch(pieces, CALL_LINES, CALL_CHARS, lambda piece: len(piece[1])):
        batch_counts = tokenizer.count([piece for _, piece in batch])
        for (number, _), count in zip(batch, batch_counts, strict=True):
            counts[number] += count
    return counts


class LineTokens:
    """A document's lines and the tokens of each, counted once.

    `total` is the document's, with one more for each line feed. Without a tokenizer, tokens are
    estimated from UTF-8 bytes.
    """

    def __init__(self, tokenizer: Tokenizer | None, text: str, max_line_tokens: int) -> None:
        self._tokenizer, self._max_line_tokens = tokenizer, max_line_tokens
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
        if self._tokenizer is None:
            return [_estimate(line) for line in lines]
        return count_tokens(self._tokenizer, lines, self._max_line_tokens)


def _estimate(text: str) -> int:
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)

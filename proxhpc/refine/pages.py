"""A document's lines as the model of a stage reads them: numbered, and long ones in pieces."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate

from proxhpc.engines.base import Tokenizer
from proxhpc.program.syntax import FIRST_LINE
from proxhpc.refine.prompts import Prompts
from proxhpc.refine.sentences import split_line
from proxhpc.refine.windows import Limits, count_tokens
from proxhpc.spec.sections import Stage

# Tokens of a piece of a long line: short sentences are joined up to the first number, and long ones
# split above the second. So a window shows several pieces, of which a program can remove some.
JOINED_TOKENS, PIECE_TOKENS = 40, 160
MIN_PIECES = 4  # that fit into a small window


@dataclass(frozen=True, slots=True)
class TextPage:
    """Lines, with their numbers from 0 and their sizes in a prompt.

    `numbers` has one more, for the line after the last. A line without a number, because it is
    blank, is not shown and has the number of the next line. `chars` is empty unless the stage
    limits them. `cuts` are the characters of the document at which long lines were split.
    """

    lines: Sequence[str]
    numbers: Sequence[int]
    tokens: Sequence[int]
    chars: Sequence[int] = ()
    cuts: tuple[int, ...] = ()

    def shown(self, start: int, stop: int) -> list[str]:
        """Return those of the lines [start, stop) that have a number."""
        numbers = self.numbers
        return [self.lines[n] for n in range(start, stop) if numbers[n] < numbers[n + 1]]


def plain_page(stage: Stage, lines: Sequence[str], counts: Sequence[int]) -> TextPage:
    """Return the lines for an engine without a model."""
    chars = [len(line) + 1 for line in lines] if stage.window_chars else ()
    return TextPage(lines, _numbers(stage, lines), [count + 1 for count in counts], chars)


def _numbers(stage: Stage, lines: Sequence[str]) -> Sequence[int]:
    if stage.blank_lines == "numbered":
        return range(len(lines) + 1)
    return [*accumulate((bool(line.strip()) for line in lines), initial=0)]


class PageReader:
    """Reads documents for a stage with a model."""

    def __init__(
        self, stage: Stage, limits: Limits, prompts: Prompts, tokenizer: Tokenizer, *, exact: bool
    ) -> None:
        """With `exact`, sizes are those of the public code, which splits no line."""
        self._stage, self._limits, self._exact = stage, limits, exact
        self._prompts, self._tokenizer = prompts, tokenizer
        self._count_number = cache(self._count_digits)

    def read(self, lines: Sequence[str], counts: Sequence[int]) -> TextPage:
        """Return a document's lines, which have `counts` tokens without their numbers.

        Lines that fit into a window are never split.
        """
        page = self._measure(lines, counts)
        too_long = [tokens > self._limits.tokens for tokens in page.tokens]
        if (limit := self._limits.chars) is not None:
            too_long = [a or chars > limit for a, chars in zip(too_long, page.chars, strict=True)]
        if self._exact or not any(too_long):
            return page
        pieces: list[tuple[str, int]] = []
        cuts: list[int] = []
        at = 0
        for line, count, is_too_long in zip(lines, counts, too_long, strict=True):
            parts = [*self._split(line, count)] if is_too_long else [(line, count)]
            ends = [*accumulate((len(text) for text, _ in parts), initial=at)]
            cuts += ends[1:-1]
            at = ends[-1] + 1
            # A blank at the end of a piece is not worth a token.
            pieces += parts if len(parts) == 1 else [(text.rstrip(), n) for text, n in parts]
        page = self._measure([text for text, _ in pieces], [count for _, count in pieces])
        return replace(page, cuts=tuple(cuts))

    def _measure(self, lines: Sequence[str], counts: Sequence[int]) -> TextPage:
        numbers = _numbers(self._stage, lines)
        first = FIRST_LINE[self._stage.dialect]
        shown = [number + first for number in numbers[:-1]]
        if self._stage.numbering == "window":  # counted as if all had three digits
            shown = [100] * len(lines)
        if self._exact:
            numbered = [*map(self._numbered, shown, lines)]
            extra = len(self._tokenizer.bos)
            counts = count_tokens(self._tokenizer, numbered, self._limits.tokens)
            tokens = [count + extra for count in counts]
        else:
            sizes = map(self._count_number, map(len, map(str, shown)))
            tokens = [n + size + 1 for n, size in zip(counts, sizes, strict=True)]
        chars: Sequence[int] = ()
        if self._limits.chars is not None:
            chars = [len(text) + 1 for text in map(self._numbered, shown, lines)]
        if self._stage.blank_lines == "skipped":
            is_shown = [bool(line.strip()) for line in lines]
            tokens = [size * shows for size, shows in zip(tokens, is_shown, strict=True)]
            chars = [size * shows for size, shows in zip(chars, is_shown, strict=bool(chars))]
        return TextPage(lines, numbers, tokens, chars)

    def _numbered(self, number: int, line: str) -> str:
        return self._prompts.line(number, line).removesuffix("\n")

    def _count_digits(self, digits: int) -> int:
        """Return the tokens of a number of so many digits, with what is written around it."""
        least = 10 ** (digits - 1) if digits > 1 else FIRST_LINE[self._stage.dialect]
        return self._tokenizer.count([self._prompts.number(least)])[0]

    def _split(self, line: str, count: int) -> Iterator[tuple[str, int]]:
        """Yield the pieces of a line of `count` tokens, and their tokens."""
        chars_per_token = len(line) / max(count, 1)
        max_tokens = min(PIECE_TOKENS, self._limits.tokens // MIN_PIECES)
        longest = max(1, int(max_tokens * chars_per_token))
        if self._limits.chars is not None:
            longest = max(1, min(longest, self._limits.chars // MIN_PIECES))
        joined = min(longest, int(JOINED_TOKENS * chars_per_token))
        texts = split_line(line, joined, longest)
        counts = count_tokens(self._tokenizer, texts, self._limits.tokens)
        for piece in zip(texts, counts, strict=True):
            # A part of the line may have more tokens a character than all of it.
            if len(texts) > 1 and piece[1] > self._limits.tokens // 2:
                yield from self._split(*piece)
            else:
                yield piece

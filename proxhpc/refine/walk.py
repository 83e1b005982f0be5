"""The prompt style `walk`: what its tiny models read and answer, in training and in use.

An answer for a window is one token a line, in order, and the end. Nothing here depends on the
limits of an engine: a window of a document has one prompt.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from proxhpc.engines.base import Tokenizer
from proxhpc.engines.steps import AllowedSteps
from proxhpc.program.execute import UNSPACED
from proxhpc.program.syntax import removal_text
from proxhpc.refine import walk_vocabulary as vocabulary
from proxhpc.refine.windows import CALL_LINES, Limits, Window, pack

Ids = Sequence[int]

WINDOW_TOKENS = 480  # of numbered lines
WINDOW_LINES = 64
# The model sees the start and the end of longer lines: the start shows whether a line is text, the
# end whether it is a sentence.
_MAX_CHARS, _HEAD_CHARS, _TAIL_CHARS = 66, 46, 16
_HEAD_TOKENS, _TAIL_TOKENS = 32, 15  # bounds for scripts with several tokens a character
MAX_LINE_TOKENS = _HEAD_TOKENS + 1 + _TAIL_TOKENS
_LENGTHS = (100, 160, 250, 400, 800)  # letters: bounds of the length buckets
_UNSPACED_LETTERS = 4  # what a character of a script without blanks says, in letters of others
# Long lines are most of a text, so the model must be surer to remove one: by this in log-odds.
_LONG_LINE, _LONG_LINE_BIAS = _LENGTHS[0], -0.5
# Context of a window: this many lines that are not blank, no further away than REACH.
_LINES_BEFORE, _LINES_AFTER, REACH, _CONTEXT_TOKENS = 4, 3, 12, 64
MAX_OVERHEAD = 5 + 2 * _CONTEXT_TOKENS  # tokens of a prompt beside the window's numbered lines
# A document's verdict depends on its first and last lines that are not blank.
_FIRST_LINES, _FIRST_TOKENS, _LAST_LINES, _LAST_TOKENS = 24, 360, 8, 120
_VERDICT_TOKENS = _FIRST_TOKENS + _LAST_TOKENS
MAX_VERDICT_PROMPT = 3 + _VERDICT_TOKENS
# Its lines are shortened to the first of these multiples of a window's limits that fits, if any.
_SCALES = (16, 8, 4, 2)

_REMOVAL = re.compile(r"remove_lines\(start=([0-9]+), end=[0-9]+\)\n")


@dataclass(frozen=True, slots=True)
class WalkPage:
    """A document's lines and the ids that the model reads of each; none for a blank line."""

    lines: Sequence[str]
    ids: Sequence[Ids]


class Walk:
    """The style with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """UserError unless the tokenizer was made for the style."""
        self._tokenizer = tokenizer
        special, added = tokenizer.special_id, tokenizer.added_id
        self.end = special(vocabulary.END)
        self._doc_start = special(vocabulary.DOC_MORE), special(vocabulary.DOC)
        self._doc_end = special(vocabulary.DOC_END_MORE), special(vocabulary.DOC_END)
        self._verdict = special(vocabulary.VERDICT), special(vocabulary.VERDICT_END)
        self._line, self._gap = special(vocabulary.LINE), special(vocabulary.GAP)
        self._eighths = [special(vocabulary.position_token(n)) for n in range(vocabulary.EIGHTHS)]
        self._lengths = [special(vocabulary.length_token(n)) for n in range(vocabulary.LENGTHS)]
        every = range(vocabulary.NUMBERS)
        self._numbers = [special(vocabulary.number_token(n)) for n in every]
        self._all_numbers = frozenset(self._numbers)
        self._keep = [special(vocabulary.keep_token(n)) for n in every]
        self._remove = [added(vocabulary.remove_token(n)) for n in every]
        self.verdict_ids = added(vocabulary.KEEP_DOC), added(vocabulary.DROP_DOC)

    def page(self, lines: Sequence[str]) -> WalkPage:
        """Encode a document's lines, once for all windows."""
        ids: list[Ids] = []
        for start in range(0, len(lines), CALL_LINES):
            ids += self._encode(lines[start : start + CALL_LINES])
        return WalkPage(lines, ids)

    def windows(
        self, page: WalkPage, max_tokens: int = WINDOW_TOKENS, max_lines: int = WINDOW_LINES
    ) -> list[Window]:
        """Split the page into consecutive windows."""
        tokens = [len(ids) + 1 for ids in page.ids]
        return pack(page.lines, tokens, Limits(max_tokens, max_lines))

    def prompt(self, page: WalkPage, start: int, stop: int) -> list[int]:
        """Return the prompt ids of lines [start, stop).

        There are at most MAX_OVERHEAD more than the lines' own and one for each line's number.
        """
        total = len(page.ids)
        ids = [self._doc_start[start == 0], self._eighths[start * len(self._eighths) // total]]
        before = self._context(page, range(start - 1, max(start - REACH, 0) - 1, -1), _LINES_BEFORE)
        if before:
            ids += self._join(reversed(before))
            ids.append(self._gap)
        for line, number in zip(page.ids[start:stop], self._numbers, strict=False):
            ids += line
            ids.append(number)
        after = self._context(page, range(stop, min(stop + REACH, total)), _LINES_AFTER)
        if after:
            ids += [self._gap, *self._join(after)]
        ids.append(self._doc_end[stop == total])
        return ids

    def number_positions(self, prompt: Ids) -> list[int]:
        """Return the positions of line numbers in a window's prompt."""
        return [position for position, token in enumerate(prompt) if token in self._all_numbers]

    def verdict_prompt(self, lines: Sequence[str]) -> list[int]:
        """Return the at most MAX_VERDICT_PROMPT prompt ids for a document's verdict.

        Its first and last lines are shortened no more than they must be.
        """
        first = self._select_lines(lines, range(len(lines)), _FIRST_LINES, _FIRST_TOKENS)
        last_of_first = max(first, default=-1)
        from_end = range(len(lines) - 1, last_of_first, -1)
        last = self._select_lines(lines, from_end, _LAST_LINES, _LAST_TOKENS)
        between = range(last_of_first + 1, min(last, default=len(lines)))
        gap = [self._gap] if any(lines[n].strip() for n in between) else []
        chosen = first | dict(reversed(last.items()))
        ids = self._lengthened([lines[n] for n in chosen]) or [*chosen.values()]
        top, bottom = ids[: len(first)], ids[len(first) :]
        return [self._verdict[0], *self._join(top), *gap, *self._join(bottom), self._verdict[1]]

    @cache  # noqa: B019 - a stage has one walk, as long as it lives
    def allowed_steps(self, lines: int) -> AllowedSteps:
        """Return the allowed ids of each answer token for a window of this many lines."""
        return (*zip(self._keep[:lines], self._remove[:lines], strict=True), (self.end,))

    @property
    def verdict_steps(self) -> AllowedSteps:
        """The allowed ids of each answer token for a verdict: to keep, to drop, or to abstain."""
        return ((*self.verdict_ids, self.end), (self.end,))

    def bias(self, lines: Sequence[str], value: float) -> tuple[tuple[int, float], ...]:
        """Return what to add to the logits of removing each line of a window."""
        biases = zip(self._remove, line_biases(lines, value), strict=False)
        return tuple(pair for pair in biases if pair[1])

    def verdict_bias(self, value: float) -> tuple[tuple[int, float], ...]:
        """Return what to add to the logit of dropping a document."""
        return ((self.verdict_ids[1], value),) if value else ()

    def _lengthened(self, lines: Sequence[str]) -> list[Ids]:
        """Encode a verdict's lines at the largest scale above 1 that fits; [] if none does."""
        for scale in _SCALES:
            ids = self._encode(lines, scale)
            if sum(map(len, ids)) + len(ids) <= _VERDICT_TOKENS:
                return ids
        return []

    def _encode(self, lines: Sequence[str], scale: int = 1) -> list[Ids]:
        """Encode lines; long ones are shortened in the middle, less with a larger `scale`."""
        texts = [line.strip() for line in lines]
        head_chars = scale * _HEAD_CHARS
        max_chars = head_chars + _MAX_CHARS - _HEAD_CHARS
        long = [n for n, text in enumerate(texts) if len(text) > max_chars]
        parts = texts.copy()
        for n in long:
            parts[n] = texts[n][:head_chars]
            parts.append(texts[n][-_TAIL_CHARS:])
        encoded = self._tokenizer.encode_lines(parts)
        tails = dict(zip(long, encoded[len(texts) :], strict=True))
        return [
            self._shorten(encoded[n], tails.get(n), text, scale) if text else ()
            for n, text in enumerate(texts)
        ]

    def _shorten(self, head: Ids, tail: Ids | None, text: str, scale: int) -> Ids:
        """Return at most MAX_LINE_TOKENS ids of a line, and more with a scale above 1."""
        if tail is None:
            if len(head) <= scale * _HEAD_TOKENS + 1 + _TAIL_TOKENS:
                return head
            tail = head
        middle = self._lengths[bisect_right(_LENGTHS, _letters(text))]
        return [*head[: scale * _HEAD_TOKENS], middle, *tail[-_TAIL_TOKENS:]]

    def _context(self, page: WalkPage, numbers: Iterable[int], max_lines: int) -> list[Ids]:
        """Return the nearest lines that are not blank, as many as fit."""
        return _fitting((page.ids[n] for n in numbers if page.ids[n]), max_lines, _CONTEXT_TOKENS)

    def _select_lines(
        self, lines: Sequence[str], numbers: Iterable[int], max_lines: int, max_tokens: int
    ) -> dict[int, Ids]:
        """Return number and ids of the first lines that are not blank, as many as fit."""
        chosen: list[int] = []
        for n in numbers:
            if lines[n].strip():
                chosen.append(n)
            if len(chosen) == max_lines:
                break
        ids = _fitting(self._encode([lines[n] for n in chosen]), max_lines, max_tokens)
        return dict(zip(chosen, ids, strict=False))

    def _join(self, lines: Iterable[Ids]) -> list[int]:
        joined: list[int] = []
        for ids in lines:
            joined += ids
            joined.append(self._line)
        return joined


def line_biases(lines: Sequence[str], value: float) -> list[float]:
    """Return what to add to the log-odds that each line is removed: `value`, less for long ones."""
    least = _LONG_LINE // _UNSPACED_LETTERS  # characters of a long line
    return [
        value + _LONG_LINE_BIAS * (len(line) >= least and _letters(line.strip()) >= _LONG_LINE)
        for line in lines
    ]


def _letters(text: str) -> int:
    """Return the length of a text, in letters of a script with blanks."""
    size = len(text)
    return size if text.isascii() else size + (_UNSPACED_LETTERS - 1) * len(UNSPACED.findall(text))


def _fitting(lines: Iterable[Ids], max_lines: int, max_tokens: int) -> list[Ids]:
    """Return the first lines that fit into the limits, with one more token for each line."""
    fitting: list[Ids] = []
    for ids in lines:
        max_tokens -= len(ids) + 1
        if max_tokens < 0 or len(fitting) == max_lines:
            break
        fitting.append(ids)
    return fitting


def read_program(answer: str) -> str:
    """Return an answer as a program, with one statement for each run of removed lines.

    An answer of another form is returned unchanged. A program may be empty: it keeps all lines.
    """
    numbers = [int(number) for number in _REMOVAL.findall(answer)]
    if "".join(map(vocabulary.remove_token, numbers)) != answer:
        return answer
    return removal_text(numbers)

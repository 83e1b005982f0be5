"""The style `walk`: what a tiny model made for it reads and answers, in training and in use alike.

A window's answer is one token a line, in order, and the end. Nothing here depends on the limits of
an engine: a window of a document has one prompt.
"""

import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from proxhpc.engines.base import Tokenizer
from proxhpc.engines.steps import AllowedSteps
from proxhpc.refine import walk_vocabulary as vocabulary
from proxhpc.refine.windows import CALL_LINES, Window, pack

Ids = Sequence[int]

WINDOW_TOKENS = 480  # of numbered lines
WINDOW_LINES = 64
# A longer line is shortened to its start and its end. Whether it is text shows at its start; at its
# end, whether it is a sentence.
LONG, HEAD, TAIL = 66, 46, 16  # characters
HEAD_TOKENS, TAIL_TOKENS = 32, 15  # so that other scripts do not cost a window
LINE_TOKENS = HEAD_TOKENS + 1 + TAIL_TOKENS
_LENGTHS = (100, 160, 250, 400, 800)  # characters: bounds of the length buckets
# Around a window: so many lines that are not blank, no further away, with their ends.
BEFORE, AFTER, REACH, CONTEXT_TOKENS = 4, 3, 12, 64
OVERHEAD = 5 + 2 * CONTEXT_TOKENS  # most tokens of a prompt beside the window's numbered lines
# Of a document to be judged: its first and last lines that are not blank.
FIRST, FIRST_TOKENS, LAST, LAST_TOKENS = 24, 360, 8, 120
JUDGE_TOKENS = 3 + FIRST_TOKENS + LAST_TOKENS  # most of a prompt

_REMOVAL = re.compile(r"remove_lines\(start=([0-9]+), end=[0-9]+\)\n")


@dataclass(frozen=True, slots=True)
class WalkPage:
    """A document's lines and, of each, the ids of what the model reads; none for a blank line."""

    lines: Sequence[str]
    ids: Sequence[Ids]


class Walk:
    """The style with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """UserError unless the tokenizer was made for the style."""
        self._tokenizer = tokenizer
        special, added = tokenizer.special, tokenizer.added
        self.end = special(vocabulary.END)
        self._head = special(vocabulary.DOC_MORE), special(vocabulary.DOC)
        self._foot = special(vocabulary.DOC_END_MORE), special(vocabulary.DOC_END)
        self._judge = special(vocabulary.JUDGE), special(vocabulary.JUDGE_END)
        self._line, self._gap = special(vocabulary.LINE), special(vocabulary.GAP)
        self._places = [special(vocabulary.position_token(n)) for n in range(vocabulary.PLACES)]
        self._lengths = [special(vocabulary.length_token(n)) for n in range(vocabulary.LENGTHS)]
        every = range(vocabulary.NUMBERS)
        self._numbers = [special(vocabulary.number_token(n)) for n in every]
        self._all_numbers = frozenset(self._numbers)
        self._keep = [special(vocabulary.keep_token(n)) for n in every]
        self._remove = [added(vocabulary.remove_token(n)) for n in every]
        self.verdicts = added(vocabulary.KEEP_DOC), added(vocabulary.DROP_DOC)

    # --- what the model reads ---------------------------------------------------------------

    def page(self, lines: Sequence[str]) -> WalkPage:
        """The lines as the model reads them, encoded once for all windows."""
        ids: list[Ids] = []
        for at in range(0, len(lines), CALL_LINES):
            ids += self._encode(lines[at : at + CALL_LINES])
        return WalkPage(lines, ids)

    def windows(
        self, page: WalkPage, tokens: int = WINDOW_TOKENS, lines: int = WINDOW_LINES
    ) -> list[Window]:
        """Windows that tile the page, of so many tokens and lines at most."""
        return pack(page.lines, [len(ids) for ids in page.ids], tokens, lines)

    def prompt(self, page: WalkPage, start: int, stop: int) -> list[int]:
        """Prompt ids of lines [start, stop): at most OVERHEAD more than a token and each's own."""
        total = len(page.ids)
        ids = [self._head[start == 0], self._places[start * len(self._places) // total]]
        before = self._context(page, range(start - 1, max(start - REACH, 0) - 1, -1), BEFORE)
        if before:
            ids += [*self._ended(reversed(before)), self._gap]
        for line, number in zip(page.ids[start:stop], self._numbers, strict=False):
            ids += [*line, number]
        after = self._context(page, range(stop, min(stop + REACH, total)), AFTER)
        if after:
            ids += [self._gap, *self._ended(after)]
        ids.append(self._foot[stop == total])
        return ids

    def places(self, prompt: Ids) -> list[int]:
        """Where in a window's prompt the numbers of its lines stand."""
        return [place for place, token in enumerate(prompt) if token in self._all_numbers]

    def judge(self, lines: Sequence[str]) -> list[int]:
        """Prompt ids of a document, from its first and last lines; at most JUDGE_TOKENS."""
        first = self._some(lines, range(len(lines)), FIRST, FIRST_TOKENS)
        behind = max(first, default=-1)
        last = self._some(lines, range(len(lines) - 1, behind, -1), LAST, LAST_TOKENS)
        between = range(behind + 1, min(last, default=len(lines)))
        gap = [self._gap] if any(lines[n].strip() for n in between) else []
        top, bottom = first.values(), reversed(last.values())
        return [self._judge[0], *self._ended(top), *gap, *self._ended(bottom), self._judge[1]]

    # --- what it answers --------------------------------------------------------------------

    def answer(self, keep: Sequence[bool]) -> list[int]:
        """Answer ids of a window: of each line whether it is kept, and the end."""
        chosen = zip(keep, self._keep, self._remove, strict=False)
        return [*(k if kept else r for kept, k, r in chosen), self.end]

    def verdict(self, keep: bool) -> list[int]:
        """Answer ids of a document."""
        return [self.verdicts[not keep], self.end]

    def example(
        self, lines: Sequence[str], window: Window, keep: Sequence[bool]
    ) -> tuple[list[int], list[int]]:
        """Prompt and answer ids of one window; `keep` says of each of its lines whether it stays.

        For many windows of a document encode it once: `page`, `prompt`, `answer`.
        """
        if len(keep) != window.stop - window.start:
            raise ValueError(f"{len(keep)} decisions for {window.stop - window.start} lines")
        return self.prompt(self.page(lines), window.start, window.stop), self.answer(keep)

    def steps(self, lines: int) -> AllowedSteps:
        """Of each token of the answer for so many lines the ids that it may be."""
        return (*zip(self._keep[:lines], self._remove[:lines], strict=True), (self.end,))

    @property
    def verdict_steps(self) -> AllowedSteps:
        """The same for a document's answer."""
        return (self.verdicts, (self.end,))

    def bias(self, lines: int, value: float) -> tuple[tuple[int, float], ...]:
        """What is added to the logits of answers that remove one of so many lines."""
        return tuple((number, value) for number in self._remove[:lines]) if value else ()

    def verdict_bias(self, value: float) -> tuple[tuple[int, float], ...]:
        """What is added to the logit of the answer that drops a document."""
        return ((self.verdicts[1], value),) if value else ()

    # --- within a prompt --------------------------------------------------------------------

    def _encode(self, lines: Sequence[str]) -> list[Ids]:
        texts = [line.strip() for line in lines]
        long = [n for n, text in enumerate(texts) if len(text) > LONG]
        parts = texts.copy()
        for n in long:
            parts[n] = texts[n][:HEAD]
            parts.append(texts[n][-TAIL:])
        encoded = self._tokenizer.encode_lines(parts)
        tails = dict(zip(long, encoded[len(texts) :], strict=True))
        return [
            self._shortened(encoded[n], tails.get(n), len(text)) if text else ()
            for n, text in enumerate(texts)
        ]

    def _shortened(self, head: Ids, tail: Ids | None, size: int) -> Ids:
        """A line's ids, LINE_TOKENS at most, of its start and, if it was cut, its end."""
        if tail is None:
            if len(head) <= LINE_TOKENS:
                return array("I", head)
            tail = head
        bucket = sum(size >= bound for bound in _LENGTHS)
        middle = self._lengths[bucket]
        return array("I", [*head[:HEAD_TOKENS], middle, *tail[-TAIL_TOKENS:]])

    def _context(self, page: WalkPage, places: Iterable[int], most: int) -> list[Ids]:
        """Lines that are not blank, from the nearest on, as far as there is room for them."""
        return _fitting((page.ids[n] for n in places if page.ids[n]), most, CONTEXT_TOKENS)

    def _some(
        self, lines: Sequence[str], places: Iterable[int], most: int, room: int
    ) -> dict[int, Ids]:
        """The first places whose lines are not blank, as far as there is room, with their ids."""
        found: list[int] = []
        for n in places:
            if lines[n].strip():
                found.append(n)
            if len(found) == most:
                break
        ids = _fitting(self._encode([lines[n] for n in found]), most, room)
        return dict(zip(found, ids, strict=False))

    def _ended(self, lines: Iterable[Ids]) -> Iterable[int]:
        for ids in lines:
            yield from ids
            yield self._line


def _fitting(lines: Iterable[Ids], most: int, room: int) -> list[Ids]:
    """The first lines, `most` at most, that fit into `room` tokens with an end each."""
    taken: list[Ids] = []
    for ids in lines:
        room -= len(ids) + 1
        if room < 0 or len(taken) == most:
            break
        taken.append(ids)
    return taken


def program(text: str) -> str:
    """An answer as a program: runs of removed lines as one statement each.

    What is no walk is left as it is. Empty where every line is kept, which is a program, too.
    """
    numbers = [int(number) for number in _REMOVAL.findall(text)]
    if "".join(map(vocabulary.remove_token, numbers)) != text:
        return text
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "\n".join(f"remove_lines(start={first}, end={last})" for first, last in runs)

"""Windows: runs of whole lines that fit a model's token budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from proxhpc.refine.engines.base import Tokenizer
from proxhpc.refine.prompts import number_lines

# A line of more characters a token than this is over any budget of its own length or is not text
# (one token of a long run of spaces or dashes covers 16 to 128): it is never tokenised.
MAX_CHARS_PER_TOKEN = 64


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


def cut_windows(
    tokenizer: Tokenizer,
    lines: Sequence[str],
    budget: int,
    numbering: Literal["document", "window"] = "document",
) -> list[Window]:
    """Windows of numbered lines of at most `budget` tokens each, that tile the document.

    The tokenizer is called once. Numbers that restart in each window are all counted like 000;
    the length of the prompt itself decides before it is sent.
    """
    longest = budget * MAX_CHARS_PER_TOKEN
    short = [line if len(line) <= longest else "" for line in lines]
    if numbering == "document":
        numbered = number_lines(short, 0)
    else:
        numbered = [f"[000]{line}" for line in short]
    counts = [
        count if len(line) <= longest else budget + 1
        for line, count in zip(lines, tokenizer.count(numbered), strict=True)
    ]
    return pack(lines, counts, budget)


def pack(lines: Sequence[str], counts: Sequence[int], budget: int) -> list[Window]:
    """Greedy windows, in order, that tile [0, len(lines)); no line is ever split.

    `counts` are the tokens of each line with its number; a line end costs one more. A line over
    the budget is a window by itself.
    """
    windows: list[Window] = []
    start = tokens = 0
    for number, (_, count) in enumerate(zip(lines, counts, strict=True)):
        cost = count + 1
        if number > start and tokens + cost > budget:
            windows.append(_window(lines, start, number, tokens, budget))
            start, tokens = number, 0
        tokens += cost
    if start < len(lines):
        windows.append(_window(lines, start, len(lines), tokens, budget))
    return windows


def _window(lines: Sequence[str], start: int, stop: int, tokens: int, budget: int) -> Window:
    blank = not any(line.strip() for line in lines[start:stop])
    return Window(start, stop, tokens, too_long=tokens > budget, blank=blank)

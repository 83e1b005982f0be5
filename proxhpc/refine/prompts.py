"""Prompt styles: the exact token ids a refining model reads for a document or a window.

The whole prompt is one string to the tokenizer, as in training; only special tokens are set by id.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from proxhpc.errors import UserError
from proxhpc.refine.engines.base import Tokenizer

# Of the released refiners' training and inference, at both levels.
SYSTEM = "You are a helpful, respectful and honest assistant."
# Characters a token is first taken to cover when a long document is cut; doubled where too few.
_CHARS_PER_TOKEN = 8

_Wrap = Callable[[Tokenizer, str], list[int]]


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """How text becomes a prompt. `wrap` puts the style's frame around one user message."""

    name: str
    wrap: _Wrap

    def check(self, tokenizer: Tokenizer, budget: int) -> None:
        """Raise UserError unless the tokenizer has what the frame needs and it fits `budget`."""
        frame = len(self.wrap(tokenizer, ""))
        if frame > budget:
            raise UserError(
                f"prompt {self.name}: its frame is {frame} tokens, the longest prompt {budget}",
                hint="raise max_prompt_tokens of this stage or engine.max_model_len",
            )

    def doc_prompt(self, tokenizer: Tokenizer, text: str, budget: int) -> tuple[list[int], bool]:
        """Prompt ids of a document, at most `budget`, and whether the document was cut to fit.

        What is cut is the document's end, never the frame. Trailing whitespace is dropped, as
        it was in training. UserError when the frame alone is over the budget.
        """
        text = text.rstrip()
        start, whole = self._start(tokenizer, text, budget)
        ids = self.wrap(tokenizer, start)
        if len(ids) <= budget and whole:
            return ids, False
        self.check(tokenizer, budget)
        room = budget - len(self.wrap(tokenizer, ""))
        while len(ids) > budget:
            start = tokenizer.head(start, room).rstrip() if room > 0 else ""
            ids = self.wrap(tokenizer, start)
            room -= max(1, len(ids) - budget)
        return ids, True

    def chunk_prompt(
        self, tokenizer: Tokenizer, lines: Sequence[str], first_line: int
    ) -> list[int]:
        """Prompt ids of a window whose first line bears the number `first_line`. Never cut."""
        body = "\n".join(number_lines(lines, first_line))
        return self.wrap(tokenizer, f"[doc]\n{body}\n[/doc]")

    def chunk_overhead(self, tokenizer: Tokenizer) -> int:
        """Tokens of a window's prompt beside its numbered lines, each with its line end."""
        return len(self.wrap(tokenizer, "[doc]\n[/doc]"))

    def _start(self, tokenizer: Tokenizer, text: str, budget: int) -> tuple[str, bool]:
        """Enough of the start of `text` to fill the budget, and whether that is all of it.

        Spares a long document's tail, which no model will see, the tokenizer.
        """
        size = max(budget, 1) * _CHARS_PER_TOKEN
        while size < len(text):
            if len(tokenizer.encode(text[:size])) > budget:
                return text[:size], False
            size *= 2
        return text, True


def number_lines(lines: Sequence[str], first_line: int) -> list[str]:
    """Each line behind its number, as the models read it: `[007]text`, `[1000]text`."""
    return [f"[{number:03d}]{line}" for number, line in enumerate(lines, first_line)]


def prompt_style(name: str) -> PromptStyle:
    """The style of that name; UserError lists them all."""
    try:
        return STYLES[name]
    except KeyError:
        nearest = get_close_matches(name, STYLES, n=1)
        guess = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise UserError(
            f"there is no prompt style {name!r}", hint=f"{guess}They are {', '.join(STYLES)}."
        ) from None


def _prox_llama2(tokenizer: Tokenizer, user: str) -> list[int]:
    text = f"[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n{user} [/INST]"
    return [tokenizer.special("<s>"), *tokenizer.encode(text)]


def _prox_plain(tokenizer: Tokenizer, user: str) -> list[int]:
    return [*tokenizer.bos, *tokenizer.encode(user)]


def _chat_template(tokenizer: Tokenizer, user: str) -> list[int]:
    return tokenizer.chat(SYSTEM, user)


STYLES = {
    style.name: style
    for style in (
        PromptStyle("prox-llama2", _prox_llama2),
        PromptStyle("prox-plain", _prox_plain),
        PromptStyle("chat-template", _chat_template),
    )
}

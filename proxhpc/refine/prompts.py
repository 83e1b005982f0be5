"""Prompt styles: the exact token ids that a refining model reads for a document or a window.

The tokenizer gets the whole prompt as one string, as in training; only special tokens are set by
id.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from proxhpc.engines.base import Tokenizer
from proxhpc.errors import UserError
from proxhpc.refine import teacher

# The released refiners were trained with it, at both levels.
SYSTEM_MESSAGE = "You are a helpful, respectful and honest assistant."
MIN_WINDOW_TOKENS = 32  # a numbered line of a few words
_CHARS_PER_TOKEN = 5  # first guess when a long document is truncated; doubled if too low

_Wrap = Callable[[Tokenizer, str], list[int]]
ReadVerdict = Callable[[str, bool], str]
"""Turns an answer, and whether it was truncated, into a doc program."""


def number_lines(lines: Sequence[str], first_line: int) -> list[str]:
    """Return each line after its number, as the models read it: `[007]text`, `[1000]text`."""
    return [f"{_number(number)}{line}" for number, line in enumerate(lines, first_line)]


def _number(number: int) -> str:
    return f"[{number:03d}]"


def _numbered(lines: Sequence[str], first_line: int) -> str:
    body = "".join(f"{line}\n" for line in number_lines(lines, first_line))
    return f"[doc]\n{body}[/doc]"


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """How text becomes a prompt.

    `document` and `window` make the user message from a text or from numbered lines, `number`
    formats a line number, and `wrap` adds the frame around the message. If documents are not
    answered with a program, `verdict` makes one from the answer. `shares_prefix`: the prompts of a
    document and of its first window begin with the same text, which the engine may have cached.
    """

    name: str
    wrap: _Wrap
    document: Callable[[str], str] = str
    window: Callable[[Sequence[str], int], str] = _numbered
    number: Callable[[int], str] = _number
    verdict: ReadVerdict | None = None
    shares_prefix: bool = False

    def check(self, tokenizer: Tokenizer, budget: int) -> None:
        """Raise UserError unless the tokenizer has the frame's tokens and it fits `budget`."""
        self._check_frame(len(self.full_doc_prompt(tokenizer, "")), 0, budget)

    def max_window_tokens(self, tokenizer: Tokenizer, budget: int) -> int:
        """Return the tokens left for numbered lines; UserError if they are too few."""
        frame = len(self.chunk_prompt(tokenizer, (), 0))
        self._check_frame(frame, MIN_WINDOW_TOKENS, budget)
        return budget - frame

    def _check_frame(self, frame: int, min_text: int, budget: int) -> None:
        if frame + min_text > budget:
            text = f" and at least {min_text} tokens of text" if min_text else ""
            raise UserError(
                f"prompt {self.name}: a frame of {frame} tokens{text} does not fit the maximum "
                f"prompt length {budget}",
                hint="raise max_prompt_tokens of this stage or engine.max_model_len",
            )

    def full_doc_prompt(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Return the prompt ids of a whole document, of any length."""
        return self.wrap(tokenizer, self.document(text))

    def doc_prompt(self, tokenizer: Tokenizer, text: str, budget: int) -> tuple[list[int], bool]:
        """Return at most `budget` prompt ids of a document, and whether it was truncated.

        The document is truncated at its end, the frame never. Trailing whitespace is removed, as in
        training. UserError if the frame alone exceeds the budget.
        """
        text = text.rstrip()
        size = max(budget, 1) * _CHARS_PER_TOKEN
        start = text[:size]
        ids = self.full_doc_prompt(tokenizer, start)
        while len(ids) <= budget and len(start) < len(text):  # tokenize no more than needed
            size *= 2
            start = text[:size]
            ids = self.full_doc_prompt(tokenizer, start)
        if len(ids) <= budget:
            return ids, False
        self.check(tokenizer, budget)
        room = budget - len(self.full_doc_prompt(tokenizer, ""))
        while len(ids) > budget:
            start = tokenizer.head(start, room).rstrip() if room > 0 else ""
            ids = self.full_doc_prompt(tokenizer, start)
            room -= max(1, len(ids) - budget)
        return ids, True

    def chunk_prompt(
        self, tokenizer: Tokenizer, lines: Sequence[str], first_line: int
    ) -> list[int]:
        """Return the prompt ids of a window whose first line has the number `first_line`."""
        return self.wrap(tokenizer, self.window(lines, first_line))


def _prox_llama2(tokenizer: Tokenizer, user: str) -> list[int]:
    text = f"[INST] <<SYS>>\n{SYSTEM_MESSAGE}\n<</SYS>>\n\n{user} [/INST]"
    return [tokenizer.special_id("<s>"), *tokenizer.encode(text)]


def _prox_plain(tokenizer: Tokenizer, user: str) -> list[int]:
    return [*tokenizer.bos, *tokenizer.encode(user)]


def _chat_template(tokenizer: Tokenizer, user: str) -> list[int]:
    return tokenizer.chat(SYSTEM_MESSAGE, user)


def _chat_without_system(tokenizer: Tokenizer, user: str) -> list[int]:
    return tokenizer.chat(None, user)


def _teacher_window(lines: Sequence[str], first_line: int) -> str:
    return teacher.window_message("\n".join(number_lines(lines, first_line)))


def _compact_number(number: int) -> str:
    return f"[{number}]"


def _compact(lines: Sequence[str], first_line: int) -> str:
    numbered = enumerate(lines, first_line)
    return "".join(f"{line}{_compact_number(number)}\n" for number, line in numbered)


def _compact_document(text: str) -> str:
    return f"{_compact(text.split(chr(10)), 0)}[keep?]"


def _compact_window(lines: Sequence[str], first_line: int) -> str:
    return f"{_compact(lines, first_line)}[edit?]"


STYLES = {
    style.name: style
    for style in (
        PromptStyle("prox-llama2", _prox_llama2),
        PromptStyle("prox-plain", _prox_plain),
        PromptStyle("chat-template", _chat_template),
        # A causal model reads a line before its number, and the whole text before the question.
        PromptStyle(
            "compact",
            _prox_plain,
            _compact_document,
            _compact_window,
            _compact_number,
            shares_prefix=True,
        ),
        PromptStyle(
            "teacher",
            _chat_without_system,
            teacher.document_message,
            _teacher_window,
            verdict=teacher.verdict_program,
        ),
    )
}

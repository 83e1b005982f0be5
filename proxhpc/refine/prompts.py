"""Prompt styles: the exact token ids a refining model reads for a document or a window.

The whole prompt is one string to the tokenizer, as in training; only special tokens are set by id.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from proxhpc.engines.base import Tokenizer
from proxhpc.errors import UserError
from proxhpc.refine import teacher

# Of the released refiners' training and inference, at both levels.
SYSTEM = "You are a helpful, respectful and honest assistant."
# Characters a token is first taken to cover when a long document is cut; doubled where too few.
_CHARS_PER_TOKEN = 5
LEAST_ROOM = 32  # tokens of a window: a numbered line of some words

_Wrap = Callable[[Tokenizer, str], list[int]]
ReadVerdict = Callable[[str, bool], str]
"""Makes a doc program of an answer, which may have been cut."""


def number_lines(lines: Sequence[str], first_line: int) -> list[str]:
    """Each line behind its number, as the models read it: `[007]text`, `[1000]text`."""
    return [f"{_number(number)}{line}" for number, line in enumerate(lines, first_line)]


def _number(number: int) -> str:
    return f"[{number:03d}]"


def _as_it_is(text: str) -> str:
    return text


def _numbered(lines: Sequence[str], first_line: int) -> str:
    body = "".join(f"{line}\n" for line in number_lines(lines, first_line))
    return f"[doc]\n{body}[/doc]"


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """How text becomes a prompt.

    `document` and `window` make the user's message of a text or of numbered lines, `number` is
    what such a message says of a line's number; `wrap` puts the frame around a message. Where a
    document is not answered by a program, `verdict` makes one of the answer. `alike`: a document
    and its first window begin alike, so that the engine may have read much of the second already.
    """

    name: str
    wrap: _Wrap
    document: Callable[[str], str] = _as_it_is
    window: Callable[[Sequence[str], int], str] = _numbered
    number: Callable[[int], str] = _number
    verdict: ReadVerdict | None = None
    shares_prefix: bool = False

    def check(self, tokenizer: Tokenizer, budget: int) -> None:
        """Raise UserError unless the tokenizer has what the frame needs and it fits `budget`."""
        self._check(len(self.ask(tokenizer, "")), 0, budget)

    def chunk_room(self, tokenizer: Tokenizer, budget: int) -> int:
        """Tokens of numbered lines that a prompt may hold; UserError where those are too few."""
        frame = self.chunk_overhead(tokenizer)
        self._check(frame, LEAST_ROOM, budget)
        return budget - frame

    def _check(self, frame: int, least: int, budget: int) -> None:
        if frame + least > budget:
            more = f", its text takes {least}" if least else ""
            raise UserError(
                f"prompt {self.name}: its frame is {frame} tokens{more}, the longest prompt "
                f"{budget}",
                hint="raise max_prompt_tokens of this stage or engine.max_model_len",
            )

    def ask(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Prompt ids of a whole document, however long."""
        return self.wrap(tokenizer, self.document(text))

    def doc_prompt(self, tokenizer: Tokenizer, text: str, budget: int) -> tuple[list[int], bool]:
        """Prompt ids of a document, at most `budget`, and whether the document was cut to fit.

        What is cut is the document's end, never the frame. Trailing whitespace is dropped, as
        it was in training. UserError when the frame alone is over the budget.
        """
        text = text.rstrip()
        size = max(budget, 1) * _CHARS_PER_TOKEN
        start = text[:size]
        # Spares a long document's tail, which no model will see, the tokenizer.
        while len(ids := self.ask(tokenizer, start)) <= budget and len(start) < len(text):
            size *= 2
            start = text[:size]
        if len(ids) <= budget:
            return ids, False
        self.check(tokenizer, budget)
        room = budget - len(self.ask(tokenizer, ""))
        while len(ids) > budget:
            start = tokenizer.head(start, room).rstrip() if room > 0 else ""
            ids = self.ask(tokenizer, start)
            room -= max(1, len(ids) - budget)
        return ids, True

    def chunk_prompt(
        self, tokenizer: Tokenizer, lines: Sequence[str], first_line: int
    ) -> list[int]:
        """Prompt ids of a window whose first line bears the number `first_line`. Never cut."""
        return self.wrap(tokenizer, self.window(lines, first_line))

    def chunk_overhead(self, tokenizer: Tokenizer) -> int:
        """Tokens of a window's prompt beside its numbered lines, each with its line end."""
        return len(self.chunk_prompt(tokenizer, (), 0))


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


def _chat_alone(tokenizer: Tokenizer, user: str) -> list[int]:
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
        # A number stands behind its line, where a causal model has read it, and the question last.
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
            _chat_alone,
            teacher.document_message,
            _teacher_window,
            verdict=teacher.verdict_program,
        ),
    )
}

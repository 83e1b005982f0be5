"""Prompts: the exact token ids that a refining model reads for a document or a window.

The tokenizer gets the whole prompt as one string, as in training; only special tokens are set by
id.
"""

from collections.abc import Callable, Sequence
from typing import cast

from proxhpc.engines.base import Tokenizer
from proxhpc.errors import UserError
from proxhpc.program.syntax import FIRST_LINE, Dialect
from proxhpc.refine import teacher
from proxhpc.spec.profile import CHAT_TEMPLATE, JOIN, TRIM, Profile, split_template
from proxhpc.spec.refiner_file import load_profile
from proxhpc.spec.sections import Stage

MIN_WINDOW_TOKENS = 32  # a numbered line of a few words
_CHARS_PER_TOKEN = 5  # first guess when a long document is truncated; doubled if too low

ReadVerdict = Callable[[str, bool], str]
"""Turns an answer, and whether it was truncated, into a doc program."""


class Prompts:
    """The prompts of a profile.

    `number` is what the profile writes around a line. If documents are not answered with a program,
    `verdict` makes one from the answer. `shares_prefix`: the prompts of a document and of its first
    window begin with the same text, which the engine may have cached.
    """

    def __init__(
        self, profile: Profile, dialect: Dialect = "prox", *, skip_blank: bool = False
    ) -> None:
        self.name, self.stop = profile.name, profile.stop
        self.verdict: ReadVerdict | None = None
        if profile.verdict == "scores":
            self.verdict = teacher.verdict_program
        before_lines, lines, _ = profile.document.partition("{lines}")
        self.shares_prefix = profile.window.startswith(f"{before_lines}{lines}")
        self._profile, self._skip_blank = profile, skip_blank
        self._frozen, self._frozen_for = profile, cast(Tokenizer | None, None)
        self._first_line = FIRST_LINE[dialect]

    @classmethod
    def of_stage(cls, stage: Stage) -> "Prompts":
        """Return the prompts of a stage, whose profile is read unless a plan has stored it."""
        prompt = stage.prompt
        profile = load_profile(prompt) if isinstance(prompt, str) else prompt
        return cls(profile, stage.dialect, skip_blank=stage.blank_lines == "skipped")

    def line(self, number: int, line: str) -> str:
        """Return a line with its number, as the model reads it."""
        line = line.strip() if self._profile.strip_lines else line
        return self._profile.line.format(n=number, line=line)

    def number(self, number: int) -> str:
        """Return what a line's number adds to it."""
        return self.line(number, "").rstrip("\n")

    def numbered(self, lines: Sequence[str], first_line: int) -> str:
        """Return lines with their numbers, from `first_line`."""
        shown = [line for line in lines if line.strip()] if self._skip_blank else lines
        if self._profile.strip_lines:
            shown = [*map(str.strip, shown)]
        numbered = self._profile.line.format
        return self._profile.separator.join(
            [numbered(n=number, line=line) for number, line in enumerate(shown, first_line)]
        )

    def wrap(self, tokenizer: Tokenizer, message: str) -> list[int]:
        """Return the ids of a prompt with this message."""
        if self._frozen_for is not tokenizer:
            self._frozen, self._frozen_for = freeze_frame(self._profile, tokenizer), tokenizer
        values = {"system": self._frozen.system or "", "message": message}
        values |= {f"{name}{TRIM}": text.strip() for name, text in values.items()}
        ids: list[int] = []
        text = ""
        first = True
        for literal, name in split_template(self._frozen.frame):
            text += literal
            if name is None or name in values:
                text += values.get(name or "", "")
            else:
                ids += tokenizer.encode(text, first=first) if text else []
                first &= not (text or name.endswith(JOIN))
                special = name.removesuffix(JOIN)
                ids += tokenizer.bos if special == "bos" else [tokenizer.special_id(special)]
                text = ""
        return ids + tokenizer.encode(text, first=first)

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
        if self._profile.document == "{text}":
            return self.wrap(tokenizer, text)
        lines = self.numbered(text.split("\n"), self._first_line)
        return self.wrap(tokenizer, self._profile.document.format(text=text, lines=lines))

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
        numbered = self.numbered(lines, first_line)
        return self.wrap(tokenizer, self._profile.window.format(lines=numbered))


def freeze_frame(profile: Profile, tokenizer: Tokenizer) -> Profile:
    """Return the profile with the model's chat template, rendered now, as its frame.

    UserError if the template cannot be used.
    """
    if profile.frame != CHAT_TEMPLATE:
        return profile
    merge = profile.system_turn == "user"
    frame = tokenizer.chat_frame(profile.system, profile.template_arguments, merge=merge)
    keys = {key: getattr(profile, key) for key in profile.model_fields_set}
    for key in ("system_turn", "template_arguments"):
        keys.pop(key, None)
    if "{system" not in frame:
        keys["system"] = None
    return Profile.model_validate(keys | {"frame": frame})

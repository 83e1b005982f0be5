"""The engine protocol: a request in, a completion out."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pydantic import JsonValue

from proxhpc.account.flops import ModelWork
from proxhpc.engines.steps import AllowedSteps
from proxhpc.errors import ProxError, RetryError
from proxhpc.spec.sections import Level

FinishReason = Literal["stop", "length", "loop"]
LOOP_TOKENS = range(8, 41)  # from one short call to two long ones
LOOP_COUNT = 4
LARGE_TEXT = 1_000_000  # characters; larger texts block for 100 ms and go to a thread
_BLANKS_AND_ESCAPES = re.compile(r"\\+[ntr]?|\s+")


class RequestError(ProxError):
    """A request that can never be answered. Other requests are not affected.

    `reason` is that of the document in the quarantine.
    """

    reason = "request_refused"


class NotANumberError(RequestError):
    """The model's logits are not numbers, so no answer of it means anything."""

    reason = "not_a_number"

    def __init__(self) -> None:
        super().__init__(
            "the model's logits are not numbers (NaN)",
            hint="its weights are damaged, or too large for engine.dtype: try float32",
        )


class EngineDiedError(RetryError):
    """The engine has died or ran out of memory; another one may answer."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to an engine.

    Language models read `prompt` (token ids, special tokens included). The rules engine has no
    tokenizer and reads `lines`: those of the document, or of a window whose first line has the
    number `first_line`. The answer ends after the first `stop` string, which stays part of it; with
    `end_loops`, also when `is_loop`; not with `grammar`, a regular expression that the answer must
    match. `steps` restrict each token to a few ids, and `bias` is added to the logits of the ids it
    names. `odds` are two ids: the answer's score is their log-odds as first token. Engines answer
    requests of lower `order` first if they can.
    """

    level: Level
    prompt: Sequence[int]
    lines: Sequence[str]
    first_line: int
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    order: int = 0
    end_loops: bool = False
    steps: AllowedSteps = ()
    bias: tuple[tuple[int, float], ...] = ()
    odds: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """An engine's answer.

    `prompt_tokens` n went in, `cached_tokens` c of them came from a prefix cache, and `new_tokens`
    m were sampled, the end-of-sequence token included. `work` is what the model computed, where
    that is not one pass for each new token. `score` is the log-odds, in nats and before any bias,
    of the second of the request's `odds` against the first. Two answers that differ only in work
    or score are equal: both depend on which requests shared a batch.
    """

    text: str
    finish: FinishReason
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    score: float | None = field(default=None, compare=False)
    work: ModelWork | None = field(default=None, compare=False)


class Tokenizer(Protocol):
    """A model's tokenizer. Text never becomes a special token."""

    bos: Sequence[int]
    """Ids that the model's tokenizer puts before every prompt: usually one or none."""

    def encode(self, text: str, *, first: bool = True) -> list[int]:
        """Token ids of `text`; no special tokens are added or recognized.

        Some tokenizers put a blank before a text only if it is the `first` of a prompt.
        """
        ...

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        """Token ids of each line, encoded separately."""
        ...

    def count(self, lines: Sequence[str]) -> list[int]:
        """Number of tokens of each line, encoded separately."""
        ...

    def head(self, text: str, tokens: int) -> str:
        """The longest prefix of `text` that its first `tokens` tokens cover."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without special tokens."""
        ...

    def special_id(self, token: str) -> int:
        """Id of a special token; UserError if the vocabulary does not have it."""
        ...

    def added_id(self, token: str) -> int:
        """Id of an added token that is not special; UserError if there is none of that name."""
        ...

    def chat_frame(
        self, system: str | None, arguments: Mapping[str, JsonValue], *, merge: bool = False
    ) -> str:
        """The model's chat template as the `frame` of a profile; UserError if it has none."""
        ...


class Engine(Protocol):
    """Writes programs. `tokenizer` is None for an engine that reads lines, not tokens."""

    name: str
    tokenizer: Tokenizer | None
    max_model_len: int
    cache_tokens: int
    """Capacity of the prefix cache in prompt tokens; 0 without one."""
    min_in_flight: int
    """Requests in flight that keep it busy."""

    async def complete(self, request: Request) -> Completion:
        """Answer one request; many may be in flight. EngineDiedError if the engine has died."""
        ...

    async def close(self) -> None:
        """Free the device and end all child processes. Never raises."""
        ...


def check_request(request: Request, max_model_len: int) -> None:
    """Raise RequestError unless the prompt and the longest answer fit into the context."""
    prompt, new = len(request.prompt), request.max_new_tokens
    if prompt < 1 or new < 1:
        raise RequestError(
            f"{request.level} request with {prompt} prompt tokens for at most {new} new ones",
            hint="both must be at least 1",
        )
    if prompt + new > max_model_len:
        raise RequestError(
            f"{request.level} prompt of {prompt} tokens and {new} new ones do not fit the "
            f"model's context of {max_model_len}",
            hint="lower window_tokens, max_prompt_tokens or max_new_tokens of this stage",
        )


def count_repeated(ids: Sequence[int]) -> int:
    """Number of ids at the end that are LOOP_COUNT or more copies of one run of LOOP_TOKENS ids."""
    end = len(ids)
    for size in LOOP_TOKENS:
        if size * LOOP_COUNT > end:
            return 0
        start = end - size
        while start and ids[start - 1] == ids[start - 1 + size]:
            start -= 1
        if end - start >= size * LOOP_COUNT:
            return end - start
    return 0


def is_loop(ids: Sequence[int], lines: Sequence[str], tokenizer: Tokenizer) -> bool:
    """Return True if an answer about `lines` repeats itself at its end, where it does not quote.

    The lines may have a row of dashes, for example, so that a program quotes one. Blanks and
    backslashes do not count in this comparison, since the program may escape the text.
    """
    repeated = count_repeated(ids)
    if not repeated:
        return False
    text, window = _decode_part(ids[-repeated:], tokenizer), "\n".join(lines)
    if ink := _BLANKS_AND_ESCAPES.sub("", text):
        text, window = ink, _BLANKS_AND_ESCAPES.sub("", window)
    return not text or text not in window


def _decode_part(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """Text of some ids of an answer, without characters that have only some of their bytes."""
    edges = ((start, end) for start in range(4) for end in range(4))
    texts = (tokenizer.decode(ids[start : len(ids) - end]) for start, end in edges)
    return next((text for text in texts if "\ufffd" not in text), "") or tokenizer.decode(ids)


def find_stop_end(text: str, stop: Sequence[str]) -> int | None:
    """End of the first `stop` string in `text`; None if there is none."""
    ends = [at + len(string) for string in stop if (at := text.find(string)) >= 0]
    return min(ends, default=None)

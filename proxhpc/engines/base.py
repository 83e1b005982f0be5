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


class RequestError(ProxError):
    """A request that can never be answered. Other requests are not affected."""


class EngineDiedError(RetryError):
    """The engine has died or ran out of memory; another one may answer."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to an engine.

    Language models read `prompt` (token ids, special tokens included). The rules engine has no
    tokenizer and reads `lines`: those of the document, or of a window whose first line has the
    number `first_line`. The answer ends after the first `stop` string, which stays part of it; with
    `end_loops`, also as soon as `is_loop`. `grammar` is a regular expression that the answer must
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

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; no special tokens are added or recognized."""
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

    def chat(self, system: str | None, user: str, arguments: Mapping[str, JsonValue]) -> list[int]:
        """Ids of `user` in the model's chat template; UserError if it has none."""
        ...


class Engine(Protocol):
    """Writes programs. `tokenizer` is None for an engine that reads lines, not tokens."""

    name: str
    tokenizer: Tokenizer | None
    max_model_len: int
    cache_tokens: int
    """Capacity of the prefix cache in prompt tokens; 0 without one."""

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


def is_loop(ids: Sequence[int]) -> bool:
    """Return True if `ids` ends with LOOP_COUNT copies of one run of LOOP_TOKENS ids."""
    for size in LOOP_TOKENS:
        if size * LOOP_COUNT > len(ids):
            return False
        last = ids[-size:]
        if all(
            ids[-size * times : len(ids) - size * (times - 1)] == last
            for times in range(2, LOOP_COUNT + 1)
        ):
            return True
    return False


def find_stop_end(text: str, stop: Sequence[str]) -> int | None:
    """End of the first `stop` string in `text`; None if there is none."""
    ends = [at + len(string) for string in stop if (at := text.find(string)) >= 0]
    return min(ends, default=None)

"""The engine protocol: what a refiner asks of whatever writes its programs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from proxhpc.account.flops import ModelWork
from proxhpc.engines.steps import AllowedSteps
from proxhpc.errors import ProxError, RetryError

Level = Literal["doc", "chunk"]
FinishReason = Literal["stop", "length", "loop"]
LOOP_TOKENS = range(8, 41)  # a call has eight tokens at least, and two long ones forty
LOOP_COUNT = 4
LARGE = 1_000_000  # characters that Python scans in about 100 ms; more go to a thread


class RequestError(ProxError):
    """One request that can never be answered; the others are unharmed."""


class EngineDiedError(RetryError):
    """The engine, or the machine's memory, is gone; another one may answer."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to an engine.

    Language models read `prompt` (token ids, special tokens included); the rules engine, which
    has no tokenizer, reads `lines`: the document's lines, or those of one window, the first of
    which bears the number `first_line` in the prompt. The answer ends behind the first of the
    strings `stop` that comes up in it, which stays part of it, or with `end_loops` where it does
    nothing but repeat itself any more (`is_loop`); `grammar` is a regular expression. Each token
    is one of those of its step, if there are `steps`; `bias` is added to the logits of the ids
    that it names. `odds` are two ids whose log-odds as the first token are to be told. An engine
    that can answers requests of lower `order` first.
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
    """What prompts and windows need of a tokenizer. Text never becomes a special token."""

    bos: Sequence[int]
    """Ids that the model's own tokenizer puts before every prompt; often one, or none."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` alone, without special tokens added or recognised in it."""
        ...

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        """Token ids of each line by itself, as `encode` gives them."""
        ...

    def count(self, lines: Sequence[str]) -> list[int]:
        """Token counts of each line by itself."""
        ...

    def head(self, text: str, tokens: int) -> str:
        """The longest start of `text` that the first `tokens` of its tokens cover."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        ...

    def special(self, token: str) -> int:
        """Id of a special token; UserError if the vocabulary has none of that name."""
        ...

    def added(self, token: str) -> int:
        """Id of a token of text that was added to the vocabulary whole; UserError without one."""
        ...

    def chat(self, system: str | None, user: str) -> list[int]:
        """Ids of the model's own chat template around `user`; UserError where it has none."""
        ...


class Engine(Protocol):
    """Writes programs. `tokenizer` is None for an engine that reads lines instead of tokens."""

    name: str
    tokenizer: Tokenizer | None
    max_model_len: int
    cache_tokens: int
    """Prompt tokens that it remembers what it made of, for prompts that begin alike; 0 for none."""

    async def complete(self, request: Request) -> Completion:
        """Answer one request; many may be in flight. EngineDiedError when the engine has died."""
        ...

    async def close(self) -> None:
        """Free the device and end every child process. Never raises."""
        ...


def check_request(request: Request, max_model_len: int) -> None:
    """Raise RequestError unless the prompt and the longest answer fit the model's context."""
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
    """Whether the same run of LOOP_TOKENS ids stands LOOP_COUNT times in a row at the end."""
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


def end_of(text: str, stop: Sequence[str]) -> int | None:
    """Where the first of the strings `stop` that comes up in `text` ends; None without one."""
    ends = [at + len(mark) for mark in stop if (at := text.find(mark)) >= 0]
    return min(ends, default=None)

"""Greedy answers whose tokens are restricted to a few choices, decoded in a few passes.

Each pass feeds the model a draft of the whole answer and reads off what greedy decoding would
choose after each of its tokens. These choices are correct up to and including the first one that
differs from the draft, since the model has read the same tokens as in greedy decoding; together
they are the next draft. So each pass settles at least one more token, and most answers are settled
after two or three passes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple, Self

from proxhpc.account.architectures import ARCHITECTURES
from proxhpc.account.flops import ModelWork, causal_pairs
from proxhpc.engines.base import Request
from proxhpc.engines.packed_llama import PackedLlama, PackedReader
from proxhpc.engines.steps import AllowedSteps, log_odds, step_biases


class Decoded(NamedTuple):
    """The new tokens of a request, its score, and the work if not one pass for each token."""

    tokens: list[int]
    score: float | None
    work: ModelWork | None = None


def can_draft(model: Any, requests: Sequence[Request], stop: frozenset[int]) -> bool:
    """Return True if `steps` cover each answer to its end, and the model's cache can be cropped."""
    return _can_crop(model) and all(
        request.steps
        and not request.end_loops
        and (len(request.steps) >= request.max_new_tokens or stop.issuperset(request.steps[-1]))
        for request in requests
    )


def _can_crop(model: Any) -> bool:
    if isinstance(model, PackedLlama):
        return True
    config = model.config
    return config.model_type in ARCHITECTURES and not getattr(config, "sliding_window", None)


def draft(model: Any, requests: Sequence[Request], check: Callable[[], None]) -> list[Decoded]:
    """The tokens that greedy decoding gives each request; `check` is called before each pass."""
    drafts = _Drafts.of(requests, model.device)
    prompts = [request.prompt for request in requests]
    reader: PackedReader | _PaddedReader
    if isinstance(model, PackedLlama):
        reader = PackedReader(model, prompts, drafts.sizes)
    else:
        reader = _PaddedReader(model, prompts, drafts)
    settled = 0  # tokens that are settled in every open answer
    answers: dict[int, list[int]] = {}
    work: dict[int, ModelWork] = {}
    scores: list[float | None] = []
    while True:
        check()
        values, first = reader.read(drafts, settled)
        scores = scores or log_odds(first, [request.odds for request in requests])
        for row, size in zip(drafts.rows, drafts.sizes, strict=True):
            work[row] = _add_pass(work.get(row), len(requests[row].prompt), size, settled)
        drafts.settle(values, settled)
        answers |= drafts.finished()
        open_drafts = drafts.open()
        if not open_drafts:
            break
        if len(open_drafts) < len(drafts.rows):
            drafts = drafts.select(open_drafts)
            reader.select(open_drafts)
        settled = min(drafts.settled)
    return [
        Decoded(answers[row] + _forced_tail(request), scores[row], work[row])
        for row, request in enumerate(requests)
    ]


class _PaddedReader:
    """Passes of a model of transformers over drafts, padded to one length."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], drafts: "_Drafts") -> None:
        import torch
        from transformers import DynamicCache

        self._model, self._cache = model, DynamicCache()
        self._prompts, prompt_mask = pad_left(prompts, model.device)
        self._mask = torch.cat([prompt_mask, drafts.input_mask()], dim=1)
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)

    def read(self, drafts: "_Drafts", settled: int) -> tuple[Any, Any]:
        """Logits of what each draft allows from token `settled` on, and all logits of the first."""
        import torch

        width = drafts.tokens.shape[1]
        if settled:
            self._cache.crop(settled - width)
            unread = drafts.tokens[:, settled - 1 : -1]
        else:
            unread = torch.cat([self._prompts, drafts.tokens[:, :-1]], dim=1)
        out = self._model(
            unread,
            attention_mask=self._mask,
            position_ids=self._positions[:, -unread.shape[1] :],
            **{cache_argument(self._model.forward): self._cache},
            logits_to_keep=width - settled,
        )
        return out.logits.gather(2, drafts.allowed[:, settled:]), out.logits[:, 0]

    def select(self, indices: list[int]) -> None:
        """Go on with some of the drafts only."""
        import torch

        self._mask, self._positions = self._mask[indices], self._positions[indices]
        self._cache.batch_select_indices(torch.tensor(indices, device=self._model.device))


def cache_argument(forward: Callable[..., object]) -> str:
    """The name of the cache in a model's `forward`: newer versions of transformers changed it."""
    return "cache" if "cache" in signature(forward).parameters else "past_key_values"


def _add_pass(before: ModelWork | None, prompt: int, size: int, settled: int) -> ModelWork:
    """Add a pass over a draft of `size` tokens, the first `settled` of which are settled.

    The first pass also reads the prompt; later ones read from the last settled token on.
    """
    start = prompt + settled - 1 if settled else 0
    end = prompt + size - 1
    pairs = causal_pairs(end) - causal_pairs(start)
    fed, attended, logits = before[:3] if before else (0, 0, 0)
    return ModelWork(fed + end - start, attended + pairs, logits + size - settled)


def pad_left(prompts: Sequence[Sequence[int]], device: Any) -> tuple[Any, Any]:
    """Prompts padded on the left to one length, and their attention mask; each [rows, width]."""
    import torch

    width = max(map(len, prompts))
    ids = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


@dataclass(slots=True)
class _Drafts:
    """Drafts of answers: for each the row of its request, its size, and how much is settled.

    `tokens` is [drafts, width]; `allowed` and `bias` are [drafts, width, choices]. Tokens after a
    draft's own size are padding.
    """

    rows: list[int]
    sizes: list[int]
    settled: list[int]
    tokens: Any
    allowed: Any
    bias: Any

    @classmethod
    def of(cls, requests: Sequence[Request], device: Any) -> Self:
        """First drafts: the lowest id that each step allows."""
        import torch

        steps = [_steps(request)[: _free_size(request)] for request in requests]
        sizes = [len(answer) for answer in steps]
        choices = max(len(ids) for answer in steps for ids in answer)
        allowed_ids = [_pad_steps(answer, max(sizes), choices) for answer in steps]
        bias = [step_biases(ids, r.bias) for ids, r in zip(allowed_ids, requests, strict=True)]
        allowed = torch.tensor(allowed_ids, device=device)
        bias_values = torch.tensor(bias, device=device)
        rows, settled = list(range(len(requests))), [0] * len(requests)
        return cls(rows, sizes, settled, allowed[:, :, 0], allowed, bias_values)

    def input_mask(self) -> Any:
        """Attention mask of the tokens that are fed: all of a draft but its last one."""
        import torch

        at = torch.arange(1, self.tokens.shape[1], device=self.tokens.device)
        return (at < torch.tensor(self.sizes, device=at.device)[:, None]).long()

    def settle(self, logits: Any, start: int) -> None:
        """Choose tokens from `logits` [drafts, tokens from `start` on, choices]."""
        import torch

        allowed = self.allowed[:, start:]
        best = (logits + self.bias[:, start:]).argmax(2, keepdim=True)
        chosen = torch.cat([self.tokens[:, :start], allowed.gather(2, best)[:, :, 0]], dim=1)
        at = torch.arange(self.tokens.shape[1], device=chosen.device)
        settled = torch.tensor(self.settled, device=chosen.device)[:, None]
        # Settled tokens stay, even if sums in another batch round differently.
        chosen = torch.where(at < settled, self.tokens, chosen)
        same = (chosen == self.tokens).long().cumprod(1).sum(1).tolist()
        self.settled = [min(n + 1, size) for n, size in zip(same, self.sizes, strict=True)]
        self.tokens = chosen

    def finished(self) -> dict[int, list[int]]:
        """The settled answers, by row."""
        drafts = zip(self.rows, self.tokens.tolist(), self.settled, self.sizes, strict=True)
        return {row: ids[:size] for row, ids, settled, size in drafts if settled == size}

    def open(self) -> list[int]:
        """Indices of the drafts that are not settled yet."""
        return [n for n, settled in enumerate(self.settled) if settled < self.sizes[n]]

    def select(self, indices: list[int]) -> Self:
        """Only the drafts at these indices."""
        lists = [[values[n] for n in indices] for values in (self.rows, self.sizes, self.settled)]
        arrays = [values[indices] for values in (self.tokens, self.allowed, self.bias)]
        return type(self)(*lists, *arrays)


def _steps(request: Request) -> AllowedSteps:
    return request.steps[: request.max_new_tokens]


def _free_size(request: Request) -> int:
    """Number of tokens up to the last one with a choice; the model is not asked for the rest."""
    free = [n for n, ids in enumerate(_steps(request), 1) if len(ids) > 1]
    return max(free, default=1)


def _forced_tail(request: Request) -> list[int]:
    return [ids[0] for ids in _steps(request)[_free_size(request) :]]


def _pad_steps(steps: AllowedSteps, size: int, choices: int) -> list[list[int]]:
    """Pad steps to one size, and each step to one number of choices, by repeating.

    Choices are in ascending order, since greedy decoding takes the lowest of equally good ids.
    """
    rows = [[*sorted(ids), *[max(ids)] * (choices - len(ids))] for ids in steps]
    return rows + [rows[-1]] * (size - len(rows))

"""Answers of which each token is one of a few, in a few passes of a model instead of one a token.

A pass reads a guess of the whole answer and tells what greedy decoding would choose behind each of
its tokens. Up to the first place where that differs from the guess, and with that place, it is what
greedy decoding chooses, for it has read the same; as a whole it is the next guess. So each pass
settles one token more at least, and most answers are settled after two or three.
"""

from collections.abc import Callable, Sequence
from typing import Any, Self

from proxhpc.account.flops import GATED_DECODERS
from proxhpc.engines.base import Request
from proxhpc.engines.steps import AllowedSteps, log_odds


def can_draft(model: Any, requests: Sequence[Request], stop: frozenset[int]) -> bool:
    """Whether these requests say of every token what it may be, and the model can go back."""
    return model.config.model_type in GATED_DECODERS and all(
        request.steps
        and not request.end_loops
        and (len(request.steps) >= request.max_new_tokens or stop.issuperset(request.steps[-1]))
        for request in requests
    )


def draft(
    model: Any, requests: Sequence[Request], check: Callable[[], None]
) -> tuple[list[list[int]], list[float | None]]:
    """The tokens that greedy decoding gives each request, and the scores of the first ones.

    `check` is called before each pass.
    """
    import torch
    from transformers import DynamicCache

    answers = _Answers.of(requests, model.device)
    ids, mask = padded([request.prompt for request in requests], model.device)
    mask = torch.cat([mask, torch.ones_like(answers.guess[:, 1:])], dim=1)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    unread = torch.cat([ids, answers.guess[:, :-1]], dim=1)
    cache = DynamicCache()
    size = answers.guess.shape[1]
    known = 0  # so many tokens of each answer are settled
    done: dict[int, list[int]] = {}
    scores: list[float | None] = []
    while True:
        check()
        out = model(
            unread,
            attention_mask=mask,
            position_ids=places[:, -unread.shape[1] :],
            past_key_values=cache,
            logits_to_keep=size - known,
        )
        scores = scores or log_odds(out.logits[:, 0], [request.odds for request in requests])
        answers.settle(out.logits, known)
        done |= answers.finished()
        rows = answers.open()
        if not rows:
            found = [done[row] + _forced(request) for row, request in enumerate(requests)]
            return found, scores
        if len(rows) < len(mask):
            answers, mask, places = answers.only(rows), mask[rows], places[rows]
            cache.batch_select_indices(torch.tensor(rows, device=model.device))
        known = min(answers.settled)
        cache.crop(known - size)
        unread = answers.guess[:, known - 1 : -1]


def padded(prompts: Sequence[Sequence[int]], device: Any) -> tuple[Any, Any]:
    """Prompts of one length, padded on the left, and the mask that says so; each [rows, width]."""
    import torch

    width = max(map(len, prompts))
    ids = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


class _Answers:
    """Answers in the making: of each its row, its tokens so far, and how many of them are settled.

    `guess` is [rows, size]; `allowed` and `bias` are [rows, size, choices]. Whatever stands behind
    an answer's own `sizes` is never looked at.
    """

    def __init__(self, rows: list[int], sizes: list[int], settled: list[int], *arrays: Any) -> None:
        self.rows, self.sizes, self.settled = rows, sizes, settled
        self.guess, self.allowed, self.bias = arrays

    @classmethod
    def of(cls, requests: Sequence[Request], device: Any) -> Self:
        """First guesses: what each step names first."""
        import torch

        steps = [_steps(request)[: _free(request)] for request in requests]
        sizes = [len(own) for own in steps]
        width = max(len(ids) for own in steps for ids in own)
        allowed = [_square(own, max(sizes), width) for own in steps]
        bias = [
            [[more.get(number, 0.0) for number in ids] for ids in own]
            for own, more in zip(allowed, (dict(r.bias) for r in requests), strict=True)
        ]
        choices = torch.tensor(allowed, device=device)
        arrays = choices[:, :, 0], choices, torch.tensor(bias, device=device)
        return cls(list(range(len(requests))), sizes, [0] * len(requests), *arrays)

    def settle(self, logits: Any, known: int) -> None:
        """Choose from `logits` [rows, tokens from `known` on, vocabulary]."""
        import torch

        allowed = self.allowed[:, known:]
        best = (logits.gather(2, allowed) + self.bias[:, known:]).argmax(2, keepdim=True)
        chosen = torch.cat([self.guess[:, :known], allowed.gather(2, best)[:, :, 0]], dim=1)
        places = torch.arange(self.guess.shape[1], device=chosen.device)
        settled = torch.tensor(self.settled, device=chosen.device)[:, None]
        # What is settled stays, though sums of another batch may round otherwise.
        chosen = torch.where(places < settled, self.guess, chosen)
        same = (chosen == self.guess).long().cumprod(1).sum(1).tolist()
        self.settled = [min(n + 1, size) for n, size in zip(same, self.sizes, strict=True)]
        self.guess = chosen

    def finished(self) -> dict[int, list[int]]:
        """The answers that are settled, by row."""
        parts = zip(self.rows, self.guess.tolist(), self.settled, self.sizes, strict=True)
        return {row: ids[:size] for row, ids, settled, size in parts if settled == size}

    def open(self) -> list[int]:
        """Places of the answers that are not."""
        return [n for n, settled in enumerate(self.settled) if settled < self.sizes[n]]

    def only(self, places: list[int]) -> Self:
        """The answers at these places alone."""
        lists = [[of[n] for n in places] for of in (self.rows, self.sizes, self.settled)]
        return type(self)(*lists, self.guess[places], self.allowed[places], self.bias[places])


def _steps(request: Request) -> AllowedSteps:
    return request.steps[: request.max_new_tokens]


def _free(request: Request) -> int:
    """How many tokens of an answer a model must be asked for; there is one choice for the rest."""
    choices = [n for n, ids in enumerate(_steps(request), 1) if len(ids) > 1]
    return max(choices, default=1)


def _forced(request: Request) -> list[int]:
    return [ids[0] for ids in _steps(request)[_free(request) :]]


def _square(steps: AllowedSteps, size: int, width: int) -> list[list[int]]:
    """Steps of one size with choices of one width, by naming some twice, the lowest id first.

    Where two choices are equally good, the lowest id is greedy decoding's.
    """
    rows = [[*sorted(ids), *[max(ids)] * (width - len(ids))] for ids in steps]
    return rows + [rows[-1]] * (size - len(rows))

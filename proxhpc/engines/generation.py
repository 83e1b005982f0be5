"""Hooks of transformers' `generate`: where a request ends, and which tokens are allowed."""

from collections.abc import Callable, Sequence
from typing import Any

from proxhpc.engines.base import Request, Tokenizer, find_stop_end, is_loop
from proxhpc.engines.steps import log_odds, restrict


def make_stopping(
    requests: Sequence[Request], tokenizer: Tokenizer, width: int, check: Callable[[], None]
) -> Any:
    """A stopping criterion that ends each row at its limit, its stop strings or in a loop.

    `width` is the length of the padded prompts, and `check` is called at each token. `lengths` of
    the criterion are the rows' numbers of new tokens; a row that ends at an end-of-sequence token
    keeps its limit.
    """
    import torch
    from transformers import StoppingCriteria

    # Each token of a stop string holds at least one of its characters.
    tails = [max(map(len, request.stop), default=0) + 1 for request in requests]

    class Stopping(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
        def __init__(self) -> None:
            self.lengths = [request.max_new_tokens for request in requests]

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            check()
            new = input_ids.shape[1] - width
            for row, request in enumerate(requests):
                if new >= self.lengths[row] or not (request.stop or request.end_loops):
                    continue
                ids = input_ids[row, width:].tolist()
                if request.end_loops and is_loop(ids, request.lines, tokenizer):
                    self.lengths[row] = new
                elif request.stop:
                    tail = tokenizer.decode(ids[-tails[row] :])
                    if find_stop_end(tail, request.stop) is not None:
                        self.lengths[row] = new
            done = [new >= length for length in self.lengths]
            return torch.tensor(done, device=input_ids.device)

    return Stopping()


def make_processor(requests: Sequence[Request], width: int) -> Any:
    """A logits processor that applies the requests' bias and steps.

    Before, it stores the requests' scores in `scores`.
    """
    import torch
    from transformers import LogitsProcessor

    rows = [row for row, request in enumerate(requests) for _ in request.bias]
    pairs = [pair for request in requests for pair in request.bias]

    class Processor(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
        def __init__(self) -> None:
            self.scores: list[float | None] = []

        def __call__(self, input_ids: Any, logits: Any) -> Any:
            if not self.scores:
                self.scores = log_odds(logits, [request.odds for request in requests])
            step = input_ids.shape[1] - width
            allowed = {n: r.steps[step] for n, r in enumerate(requests) if step < len(r.steps)}
            if pairs or allowed:
                logits = logits.clone()
            if pairs:
                bias = torch.tensor([value for _, value in pairs], device=logits.device)
                logits[rows, [number for number, _ in pairs]] += bias
            if allowed:
                restrict(logits, [*allowed], [*allowed.values()])
            return logits

    return Processor()


def length_to_stop(ids: Sequence[int], stop: Sequence[str], tokenizer: Tokenizer) -> int:
    """Number of an answer's tokens up to the end of its first stop string."""
    if stop:
        for length in range(1, len(ids)):
            if find_stop_end(tokenizer.decode(ids[:length]), stop) is not None:
                return length
    return len(ids)

"""What transformers' `generate` is told of requests: where each ends, and what it may say."""

from collections.abc import Callable, Sequence
from typing import Any

from proxhpc.engines.base import Request, Tokenizer, end_of, is_loop
from proxhpc.engines.steps import log_odds, restrict
from proxhpc.errors import RetryError


def make_stopping(
    requests: Sequence[Request], tokenizer: Tokenizer, width: int, given_up: Callable[[], bool]
) -> Any:
    """A stopping criterion that ends each row at its own limit or stop string, or in a loop.

    Its `lengths` are the rows' numbers of new tokens; rows that end otherwise have their limit.
    """
    import torch
    from transformers import StoppingCriteria

    # A token of a stop string is one of its characters at least.
    tails = [max(map(len, request.stop), default=0) + 1 for request in requests]

    class Ends(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
        def __init__(self) -> None:
            self.lengths = [request.max_new_tokens for request in requests]

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            if given_up():
                raise ended_at()
            new = input_ids.shape[1] - width
            for row, request in enumerate(requests):
                if new >= self.lengths[row] or not (request.stop or request.end_loops):
                    continue
                ids = input_ids[row, width:].tolist()
                if request.end_loops and is_loop(ids):
                    self.lengths[row] = new
                elif request.stop:
                    tail = tokenizer.decode(ids[-tails[row] :])
                    if end_of(tail, request.stop) is not None:
                        self.lengths[row] = new
            done = [new >= length for length in self.lengths]
            return torch.tensor(done, device=input_ids.device)

    return Ends()


def make_choosers(requests: Sequence[Request], width: int) -> list[Any]:
    """What applies the requests' bias and steps to the logits, where any has them."""
    if not any(request.steps or request.bias for request in requests):
        return []
    import torch
    from transformers import LogitsProcessor

    rows = [row for row, request in enumerate(requests) for _ in request.bias]
    pairs = [pair for request in requests for pair in request.bias]

    class Choosing(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores = scores.clone()
            if pairs:
                more = torch.tensor([value for _, value in pairs], device=scores.device)
                scores[rows, [number for number, _ in pairs]] += more
            step = input_ids.shape[1] - width
            open_ = [(n, r.steps[step]) for n, r in enumerate(requests) if step < len(r.steps)]
            if open_:
                restrict(scores, [row for row, _ in open_], [ids for _, ids in open_])
            return scores

    return [Choosing()]


def make_scorer(requests: Sequence[Request]) -> Any:
    """What reads the scores of the requests' first tokens into its `scores`; goes first."""
    from transformers import LogitsProcessor

    class Scoring(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
        def __init__(self) -> None:
            self.scores: list[float | None] = []

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            if not self.scores:
                self.scores = log_odds(scores, [request.odds for request in requests])
            return scores

    return Scoring()


def length_to_stop(ids: Sequence[int], stop: Sequence[str], tokenizer: Tokenizer) -> int:
    """How many of an answer's tokens there are up to the first stop string."""
    if stop:
        for length in range(1, len(ids)):
            if end_of(tokenizer.decode(ids[:length]), stop) is not None:
                return length
    return len(ids)


def ended_at() -> RetryError:
    """What to raise where the engine is to end."""
    return RetryError("the transformers engine has been closed")

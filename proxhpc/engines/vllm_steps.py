"""The same within vLLM: a logits processor that its core loads by name."""

from collections.abc import Sequence
from typing import Any

# Only vLLM's own processes import this module.
from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates

from proxhpc.engines.steps import STEPS_KEY, restrict


class StepProcessor(LogitsProcessor):  # type: ignore[misc]  # vLLM is untyped here
    """Restricts each token of a request to its step's ids; behind the last step all are free."""

    def __init__(self, config: Any, device: Any, is_pin_memory: bool) -> None:
        # By row of the batch: the steps, and vLLM's own list of the tokens so far.
        self._rows: dict[int, tuple[Sequence[Sequence[int]], Sequence[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """It is not: greedy answers differ."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Take note of what rows the batch has now."""
        process_dict_updates(self._rows, batch_update, _state)

    def apply(self, logits: Any) -> Any:
        """Restrict the rows' next tokens, in place."""
        at = [(row, steps, len(done)) for row, (steps, done) in self._rows.items()]
        open_ = [(row, steps[step]) for row, steps, step in at if step < len(steps)]
        if open_:
            restrict(logits, [row for row, _ in open_], [ids for _, ids in open_])
        return logits


def _state(params: Any, prompt: Any, done: Sequence[int]) -> Any:
    steps = (params.extra_args or {}).get(STEPS_KEY)
    return (steps, done) if steps else None

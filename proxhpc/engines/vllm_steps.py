"""Step restrictions in vLLM: a logits processor that its core process loads by name."""

from collections.abc import Sequence
from typing import Any

# Only vLLM's processes import this module.
from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates

from proxhpc.engines.steps import STEPS_KEY, restrict


class StepProcessor(LogitsProcessor):  # type: ignore[misc]  # vLLM is untyped here
    """Restricts each token of a request to the ids of its step, up to the last step."""

    def __init__(self, config: Any, device: Any, is_pin_memory: bool) -> None:
        # By row of the batch: the steps, and vLLM's own list of the new tokens.
        self._rows: dict[int, tuple[Sequence[Sequence[int]], Sequence[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """False: greedy answers change."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Record which requests are in which rows of the batch."""
        process_dict_updates(self._rows, batch_update, _row_state)

    def apply(self, logits: Any) -> Any:
        """Restrict the next token of each row, in place."""
        allowed = {
            row: steps[len(tokens)]
            for row, (steps, tokens) in self._rows.items()
            if len(tokens) < len(steps)
        }
        if allowed:
            # An answer of NaN ends at once. Others have a token for each step, or a stop string.
            ends = [self._rows[row][0][-1][0] for row in allowed]
            restrict(logits, [*allowed], [*allowed.values()], ends)
        return logits


def _row_state(params: Any, prompt: Any, tokens: Sequence[int]) -> Any:
    steps = (params.extra_args or {}).get(STEPS_KEY)
    return (steps, tokens) if steps else None

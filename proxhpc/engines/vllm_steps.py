"""Step restrictions in vLLM: a logits processor that its core process loads by name."""

from collections.abc import Sequence
from typing import Any

# Only vLLM's processes import this module.
from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates

from proxhpc.engines.steps import BIAS_KEY, STEPS_KEY, restrict

Steps = Sequence[Sequence[int]]
Biases = Sequence[Sequence[float]]


class StepProcessor(LogitsProcessor):  # type: ignore[misc]  # vLLM is untyped here
    """Restricts each token of a request to the ids of its step, up to the last step.

    It adds the request's bias, too: vLLM's own `logit_bias` makes tensors of all ids of all
    requests whenever one joins or leaves, and this one of those of a step.
    """

    def __init__(self, config: Any, device: Any, is_pin_memory: bool) -> None:
        # By row of the batch: the steps, their biases, and vLLM's own list of the new tokens.
        self._rows: dict[int, tuple[Steps, Biases | None, Sequence[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """False: greedy answers change."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Record which requests are in which rows of the batch."""
        process_dict_updates(self._rows, batch_update, _row_state)

    def apply(self, logits: Any) -> Any:
        """Restrict the next token of each row, in place."""
        now = [
            (row, steps, biases, len(tokens))
            for row, (steps, biases, tokens) in self._rows.items()
            if len(tokens) < len(steps)
        ]
        if now:
            rows = [row for row, _, _, _ in now]
            allowed = [steps[step] for _, steps, _, step in now]
            # An answer of NaN ends at once. Others have a token for each step, or a stop string.
            ends = [steps[-1][0] for _, steps, _, _ in now]
            added = None
            if any(biases for _, _, biases, _ in now):
                added = [
                    biases[step] if biases else [0.0] * len(steps[step])
                    for _, steps, biases, step in now
                ]
            restrict(logits, rows, allowed, ends, added)
        return logits


def _row_state(params: Any, prompt: Any, tokens: Sequence[int]) -> Any:
    arguments = params.extra_args or {}
    steps = arguments.get(STEPS_KEY)
    return (steps, arguments.get(BIAS_KEY), tokens) if steps else None

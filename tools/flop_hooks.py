"""Count the FLOPs of a model of transformers by hooks, without its configuration."""

from pathlib import Path
from typing import Any

ATTENTION = "counted"


class CountedModel:
    """A model in float32 that counts what its matrices and its attention compute.

    A multiply-add counts as two. Of attention, the (query, key) pairs that the mask allows count.
    """

    def __init__(self, path: Path) -> None:
        import torch
        from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
        from transformers.masking_utils import eager_mask

        AttentionInterface.register(ATTENTION, self._attend)
        AttentionMaskInterface.register(ATTENTION, eager_mask)
        self.flops = 0
        self.model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation=ATTENTION, local_files_only=True
        ).eval()
        for module in self.model.modules():
            if "Embedding" not in type(module).__name__ and _matrices(module):
                module.register_forward_hook(self._multiply)

    def count(self, prompt: int, cached: int, new: int) -> int:
        """Return the FLOPs of an answer of `new` tokens; `cached` of the prompt cost nothing."""
        import torch

        start, past = 0, None
        with torch.inference_mode():
            for end in (*([cached] if cached else []), *range(prompt, prompt + new)):
                ids = torch.arange(start, end)[None] % self.model.config.vocab_size
                out = self.model(ids, past_key_values=past, use_cache=True, logits_to_keep=1)
                if end == cached:
                    self.flops = 0
                start, past = end, out.past_key_values
        total, self.flops = self.flops, 0
        return total

    def _multiply(self, module: Any, arguments: Any, _: Any) -> None:
        experts = type(module).__name__.endswith("Experts")
        weights = sum(w.numel() // (w.shape[0] if experts else 1) for w in _matrices(module))
        chosen = self.model.config.num_experts_per_tok if experts else 1
        self.flops += 2 * weights * chosen * (arguments[0].numel() // arguments[0].shape[-1])

    def _attend(
        self, module: Any, query: Any, key: Any, value: Any, mask: Any, **_: Any
    ) -> tuple[Any, None]:
        """Count, and return the queries, since no number depends on the values."""
        if mask is None:
            assert query.shape[2] == 1, "no mask for several queries"
            pairs = key.shape[2]
        else:
            pairs = int((mask == 0).sum())
        self.flops += 2 * pairs * query.shape[1] * (query.shape[3] + value.shape[3])
        return query.transpose(1, 2).contiguous(), None


def _matrices(module: Any) -> list[Any]:
    return [weight for weight in module.parameters(recurse=False) if weight.dim() > 1]

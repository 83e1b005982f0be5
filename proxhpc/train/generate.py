"""Greedy answers of a model that is being taught."""

from collections.abc import Sequence
from typing import Any

from proxhpc.engines.drafts import padded

_BATCH = 8


def answers(
    model: Any, prompts: Sequence[Sequence[int]], end: int, most: int, context: int
) -> list[list[int]]:
    """Of each prompt the ids of the answer, up to `end` or `most` tokens, within the context."""
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    found: dict[int, list[int]] = {}
    for at in range(0, len(order), _BATCH):
        group = order[at : at + _BATCH]
        room = context - len(prompts[group[-1]])  # learned positions end there
        written = _greedy(model, [prompts[number] for number in group], end, min(most, room))
        found.update(zip(group, written, strict=True))
    return [found[number] for number in range(len(prompts))]


def _greedy(model: Any, prompts: Sequence[Sequence[int]], end: int, most: int) -> list[list[int]]:
    import torch
    from transformers import GenerationConfig

    ids, mask = padded(prompts, model.device)
    config = GenerationConfig(
        do_sample=False, max_new_tokens=most, eos_token_id=end, pad_token_id=end
    )
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=mask, generation_config=config)
    rows = out[:, ids.shape[1] :].tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]

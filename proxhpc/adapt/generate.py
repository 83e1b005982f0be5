"""Greedy answers of a model that is being taught."""

from collections.abc import Sequence
from typing import Any

BATCH = 8


def answers(model: Any, prompts: Sequence[Sequence[int]], end: int, most: int) -> list[list[int]]:
    """Of each prompt the ids of the answer, up to `end` or `most` tokens."""
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    found: dict[int, list[int]] = {}
    for at in range(0, len(order), BATCH):
        group = order[at : at + BATCH]
        written = _greedy(model, [prompts[number] for number in group], end, most)
        found.update(zip(group, written, strict=True))
    return [found[number] for number in range(len(prompts))]


def _greedy(model: Any, prompts: Sequence[Sequence[int]], end: int, most: int) -> list[list[int]]:
    import torch
    from transformers import GenerationConfig

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), end)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    config = GenerationConfig(
        do_sample=False, max_new_tokens=most, eos_token_id=end, pad_token_id=end
    )
    with torch.inference_mode():
        out = model.generate(
            ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
        )
    rows = out[:, width:].tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]

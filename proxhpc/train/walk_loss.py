"""What a walk's answers cost."""

from typing import Any

from proxhpc.spec.recipe import WalkOptions
from proxhpc.train.task import Losses, weighted_mean
from proxhpc.train.walk_batch import BACK, WalkBatch

END_LOSS, VERDICT_LOSS = 0.05, 0.5
FAINT = 0.05  # share of the text loss's weight below which it is left out


def walk_loss(module: Any, batch: WalkBatch, course: WalkOptions, done: float) -> Losses:
    """The loss of a batch, with the share `done` of the training behind it.

    Of answers the cross-entropy to the chances, weighed; of labels told at the lines likewise.
    The text loss fades.
    """
    import torch
    from torch.nn import functional

    last, seen = module.hidden(batch.inputs)
    logits = module.logits(last[batch.rows, batch.places]).float()
    chosen = logits.gather(1, batch.choices) - logits.logsumexp(1, keepdim=True)
    drop = batch.drop
    costs = -((1 - drop) * chosen[:, 0] + drop * chosen[:, 1])
    lines, verdicts = ~batch.verdict, batch.verdict
    answers = weighted_mean(costs[lines], batch.weight[lines])
    total = answers
    parts = {"answers": answers, "noise": weighted_mean(_entropy(drop)[lines], batch.weight[lines])}
    if verdicts.any():
        parts["verdicts"] = weighted_mean(costs[verdicts], batch.weight[verdicts])
        total = total + VERDICT_LOSS * parts["verdicts"]
    ends = module.logits(last[batch.ends[:, 0], batch.ends[:, 1]]).float()
    target = torch.full((len(ends),), module.llama.config.eos_token_id, device=ends.device)
    parts["ends"] = functional.cross_entropy(ends, target)
    total = total + END_LOSS * parts["ends"]
    if course.label_loss and len(batch.back):
        parts["labels"] = _labels(module, batch, seen)
        total = total + course.label_loss * parts["labels"]
    if course.text_loss and 1 - done > FAINT and len(batch.text):
        rows, places = batch.text[:, 0], batch.text[:, 1]
        foretold = module.logits(last[rows, places]).float()
        parts["text"] = functional.cross_entropy(foretold, batch.inputs[rows, places + 1])
        total = total + course.text_loss * (1 - done) * parts["text"]
    with torch.no_grad():
        right = (chosen[:, 1] > chosen[:, 0]) == (drop > 0.5)
        parts["right"] = right.float().mean()
        valid = logits.argmax(1, keepdim=True) == batch.choices
        parts["valid"] = valid.any(1).float().mean()
    return Losses(total, {name: float(value.detach()) for name, value in parts.items()})


def _labels(module: Any, batch: WalkBatch, seen: Any) -> Any:
    """The loss of labels told at the lines' numbers, of each line and those before it."""
    from torch.nn import functional

    told = module.labels(seen[batch.number_rows, batch.number_places].float())
    drop, weight = batch.drop[batch.number_steps], batch.weight[batch.number_steps]
    total = 0
    for back in range(BACK):
        costs = functional.binary_cross_entropy_with_logits(
            told[:, back], drop.roll(back), reduction="none"
        )
        total = total + weighted_mean(costs, weight * (batch.back >= back)) / BACK
    return total


def _entropy(chance: Any) -> Any:
    inside = chance.clamp(1e-6, 1 - 1e-6)
    return -(inside * inside.log() + (1 - inside) * (1 - inside).log())

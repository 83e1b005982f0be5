"""How weights are updated: AdamW and Muon, the learning rate, the moving average."""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from proxhpc.spec.recipe import Recipe

if TYPE_CHECKING:
    import torch

MIN_LEARNING_RATE = 0.02  # at the end, as a share of the highest


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Keys that recipes and pre-trainings share.

    `optimizer` is `adamw`, or `muon` for the matrices within the layers and AdamW for the rest.
    `schedule` is `cosine`, or `wsd`: constant, then linear. Both decay over the share `decay` of
    the training, at its end. `average` is the decay of the moving average of the weights; 0: none.
    """

    optimizer: str = "adamw"
    learning_rate: float = 3e-4
    min_learning_rate: float | None = None  # at the end; None: MIN_LEARNING_RATE of the highest
    schedule: str = "wsd"
    warmup: int = 0  # steps
    decay: float = 0.2
    weight_decay: float = 0.1  # of matrices
    betas: tuple[float, float] = (0.9, 0.95)
    average: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """The options of a recipe."""
        keys: dict[str, Any] = {
            field.name: getattr(recipe, field.name)
            for field in fields(cls)
            if field.name != "betas"
        }
        return cls(**keys, betas=(0.9, 0.97))


def learning_rate(options: OptimizerOptions, step: int, done: float) -> float:
    """The learning rate of a step, after the share `done` (0 to 1) of the training."""
    high, low = options.learning_rate, options.min_learning_rate
    low = MIN_LEARNING_RATE * high if low is None else low
    rest = min(1.0, (1 - done) / options.decay) if options.decay else 1.0
    if options.schedule == "cosine":
        rest = (1 - math.cos(math.pi * rest)) / 2
    return min(high * (step + 1) / max(1, options.warmup), low + (high - low) * rest)


def parameter_groups(
    module: "torch.nn.Module", options: OptimizerOptions
) -> list[dict[str, Any]]:  # as torch.optim.Optimizer takes them
    """The parameters that require gradients, by what updates them: `kind` is adamw or muon."""
    groups: dict[str, list[torch.nn.Parameter]] = {"muon": [], "matrices": [], "vectors": []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_muon = options.optimizer == "muon" and parameter.ndim == 2 and "layers." in name
            kind = "muon" if is_muon else "matrices" if parameter.ndim >= 2 else "vectors"
            groups[kind].append(parameter)
    return [
        {
            "params": parameters,
            "kind": "muon" if name == "muon" else "adamw",
            "lr": options.learning_rate,
            "weight_decay": 0.0 if name == "vectors" else options.weight_decay,
            "updates": 0,  # of the moving average
        }
        for name, parameters in groups.items()
        if parameters
    ]

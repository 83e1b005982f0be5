"""What moves the weights: AdamW, and Muon for matrices; the learning rate; the moving average."""

from collections.abc import Iterable, Mapping
from typing import Any

from proxhpc.spec.recipe import Recipe

LEAST_RATE = 0.02  # of the highest learning rate, at the end
# Newton-Schulz coefficients of Muon (Jordan et al. 2024), and the step's size that matches
# AdamW's (Liu et al. 2025, arXiv 2502.16982).
_A, _B, _C, _ROUNDS = 3.4445, -4.775, 2.0315, 5
_MOMENTUM, _MATCH = 0.95, 0.2


def learning_rate(recipe: Recipe, step: int, done: float) -> float:
    """The learning rate at a step, with the share `done` of all training behind it."""
    falling = max(LEAST_RATE, (1 - done) / recipe.decay) if recipe.decay else 1.0
    return recipe.learning_rate * min(1.0, (step + 1) / max(1, recipe.warmup), falling)


class Muon:
    """Momentum whose update of each matrix is made orthogonal."""

    def __init__(self, matrices: Iterable[Any], weight_decay: float) -> None:
        """Matrices that have a gradient when `step` is called."""
        import torch

        self._matrices, self._decay = list(matrices), weight_decay
        self.momenta = [torch.zeros_like(matrix) for matrix in self._matrices]

    def step(self, learning_rate: float) -> None:
        """Move every matrix; without gradients being recorded."""
        for matrix, momentum in zip(self._matrices, self.momenta, strict=True):
            momentum.lerp_(matrix.grad, 1 - _MOMENTUM)
            update = _orthogonal(matrix.grad.lerp(momentum, _MOMENTUM))
            matrix.mul_(1 - learning_rate * self._decay)
            matrix.add_(update, alpha=-learning_rate * _MATCH * max(matrix.shape) ** 0.5)


def _orthogonal(update: Any) -> Any:
    """The nearest matrix with singular values of about 1; bfloat16 is enough for it."""
    wide = (update if update.shape[0] <= update.shape[1] else update.T).bfloat16()
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(_ROUNDS):
        square = wide @ wide.T
        wide = _A * wide + (_B * square + _C * square @ square) @ wide
    return wide if update.shape[0] <= update.shape[1] else wide.T


class Optimizer:
    """The optimizers of a recipe as one."""

    def __init__(self, module: Any, recipe: Recipe) -> None:
        """For every parameter of `module` that is to learn."""
        import torch

        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        matrices = [
            p
            for name, p in named
            if recipe.optimizer == "muon" and p.ndim == 2 and "layers." in name
        ]
        mine = {id(p) for p in matrices}
        rest = [p for p in self.parameters if id(p) not in mine]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._muon = Muon(matrices, recipe.weight_decay)
        self._adam = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=recipe.learning_rate,
            betas=(0.9, 0.97),
        )

    def step(self, learning_rate: float) -> float:
        """Move the weights and forget the gradients; the gradients' norm, clipped to 1."""
        import torch

        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        with torch.no_grad():
            self._muon.step(learning_rate)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        for parameter in self.parameters:
            parameter.grad = None
        return float(norm)

    def state(self) -> dict[str, Any]:
        """What `load` takes."""
        return {"adam": self._adam.state_dict(), "muon": self._muon.momenta}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        import torch

        self._adam.load_state_dict(state["adam"])
        with torch.no_grad():
            for own, saved in zip(self._muon.momenta, state["muon"], strict=True):
                own.copy_(saved)


class Average:
    """A moving average of a module's weights, short at first."""

    def __init__(self, module: Any, decay: float) -> None:
        """It begins with the weights as they are; `decay` 0 follows them."""
        self._decay, self._module = decay, module
        self.weights = {name: value.clone() for name, value in module.state_dict().items()}

    def load(self, weights: Mapping[str, Any]) -> None:
        """Go on from such weights, which may be on another device."""
        for name, value in self.weights.items():
            value.copy_(weights[name])

    def update(self, step: int) -> None:
        """Take in the weights after a step."""
        import torch

        decay = min(self._decay, 1 - 1 / (step / 5 + 2))
        with torch.no_grad():
            for name, value in self._module.state_dict().items():
                own = self.weights[name]
                own.lerp_(value, 1 - decay) if own.is_floating_point() else own.copy_(value)

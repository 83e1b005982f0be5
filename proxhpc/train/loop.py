"""The training loop: steps, evaluations and checkpoints, until its time is over or a signal."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING, Generic

import orjson

from proxhpc.corpus.disk import append_line
from proxhpc.engines.transformers_engine import default_device
from proxhpc.errors import RetryError, UserError
from proxhpc.spec.recipe import Recipe
from proxhpc.status.terminal import duration
from proxhpc.train.checkpoint import (
    CHECKPOINT_VERSION,
    TrainingFolder,
    TrainingState,
    check_same_recipe,
    load_checkpoint,
    recipe_fingerprint,
)
from proxhpc.train.distributed import TrainingRanks
from proxhpc.train.optimizer import (
    MovingAverage,
    Optimizer,
    OptimizerOptions,
    learning_rate,
)
from proxhpc.train.score import ValidationScores
from proxhpc.train.task import BatchT, TrainingTask, rank_batches

if TYPE_CHECKING:
    import torch

_LOG_SECONDS, _LOG_SHARE = 60, 0.05  # between two lines: seconds, or if less a share of `hours`
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # Slurm warns with SIGUSR2


class Trainer(Generic[BatchT]):
    """Trains the module of one task; `log` prints a line periodically."""

    def __init__(
        self,
        recipe: Recipe,
        task: TrainingTask[BatchT],
        folder: TrainingFolder,
        log: Callable[[str], None],
        ranks: TrainingRanks,
    ) -> None:
        """Resumes from the folder's checkpoint if there is one."""
        self.recipe, self.task, self.folder, self._print = recipe, task, folder, log
        self._ranks = ranks
        self.state = TrainingState()
        self._device = default_device()
        task.module.to(self._device)
        self._optimizer = Optimizer(task.module, recipe)
        self._average = MovingAverage(task.module, recipe.average)
        self._stop_signal = ""
        self._fingerprint = recipe_fingerprint(recipe)
        if folder.state.exists():
            self._load()
        ranks.broadcast_weights(task.module)

    def run(self) -> None:
        """Train to the end. RetryError after SIGTERM, SIGINT or SIGUSR2, with a checkpoint."""
        self.folder.claim()
        with ExitStack() as handlers:
            for number in _STOP_SIGNALS:
                handlers.callback(signal.signal, number, signal.signal(number, self._stop))
            self._train()
            self.save()
        if self._stop_signal:
            raise RetryError(
                f"training stopped by {self._stop_signal} after step {self.state.step}",
                hint="continue with --resume",
            )
        if self.state.step > self.state.evaluated_step or self.state.best_scores is None:
            self.evaluate()
            self.save()

    def steps(self) -> Iterator[dict[str, float]]:
        """Train a step at a time, until rank 0 is finished or got a signal; the steps' losses."""
        state = self.state
        self.task.module.train()
        batches = rank_batches(self.task, state.position, self._ranks)
        while True:
            more = self.done < 1 and not self._stop_signal
            more, done = self._ranks.broadcast_progress(more, self.done, self._device)
            if not more:
                return
            started = time.monotonic()
            position, batch = next(batches)
            losses = self._step(batch, done)
            state.position = position
            state.seconds += time.monotonic() - started
            yield losses

    def _train(self) -> None:
        """Train, with evaluations and checkpoints, until the end or a signal."""
        state, recipe = self.state, self.recipe
        saved = evaluated = logged = state.seconds
        log_seconds = min(_LOG_SECONDS, _LOG_SHARE * 3600 * (recipe.hours or math.inf))
        losses: dict[str, float] = {}
        for step_losses in self.steps():
            losses = _smoothed(losses, step_losses)
            if state.seconds - logged >= log_seconds:
                logged = state.seconds
                self._log("step", losses)
            if state.seconds - evaluated >= recipe.minutes * 60 and self.done < 1:
                evaluated = saved = state.seconds
                self.evaluate()
                self.save()
            if state.seconds - saved >= recipe.save_minutes * 60:
                saved = state.seconds
                self.save()

    @property
    def done(self) -> float:
        """The share of the training that is done, by steps or by time."""
        if self.recipe.steps is not None:
            return min(1.0, self.state.step / self.recipe.steps)
        return min(1.0, self.state.seconds / 3600 / (self.recipe.hours or 1.0))

    def _step(self, batch: BatchT, done: float) -> dict[str, float]:
        """One optimizer step; its losses and gradient norm."""
        state = self.state
        self._seed_step()
        batch = batch.to(self._device)
        with self._autocast():
            losses = self.task.loss(batch, done)
        losses.total.backward()
        self._ranks.average_gradients(self._optimizer.parameters)
        norm = self._optimizer.step(
            learning_rate(OptimizerOptions.of(self.recipe), state.step, done)
        )
        if self._ranks.rank == 0 and not math.isfinite(norm):
            raise UserError(
                f"the training diverged: no finite gradient at step {state.step + 1}",
                hint="start again with a lower learning_rate or a longer warmup; to continue from "
                "the last checkpoint, use --resume, perhaps with precision: float32",
            )
        state.step += 1
        state.tokens += self._ranks.count * batch.inputs.numel()
        self._average.update(state.step)
        return {**losses.parts, "norm": norm}

    def _seed_step(self) -> None:
        """Seed dropout by step and rank: a resumed training draws what it would have drawn."""
        import numpy as np
        import torch

        entropy = (self.recipe.seed, self.state.step, self._ranks.rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def _autocast(self) -> "torch.autocast":
        import torch

        if self.recipe.precision == "auto":
            enabled = self._device == "cuda" and torch.cuda.is_bf16_supported()
        else:
            enabled = self.recipe.precision == "bfloat16"
        return torch.autocast(self._device, torch.bfloat16, enabled=enabled)

    def evaluate(self) -> None:
        """Evaluate the moving average, and save its weights if they are the best so far."""
        module, state = self.task.module, self.state
        weights = {name: value.clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self._average.weights)
        module.eval()
        scores = self.validate(self.recipe.validation)
        module.train()
        module.load_state_dict(weights)
        self._log("evaluation", scores)
        state.evaluated_step = state.step
        best = state.best_scores
        if best is None or scores.get("f1", 0.0) >= best.get("f1", 0.0):
            state.best_scores, state.best_step = scores, state.step
            # With their scores: a kill before the next save() must not separate the two.
            best_weights = {"weights": self._average.weights, "scores": scores, "step": state.step}
            self.folder.save(self.folder.best, best_weights)

    def validate(self, max_examples: int) -> ValidationScores:
        """Scores of the module's current weights."""
        with self._autocast():
            return self.task.validate(max_examples)

    def load_best(self) -> None:
        """Load the best weights into the module."""
        self.task.module.load_state_dict(load_checkpoint(self.folder.best)["weights"])
        self.task.module.eval()

    def save(self) -> None:
        """Write a checkpoint."""
        self.folder.save(
            self.folder.state,
            {
                "version": CHECKPOINT_VERSION,
                "module": self.task.module.state_dict(),
                "average": self._average.weights,
                "optimizers": self._optimizer.state_dicts(),
                "progress": asdict(self.state),
                "recipe": self._fingerprint,
            },
        )

    def _load(self) -> None:
        saved = load_checkpoint(self.folder.state)
        if saved.get("version") != CHECKPOINT_VERSION:
            raise UserError(
                f"{self.folder.out}: its training run was started by another version of proxhpc",
                hint="give another --out, or delete it",
            )
        check_same_recipe(self._fingerprint, saved["recipe"], self.folder)
        self.task.module.load_state_dict(saved["module"])
        self._average.load(saved["average"])
        self._optimizer.load_state_dicts(saved["optimizers"])
        self.state = TrainingState(**saved["progress"])
        if self.folder.best.exists():
            best = load_checkpoint(self.folder.best)
            self.state.best_scores, self.state.best_step = best["scores"], best["step"]

    def _log(self, event: str, numbers: dict[str, float]) -> None:
        state = self.state
        row = {
            "event": event,
            "step": state.step,
            "seconds": round(state.seconds),
            "tokens": state.tokens,
            "learning_rate": learning_rate(OptimizerOptions.of(self.recipe), state.step, self.done),
            **{name: round(value, 4) for name, value in numbers.items()},
        }
        append_line(self.folder.log, orjson.dumps(row))
        values = " ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        left = state.seconds * (1 - self.done) / self.done if self.done else None
        times = f"{state.seconds:6.0f} s, {duration(left)} left"
        self._print(f"{times}, step {state.step}, {event}: {values}")

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Stop after the current step, as the handler of a signal."""
        self._stop_signal = signal.Signals(number).name


def _smoothed(means: dict[str, float], losses: dict[str, float]) -> dict[str, float]:
    """Running means over about 50 steps."""
    return {name: means.get(name, value) * 0.98 + value * 0.02 for name, value in losses.items()}

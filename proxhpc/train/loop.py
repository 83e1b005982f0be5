"""Adapting a model to a task: its evaluations, checkpoints and log, as hooks of the engine."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Generic

import orjson

from proxhpc.corpus.disk import append_line
from proxhpc.errors import UserError
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
from proxhpc.train.optimizer import OptimizerOptions
from proxhpc.train.score import ValidationScores
from proxhpc.train.task import BatchT, TrainingTask, process_batches

if TYPE_CHECKING:
    import torch

    from proxhpc.train.engine import TrainingEngine

_SHOWN = ("accuracy", "f1", "line_precision", "line_recall")  # of the numbers that are logged
_LOG_SECONDS, _LOG_SHARE = 60, 0.05  # between two lines: seconds, or if less a share of `hours`


class Loop(Generic[BatchT]):
    """Trains the module of one task; `log` prints a line periodically."""

    def __init__(
        self,
        recipe: Recipe,
        task: TrainingTask[BatchT],
        folder: TrainingFolder,
        log: Callable[[str], None],
    ) -> None:
        """Resumes from the folder's checkpoint if there is one."""
        from proxhpc.train.engine import ENDLESS, TrainingEngine, training_arguments

        self.recipe, self.task, self.folder, self._print = recipe, task, folder, log
        self.state = TrainingState()
        self._fingerprint = recipe_fingerprint(recipe)
        saved = self._load() if folder.state.exists() else None
        arguments = training_arguments(
            options := OptimizerOptions.of(recipe),
            steps=recipe.steps or ENDLESS,
            precision=recipe.precision,
            gradient_accumulation_steps=recipe.accumulation,
            seed=recipe.seed,
            output_dir=str(folder.root),
            report_to=list(recipe.trackers) or "none",
        )
        if recipe.checkpointing:
            task.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.engine = TrainingEngine(_loss_module(task), self, options, arguments, saved)
        self.engine.finished = self._is_exhausted()
        self._is_first = bool(arguments.process_index == 0)
        self._saved = self._evaluated = self._logged = self.state.seconds
        self._means: dict[str, float] = {}  # of losses, over about 50 batches
        self._position, self._tokens = self.state.position, 0  # of the batches of this step

    def run(self) -> None:
        """Train to the end. RetryError after SIGTERM, SIGINT or SIGUSR2, with a checkpoint."""
        if self._is_first:
            self.folder.claim()
        if self.engine.finished or self.share_done(self.engine) >= 1:
            self.engine.load()
        else:
            self.engine.run()
        state = self.state
        if self._is_first and (state.step > state.evaluated_step or state.best_scores is None):
            self.evaluate()
            self._save(self.engine.checkpoint())

    # Hooks of the engine.

    def batches(self, engine: "TrainingEngine") -> Iterator[dict[str, Any]]:
        """Batches of this process, each with the position after it."""
        arguments = engine.args
        ranks = arguments.process_index, arguments.world_size
        for position, batch in process_batches(self.task, self.state.position, *ranks):
            yield {"batch": batch.to(str(arguments.device)), "position": position}

    def weight(self, batch: dict[str, Any]) -> float:
        """The sum of the weights of a batch's answers."""
        return float(batch["batch"].weight.sum())

    def loss(self, model: "torch.nn.Module", batch: dict[str, Any]) -> "torch.Tensor":
        """The task's loss."""
        losses = model(batch["batch"], self.engine.done)
        for name, value in losses.parts.items():
            self._means[name] = self._means.get(name, value) * 0.98 + value * 0.02
        self._position = batch["position"]
        self._tokens += self.engine.args.world_size * batch["batch"].inputs.numel()
        return losses.total

    def share_done(self, engine: "TrainingEngine") -> float:
        """The share of the steps, the hours or the epochs."""
        recipe = self.recipe
        if recipe.steps is not None:
            return float(min(1.0, engine.state.global_step / recipe.steps))
        if recipe.hours is not None:
            return float(min(1.0, engine.seconds / 3600 / recipe.hours))
        epoch, batches = self._position
        return min(1.0, (epoch + batches / len(self.task.epoch(epoch))) / (recipe.epochs or 1))

    def after_step(self, engine: "TrainingEngine") -> None:
        """Log, evaluate and save if it is time to."""
        state, recipe = self.state, self.recipe
        state.step, state.seconds = engine.state.global_step, engine.seconds
        state.position = self._position
        state.tokens, self._tokens = state.tokens + self._tokens, 0
        if state.seconds - self._logged >= min(
            _LOG_SECONDS, _LOG_SHARE * 3600 * (recipe.hours or math.inf)
        ):
            self._logged = state.seconds
            self._log("step", {**self._means, "norm": engine.norm})
        is_over = engine.done >= 1 or bool(engine.stopped_by)
        is_evaluated = state.seconds - self._evaluated >= recipe.minutes * 60 and not is_over
        if is_evaluated:
            self._evaluated = state.seconds
            if self._is_first:
                self.evaluate()
                engine.finished = self._is_exhausted()
        if is_evaluated or is_over or state.seconds - self._saved >= recipe.save_minutes * 60:
            self._saved = state.seconds
            self._save(engine.checkpoint())

    def evaluate(self) -> None:
        """Evaluate the moving average, and save its weights if they are the best so far."""
        module, state = self.task.module, self.state
        with self.engine.averaging.averaged():
            module.eval()
            scores = self.validate(self.recipe.validation)
            module.train()
            self._log("evaluation", scores)
            state.evaluated_step = state.step
            state.evaluations += 1
            best = state.best_scores
            if best is None or scores.get("f1", 0.0) >= best.get("f1", 0.0):
                state.best_scores, state.best_step = scores, state.step
                state.evaluations = 0
                # With their scores: a kill before the next save must not separate the two.
                best_weights = {"weights": self._trained_weights(), "scores": scores}
                self.folder.save(self.folder.best, best_weights | {"step": state.step})

    def validate(self, max_examples: int) -> ValidationScores:
        """Scores of the module's current weights."""
        with self.engine.accelerator.autocast():
            return self.task.validate(max_examples)

    def load_best(self) -> None:
        """Load the best weights into the module."""
        best = load_checkpoint(self.folder.best)["weights"]
        self.task.module.load_state_dict(best, strict=False)
        self.task.module.eval()

    def _is_exhausted(self) -> bool:
        """Whether so many evaluations were no better that the training ends early."""
        return self.recipe.patience is not None and self.state.evaluations >= self.recipe.patience

    def _trained_weights(self) -> "dict[str, torch.Tensor]":
        trained = {name for name, p in self.task.module.named_parameters() if p.requires_grad}
        weights = self.task.module.state_dict().items()
        return {name: value.clone() for name, value in weights if name in trained}

    def _save(self, checkpoint: dict[str, Any]) -> None:
        """Write a checkpoint."""
        if self._is_first:
            rest = {"progress": asdict(self.state), "recipe": self._fingerprint}
            self.folder.save(self.folder.state, checkpoint | rest | {"version": CHECKPOINT_VERSION})

    def _load(self) -> dict[str, Any]:
        saved = load_checkpoint(self.folder.state)
        if saved.get("version") != CHECKPOINT_VERSION:
            raise UserError(
                f"{self.folder.out}: its training run was started by another version of proxhpc",
                hint="give another --out, or delete it",
            )
        check_same_recipe(self._fingerprint, saved["recipe"], self.folder)
        self.state = TrainingState(**saved["progress"])
        if self.folder.best.exists():
            best = load_checkpoint(self.folder.best)
            if best["step"] > self.state.best_step:  # a kill separated the two
                self.state = replace(self.state, evaluations=0)
            self.state.best_scores, self.state.best_step = best["scores"], best["step"]
        return saved

    def _log(self, event: str, numbers: dict[str, float]) -> None:
        if not self._is_first:
            return
        state, engine = self.state, self.engine
        row = {
            "event": event,
            "step": state.step,
            "seconds": round(state.seconds),
            "tokens": state.tokens,
            "learning_rate": engine.learning_rate,
            **{name: round(value, 4) for name, value in numbers.items()},
        }
        append_line(self.folder.log, orjson.dumps(row))
        engine.log({f"{event}/{name}": value for name, value in numbers.items()})  # for trackers
        # People get the scores; the losses are in the log's file.
        numbers = {name: numbers[name] for name in _SHOWN if name in numbers} or numbers
        values = " ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        done = engine.done
        left = state.seconds * (1 - done) / done if done else None
        times = f"{state.seconds:6.0f} s, {duration(left)} left"
        name = "" if event == "step" else f", {event}"
        self._print(f"{times}, step {state.step}{name}: {values}")


def _loss_module(task: TrainingTask[BatchT]) -> "torch.nn.Module":
    """The task's module with its loss as forward pass, so that torch can reduce gradients."""
    import torch

    class LossModule(torch.nn.Module):  # type: ignore[misc]  # mypy skips torch
        def __init__(self) -> None:
            super().__init__()
            self.module = task.module

        def forward(self, batch: BatchT, done: float) -> Any:
            return task.loss(batch, done)

    return LossModule()

"""The training loop: steps, judgements, checkpoints, an end by time or signal."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from types import FrameType
from typing import Any

import orjson

from proxhpc.corpus.disk import append_line
from proxhpc.engines.transformers_engine import default_device
from proxhpc.errors import RetryError, UserError
from proxhpc.spec.recipe import Recipe
from proxhpc.train.checkpoint import Folder, TrainingState, check_same_recipe, recipe_fingerprint
from proxhpc.train.distributed import Ranks
from proxhpc.train.optimizer import Average, Optimizer, learning_rate
from proxhpc.train.score import ValidationScores
from proxhpc.train.task import TrainingTask

_PROGRESS_SECONDS = 60


class Trainer:
    """One training; `say` is called with a line now and then."""

    def __init__(
        self,
        recipe: Recipe,
        course: TrainingTask,
        folder: Folder,
        say: Callable[[str], None],
        ranks: Ranks,
    ) -> None:
        """It goes on from the folder's checkpoint if there is one."""
        self.recipe, self.course, self.folder, self._say = recipe, course, folder, say
        self._ranks = ranks
        self.progress = TrainingState()
        self._device = default_device()
        course.module.to(self._device)
        self._optimizer = Optimizer(course.module, recipe)
        self._average = Average(course.module, recipe.average)
        self._stop = ""
        self._taught_by = recipe_fingerprint(recipe)
        if folder.state.exists():
            self._load()
        ranks.share(course.module)

    def run(self) -> TrainingState:
        """Train to the end; the progress. RetryError at SIGTERM or Ctrl-C, with a checkpoint."""
        self.folder.claim()
        progress, recipe, ranks = self.progress, self.recipe, self._ranks
        saved = judged = said = progress.seconds
        parts: dict[str, float] = {}
        self.course.module.train()
        with self._signals():
            batches = self.course.batches(progress.cursor, ranks)
            while True:
                go = not self.ended and not self._stop
                go, done = ranks.agree(go, self.done, self._device)
                if not go:
                    break
                clock = time.monotonic()
                cursor, batch = next(batches)
                parts = _smoothed(parts, self._step(batch, done))
                progress.cursor = cursor
                progress.seconds += time.monotonic() - clock
                if progress.seconds - said >= _PROGRESS_SECONDS:
                    said = progress.seconds
                    self._log("step", parts)
                if progress.seconds - judged >= recipe.minutes * 60 and not self.ended:
                    judged = saved = progress.seconds
                    self.judge(recipe.validation)
                    self.save()  # with it, lest the best weights be those of a later step
                if progress.seconds - saved >= recipe.save_minutes * 60:
                    saved = progress.seconds
                    self.save()
            self.save()
        if self._stop:
            raise RetryError(
                f"training stopped by {self._stop} after step {progress.step}",
                hint="go on with --resume",
            )
        if progress.step > progress.judged_step or progress.best is None:
            self.judge(recipe.validation)
            self.save()
        return progress

    def follow(self) -> None:
        """Train as another process of a training: by the first one's word, to its end."""
        self.course.module.train()
        batches = self.course.batches(self.progress.cursor, self._ranks)
        while (told := self._ranks.agree(False, 0.0, self._device))[0]:
            _, batch = next(batches)
            self._step(batch, told[1])

    @property
    def done(self) -> float:
        """Share of the training that is done."""
        if self.recipe.steps is not None:
            return min(1.0, self.progress.step / self.recipe.steps)
        return min(1.0, self.progress.seconds / 3600 / (self.recipe.hours or 1.0))

    @property
    def ended(self) -> bool:
        """Whether all of it is."""
        return self.done >= 1

    def _step(self, batch: Any, done: float) -> dict[str, float]:
        progress = self.progress
        batch = _on(self._device, batch)
        with self._autocast():
            losses = self.course.loss(batch, done)
        losses.total.backward()
        self._ranks.mean(self._optimizer.parameters)
        speed = learning_rate(self.recipe, progress.step, done)
        norm = self._optimizer.step(speed)
        if self._ranks.first and not math.isfinite(norm):
            raise UserError(
                f"the training diverged: no finite gradient at step {progress.step + 1}",
                hint="begin again with a lower learning_rate or a longer warmup; a checkpoint of "
                "before goes on with --resume, as with precision: float32",
            )
        progress.step += 1
        progress.tokens += self._ranks.count * batch.inputs.numel()
        self._average.update(progress.step)
        return {**losses.parts, "norm": norm}

    def _autocast(self) -> Any:
        import torch

        if self.recipe.precision == "auto":
            wanted = self._device == "cuda" and torch.cuda.is_bf16_supported()
        else:
            wanted = self.recipe.precision == "bfloat16"
        return torch.autocast(self._device, torch.bfloat16, enabled=wanted)

    def judge(self, most: int) -> ValidationScores:
        """Scores of the averaged weights; the best ones so far are kept."""
        module = self.course.module
        own = {name: value.clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self._average.weights)
        module.eval()
        scores = self.scores(most)
        module.train()
        module.load_state_dict(own)
        self._log("judged", scores)
        self.progress.judged_step = self.progress.step
        best = self.progress.best
        if best is None or scores.get("f1", 0.0) >= best.get("f1", 0.0):
            self.progress.best, self.progress.best_step = scores, self.progress.step
            self.folder.save(self.folder.best, {"weights": self._average.weights})
        return scores

    def scores(self, most: int) -> ValidationScores:
        """Scores of the weights as they are."""
        with self._autocast():
            return self.course.validate(most)

    def take_best(self) -> None:
        """Put the best weights into the module."""
        self.course.module.load_state_dict(self.folder.load(self.folder.best)["weights"])
        self.course.module.eval()

    def save(self) -> None:
        """Write a checkpoint."""
        self.folder.save(
            self.folder.state,
            {
                "module": self.course.module.state_dict(),
                "average": self._average.weights,
                "optimizer": self._optimizer.state(),
                "progress": asdict(self.progress),
                "recipe": self._taught_by,
            },
        )

    def _load(self) -> None:
        state = self.folder.load(self.folder.state)
        check_same_recipe(self._taught_by, state["recipe"], self.folder)
        self.course.module.load_state_dict(state["module"])
        self._average.load(state["average"])
        self._optimizer.load(state["optimizer"])
        found = state["progress"]
        self.progress = TrainingState(**found | {"cursor": tuple(found["cursor"])})

    def _log(self, what: str, numbers: dict[str, float]) -> None:
        progress = self.progress
        row = {
            "what": what,
            "step": progress.step,
            "seconds": round(progress.seconds),
            "tokens": progress.tokens,
            "rate": learning_rate(self.recipe, progress.step, self.done),
            **{name: round(value, 4) for name, value in numbers.items()},
        }
        append_line(self.folder.log, orjson.dumps(row))
        figures = " ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        self._say(f"{progress.seconds:6.0f} s, step {progress.step}, {what}: {figures}")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """While it runs SIGTERM, SIGINT and Slurm's warning end the training behind a step."""

        def stop(number: int, frame: FrameType | None) -> None:
            self._stop = signal.Signals(number).name

        kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
        before = {kind: signal.signal(kind, stop) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)


def _smoothed(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """A running mean of each number over some 50 steps."""
    return {name: before.get(name, value) * 0.98 + value * 0.02 for name, value in now.items()}


def _on(device: str, batch: Any) -> Any:
    """A batch, which is a dataclass of tensors, on a device."""
    moved = (getattr(batch, field.name).to(device, non_blocking=True) for field in fields(batch))
    return type(batch)(*moved)

"""The training engine: transformers' Trainer with our optimizer, schedule, checkpoints and stops.

Import it only where a training starts: it imports torch and transformers.
"""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from proxhpc.errors import RetryError, UserError
from proxhpc.train.optimizer import OptimizerOptions, learning_rate, parameter_groups
from proxhpc.train.processes import on_stop_signals

MAX_NORM = 1.0  # of the gradient
ENDLESS = 2**40  # steps of a training that ends by time
_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


class AveragingOptimizer(torch.optim.Optimizer):  # type: ignore[misc]  # mypy skips torch
    """AdamW and Muon as one optimizer, with a moving average of the weights in its state."""

    def __init__(self, module: torch.nn.Module, options: OptimizerOptions) -> None:
        """For all parameters of `module` that require gradients."""
        super().__init__(parameter_groups(module, options), {})
        self._decay = options.average
        self._parts = {"adamw": torch.optim.AdamW(_any(), betas=options.betas)}
        if any(group["kind"] == "muon" for group in self.param_groups):
            # Steps as large as AdamW's: arXiv 2502.16982
            self._parts["muon"] = torch.optim.Muon(_any(), adjust_lr_fn="match_rms_adamw")
        for group in self.param_groups:
            defaults = self._parts[group["kind"]].defaults
            group.update({key: value for key, value in defaults.items() if key not in group})

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: None = None) -> None:
        """Update the weights and their average."""
        for parameter in self._parameters():  # the average is of all, also of those without use
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        first = self._decay and not self.state
        initial = {p: p.clone() for p in self._parameters()} if first else {}
        for kind, part in self._parts.items():
            part.param_groups = [group for group in self.param_groups if group["kind"] == kind]
            part.state = self.state
            part.step()
        for parameter, value in initial.items():
            self.state[parameter]["average"] = value
        if not self._decay:
            return
        for group in self.param_groups:
            group["updates"] += 1
            decay = min(self._decay, 1 - 1 / (group["updates"] / 5 + 2))  # over few steps at first
            for parameter in group["params"]:
                self.state[parameter]["average"].lerp_(parameter, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the average into the module, and the weights back at the end."""
        if not self._decay or not self.state:
            yield
            return
        with torch.no_grad():
            weights = [(p, p.clone()) for p in self._parameters()]
            for parameter, _ in weights:
                parameter.copy_(self.state[parameter]["average"])
            try:
                yield
            finally:
                for parameter, value in weights:
                    parameter.copy_(value)

    def _parameters(self) -> Iterator[torch.nn.Parameter]:
        return (p for group in self.param_groups for p in group["params"])


def _any() -> list[torch.nn.Parameter]:
    """A parameter, without which torch's optimizers refuse to exist."""
    return [torch.nn.Parameter(torch.zeros(1, 1))]


class EngineHooks(Protocol):
    """What the engine needs of a training. A batch is a mapping with tensors."""

    def batches(self, engine: "TrainingEngine") -> Iterator[dict[str, Any]]:
        """The batches of this process from the current step on, without end."""

    def weight(self, batch: dict[str, Any]) -> float:
        """The weight of a batch's mean loss among all batches of a step."""

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """The mean loss of a batch."""

    def share_done(self, engine: "TrainingEngine") -> float:
        """The share of the training that is done; the same in all processes."""

    def after_step(self, engine: "TrainingEngine") -> None:
        """Log, evaluate, save: called in all processes after each step."""


class TrainingEngine(Trainer):  # type: ignore[misc]  # mypy skips transformers
    """The steps of one training. `state.global_step` counts them."""

    def __init__(
        self,
        module: torch.nn.Module,
        hooks: EngineHooks,
        options: OptimizerOptions,
        arguments: TrainingArguments,
        saved: dict[str, Any] | None = None,
    ) -> None:
        """Resume from what `checkpoint` returned, if it is given."""
        self.optimizer: Any = None
        super().__init__(module, arguments, callbacks=[_Steps(self)])
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # so transformers leaves the loss as it is
        # A sharded model reduces its gradients, so transformers must not put DDP around it.
        self.is_distributed_loading_by_transformers = isinstance(module, FSDPModule)
        self._hooks, self._options, self._saved = hooks, options, saved
        self._first_step = self.state.global_step = saved["step"] if saved else 0
        self.seconds: float = saved["seconds"] if saved else 0.0  # of all steps
        self.done, self.finished = 0.0, False  # finished may be set in any process
        self._signal, self._started = 0, 0.0
        self.stopped_by = 0  # a signal, on which all processes agree
        self.loss, self.norm = torch.zeros((), device=arguments.device), 0.0  # of the last step

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.averaging.param_groups[0]["lr"])

    def run(self) -> None:
        """Train to the end. RetryError after one of the signals that stop, with a checkpoint."""
        with on_stop_signals(self._on_signal):
            self.train()
        self.accelerator.wait_for_everyone()  # until the first process has written the checkpoint
        if self.stopped_by:
            name = signal.Signals(self.stopped_by).name
            raise RetryError(
                f"training stopped by {name} after step {self.state.global_step}",
                hint="continue with --resume",
            )

    def checkpoint(self) -> dict[str, Any]:
        """Weights and optimizer on the CPU, whole in the first process. Call it in all of them."""
        model, optimizer = get_state_dict(self.model, self.averaging, options=_FULL)
        progress = {"step": self.state.global_step, "seconds": self.seconds}
        return {**progress, "module": model, "optimizer": optimizer}

    @property
    def averaging(self) -> AveragingOptimizer:
        """The optimizer without accelerate's wrapper."""
        optimizer: AveragingOptimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return optimizer

    def load(self) -> None:
        """Load the saved weights and optimizer of a finished training, without a step."""
        self.create_optimizer_and_scheduler(self.args.max_steps)
        self.restore()

    def restore(self) -> None:
        """Load the saved weights and optimizer."""
        if self._saved is not None:
            set_state_dict(
                self.model,
                self.averaging,
                model_state_dict=self._saved["module"],
                optim_state_dict=self._saved["optimizer"],
                options=StateDictOptions(full_state_dict=True, strict=False),
            )
            self._saved = None
        self.state.global_step = self._first_step
        self.done = self._hooks.share_done(self)
        for group in self.averaging.param_groups:
            group["lr"] = self._options.learning_rate * self._rate_factor(0)

    def begin_step(self) -> None:
        """Seed dropout, so that a resumed training draws what it would have drawn."""
        self._started = time.monotonic()
        self.loss.zero_()
        seed = step_seed(self.args.seed, self.state.global_step, self.args.process_index)
        torch.manual_seed(seed)

    def end_step(self) -> bool:
        """Whether to stop: the training is done, or a process got a signal."""
        seconds = self.seconds + time.monotonic() - self._started
        values = [float(self._signal), seconds, float(self.finished)]
        if self.args.world_size > 1:
            tensor = torch.tensor(values, dtype=torch.float64, device=self.args.device)
            torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
            torch.distributed.all_reduce(self.loss, torch.distributed.ReduceOp.AVG)
            values = tensor.tolist()
        self.stopped_by, self.seconds = int(values[0]), values[1]
        self.done = 1.0 if values[2] else self._hooks.share_done(self)
        self._hooks.after_step(self)
        return bool(self.stopped_by) or self.done >= 1

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Stop after the current step."""
        self._signal = number

    # What transformers calls.

    def get_train_dataloader(self) -> Iterator[dict[str, Any]]:
        """The batches from the step on that `restore` sets before the first one is read."""
        return self._hooks.batches(self)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, *_: Any
    ) -> tuple[list[dict[str, Any]], torch.Tensor]:
        """The batches of one step, and the sum of their weights over all processes."""
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        weight = torch.tensor(sum(map(self._hooks.weight, batches)), device=self.args.device)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(weight)
        return batches, weight

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The batch's part of the step's loss, times the processes, over which torch averages."""
        share = self._hooks.weight(inputs) * self.args.world_size / num_items_in_batch
        loss = self._hooks.loss(model, inputs) * share
        self.loss += loss.detach()
        return loss

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer, before accelerate wraps it."""
        self.optimizer = AveragingOptimizer(model or self.model, self._options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning rate of each step."""
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.averaging, self._rate_factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: FLOPs are counted from the model's shape."""
        return 0

    def _get_grad_norm(self, *_: Any, **__: Any) -> None:
        """None: the norm is known from clipping, so transformers need not compute it again."""

    def _rate_factor(self, step: int) -> float:
        """The learning rate after `step` steps of this process, as a share of the highest."""
        step += self._first_step
        done = self.done if self.args.max_steps == ENDLESS else step / self.args.max_steps
        return learning_rate(self._options, step, done) / self._options.learning_rate


class _Steps(TrainerCallback):  # type: ignore[misc]  # mypy skips transformers
    """What the engine does at the start, around each step, and at a signal."""

    def __init__(self, engine: TrainingEngine) -> None:
        self._engine = engine

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._engine.restore()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._engine.begin_step()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        engine = self._engine
        norm = engine.accelerator.clip_grad_norm_(engine.model.parameters(), MAX_NORM)
        engine.norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not math.isfinite(engine.norm):
            raise UserError(
                f"the training diverged: no finite gradient at step {state.global_step + 1}",
                hint="start again with a lower learning_rate or a longer warmup; to continue from "
                "the last checkpoint, use --resume, perhaps with precision: float32",
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= self._engine.end_step()


def step_seed(seed: int, step: int, process: int) -> int:
    """The seed of a process's dropout in a step."""
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1)[0])


def training_arguments(
    options: OptimizerOptions, *, steps: int, precision: str, **keys: Any
) -> TrainingArguments:
    """The arguments of transformers' Trainer, with all that the engine does itself turned off."""
    is_cuda = torch.cuda.is_available()
    is_bfloat16 = is_cuda and torch.cuda.is_bf16_supported()
    arguments = TrainingArguments(
        max_steps=steps,
        learning_rate=options.learning_rate,
        max_grad_norm=0.0,  # the engine clips, to see the norm
        bf16=is_bfloat16 if precision == "auto" else precision == "bfloat16",
        use_cpu=not is_cuda,
        # accelerate uses the process group that exists
        ddp_backend=torch.distributed.get_backend() if torch.distributed.is_initialized() else None,
        ddp_find_unused_parameters=False,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **({"report_to": "none"} | keys),
    )
    if arguments.n_gpu > 1:  # a process has one GPU
        arguments._n_gpu = 1
    return arguments


def shard(model: PreTrainedModel, arguments: TrainingArguments) -> None:
    """Split weights, gradients and optimizer over the processes (FSDP2).

    accelerate would do so only on GPUs.
    """
    model.to(arguments.device)
    half = torch.bfloat16 if arguments.bf16 else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32 if half else None)
    for layer in model.base_model.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)

"""Pre-trains a causal language model on a file of token ids."""

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from proxhpc.account.flops import ModelShape, pretraining_flops
from proxhpc.account.quantity import quantity
from proxhpc.cluster.job_step import step_task
from proxhpc.corpus.disk import append_line, draft_path, write_atomic, writing
from proxhpc.errors import UserError
from proxhpc.status.terminal import duration
from proxhpc.train.checkpoint import load_checkpoint, save_checkpoint
from proxhpc.train.optimizer import OptimizerOptions
from proxhpc.train.processes import run_processes
from proxhpc.train.task import load_base
from proxhpc.train.token_file import TokenFile

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from proxhpc.train.engine import TrainingEngine

LOG_SECONDS = 60
Checkpoint = dict[str, Any]
"""What TrainingEngine.checkpoint returns."""


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(OptimizerOptions):
    """How a model is pre-trained.

    `model` has the keys of transformers' config.json of a new model, with `model_type` and
    `vocab_size`; or `base` is the directory of a model whose training continues. A step takes
    `batch` sequences of `context` tokens in all processes together; each process computes
    `micro_batch` of them at a time (None: its whole share). `tokens` is rounded down to whole
    steps. `milestones` are numbers of tokens after which the weights are kept.
    """

    model: Mapping[str, Any] | None = None
    base: Path | None = None
    tokens: int
    context: int
    batch: int
    micro_batch: int | None = None
    seed: int = 0
    precision: str = "auto"  # auto, float32 or bfloat16
    checkpointing: bool = False  # compute activations twice, which saves memory
    sharded: bool = False  # FSDP: each process holds a part of weights and optimizer
    save_minutes: float = 10.0
    milestones: tuple[int, ...] = ()

    @property
    def step_tokens(self) -> int:
        """Tokens of a step, in all processes together."""
        return self.batch * self.context

    @property
    def steps(self) -> int:
        """Steps of the optimizer."""
        return self.tokens // self.step_tokens

    @property
    def milestone_steps(self) -> tuple[int, ...]:
        """The steps after which the weights are kept: the first with at least so many tokens."""
        steps = {-(-tokens // self.step_tokens) for tokens in self.milestones}
        return tuple(sorted(step for step in steps if 0 < step <= self.steps))


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """A finished pre-training.

    `weights` is the directory with the moving average of the weights or, if the options ask for
    none, with the last weights; `milestones` has such directories by step. `flops` are those of
    forward and backward passes, None for models whose FLOPs cannot be counted. `losses` is the file
    of the losses: a JSON line for each step.
    """

    steps: int
    tokens: int
    epochs: float
    documents: int  # that were read, at least in part
    parameters: int
    flops: int | None
    weights: Path
    milestones: Mapping[int, Path]
    losses: Path


def pretrain(
    options: PretrainOptions,
    tokens: Path,
    out: Path,
    log: Callable[[str], None],
    *,
    processes: int | None = None,
) -> PretrainResult:
    """Train a model on the file `tokens` (see TokenFile) in the folder `out`.

    Call it again to resume: on one process, the weights are the same, bit for bit. A finished
    training is not repeated. UserError if options, tokens or `out` do not fit; RetryError after
    SIGTERM, SIGINT or SIGUSR2, with a checkpoint. `log` prints a line about once a minute.
    `processes` is the number on this node; None: one for each GPU. In a Slurm job step with several
    tasks, all tasks must call it, and train together.
    """
    if options.steps < 1:
        raise UserError(
            f"{options.tokens:,} tokens are less than one step of {options.batch} sequences of "
            f"{options.context:,} tokens"
        )
    folder = _Folder(out)
    if folder.finished.exists():
        finished = orjson.loads(folder.finished.read_bytes())
    else:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        finished = run_processes(processes, _train, options, tokens, out, log=log, task=step_task())
    return _result(options, TokenFile(tokens, options.context, options.seed), folder, finished)


def _train(
    options: PretrainOptions, tokens: Path, out: Path, log: Callable[[str], None]
) -> dict[str, Any]:  # as in finished.json
    """Train in one of the processes."""
    return _Pretraining(options, tokens, _Folder(out), log).run()


class _Folder:
    """Paths of a pre-training."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.state = out / "state.pt"  # the last checkpoint, until the training is finished
        self.losses = out / "train.jsonl"
        self.weights = out / "weights"
        self.finished = out / "finished.json"  # written last

    def milestone(self, step: int) -> Path:
        return self.out / "milestones" / str(step)

    def check_options(self, options: str, saved: str) -> None:
        """Raise UserError if a training was started here with other options."""
        if options != saved:
            raise UserError(
                f"{self.out}: its training was started with other options or tokens",
                hint="give another folder, or delete it",
            )


def _result(
    options: PretrainOptions, tokens: TokenFile, folder: _Folder, finished: dict[str, Any]
) -> PretrainResult:
    sequences = options.steps * options.batch
    folder.check_options(_fixed(options, tokens), finished["options"])
    return PretrainResult(
        steps=options.steps,
        tokens=options.steps * options.step_tokens,
        epochs=sequences / tokens.sequences,
        documents=tokens.documents_read(sequences),
        parameters=finished["parameters"],
        flops=finished["flops"],
        weights=folder.weights,
        milestones={step: folder.milestone(step) for step in options.milestone_steps},
        losses=folder.losses,
    )


class _Pretraining:
    """One process of a pre-training, as hooks of the engine."""

    def __init__(
        self, options: PretrainOptions, tokens: Path, folder: _Folder, log: Callable[[str], None]
    ) -> None:
        self._options, self._folder, self._log = options, folder, log
        self._tokens = TokenFile(tokens, options.context, options.seed)
        self._model = _new_model(options) if options.base is None else load_base(options.base)
        self._fixed = _fixed(options, self._tokens)
        self._saved_at = self._logged_at = 0.0  # seconds of training
        self._is_first = True  # of the processes
        self._share, self._micro = options.batch, options.batch  # sequences of this process

    def run(self) -> dict[str, Any]:
        """Train to the end and write the weights; what is in finished.json."""
        from transformers.utils import logging

        from proxhpc.train.engine import TrainingEngine, shard, training_arguments

        logging.disable_progress_bar()
        options, folder = self._options, self._folder
        saved = load_checkpoint(folder.state) if folder.state.exists() else None
        if saved is not None:
            folder.check_options(self._fixed, saved["options"])
            self._saved_at = self._logged_at = saved["seconds"]
        arguments = training_arguments(
            options,
            steps=options.steps,
            precision=options.precision,
            seed=options.seed,
            output_dir=str(folder.out),
        )
        share, rest = divmod(options.batch, arguments.world_size)
        self._share, self._micro = share, options.micro_batch or share
        if rest or share % self._micro:
            among = quantity(arguments.world_size, "process", "processes")
            raise UserError(
                f"a batch of {options.batch} sequences cannot be split over {among}, each "
                f"{self._micro} at a time"
            )
        arguments.gradient_accumulation_steps = share // self._micro
        if options.checkpointing:
            self._model.gradient_checkpointing_enable({"use_reentrant": False})
        if options.sharded and arguments.world_size > 1:
            shard(self._model, arguments)
        engine = TrainingEngine(self._model, self, options, arguments, saved)
        self._is_first = bool(engine.args.process_index == 0)
        # All have read the checkpoint then, which the first removes when the weights are written.
        engine.accelerator.wait_for_everyone()
        if self._is_first:
            self._remove_leftovers(saved["step"] if saved else 0)
        if saved is None or saved["step"] < options.steps:
            engine.run()
            saved = engine.checkpoint()
        finished = {
            "options": self._fixed,
            "parameters": sum(p.numel() for p in self._model.parameters()),
            "flops": _training_flops(options, self._model),
        }
        if self._is_first:
            self._export(saved, folder.weights)
            write_atomic(folder.finished, orjson.dumps(finished))
            folder.state.unlink(missing_ok=True)
        engine.accelerator.wait_for_everyone()
        return finished

    # Hooks of the engine.

    def batches(self, engine: "TrainingEngine") -> "Iterator[dict[str, torch.Tensor]]":
        """The sequences of this process, `micro_batch` at a time."""
        import torch

        step = engine.state.global_step
        while True:
            first = step * self._options.batch + engine.args.process_index * self._share
            for start in range(first, first + self._share, self._micro):
                ids = torch.from_numpy(self._tokens.read(range(start, start + self._micro)))
                yield {"ids": ids}
            step += 1

    def weight(self, batch: "dict[str, torch.Tensor]") -> float:
        """The number of sequences."""
        return float(len(batch["ids"]))

    def loss(self, model: "torch.nn.Module", batch: "dict[str, torch.Tensor]") -> "torch.Tensor":
        """The mean cross-entropy of all tokens but the first."""
        from torch.nn import functional

        ids = batch["ids"]
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    def share_done(self, engine: "TrainingEngine") -> float:
        """The share of the steps."""
        return float(engine.state.global_step / self._options.steps)

    def after_step(self, engine: "TrainingEngine") -> None:
        """Log the loss; keep the weights at milestones; save a checkpoint."""
        step, seconds = engine.state.global_step, engine.seconds
        if self._is_first:
            self._append_loss(engine)
        if step in self._options.milestone_steps:
            kept = engine.checkpoint()
            if self._is_first:
                self._export(kept, self._folder.milestone(step))
        is_due = seconds - self._saved_at >= 60 * self._options.save_minutes
        if is_due or engine.stopped_by or step == self._options.steps:
            self._saved_at = seconds
            checkpoint = engine.checkpoint() | {"options": self._fixed}
            if self._is_first:
                save_checkpoint(self._folder.state, checkpoint)

    def _append_loss(self, engine: "TrainingEngine") -> None:
        step, options = engine.state.global_step, self._options
        row = {
            "step": step,
            "tokens": step * options.step_tokens,
            "loss": float(engine.loss),
            "norm": engine.norm,
            "learning_rate": engine.learning_rate,
            "seconds": round(engine.seconds, 2),
        }
        append_line(self._folder.losses, orjson.dumps(row))
        if engine.seconds - self._logged_at >= LOG_SECONDS or step == options.steps:
            self._logged_at = engine.seconds
            left = engine.seconds * (1 / engine.done - 1)
            self._log(
                f"step {step:,} of {options.steps:,}, loss {row['loss']:.4g}, {duration(left)} left"
            )

    def _remove_leftovers(self, steps: int) -> None:
        """Remove what a killed process wrote after its last checkpoint: losses and drafts."""
        rows = self._folder.losses.read_bytes().splitlines() if steps else []
        write_atomic(self._folder.losses, b"".join(row + b"\n" for row in rows[:steps]))
        for draft in self._folder.out.rglob(".*.tmp"):
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink()

    def _export(self, checkpoint: Checkpoint, path: Path) -> None:
        """Write a model's directory completely or not at all: the average, if there is one."""
        from transformers import AutoModelForCausalLM

        config = copy.deepcopy(self._model.config)
        config.use_cache = True  # which transformers' Trainer turns off
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(checkpoint["module"])
        states = checkpoint["optimizer"]["state"].items()  # of the weights that are trained
        averages = {name: state["average"] for name, state in states if "average" in state}
        model.load_state_dict(averages, strict=False)
        draft = draft_path(path)
        with writing(path):
            draft.parent.mkdir(exist_ok=True)
            shutil.rmtree(path, ignore_errors=True)  # of an attempt that was killed
            model.save_pretrained(draft)
            draft.rename(path)


def _new_model(options: PretrainOptions) -> "PreTrainedModel":
    """A model with random weights that depend on the seed only."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    keys = dict(options.model or {})
    try:
        config = AutoConfig.for_model(str(keys.pop("model_type", "")), **keys)
    except (ValueError, TypeError) as error:
        raise UserError(f"the keys of the new model cannot be used: {error}") from error
    torch.manual_seed(options.seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)


def _training_flops(options: PretrainOptions, model: "PreTrainedModel") -> int | None:
    """FLOPs of all forward and backward passes; a backward pass takes two forward passes."""
    try:
        shape = ModelShape.from_config(model.config.to_dict())
    except UserError:
        return None
    return pretraining_flops(shape, options.steps * options.batch, options.context)


def _fixed(options: PretrainOptions, tokens: TokenFile) -> str:
    """What must stay when a training is resumed, as text."""
    keys = asdict(options) | {"base": str(options.base), "tokens_of_file": tokens.tokens}
    for name in ("save_minutes", "precision", "sharded", "checkpointing", "micro_batch"):
        del keys[name]
    return orjson.dumps(keys, option=orjson.OPT_SORT_KEYS).decode()

"""The recipe: how a refiner is trained, read from YAML."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from proxhpc.spec.load import ONE_OR_MORE, Config, FilePath, Flag, Positive, Slug, Text, Whole
from proxhpc.spec.yaml_lines import Key

UnitInterval = Annotated[float, Field(ge=0, le=1)]
PositiveNumber = Annotated[float, Field(gt=0)]
Precision = Literal["auto", "float32", "bfloat16"]


class Shape(Config):
    """A new Llama, trained from scratch with a vocabulary made from the examples."""

    layers: Positive = 6
    """Number of layers."""
    hidden: Positive = 256
    """Hidden size, a multiple of the head size 64."""
    intermediate: Positive = 512
    """Hidden size of the MLPs."""
    vocabulary: Positive = Field(default=4096, ge=256)
    """Text tokens in the vocabulary."""
    kv_heads: Positive = 4
    """Key and value heads."""
    context: Positive = 2048
    """Context length: prompt and completion together."""

    def _problems(self) -> Iterator[tuple[Key, str]]:
        if self.hidden % 64 or (self.hidden // 64) % self.kv_heads:
            yield (), "hidden must be a multiple of 64, and hidden / 64 one of kv_heads"

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.hidden // 64


class Lora(Config):
    """Low-rank adapters (LoRA), for base models that write programs."""

    rank: Positive = 16
    """Rank of the adapters' matrices."""
    alpha: PositiveNumber = 32
    """The adapters' output is multiplied by this, divided by the rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the adapters' input."""


class WalkOptions(Config):
    """Training options of the style; for `prompt: walk` only."""

    history: UnitInterval = 0.5
    """In training, earlier answers in the prompt are random; this is the probability of
    'remove'."""
    trust: UnitInterval = 0.35
    """Weight of the teacher's probability for lines that also have a label."""
    word_power: UnitInterval = 0.5
    """A line's weight in the loss: its number of words to this power."""
    documents: UnitInterval = 0.1
    """Share of prompts that ask for a verdict. 0: lines only, 1: verdicts only."""
    label_loss: float = Field(default=0.5, ge=0)
    """Loss weight of an auxiliary head that labels lines; not part of the model."""
    text_loss: float = Field(default=0.1, ge=0)
    """Initial loss weight of predicting the text; decays to 0 during training."""
    token_dropout: UnitInterval = 0.06
    """Share of a line's tokens that are dropped."""


class Recipe(Config):
    """How a refiner is trained."""

    name: Slug
    """Name of the model."""
    examples: Annotated[tuple[FilePath, ...], ONE_OR_MORE] = Field(min_length=1)
    """Examples file written by `proxhpc annotate`, or several."""
    base: FilePath | None = None
    """Directory of the model to fine-tune."""
    shape: Shape | None = None
    """Instead of `base`: the shape of a new model."""
    prompt: Literal["walk", "compact", "prox-plain", "prox-llama2", "chat-template"] = "walk"
    """[Profile](refining.md#profiles) of the prompts; `walk` for `shape`."""
    max_tokens: Positive = 2048
    """Maximum tokens of an example, prompt and program together; longer ones are skipped."""
    batch_tokens: Positive = 5000
    """Tokens in a batch, including padding."""
    steps: Positive | None = None
    """Training steps."""
    hours: PositiveNumber | None = None
    """Instead of `steps`: hours to train; the number of steps depends on the machine."""
    epochs: PositiveNumber | None = None
    """Instead of `steps`: passes over the examples; not with `prompt: walk`, which draws them at
    random."""
    patience: Positive | None = None
    """Evaluations in a row without a better score after which the training ends early."""
    accumulation: Positive = 1
    """Batches of a step, in each process."""
    checkpointing: Flag = False
    """Compute the activations of `base` twice, which takes longer but saves memory."""
    lora: Lora | None = None
    """Train low-rank adapters of `base` in place of all its weights; they are merged into the
    model that is written. Needs the package peft."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` trains matrices with Muon and the rest with AdamW."""
    learning_rate: PositiveNumber = 2e-5
    """Maximum learning rate."""
    min_learning_rate: float | None = Field(default=None, ge=0)
    """Learning rate at the end. Default: 2 % of the maximum."""
    schedule: Literal["wsd", "cosine"] = "wsd"
    """How the learning rate decays: `wsd` (warm-up, stable, decay) linearly, `cosine` along a
    cosine."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Weight decay of matrices."""
    warmup: Whole = 30
    """Steps of linear learning rate warm-up."""
    decay: UnitInterval = 0.6
    """Fraction of the training, at the end, over which the learning rate decays."""
    average: UnitInterval = 0.998
    """Decay of the moving average of the weights that is evaluated."""
    precision: Precision = "auto"
    """Precision of matrix products. `auto`: bfloat16 on a GPU that supports it, else float32."""
    validation: Positive = 64
    """Documents (windows for other styles than `walk`) per evaluation; 8 times as many for the
    final one."""
    minutes: PositiveNumber = 10.0
    """Minutes between two evaluations."""
    save_minutes: PositiveNumber = 3.0
    """Minutes between two checkpoints."""
    seed: Whole = 0
    """Random seed."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Programs that show losses and scores, besides `training/log.jsonl`; their packages must be
    installed. TensorBoard's files are in `training/runs`."""
    walk: WalkOptions = WalkOptions()
    """Options of `prompt: walk`; see below."""
    notes: dict[str, Text] = Field(default_factory=dict)
    """Additional sections of the model card: heading and text."""

    def _problems(self) -> Iterator[tuple[Key, str]]:
        if (self.base is None) == (self.shape is None):
            yield ("base",), "give either base or shape"
        if sum(length is not None for length in (self.steps, self.hours, self.epochs)) != 1:
            yield ("steps",), "give either steps, hours or epochs"
        if self.prompt == "walk":
            for key in ("epochs", "lora", "checkpointing"):
                if getattr(self, key):
                    yield (key,), "not with prompt: walk"
        if self.shape is not None and self.prompt != "walk":
            yield ("shape",), "only with prompt: walk"

"""The recipe: how a refiner is trained, read from YAML."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from proxhpc.spec.load import ONE_OR_MORE, Config, FilePath, Positive, Slug, Text, Whole, refuse

UnitInterval = Annotated[float, Field(ge=0, le=1)]
PositiveNumber = Annotated[float, Field(gt=0)]
Precision = Literal["auto", "float32", "bfloat16"]


class Shape(Config):
    """A new Llama, trained from scratch with a vocabulary made from the examples."""

    layers: Positive = Field(default=6, description="Number of layers.")
    hidden: Positive = Field(
        default=256, description="Hidden size, a multiple of the head size 64."
    )
    intermediate: Positive = Field(default=512, description="Hidden size of the MLPs.")
    vocabulary: Positive = Field(default=4096, ge=256, description="Text tokens in the vocabulary.")
    kv_heads: Positive = Field(default=4, description="Key and value heads.")
    context: Positive = Field(
        default=2048, description="Context length: prompt and completion together."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden % 64 or (self.hidden // 64) % self.kv_heads:
            raise ValueError("hidden must be a multiple of 64, and hidden / 64 one of kv_heads")
        return self

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.hidden // 64


class WalkOptions(Config):
    """Training options of the style; for `prompt: walk` only."""

    history: UnitInterval = Field(
        default=0.5,
        description="In training, earlier answers in the prompt are random; this is the "
        "probability of 'remove'.",
    )
    trust: UnitInterval = Field(
        default=0.35,
        description="Weight of the teacher's probability for lines that also have a label.",
    )
    word_power: UnitInterval = Field(
        default=0.5, description="A line's weight in the loss: its number of words to this power."
    )
    documents: UnitInterval = Field(
        default=0.1, description="Share of prompts that ask for a verdict."
    )
    label_loss: float = Field(
        default=0.5,
        ge=0,
        description="Loss weight of an auxiliary head that labels lines; not part of the model.",
    )
    text_loss: float = Field(
        default=0.1,
        ge=0,
        description="Initial loss weight of predicting the text; decays to 0 during training.",
    )
    token_dropout: UnitInterval = Field(
        default=0.06, description="Share of a line's tokens that are dropped."
    )


class Recipe(Config):
    """How a refiner is trained."""

    name: Slug = Field(description="Name of the model.")
    examples: Annotated[tuple[FilePath, ...], ONE_OR_MORE] = Field(
        min_length=1, description="Examples file written by `proxhpc annotate`, or several."
    )
    base: FilePath | None = Field(default=None, description="Directory of the model to fine-tune.")
    shape: Shape | None = Field(
        default=None, description="Instead of `base`: the shape of a new model."
    )
    prompt: Literal["walk", "compact", "prox-plain", "prox-llama2", "chat-template"] = Field(
        default="walk",
        description="[Profile](refining.md#profiles) of the prompts; `walk` for `shape`.",
    )
    max_tokens: Positive = Field(
        default=2048,
        description="Maximum tokens of an example, prompt and program together; longer ones are "
        "skipped.",
    )
    batch_tokens: Positive = Field(
        default=5000, description="Tokens in a batch, including padding."
    )
    steps: Positive | None = Field(default=None, description="Training steps.")
    hours: PositiveNumber | None = Field(
        default=None,
        description="Instead of `steps`: hours to train; the number of steps depends on the "
        "machine.",
    )
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="`muon` trains matrices with Muon and the rest with AdamW."
    )
    learning_rate: PositiveNumber = Field(default=2e-5, description="Maximum learning rate.")
    min_learning_rate: float | None = Field(
        default=None, ge=0, description="Learning rate at the end. Default: 2 % of the maximum."
    )
    schedule: Literal["wsd", "cosine"] = Field(
        default="wsd",
        description="How the learning rate decays: `wsd` (warm-up, stable, decay) linearly, "
        "`cosine` along a cosine.",
    )
    weight_decay: float = Field(default=0.05, ge=0, description="Weight decay of matrices.")
    warmup: Whole = Field(default=30, description="Steps of linear learning rate warm-up.")
    decay: UnitInterval = Field(
        default=0.6,
        description="Fraction of the training, at the end, over which the learning rate decays.",
    )
    average: UnitInterval = Field(
        default=0.998, description="Decay of the moving average of the weights that is evaluated."
    )
    precision: Precision = Field(
        default="auto",
        description="Precision of matrix products. `auto`: bfloat16 on a GPU that supports it, "
        "else float32.",
    )
    validation: Positive = Field(
        default=64,
        description="Documents (windows for other styles than `walk`) per evaluation; 8 times as "
        "many for the final one.",
    )
    minutes: PositiveNumber = Field(default=10.0, description="Minutes between two evaluations.")
    save_minutes: PositiveNumber = Field(
        default=3.0, description="Minutes between two checkpoints."
    )
    seed: Whole = Field(default=0, description="Random seed.")
    walk: WalkOptions = Field(
        default=WalkOptions(), description="Options of `prompt: walk`; see below."
    )
    notes: dict[str, Text] = Field(
        default_factory=dict, description="Additional sections of the model card: heading and text."
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        problems = []
        if (self.base is None) == (self.shape is None):
            problems.append((("base",), "give either base or shape"))
        if (self.steps is None) == (self.hours is None):
            problems.append((("steps",), "give either steps or hours"))
        if self.shape is not None and self.prompt != "walk":
            problems.append((("shape",), "only with prompt: walk"))
        refuse(problems)
        return self

"""The recipe: what a refiner is taught with, and how, as one frozen model of a YAML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from proxhpc.spec.load import (
    Config,
    Positive,
    Slug,
    Text,
    Whole,
    absolute,
    base_of,
    load_yaml,
    refuse,
)

Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
Precision = Literal["auto", "float32", "bfloat16"]


def _one_or_several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Shape(Config):
    """A Llama to be made from nothing. Its vocabulary is made of the examples."""

    layers: Positive = Field(default=6, description="Layers.")
    hidden: Positive = Field(default=256, description="Width; heads are 64 wide.")
    intermediate: Positive = Field(default=512, description="Width within an MLP.")
    vocabulary: Positive = Field(default=4096, ge=256, description="Tokens of text.")
    kv_heads: Positive = Field(default=4, description="Heads of keys and values.")
    context: Positive = Field(default=2048, description="Longest prompt and answer together.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden % 64 or (self.hidden // 64) % self.kv_heads:
            raise ValueError("hidden must be a multiple of 64, its heads one of kv_heads")
        return self

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.hidden // 64


class WalkOptions(Config):
    """How a walk is taught; for `prompt: walk` only."""

    history: Share = Field(
        default=0.5,
        description="Share of the model's own earlier answers that are false while it learns, so "
        "that it looks at each line.",
    )
    trust: Share = Field(
        default=0.35,
        description="How far a teacher's chance is believed where a line has a label as well.",
    )
    word_power: Share = Field(
        default=0.5, description="A line weighs as many words as it has to this power."
    )
    documents: Share = Field(default=0.1, description="Share of prompts that ask for a verdict.")
    label_loss: float = Field(
        default=0.5, ge=0, description="Weight of labels told at the lines, by a head thrown away."
    )
    text_loss: float = Field(
        default=0.1, ge=0, description="Weight of foretelling the text at first; it fades to 0."
    )
    token_dropout: Share = Field(default=0.06, description="Share of a line's tokens left out.")


class Recipe(Config):
    """What a refiner is taught with, and how."""

    name: Slug = Field(description="Name of the model.")
    examples: Annotated[
        tuple[Text, ...],
        BeforeValidator(_one_or_several, json_schema_input_type=Text | tuple[Text, ...]),
    ] = Field(min_length=1, description="A file that `proxhpc annotate` wrote, or several.")
    base: Text | None = Field(default=None, description="Directory of the model to start from.")
    shape: Shape | None = Field(default=None, description="Instead: a new model of this shape.")
    prompt: Literal["walk", "compact", "prox-plain", "prox-llama2", "chat-template"] = Field(
        default="walk", description="How the model is asked (manifest.md); `walk` with `shape`."
    )
    max_tokens: Positive = Field(
        default=2048, description="Longest example, prompt and program together; others are unused."
    )
    batch_tokens: Positive = Field(default=5000, description="Tokens of a step, padding included.")
    steps: Positive | None = Field(default=None, description="Steps to train.")
    hours: Rate | None = Field(
        default=None, description="Instead: hours; how many steps that are depends on the machine."
    )
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="`muon`: for matrices, and AdamW for the rest."
    )
    learning_rate: Rate = Field(default=2e-5, description="Highest learning rate.")
    weight_decay: float = Field(default=0.05, ge=0, description="Weight decay of matrices.")
    warmup: Whole = Field(default=30, description="Steps in which the rate rises.")
    decay: Share = Field(default=0.6, description="Last part of the training, where it falls.")
    average: Share = Field(
        default=0.998, description="Decay of the moving average of the weights, which is judged."
    )
    precision: Precision = Field(
        default="auto",
        description="Of matrix products; `auto`: bfloat16 on a GPU that has it, else float32.",
    )
    validation: Positive = Field(
        default=64,
        description="Documents, or windows of other styles, to judge by on the way; 8 times as "
        "many in the end.",
    )
    minutes: Rate = Field(default=10.0, description="Minutes of training between two judgements.")
    save_minutes: Rate = Field(default=3.0, description="Minutes between two checkpoints.")
    seed: Whole = Field(default=0, description="Seed of everything random.")
    walk: WalkOptions = Field(default=WalkOptions(), description="How a walk is taught; see below.")
    notes: dict[str, Text] = Field(
        default_factory=dict, description="What the model card is to say besides, by heading."
    )

    @field_validator("examples")
    @classmethod
    def _files(cls, paths: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        return tuple(absolute(path, base_of(info)) for path in paths)

    @field_validator("base")
    @classmethod
    def _folder(cls, base: str | None, info: ValidationInfo) -> str | None:
        return None if base is None else absolute(base, base_of(info))

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


def load_recipe(path: Path, environ: Mapping[str, str] | None = None) -> Recipe:
    """The recipe in a YAML file, its paths absolute; UserError lists every problem."""
    return load_yaml(path, Recipe, environ=environ, context={"base": path.absolute().parent})

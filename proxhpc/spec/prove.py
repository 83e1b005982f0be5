"""The section `prove` of a manifest: trainings that compare corpora, and their presets."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationInfo, model_validator

from proxhpc.program.policy import AnyPolicy
from proxhpc.spec.load import (
    ONE_OR_MORE,
    Config,
    Count,
    FilePath,
    Flag,
    GlobPattern,
    Positive,
    Text,
    Whole,
    base_of,
    is_url,
    load_yaml,
    matching,
)
from proxhpc.spec.recipe import PositiveNumber, UnitInterval
from proxhpc.spec.sections import Corpus, FieldName, RuleSet
from proxhpc.spec.yaml_lines import Key, nearest, parse, quoted

_Name = Annotated[
    str, *matching(r"[A-Za-z0-9][A-Za-z0-9._]{0,63}", "up to 64 letters, digits, '.' or '_'")
]  # a part of the names of files, where `-` follows it
_PRESETS = Path(__file__).with_name("presets.yaml")


class Arm(Config):
    """A corpus to train on. Without `policy`, `rules` and `corpus` it is the refined corpus."""

    name: _Name
    """Name of the arm."""
    policy: AnyPolicy | None = None
    """The run's programs under another policy. `none`: no program is executed, so this is the raw
    corpus."""
    rules: tuple[RuleSet, ...] | None = Field(default=None, min_length=1)
    """Refined by these rules instead of the models."""
    corpus: Corpus | None = None
    """Any corpus on disk; documents with an `id` of the run's corpus are paired with these."""
    share: UnitInterval = 1.0
    """Share of the documents that come from this corpus; the others come from the arm `against`.
    Chosen by a hash of their ids."""

    def _problems(self) -> Iterator[tuple[Key, str]]:
        sources = [key for key in ("policy", "rules", "corpus") if getattr(self, key) is not None]
        if sources[1:]:
            yield (sources[1],), f"give either {' or '.join(sources)}"
        if self.corpus and any(map(is_url, self.corpus.paths)):
            yield ("corpus", "paths"), "`plan --stage` copies no files of arms: name a folder"


class HeldOut(Config):
    """Documents that no arm is trained on, on which the trained models are compared."""

    name: _Name
    """Name of the set."""
    paths: Annotated[tuple[GlobPattern, ...], ONE_OR_MORE] = Field(min_length=1)
    """Files on disk, as in `corpus.paths`."""
    text: Annotated[tuple[FieldName, ...], ONE_OR_MORE] = Field(default=("text",), min_length=1)
    """Field with the text."""
    host: FieldName = "host"
    """Field with the document's host; without one, the host of the URL in `url`. Documents of these
    hosts are left out of all arms."""
    url: FieldName = "url"
    """Field with the document's URL."""
    control: Flag = False
    """A control set, such as raw pages, on which a better corpus must not help."""
    documents: Positive | None = None
    """Number of documents, chosen by a hash of their ids. Default: all."""


class Training(Config):
    """How a model is trained; the same in all arms."""

    preset: Text | None = None
    """Name of a [preset](prove.md#presets), or a file; its keys are the defaults of this
    section."""
    source: Text | None = None
    """Where a preset's numbers come from."""
    model: dict[str, JsonValue] | None = None
    """Shape of a new model: keys of transformers' `config.json`, with `model_type`."""
    base: FilePath | None = None
    """Instead of `model`: directory of a model whose training continues."""
    tokenizer: FilePath | None = None
    """Directory of a tokenizer. Default: that of `base`, or a new one made from the arm
    `against`."""
    vocabulary: Positive = Field(default=4096, ge=512)
    """Tokens of a new tokenizer, a BPE of bytes."""
    tokens: Count = 120_000
    """Tokens to train on, as in `26B`."""
    context: Positive = 256
    """Tokens of a sequence."""
    batch: Positive = 4
    """Sequences of a step, in all processes together."""
    micro_batch: Positive | None = None
    """Sequences of a forward pass. Default: as `batch`."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` trains matrices with Muon and the rest with AdamW."""
    learning_rate: PositiveNumber = 3e-3
    """Maximum learning rate."""
    min_learning_rate: float = Field(default=0.0, ge=0)
    """Learning rate at the end."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """Form of the decay; `wsd` is linear."""
    warmup: Whole = 20
    """Steps of linear learning rate warm-up."""
    decay: UnitInterval = 1.0
    """Share of the training, at its end, over which the learning rate decays."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Weight decay of matrices."""
    betas: tuple[UnitInterval, ...] = Field(default=(0.9, 0.95), min_length=2, max_length=2)
    """AdamW's betas."""
    average: UnitInterval = 0.0
    """Decay of the moving average of the weights, which is evaluated. 0: none."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on a GPU that supports it, else float32."""
    checkpointing: Flag = False
    """Recompute activations, which saves memory."""
    sharded: Flag = False
    """Split weights and optimizer over the processes (FSDP), for models that do not fit on one
    GPU."""

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, data: Any, info: ValidationInfo) -> Any:
        # Only while a file is loaded: a frozen section has all keys of its preset.
        if not isinstance(data, dict) or base_of(info) is None or data.get("preset") is None:
            return data
        return load_preset(str(data["preset"])) | data

    def _problems(self) -> Iterator[tuple[Key, str]]:
        if self.model is not None and self.base is not None:
            yield ("base",), "give either model or base"
        if self.micro_batch and self.batch % self.micro_batch:
            yield ("micro_batch",), f"must divide batch: {self.batch}"


@cache
def training_presets() -> dict[str, dict[str, Any]]:
    """Return the presets that come with proxhpc: keys of `training`, by name."""
    presets: dict[str, dict[str, Any]] = parse(_PRESETS, {}).data
    return presets


def load_preset(name: str) -> dict[str, Any]:
    """Return the keys of a preset, by name or from a file. ValueError lists the known names."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        return load_yaml(Path(name), Training).model_dump(mode="json", exclude_unset=True)
    presets = training_presets()
    if name not in presets:
        raise ValueError(
            f"no preset named {quoted(name)}{nearest(name, presets)}; known: {', '.join(presets)}"
        )
    return presets[name]


class Prove(Config):
    """Trainings that show whether models learn more from the refined corpus."""

    arms: tuple[Arm, ...] = Field(
        default=(Arm(name="raw", policy="none"), Arm(name="refined")), min_length=2
    )
    """The corpora to compare. Default: the raw and the refined one."""
    against: Text | None = None
    """Arm that the others are compared with. Default: the first."""
    equal: Literal["tokens", "flops", "pool"] = "tokens"
    """What is equal in all arms: tokens trained on; FLOPs of refining and training together; or the
    pool of raw documents, each used once."""
    training: Training = Training()
    """How the models are trained."""
    seeds: tuple[Whole, ...] = Field(default=(0, 1, 2), min_length=1)
    """Seeds; each trains a model for every arm, which start with the same weights and read the same
    documents in the same order."""
    held_out: tuple[HeldOut, ...] = Field(min_length=1)
    """Sets of documents on which the models are compared."""
    hosts: Literal["all", "validation"] = "all"
    """Hosts of the training documents. `validation`: only the 15 % from which `proxhpc annotate`
    takes no training examples, so no refiner has learnt from them."""
    host: FieldName = "host"
    """Field with a document's host."""
    url: FieldName = "url"
    """Field with a document's URL."""
    tasks: tuple[GlobPattern, ...] = ()
    """Request files of multiple-choice tasks (`requests.jsonl.gz`)."""
    milestones: tuple[UnitInterval, ...] = (0.25, 0.5, 0.75)
    """Shares of the tokens at which the model of the arm `against` is evaluated, too: its learning
    curve says how much more raw text has the same effect."""

    def _problems(self) -> Iterator[tuple[Key, str]]:
        for key, items in (("arms", self.arms), ("held_out", self.held_out)):
            names = [item.name for item in items]
            if len(set(names)) < len(names):
                yield (key,), "a name is given twice"
        arms = [arm.name for arm in self.arms]
        if self.against is not None and self.against not in arms:
            yield ("against",), f"must be one of the arms {', '.join(arms)}"
        if len(set(self.seeds)) < len(self.seeds):
            yield ("seeds",), "a seed is given twice"
        if all(held_out.control for held_out in self.held_out):
            yield ("held_out",), "needs a set that is no control"

    @property
    def baseline(self) -> Arm:
        """The arm that the others are compared with."""
        name = self.against or self.arms[0].name
        return next(arm for arm in self.arms if arm.name == name)

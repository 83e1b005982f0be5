"""The sections of a manifest, one model each."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)

from proxhpc.spec.load import (
    Config,
    Count,
    Flag,
    Positive,
    Seconds,
    Size,
    Text,
    Whole,
    absolute,
    base_of,
    matching,
    refuse,
)
from proxhpc.spec.yaml_lines import Key, quoted

EngineName = Literal["rules", "transformers", "vllm"]
Level = Literal["doc", "chunk"]
Prompt = Literal["prox-llama2", "prox-plain", "chat-template", "compact", "walk", "teacher"]
RuleSet = Literal["c4", "gopher", "fineweb"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,95})?", re.ASCII)
FieldName = Annotated[
    str, *matching(r"[^.\s]+(\.[^.\s]+)*", "a field's name, or names with dots between")
]


GpuShare = Annotated[float, Field(strict=True, gt=0, le=1)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Corpus(Config):
    """The raw documents."""

    paths: Annotated[
        tuple[Text, ...],
        BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
        Field(
            min_length=1,
            description="Files, as glob patterns (`**` crosses directories); one or a list. "
            "Relative to the manifest.",
        ),
    ]
    format: Literal["auto", "jsonl", "parquet"] = Field(
        default="auto",
        description="`auto` goes by the suffix: `.jsonl`, `.ndjson` or `.json`, alone or with "
        "`.zst` or `.gz`; `.parquet`.",
    )
    text: FieldName = Field(
        default="text", description="Field with the text; dots lead into nested fields."
    )
    id: FieldName | None = Field(
        default=None,
        description="Field with the document's id, dots as above. Without one, and for records "
        "that lack it, the id is `path:position`.",
    )
    max_record_bytes: Size = Field(
        default=32 << 20, description="A longer record is quarantined, not read into memory."
    )

    @field_validator("paths")
    @classmethod
    def _from_base(cls, paths: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        return tuple(absolute(path, base_of(info), pattern=True) for path in paths)


# What a stage's key is if the manifest does not say: by its level and prompt style. The limits of
# `walk` are those that its models are trained within (proxhpc/refine/walk.py).
_WALK_LINES = 64


def _default(doc: Any, chunk: Any, *, walk: tuple[Any, Any]) -> Any:
    """Return a default by level; `walk` has those for `prompt: walk`, of doc and of chunk."""

    def choose(data: dict[str, Any]) -> Any:
        of_doc, of_chunk = walk if data.get("prompt") == "walk" else (doc, chunk)
        return of_doc if data.get("level") == "doc" else of_chunk

    return choose


def _walk_answer(data: dict[str, Any]) -> int:
    """Most tokens of a walk: one for each line, or the verdict, and the end."""
    return 2 if data.get("level") == "doc" else (data.get("window_lines") or _WALK_LINES) + 1


def _most_new_tokens(data: dict[str, Any]) -> int:
    if data.get("prompt") == "walk":
        return _walk_answer(data)
    doc, chunk = (256, 1024) if data.get("prompt") == "teacher" else (16, 256)
    return doc if data.get("level") == "doc" else chunk


class Stage(Config):
    """One pass of a refining model over the corpus."""

    level: Level = Field(
        description="`doc`: keep or drop whole documents. `chunk`: edit lines, window by window."
    )
    model: Text | None = Field(
        default=None,
        description="Hub id (`org/name`, `org/name@revision`) or directory (starts with `/`, `./`, "
        "`../`, `~`, or exists beside the manifest). Only `engine.name: rules` does without; it "
        "loads none. `embedded`: the tiny refiner that comes with proxhpc.",
    )
    prompt: Prompt = Field(
        "prox-llama2",
        description="How the model is asked; a model's `refiner.json` may say so for this and "
        "other keys that the stage does not give. `prox-llama2`: the Llama-2 template that the "
        "ProX models were trained with. "
        "`prox-plain`: the same text without a template. `chat-template`: the model's own. "
        "`compact`: short numbers behind the lines and the question last, so that two stages of "
        "one model read a document once. `walk`: for tiny models with a vocabulary made for it. "
        "`teacher`: instructions for a large chat model, whose programs are to be learnt from "
        "(`proxhpc annotate`).",
    )
    dialect: Literal["prox", "line"] = Field(
        default="prox",
        description="Language of the programs. `prox`: `remove_lines(start, end)`, "
        "`normalize(source, target)`. `line`: `remove_lines`, "
        "`remove_str`, `replace_str`, lines counted from 1.",
    )
    numbering: Literal["document", "window"] = Field(
        default_factory=_default("document", "document", walk=("document", "window")),
        description="Chunk stage: line numbers run through the document (the default) or restart "
        "in each window (with `prompt: walk` always).",
    )
    window_tokens: Positive = Field(
        default_factory=_default(1500, 1500, walk=(1500, 480)),
        description="Chunk stage: most tokens of text in one window. Default 1500; 480 for `walk`.",
    )
    window_lines: Annotated[int, Field(strict=True, gt=0, le=300)] | None = Field(
        default_factory=_default(None, None, walk=(None, _WALK_LINES)),
        description="Chunk stage: most lines in one window. Default 64 for `walk`, whose numbers "
        "end at 299; no bound for others.",
    )
    max_prompt_tokens: Positive | None = Field(
        default_factory=_default(2000, None, walk=(None, None)),
        description="Longest prompt. Doc stage (default 2000): the document is cut to fit. Chunk "
        "stage (default: what the model's context leaves): windows are packed to fit, and only a "
        "line that none can hold is left untouched.",
    )
    max_new_tokens: Positive = Field(
        default_factory=_most_new_tokens,
        description="Most tokens a program may have. Default 16 for doc, 256 for chunk, with "
        "`teacher` 256 and 1024, with `walk` one for each line, and the end; a small window allows "
        "fewer.",
    )
    bias: Annotated[float, Field(ge=-100, le=100)] = Field(
        default=0.0,
        description="`prompt: walk`: added to the log-odds of removing a line or dropping a "
        "document; below 0 more is kept.",
    )
    grammar: Literal["none", "lines", "strings"] = Field(
        default_factory=_default("none", "none", walk=("lines", "lines")),
        description="With `engine.name: vllm`: decode under a grammar, so that only valid "
        "programs come out. `lines`: verdicts, and removals of the window's own lines. "
        "`strings`: also deletions of its words; slower, for each window has a grammar of its "
        "own. With `walk`: `lines` (the default) on any engine; needs no grammar at all.",
    )
    gpu_memory_utilization: GpuShare | None = Field(
        default=None,
        description="Share of the device's memory for this stage's model; default: an equal part "
        "of `engine.gpu_memory_utilization`.",
    )

    @field_validator("model")
    @classmethod
    def _directory_or_hub_id(cls, model: str | None, info: ValidationInfo) -> str | None:
        return None if model is None else _model(model, base_of(info))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse((*self._chunk_keys(), *self._walk_keys(), *self._teacher_keys()))
        return self

    def _chunk_keys(self) -> Iterator[tuple[Key, str]]:
        if self.level == "doc":
            keys = ("numbering", "window_tokens", "window_lines")
            yield from _changed(self, keys, "only with level: chunk")
            if self.grammar == "strings":
                yield ("grammar",), "strings is for level: chunk"

    def _walk_keys(self) -> Iterator[tuple[Key, str]]:
        if self.prompt != "walk":
            if "prompt" in self.model_fields_set or self.model is None:
                yield from _changed(self, ("bias",), "only with prompt: walk")
            return  # else the model may yet say that this is its style
        if self.dialect != "prox":
            yield ("dialect",), "must be prox with prompt: walk"
        if self.level == "chunk" and self.numbering != "window":
            yield ("numbering",), "must be window with prompt: walk"
        if self.level == "chunk" and self.window_lines is None:
            yield ("window_lines",), "must be a number with prompt: walk"
        if self.grammar == "strings":
            yield ("grammar",), "a walk removes lines, no strings: lines or none"
        if self.max_new_tokens < 2:
            yield ("max_new_tokens",), "a walk has two tokens at least"

    def _teacher_keys(self) -> Iterator[tuple[Key, str]]:
        if self.prompt == "teacher":
            yield from _changed(self, ("dialect",), "must be prox with prompt: teacher")
            if self.level == "doc":
                yield from _changed(
                    self, ("grammar",), "not with prompt: teacher, which gives documents marks"
                )


EMBEDDED = "embedded"  # names the model within this package


def _model(text: str, base: Path | None) -> str:
    """Return a model's absolute directory, its hub id or EMBEDDED; ValueError if it is none."""
    if text == EMBEDDED:
        return text
    path = absolute(text, base)
    if text.startswith(("/", "./", "../", "~")) or (base is not None and os.path.exists(path)):
        return path
    if not _HUB_ID.fullmatch(text):
        raise ValueError(f'{quoted(text)} is neither a directory here nor a hub id "org/name"')
    return text


def _changed(model: Config, keys: tuple[str, ...], why: str) -> Iterator[tuple[Key, str]]:
    """Yield a problem for each key that differs from its default where it has no effect."""
    given = model.__dict__
    for key in keys:
        field = type(model).model_fields[key]
        if given[key] != field.get_default(call_default_factory=True, validated_data=given):
            yield (key,), why


_REFUSED_OPTIONS = {
    "trust_remote_code": "it would run code from the model's repository on every node",
    "worker_cls": "it would import code by name",
    "worker_extension_cls": "it would import code by name",
    "logits_processors": "it would import code by name",
    "model": "use stages[].model",
    "tokenizer": "the model's own tokenizer is used",
    "dtype": "use engine.dtype",
    "seed": "use seed",
    "gpu_memory_utilization": "use engine.gpu_memory_utilization",
    "max_model_len": "use engine.max_model_len",
    "enable_prefix_caching": "always on",
    "hf_token": "manifests are copied into run directories; set HF_TOKEN in the environment",
    "token": "manifests are copied into run directories; set HF_TOKEN in the environment",
}


class EngineOptions(Config):
    """What writes the programs."""

    name: EngineName = Field(
        description="`vllm`: GPUs. `transformers`: a CPU or one GPU. `rules`: no model; the C4, "
        "Gopher and FineWeb heuristics write the programs, on any CPU."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Precision of the weights; `auto`: bfloat16 on a GPU (float16 where it has "
        "none), float32 on a CPU.",
    )
    batch_size: Positive = Field(
        default=8, description="`transformers`: prompts generated at a time."
    )
    gpu_memory_utilization: GpuShare = Field(
        default=0.9,
        description="`vllm`: share of the device's memory that a worker may take; two models "
        "divide it.",
    )
    ngram_tokens: Whole = Field(
        default=0,
        description="`vllm`: guess up to so many tokens at a time by copying from the prompt "
        "(n-gram speculation), for stages that quote much. The programs stay the same; FLOPs of "
        "wrong guesses are not counted.",
    )
    max_model_len: Positive | None = Field(
        default=None, description="Context length in tokens; the model's own if not given."
    )
    options: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="`vllm`, `transformers`: further engine arguments, passed on as given. "
        "Refused by name: " + ", ".join(f"`{name}`" for name in _REFUSED_OPTIONS) + ".",
    )
    rules: tuple[RuleSet, ...] = Field(
        default=("c4", "gopher", "fineweb"),
        min_length=1,
        description="`rules`: which sets of heuristics.",
    )

    @model_validator(mode="after")
    def _own_keys(self) -> Self:
        problems: list[tuple[Key, str]] = []
        if self.name != "transformers":
            problems += _changed(self, ("batch_size",), "only with name: transformers")
        if self.name != "vllm":
            keys = ("gpu_memory_utilization", "ngram_tokens")
            problems += _changed(self, keys, "only with name: vllm")
        if self.name != "rules":
            problems += _changed(self, ("rules",), "only with name: rules")
        elif self.options:
            problems.append((("options",), "only with name: vllm or transformers"))
        if len(set(self.rules)) < len(self.rules):
            problems.append((("rules",), "a set is named twice"))
        for option in self.options:
            key = option.strip("-").replace("-", "_").lower()
            if key in _REFUSED_OPTIONS:
                problems.append((("options", option), f"not allowed: {_REFUSED_OPTIONS[key]}"))
            elif not re.fullmatch(r"[a-z][a-z0-9_]{0,79}", option):
                problems.append((("options", option), "an option's name is like max_num_seqs"))
        refuse(problems)
        return self


class Sharding(Config):
    """How the corpus is cut into shards, the unit that a worker leases."""

    tokens: Count = Field(
        default=20_000_000,
        description="Raw tokens of one shard, estimated: 5 to 15 minutes of one worker. Units as "
        "in `20M`.",
    )
    max_files: Positive = Field(default=1000, description="Most input files in one shard.")


class Commit(Config):
    """When a worker commits: what was committed is never computed again."""

    documents: Positive = Field(default=256, description="After so many documents.")
    seconds: Seconds = Field(default=60.0, description="Or so many seconds after the last commit.")


class Near(Config):
    """When two documents are nearly the same: by MinHash over their runs of words."""

    threshold: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.8,
        description="Least share of common shingles (Jaccard similarity) of duplicates.",
    )
    shingle: Positive = Field(
        default=5,
        description="Words in a shingle; in scripts without spaces between words, characters.",
    )
    bands: Positive = Field(
        default=24, le=512, description="Bands of a signature; more find more pairs."
    )
    rows: Positive = Field(
        default=8, le=64, description="Slots of a band; more compare fewer documents for nothing."
    )
    seed: Whole = Field(default=1, description="Seed of the hash functions.")
    verify: Literal["text", "signature"] = Field(
        default="text",
        description="How candidates are compared: by what their signatures estimate, or by their "
        "texts where the estimate cannot tell, which reads those documents once more.",
    )

    def compared(self, similarity: float) -> float:
        """The probability that two documents so alike are compared at all."""
        return float(1 - (1 - similarity**self.rows) ** self.bands)


class Dedup(Config):
    """Removal of duplicates."""

    before: Literal["none", "exact"] = Field(
        default="none",
        description="`exact`: a worker that meets a text again, of those it remembers, copies "
        "the programs instead of asking the models. The merge decides which copy stays.",
    )
    exact: Flag = Field(
        default=True, description="Keep one of the documents with the same refined text."
    )
    near: Near | None = Field(
        default=None,
        description="Keep one of the documents with nearly the same refined text; `near: {}` takes "
        "the defaults. Off if not given.",
    )
    keep: Literal["longest", "first", "highest", "lowest"] = Field(
        default="longest",
        description="Which document of a set of duplicates stays: the longest; the first in the "
        "input; that with the highest or lowest value of the field `by`. Of equals the longest, "
        "then the first.",
    )
    by: FieldName | None = Field(
        default=None,
        description="Field with a number or an ISO 8601 date, dots as in `corpus.id`. A document "
        "without either stays only if all of its set are.",
    )
    against: Corpus | None = Field(
        default=None,
        description="Another corpus, as it is (no models read it). A document that duplicates one "
        "of its documents is left out.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[tuple[Key, str]]:
        chosen = self.keep in ("highest", "lowest")
        if chosen != (self.by is not None):
            yield ("by",), f"{'required' if chosen else 'of no use'} with keep: {self.keep}"
        if self.against and not (self.exact or self.near):
            yield ("against",), "needs exact or near: without them nothing is compared"


class Output(Config):
    """The final corpus."""

    format: Literal["jsonl.zst", "parquet"] = Field(
        default="jsonl.zst",
        description="Format of the parts. `parquet` (needs pyarrow) has one schema whatever the "
        "records have: all fields but `id` and `text` are JSON in the column `metadata`.",
    )
    part_size: Size = Field(
        default=256 << 20,
        description="Size of one part's rows as JSON lines before compression, as in `512MiB`.",
    )
    level: Annotated[int, Field(strict=True, ge=1, le=19)] = Field(
        default=3, description="zstd compression level."
    )
    provenance: Flag = Field(
        default=True, description="Record each document's source and programs beside its text."
    )
    original: Flag = Field(
        default=False, description="Keep each document's raw text, as `original_text`."
    )
    shuffle: Flag = Field(
        default=False,
        description="Write the documents in a random order that only `seed` and their places in "
        "the input decide. It needs temporary space for about one more corpus.",
    )


class Comparison(Config):
    """A model to be trained on the corpus: its training FLOPs, raw against refined."""

    model: Text | None = Field(
        default=None, description="Directory with the model's `config.json`; or give `parameters`."
    )
    parameters: Count | None = Field(
        default=None,
        description="Parameters without the embeddings, as in `1.7B` (training: 6·N·D FLOPs).",
    )
    name: Text | None = Field(
        default=None, description="What to call it; default: the directory's or `parameters`."
    )

    @field_validator("model")
    @classmethod
    def _from_base(cls, model: str | None, info: ValidationInfo) -> str | None:
        return None if model is None else absolute(model, base_of(info))

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.model is None) == (self.parameters is None):
            raise ValueError("give either model (a directory) or parameters (a number)")
        return self

    @property
    def title(self) -> str:
        """The name, or what stands for it."""
        return self.name or (Path(self.model).name if self.model else f"{self.parameters:,}")

"""The sections of a manifest, one model each."""

import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    ValidationInfo,
    model_validator,
)

from proxhpc.program.syntax import Dialect
from proxhpc.spec.load import (
    ONE_OR_MORE,
    Config,
    Count,
    FilePath,
    Flag,
    PatternOrUrl,
    Positive,
    Seconds,
    Seed,
    Size,
    Text,
    absolute,
    base_of,
    matching,
)
from proxhpc.spec.profile import Prompt
from proxhpc.spec.yaml_lines import Key, quoted

EngineName = Literal["rules", "transformers", "vllm"]
Level = Literal["doc", "chunk"]
RuleSet = Literal["c4", "gopher", "fineweb"]

_PROMPT = "prox-llama2"
EMBEDDED = "embedded"  # names the models within this package
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,95})?", re.ASCII)
FieldName = Annotated[
    str, *matching(r"[^.\s]+(\.[^.\s]+)*", "a field's name, or names with dots between")
]


class Corpus(Config):
    """The raw documents."""

    paths: Annotated[tuple[PatternOrUrl, ...], ONE_OR_MORE] = Field(min_length=1)
    """Input files: one glob pattern or a list (`**` crosses directories), relative to the
    manifest; or URLs as `hf://datasets/ORG/NAME@REVISION/data/*.parquet` or `s3://BUCKET/*.jsonl`,
    whose files `proxhpc plan --stage` [copies](inputs.md#files-behind-urls)."""
    staging: FilePath | None = None
    """Folder for copies of files behind URLs, on a file system that all nodes share. Default:
    `staging` beside the run directory."""
    format: Literal["auto", "jsonl", "json", "wet", "parquet", "arrow", "text"] = "auto"
    """File format. `auto` looks at each file's suffix and start; see [Input
    formats](inputs.md)."""
    text: Annotated[tuple[FieldName, ...], ONE_OR_MORE] = Field(default=("text",), min_length=1)
    """Field with the text; dots reach nested fields. Of a list, the first field that a record
    has."""
    id: FieldName | None = None
    """Field with the document's id; dots reach nested fields. A record without one gets the id
    `path:position`."""
    max_record_bytes: Size = 32 << 20
    """Longer records are quarantined without being read whole."""
    zstd_window: Annotated[Size, Field(le=1 << 31)] = 128 << 20
    """Memory for the window of a zstd file, in each process: `2GiB` reads files of
    `zstd --long=31`."""


# Defaults of a stage depend on its level and prompt style. The limits of `walk` are those that its
# models are trained with (proxhpc/refine/walk.py).
_WALK_LINES = 64


def _default(doc: Any, chunk: Any, *, walk: tuple[Any, Any]) -> Callable[[dict[str, Any]], Any]:
    """Return a default factory by level; `walk` holds the doc and chunk values of that style."""

    def choose(data: dict[str, Any]) -> Any:
        doc_value, chunk_value = walk if data.get("prompt") == "walk" else (doc, chunk)
        return doc_value if data.get("level") == "doc" else chunk_value

    return choose


def _default_window_tokens(data: dict[str, Any]) -> int:
    if data.get("level") == "chunk" and data.get("prompt") == "walk":
        return 480
    return data.get("window_chars") or 1500


def _default_max_new_tokens(data: dict[str, Any]) -> int:
    is_doc = data.get("level") == "doc"
    if data.get("prompt") == "walk":  # a verdict or one token a line, and the end
        return 2 if is_doc else (data.get("window_lines") or _WALK_LINES) + 1
    return 16 if is_doc else 256


def _directory_or_hub_id(text: str, info: ValidationInfo) -> str:
    """Return a model's absolute directory, its hub id or EMBEDDED; ValueError otherwise."""
    if text == EMBEDDED:
        return text
    path = absolute(text, info)
    if text.startswith(("/", "./", "../", "~")) or (base_of(info) and os.path.exists(path)):
        return path
    if not _HUB_ID.fullmatch(text):
        raise ValueError(f'{quoted(text)} is neither an existing directory nor a hub id "org/name"')
    return text


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
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def _option_problems(options: dict[str, JsonValue]) -> Iterator[tuple[Key, str]]:
    for option in options:
        key = option.strip("-").replace("-", "_").lower()
        if key in _REFUSED_OPTIONS:
            yield ("options", option), f"not allowed: {_REFUSED_OPTIONS[key]}"
        elif not re.fullmatch(r"[a-z][a-z0-9_]{0,79}", option):
            yield ("options", option), "write an option's name like max_num_seqs"


class StageEngine(Config):
    """Engine settings of one stage, where they differ from those of the section `engine`."""

    dtype: Dtype | None = None
    """Precision of the weights."""
    max_model_len: Positive | None = None
    """Context length in tokens."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """More engine arguments for this stage, as `quantization: fp8` or `tensor_parallel_size: 2`."""

    def _problems(self) -> Iterator[tuple[Key, str]]:
        return _option_problems(self.options)


class Stage(Config):
    """One pass of a refining model over the corpus."""

    level: Level
    """`doc` keeps or drops whole documents; `chunk` edits lines, window by window."""
    model: Annotated[Text, AfterValidator(_directory_or_hub_id)] | None = None
    """Hub id (`org/name`, `org/name@revision`), a directory (starts with `/`, `./`, `../` or `~`,
    or exists beside the manifest), or `embedded`, the tiny refiner that comes with proxhpc.
    Required unless `engine.name: rules`, which loads no model."""
    prompt: Prompt = _PROMPT
    """[Profile](refining.md#profiles) of the prompts, which must be the one the model was trained
    on: the name of a shipped one, `walk`, or a file (`*.json`). A profile, or a model's
    `refiner.json`, may set any key that the stage leaves out."""
    dialect: Dialect = "prox"
    """Language of the programs, which must be the one the model was trained on: `prox`, `refinex`,
    `ultrax` or `rescraper`; see [The program language](language.md)."""
    numbering: Literal["document", "window"] = Field(
        default_factory=_default("document", "document", walk=("document", "window"))
    )
    """Chunk stage: line numbers run through the document (default) or restart in each window
    (always with `prompt: walk`)."""
    blank_lines: Literal["numbered", "skipped"] = "numbered"
    """Chunk stage: whether blank lines are shown with a number, or neither shown nor counted."""
    window_chars: Positive | None = None
    """Chunk stage: maximum characters of a window, with its line numbers. The prompt must fit, too
    (`max_prompt_tokens`)."""
    window_overlap: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Chunk stage: share of a window that the next one shows again, for context. A line is edited
    by the first window that shows it."""
    window_tokens: Positive = Field(default_factory=_default_window_tokens)
    """Chunk stage: maximum tokens of text in a window. Default 1500; 480 for `walk`; with
    `window_chars`, as many as it has characters."""
    window_lines: Annotated[int, Field(strict=True, gt=0, le=300)] | None = Field(
        default_factory=_default(None, None, walk=(None, _WALK_LINES))
    )
    """Chunk stage: maximum lines in a window. Default 64 for `walk`, whose line numbers end at 299;
    unlimited for other styles."""
    max_prompt_tokens: Positive | None = Field(
        default_factory=_default(2000, None, walk=(None, None))
    )
    """Maximum prompt length. Doc stage (default 2000): longer documents are truncated to fit. Chunk
    stage (default: what the model's context leaves): windows are packed to fit, and longer lines
    are split at the ends of sentences."""
    max_new_tokens: Positive = Field(default_factory=_default_max_new_tokens)
    """Maximum tokens of a program; very small windows get a lower limit. Default: 16 for doc, 256
    for chunk; one per line plus the end with `walk`."""
    bias: Annotated[float, Field(ge=-100, le=100)] = 0.0
    """`prompt: walk`: added to the log-odds of removing a line or dropping a document. Negative
    values keep more."""
    grammar: Literal["none", "lines", "strings"] = Field(
        default_factory=_default("none", "none", walk=("lines", "lines"))
    )
    """Grammar-constrained decoding (`engine.name: vllm`), so that every program is valid. `lines`
    allows verdicts and removals of the window's lines; `strings` also deletions of its words, which
    is slower because every window has its own grammar. With `walk`, `lines` (the default) works on
    every engine."""
    engine: StageEngine | None = None
    """Settings of this stage's engine; see [`stages.engine`](#stagesengine)."""

    def _problems(self) -> Iterator[tuple[Key, str]]:
        yield from (*self._walk_keys(), *self._verdict_keys())
        if self.level == "doc":
            windows = ("window_chars", "window_overlap", "window_tokens", "window_lines")
            keys = ("numbering", "blank_lines", *windows)
            yield from _changed(self, keys, "only with level: chunk")
            if self.grammar == "strings":
                yield ("grammar",), "strings is for level: chunk"

    def _walk_keys(self) -> Iterator[tuple[Key, str]]:
        if self.prompt != "walk":
            # If the stage names no prompt, its model's refiner.json may still set walk.
            if self.prompt != _PROMPT or self.model is None:
                yield from _changed(self, ("bias",), "only with prompt: walk")
            return
        if self.dialect != "prox":
            yield ("dialect",), "must be prox with prompt: walk"
        yield from _changed(
            self, ("blank_lines", "window_chars", "window_overlap"), "not with prompt: walk"
        )
        if self.level == "chunk" and self.numbering != "window":
            yield ("numbering",), "must be window with prompt: walk"
        if self.level == "chunk" and self.window_lines is None:
            yield ("window_lines",), "must be a number with prompt: walk"
        if self.grammar == "strings":
            yield ("grammar",), "must be lines or none with prompt: walk, which removes lines only"
        if self.max_new_tokens < 2:
            yield ("max_new_tokens",), "must be at least 2 with prompt: walk"

    def _verdict_keys(self) -> Iterator[tuple[Key, str]]:
        if self.level == "doc" and getattr(self.prompt, "verdict", "program") == "scores":
            yield from _changed(self, ("grammar",), "not for documents that get scores")


def _changed(model: Config, keys: tuple[str, ...], why: str) -> Iterator[tuple[Key, str]]:
    """Yield a problem for each key that differs from its default where it has no effect."""
    values = model.__dict__
    for key in keys:
        field = type(model).model_fields[key]
        if values[key] != field.get_default(call_default_factory=True, validated_data=values):
            yield (key,), why


class EngineOptions(Config):
    """The engine that runs the models."""

    name: EngineName
    """`vllm`: GPUs. `transformers`: a CPU or one GPU. `rules`: no model; the C4, Gopher and FineWeb
    heuristics write the programs, on any CPU."""
    dtype: Dtype = "auto"
    """Precision of the weights. `auto`, in both engines: bfloat16 on a GPU (float16 where bfloat16
    is not supported) and float32 on a CPU. Only small plain Llamas of the style `walk`, as the
    embedded model, have what is fastest on the CPU: 8-bit products (AVX512-VNNI), bfloat16
    (AVX512-BF16, AMX) or float32."""
    batch_size: Positive = 8
    """`transformers`: prompts generated at the same time."""
    gpu_memory_utilization: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.9
    """`vllm`: share of the GPU's memory that a worker may use; two models get half of it each."""
    max_model_len: Positive | None = None
    """Context length in tokens. Default: what the stages need, at most the model's."""
    max_unusable: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the first 256 answers of a stage in a worker that may be unusable: refused by the
    engine, not a number, or without a statement or verdict that can be read. Above it, or if none
    of the answers to 100 documents in a row is usable, or all to 20 in a row are refused, the run
    stops. 1.0: it never does. May change between launches of a run."""
    options: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="`vllm`, `transformers`: more engine arguments, passed on unchanged. Not "
        "allowed: " + ", ".join(f"`{name}`" for name in _REFUSED_OPTIONS) + ".",
    )
    rules: tuple[RuleSet, ...] = Field(default=("c4", "gopher", "fineweb"), min_length=1)
    """`rules`: sets of heuristics to apply."""

    def _problems(self) -> Iterator[tuple[Key, str]]:
        if self.name != "transformers":
            yield from _changed(self, ("batch_size",), "only with name: transformers")
        if self.name != "vllm":
            yield from _changed(self, ("gpu_memory_utilization",), "only with name: vllm")
        if self.name != "rules":
            yield from _changed(self, ("rules",), "only with name: rules")
        elif self.options:
            yield ("options",), "only with name: vllm or transformers"
        if len(set(self.rules)) < len(self.rules):
            yield ("rules",), "a rule set is named twice"
        yield from _option_problems(self.options)


class Sharding(Config):
    """How the corpus is split into shards, the units that workers lease."""

    tokens: Count = 20_000_000
    """Estimated raw tokens of a shard, as in `20M`: 5 to 15 minutes of one worker."""
    max_files: Positive = 1000
    """Maximum input files in a shard."""


class Commit(Config):
    """When a worker commits. Committed work is never repeated."""

    documents: Positive = 256
    """After this many documents."""
    seconds: Seconds = 60.0
    """Or this many seconds after the last one."""


_SLOTS = 192  # hashes of a signature, of which `choose_bands` makes bands
# Above a threshold of 0.97 there are more, so that about 6 come from what a document has besides a
# template that makes it as similar as the threshold to others: by these, pairs of pages are found.
_OWN_SLOTS, _MAX_SLOTS = 6, 768
_RECALL = 0.98  # of pairs at the threshold that are compared
_MAX_BANDS, _MAX_ROWS = 512, 64


def _compared(similarity: float, bands: int, rows: int) -> float:
    return float(1 - (1 - similarity**rows) ** bands)


def choose_bands(threshold: float, bands: int | None, rows: int | None) -> tuple[int, int]:
    """Return bands and rows, of which one or none is given, that find 98 % at the threshold.

    Of those with about 192 hashes, or more at a threshold near 1, these have the most rows: the
    fewest pairs are compared in vain.
    """
    slots = max(_SLOTS, min(_MAX_SLOTS, round(_OWN_SLOTS / max(1 - threshold, 1e-9))))
    for row in (rows,) if rows else range(_MAX_ROWS, 0, -1):
        band = bands or max(1, slots // row)
        if _compared(threshold, band, row) >= _RECALL:
            return band, row
    row = rows or 1
    miss = math.log1p(-(threshold**row)) if threshold < 1 else -math.inf
    wanted = math.log(1 - _RECALL) / miss if miss else math.inf
    return bands or math.ceil(min(wanted, _MAX_BANDS)), row


class Near(Config):
    """When two documents count as near-duplicates: MinHash over shingles, runs of words."""

    threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Minimum Jaccard similarity of two near-duplicates' shingles."""
    shingle: Positive = Field(default=5, le=1000)
    """Words in a shingle (characters in scripts without spaces between words)."""
    bands: Positive = Field(default=24, le=_MAX_BANDS)
    """Bands of a signature. More bands find more pairs. By default, bands and rows follow the
    threshold: 98 % of the pairs there are compared (24 bands of 8 rows at 0.8, 14 of 13 at 0.9)."""
    rows: Positive = Field(default=8, le=_MAX_ROWS)
    """Hashes in a band. More rows mean fewer comparisons of dissimilar documents."""
    seed: Seed = 1
    """Seed of the hash functions."""
    verify: Literal["text", "signature"] = "text"
    """How candidate pairs are checked. `signature`: by the similarity that their signatures
    estimate. `text`: the same, but where the estimate is too close to the threshold the texts are
    read again and compared exactly."""

    @model_validator(mode="before")
    @classmethod
    def _choose_bands(cls, data: Any) -> Any:
        if not isinstance(data, dict) or {"bands", "rows"} <= data.keys():
            return data
        threshold = data.get("threshold", 0.8)
        given = [data[key] for key in ("bands", "rows") if key in data]
        valid = isinstance(threshold, int | float) and 0 < threshold <= 1
        if not valid or not all(type(value) is int and 0 < value <= 512 for value in given):
            return data  # a field's own check has the message
        bands, rows = choose_bands(threshold, data.get("bands"), data.get("rows"))
        return data | {"bands": bands, "rows": rows}

    def compared(self, similarity: float) -> float:
        """Return the probability that two documents of this similarity are compared."""
        return _compared(similarity, self.bands, self.rows)


class RepeatedLines(Config):
    """Removal of lines that the corpus has several times (CCNet and Dolma call lines paragraphs).

    They are compared in lower case, with white space collapsed.
    """

    keep: Annotated[int, Field(strict=True, ge=0)] = 1
    """How many occurrences of a line stay: the first ones in the input. With 0, no line stays that
    occurs more than once."""
    min_chars: Positive = 50
    """Shorter lines always stay."""
    min_kept_chars: Positive = 100
    """A document that has fewer characters left is left out."""


class Against(Corpus):
    """Another corpus, and what of it the documents must not be like; or a list of such sections."""

    mode: Literal["duplicates", "contained"] = "duplicates"
    """`duplicates`: documents that duplicate one of its documents are left out, as `exact` and
    `near` say. `contained`: it is a benchmark, of which no document may contain runs of words;
    the merge needs memory for its hashes."""
    words: Positive = Field(default=13, le=1000)
    """For `contained`: words in a run (characters in scripts without spaces). Items with fewer
    words are not searched for."""
    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """For `contained`: share of an item's runs that a document must contain to be left out; one
    run if it is 0."""
    fields: Annotated[tuple[FieldName, ...], ONE_OR_MORE] = ()
    """For `contained`: fields of an item that are appended to its text, such as choices and
    answers; lists of texts, too."""
    drop: Flag = True
    """For `contained`: leave such documents out. Otherwise they are only listed."""


def _sections(value: Any) -> Any:
    """Return the sections of a key that takes none, one or a list of them."""
    if value is None or isinstance(value, dict | Against):
        return () if value is None else (value,)
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a section or a list of sections, not {quoted(value)}")
    return value


class Dedup(Config):
    """Removal of duplicates."""

    exact: Flag = True
    """Keep one document of those with the same refined text."""
    near: Near | None = None
    """Keep one document of those with nearly the same refined text. Off by default; `near: {}`
    turns it on with its defaults."""
    url: FieldName | None = None
    """Field with the document's URL; dots reach nested fields. Of documents with the same URL one
    is kept, before texts are compared. `http` or `https`, upper case in the host, its default port,
    fragments and parameters such as `utm_source` do not matter. Documents without a URL stay."""
    keep: Literal["longest", "first", "highest", "lowest"] = "longest"
    """Which document of a duplicate set survives: the longest, the first in the input, or the one
    with the highest or lowest value of the field `by`. Ties go to the longest, then to the
    first."""
    survivors: Positive = 1
    """How many documents of a duplicate set stay at most: the one that `keep` chooses, and the next
    best. Nothing stays that duplicates a document of `against`."""
    by: FieldName | None = None
    """Field with a number or a date (ISO 8601, RFC 2822); dots reach nested fields. Dates count as
    years (`2024-07-02` as 2024.5), so years, months and dates are in order; other numbers do not
    compare with dates. Text of 8 or 14 digits is a date if it can be one. A document without a
    value survives only if no document of its set has one."""
    within: FieldName | None = None
    """Field, such as a dump or a language: only documents with equal values of it are compared.
    Documents without it form one group. Dots reach nested fields."""
    against: Annotated[
        tuple[Against, ...],
        BeforeValidator(_sections, json_schema_input_type=Against | list[Against] | None),
    ] = ()
    """Other corpora, used as they are (no model reads them): a section, or a list of them.
    Documents that duplicate one of their documents, or contain runs of words of one, are left
    out."""
    lines: RepeatedLines | None = None
    """Remove lines that the corpus has several times, after duplicates are left out. Off by
    default; `lines: {}` turns it on with its defaults."""

    def _problems(self) -> Iterator[tuple[Key, str]]:
        by_field = self.keep in ("highest", "lowest")
        if by_field != (self.by is not None):
            yield ("by",), f"{'required' if by_field else 'not used'} with keep: {self.keep}"
        external = any(other.mode == "duplicates" for other in self.against)
        if external and not (self.compares_texts or self.url):
            yield ("against",), "needs exact, near or url: otherwise nothing is compared"
        if self.within and not (self.compares_texts or self.url or self.lines):
            yield ("within",), "needs exact, near, url or lines: otherwise nothing is compared"
        if self.within and external:
            yield ("within",), "not used with against, whose documents have other fields"

    @property
    def compares_texts(self) -> bool:
        """Whether documents with the same or nearly the same text are duplicates."""
        return self.exact or self.near is not None


class Output(Config):
    """The refined corpus."""

    format: Literal["jsonl.zst", "jsonl.gz", "jsonl", "parquet"] = "jsonl.zst"
    """Format of the parts. `parquet` needs pyarrow. Some trainers cannot read zstd, but gzip or
    plain JSON lines."""
    metadata: Literal["fields", "json"] = Field(
        default_factory=lambda data: "json" if data.get("format") == "parquet" else "fields"
    )
    """The other fields of a record: as they are (`fields`), or as JSON in one field `metadata`
    (`json`, always with `parquet`). With `json` all rows have the same fields, all of them text, so
    every reader loads them, however much the raw records differ."""
    part_size: Size = 256 << 20
    """Size of a part as uncompressed JSON lines, as in `512MiB`."""
    level: Annotated[int, Field(strict=True, ge=1, le=19)] = 3
    """Compression level of zstd; gzip takes at most 9."""
    provenance: Flag = True
    """Store each document's source and programs beside its text."""
    cluster_size: Flag = False
    """Store how many documents each document's duplicate set had, itself included, as
    `proxhpc.cluster_size`, and the set's id as `proxhpc.cluster_id`: to repeat documents by how
    often the web has them."""
    original: Flag = False
    """Store each document's raw text as `original_text`."""
    shuffle: Flag = False
    """Write the documents in a random order that depends only on `seed` and their positions in the
    input. Needs temporary space of about the size of the corpus."""
    license: Text | None = None
    """License of the corpus, for its dataset card, such as `odc-by`."""
    language: Annotated[tuple[Text, ...], ONE_OR_MORE] = ()
    """Languages of the corpus, for its dataset card, such as `en`."""

    def _problems(self) -> Iterator[tuple[Key, str]]:
        if self.format == "parquet" and self.metadata != "json":
            yield ("metadata",), "must be json with format: parquet"


class Comparison(Config):
    """A model that you will train on the corpus: its training FLOPs, raw against refined."""

    model: FilePath | None = None
    """Directory with the model's `config.json`; or give `parameters`."""
    parameters: Count | None = None
    """Parameters without the embeddings, as in `1.7B`. Training takes 6·N·D FLOPs."""
    name: Text | None = None
    """Name in the report. Default: the directory's, or `parameters`."""

    def _problems(self) -> Iterator[tuple[Key, str]]:
        if (self.model is None) == (self.parameters is None):
            yield (), "give either model (a directory) or parameters (a number)"

    @property
    def title(self) -> str:
        """The name in the report."""
        return self.name or (Path(self.model).name if self.model else f"{self.parameters:,}")

"""Finds a refining model on disk and checks from JSON and file headers that it is complete.

Neither torch nor transformers is imported: a login node resolves models at launch, and workers load
them without a network.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any, Self

from proxhpc.account.architectures import ARCHITECTURES
from proxhpc.account.flops import ModelShape
from proxhpc.corpus.disk import sha256_file
from proxhpc.errors import StopError, UserError
from proxhpc.extras import how_to_install
from proxhpc.run.weights import INDEX, IncompleteModelError, Weights, read_model_json
from proxhpc.spec.profile import CHAT_TEMPLATE, Profile, Prompt
from proxhpc.spec.refiner_file import RefinerFile, read_refiner
from proxhpc.spec.sections import EMBEDDED, Level

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
# Weights, configuration and tokenizer, but no pickles and no code.
# A text beside refiner.json may be the system prompt.
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt")
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", *CHAT_TEMPLATES),
)
# What decides how a model is loaded and asked. Other files of its directory, such as the state of a
# trainer, may change.
_PINNED_FILES = (
    *("config.json", "generation_config.json", "refiner.json", INDEX),
    *TOKENIZER_FILES,
)
_EMBEDDED_FOLDERS: dict[Level, str] = {"chunk": "embedded", "doc": "embedded/verdicts"}
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length")


def short_name(model: str) -> str:
    """Return a model's name, without folders if it is a path."""
    return PurePath(model).name if model.startswith("/") else model


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A complete model in a local directory.

    `snapshot` names its content: the hub's commit, or `digest`, which is that of the configuration,
    the tokenizer, and headers and samples of the weights. `shape` is None if FLOPs cannot be
    counted. `stop_ids` are the end-of-sequence tokens of its configuration, all below `rows`, those
    of the embedding. `refiner` is its refiner.json.
    """

    name: str
    path: Path
    shape: ModelShape | None
    max_model_len: int
    snapshot: str
    stop_ids: tuple[int, ...] = ()
    refiner: RefinerFile | None = None
    has_chat_template: bool = True
    digest: str = ""
    rows: int | None = None

    @property
    def window(self) -> int:
        """Tokens of the model's sliding window; 0 without one."""
        return self.shape.window if self.shape else 0

    def check_profile(self, prompt: Prompt) -> None:
        """Raise UserError if a stage's profile needs a chat template that the model lacks."""
        needs_template = isinstance(prompt, Profile) and prompt.frame == CHAT_TEMPLATE
        if needs_template and not self.has_chat_template:
            raise UserError(
                f"model {self.name!r} has no chat template, which the stage's profile needs",
                hint="choose another `prompt` for this stage, or add the model's "
                "chat_template.jinja",
            )

    def context_length(self, limit: int | None = None) -> int:
        """Return the context length to use; UserError if `limit` exceeds the model's."""
        if limit is not None and limit > self.max_model_len:
            raise UserError(
                f"engine.max_model_len is {limit}, but {self.name} has {self.max_model_len}",
                hint="lower it, or omit it to use the model's",
            )
        return limit or self.max_model_len

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        refiner = self.refiner.to_dict() if self.refiner else None
        return asdict(self) | {"path": str(self.path), "refiner": refiner}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        shape, refiner = data["shape"], data["refiner"]
        values = {
            "path": Path(data["path"]),
            "shape": ModelShape(**shape) if shape else None,
            "stop_ids": tuple(data["stop_ids"]),
            "refiner": RefinerFile.model_validate(refiner) if refiner else None,
        }
        return cls(**{**data, **values})


def resolve_model(name: str, level: Level = "chunk", *, offline: bool | None = None) -> ModelRef:
    """Return the model in directory `name`, of hub id `org/name[@revision]`, or `embedded`.

    `embedded` is another model for each `level`. A hub model that is not complete in the local
    cache is downloaded, unless `offline` (default: HF_HUB_OFFLINE). UserError says what is wrong
    with the model and what to do.
    """
    if offline is None:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    folder = Path(name).expanduser()
    if name == EMBEDDED:
        folder = Path(__file__).parents[1] / _EMBEDDED_FOLDERS[level]
        if not folder.is_dir():
            raise UserError(
                "this installation of proxhpc has no embedded refiner",
                hint="give a directory with config.json and safetensors, or a hub id org/name; "
                "`engine: {name: rules}` needs no model",
            )
    if folder.is_dir():
        return _inspect(name, folder.resolve())
    match = HUB_ID.fullmatch(name)
    if match is None or name.startswith("."):
        raise UserError(
            f"model {name!r}: no such directory",
            hint="give a directory with config.json and safetensors, or a hub id org/name",
        )
    try:
        return _inspect(name, _snapshot(match, name, local=True))
    except IncompleteModelError as missing:
        if offline:
            raise UserError(
                missing.message, hint=f"on a node with a network: {_download_command(match)}"
            ) from missing
    return _inspect(name, _snapshot(match, name, local=False))


def check_model(ref: ModelRef) -> None:
    """Raise StopError if the model has changed since the run was planned."""
    found = _inspect(ref.name, ref.path)
    if (found.snapshot, found.digest) != (ref.snapshot, ref.digest):
        restore = "restore the model"
        if ref.name == EMBEDDED:  # a part of the package
            restore = "install the version of proxhpc that planned this run"
        raise StopError(
            f"model {ref.name!r} in {ref.path} has changed since this run was planned",
            hint=f"{restore}, or start a new run: --run DIR (or another name)",
        )


def _snapshot(match: re.Match[str], name: str, *, local: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        raise UserError(
            f"model {name!r}: hub models need the package huggingface_hub",
            hint=f"{how_to_install('transformers')}, or name a directory",
        ) from None
    try:
        return Path(
            snapshot_download(
                match["repo"],
                revision=match["revision"],
                local_files_only=local,
                allow_patterns=list(HUB_FILES),
            )
        )
    except LocalEntryNotFoundError as error:
        raise IncompleteModelError(
            f"model {name!r} is not in the local hub cache",
            hint=f"on a node with a network: {_download_command(match)}",
        ) from error
    except Exception as error:  # the hub client's own, its HTTP library's, the disk's
        reason = str(error).strip().splitlines() or [""]
        raise UserError(
            f"model {name!r} cannot be downloaded: {type(error).__name__}: {reason[0]}",
            hint=f"try {_download_command(match)}",
        ) from error


def _download_command(match: re.Match[str]) -> str:
    revision = f" --revision {match['revision']}" if match["revision"] else ""
    include = " ".join(f"--include '{pattern}'" for pattern in HUB_FILES)
    return f"hf download {match['repo']}{revision} {include}"


def _inspect(name: str, path: Path) -> ModelRef:
    _refuse_other_formats(name, path)
    config = read_model_json(name, path / "config.json")
    tokenizer = _optional_json(name, path / "tokenizer_config.json")
    _check_architecture(name, config)
    if tokenizer.get("auto_map"):
        raise UserError(
            f"model {name!r}: tokenizer_config.json requires Python code of the model (auto_map)",
            hint="proxhpc runs no code of a model; add a tokenizer.json and remove auto_map",
        )
    if not any(all((path / file).is_file() for file in files) for files in TOKENIZERS):
        raise IncompleteModelError(
            f"model {name!r}: no tokenizer in {path}",
            hint="it needs tokenizer.json, or tokenizer.model, or vocab.json and merges.txt",
        )
    known = config.get("model_type") in ARCHITECTURES
    shape = ModelShape.from_config(config) if known else None
    context = _context_length(name, config)
    weights = Weights(name, path)
    weights.check(config)
    digest = _digest(path, weights)
    commit = path.name if path.parent.name == "snapshots" else None
    return ModelRef(
        name=name,
        path=path,
        shape=shape,
        max_model_len=context,
        snapshot=commit or digest,
        stop_ids=_stop_ids(name, path, config, tokenizer, weights.rows),
        refiner=read_refiner(path),
        has_chat_template=bool(tokenizer.get("chat_template"))
        or any((path / template).exists() for template in CHAT_TEMPLATES),
        digest=digest,
        rows=weights.rows,
    )


def _optional_json(name: str, file: Path) -> dict[str, Any]:
    return read_model_json(name, file) if file.exists() else {}


def _refuse_other_formats(name: str, path: Path) -> None:
    """Raise UserError for a directory with an adapter, or with GGUF files only."""
    adapter = path / "adapter_config.json"
    if adapter.exists():
        base = _optional_json(name, adapter).get("base_model_name_or_path")
        raise UserError(
            f"model {name!r}: adapter_config.json makes {path} an adapter (LoRA) of {base!r}",
            hint="merge it into that model (merge_and_unload of peft) and save the result; or, if "
            "the directory has a whole model, move the adapter's files away",
        )
    files = sorted(path.glob("*.gguf"))
    if files and not (path / "config.json").exists():
        raise UserError(
            f"model {name!r}: {files[0].name} is a GGUF file, which no engine of proxhpc loads",
            hint="use the model's safetensors: transformers can convert it "
            "(from_pretrained with gguf_file, then save_pretrained)",
        )


def _check_architecture(name: str, config: Mapping[str, Any]) -> None:
    """Raise UserError unless a config.json is that of a text model with a head for tokens."""
    kinds, kind = config.get("architectures"), config.get("model_type")
    architecture = kinds[0] if isinstance(kinds, list) and kinds else None
    what, hint = "", "choose a text model, whose architectures in config.json end in ForCausalLM"
    if "vision_config" in config or "audio_config" in config:
        what = f"{architecture or kind} also reads images or sound"
    elif not isinstance(architecture, str):
        what = "it names no architectures"
        hint = 'add them as they were in training, as "architectures": ["LlamaForCausalLM"]'
    elif not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        what = f"a {architecture} writes no text"
    elif not _is_native(str(kind), architecture):
        what = f"transformers has no {architecture} of model_type {kind!r}"
        hint = "correct config.json, or install a version of transformers that has it"
        if config.get("auto_map"):
            what += ", and code of the model (auto_map) is never run"
    else:
        for key, value, source in _names(config):
            if _is_in_transformers(source, rf'"{re.escape(value)}"\s*:') is False:
                what = f"transformers has no {key} {value!r}"
                hint = "correct config.json, or install a version of transformers that has it"
    if what:
        raise UserError(f"model {name!r}: config.json: {what}", hint=hint)


def _names(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield key and value of names in a config.json, and the source that defines them."""
    for key in ("hidden_act", "hidden_activation", "activation_function"):
        if isinstance(config.get(key), str):
            yield key, config[key], "activations.py"
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if isinstance(rope, dict):  # of all layers, or by their type
        for part in (rope, *(each for each in rope.values() if isinstance(each, dict))):
            kind = part.get("rope_type") or part.get("type")
            if isinstance(kind, str) and kind not in ("default", "mrope", "su"):
                yield "rope_type", kind, "modeling_rope_utils.py"


def _is_native(kind: str, architecture: str) -> bool:
    """Return whether transformers has this architecture, from its source; it is not imported."""
    pair = rf'\(\s*"{re.escape(kind)}",\s*"{re.escape(architecture)}",?\s*\)'
    known = _is_in_transformers("models/auto/modeling_auto.py", pair)
    return kind in ARCHITECTURES if known is None else known


def _is_in_transformers(file: str, pattern: str) -> bool | None:
    """Return whether a source file of transformers has a match; None if that is not installed."""
    spec = find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:  # a site with a container
        return None
    source = Path(spec.submodule_search_locations[0], file)
    return re.search(pattern, source.read_text(encoding="utf-8")) is not None


def _context_length(name: str, config: dict[str, Any]) -> int:
    for key in _CONTEXT_KEYS:
        if type(config.get(key)) is int and config[key] > 0:
            return int(config[key])
    raise UserError(
        f"model {name!r}: config.json has no context length",
        hint=f"one of {', '.join(_CONTEXT_KEYS)} must be a positive whole number",
    )


def _stop_ids(
    name: str, path: Path, config: Mapping[str, Any], tokenizer: Mapping[str, Any], rows: int | None
) -> tuple[int, ...]:
    """Return the end-of-sequence tokens; UserError without any, or for one that cannot be one."""
    generation = _optional_json(name, path / "generation_config.json")
    stop_ids: set[int] = set()
    for file, source in (("config.json", config), ("generation_config.json", generation)):
        ids = source.get("eos_token_id")
        for number in ids if isinstance(ids, list) else [ids]:
            if number is None:
                continue
            if type(number) is not int or number < 0 or (rows is not None and number >= rows):
                raise UserError(
                    f"model {name!r}: eos_token_id in {file} is {number!r}, but the embedding has "
                    f"{rows} rows" + ("" if type(number) is int else "; it must be a whole number"),
                    hint=f"set it to the id of the model's end token, or remove it from {file}",
                )
            stop_ids.add(number)
    special = _optional_json(name, path / "special_tokens_map.json")
    if not stop_ids and not (tokenizer.get("eos_token") or special.get("eos_token")):
        raise UserError(
            f"model {name!r}: config.json has no eos_token_id, and the tokenizer no eos_token",
            hint="set eos_token_id: without an end token, every answer runs to its limit",
        )
    return tuple(sorted(stop_ids))


def _digest(path: Path, weights: Weights) -> str:
    """Return a digest of configuration, tokenizer, and headers and samples of the weights."""
    digest = hashlib.sha256(weights.digest().encode())
    for file in (path / name for name in sorted(_PINNED_FILES)):
        if file.is_file():
            digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    return f"sha256:{digest.hexdigest()[:40]}"

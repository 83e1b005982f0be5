"""Finds a refining model on disk and checks from JSON and file headers that it is complete.

Neither torch nor transformers is imported: a login node resolves models at launch, and workers load
them without a network.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Self

from proxhpc.account.architectures import ARCHITECTURES
from proxhpc.account.flops import ModelShape
from proxhpc.corpus.disk import sha256_file
from proxhpc.errors import StopError, UserError
from proxhpc.extras import how_to_install
from proxhpc.spec.profile import CHAT_TEMPLATE, Profile, Prompt
from proxhpc.spec.refiner_file import RefinerFile, read_refiner
from proxhpc.spec.sections import EMBEDDED

MAX_JSON = 64 * 1024 * 1024  # bytes; the largest real index or header is a few MiB
HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
# Weights, configuration and tokenizer, but no pickles and no code.
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt")
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", *CHAT_TEMPLATES),
)
# What decides how a model is loaded and asked. Other files of its directory, such as the state of a
# trainer, may change.
_PINNED_FILES = (
    *("config.json", "generation_config.json", "refiner.json", "model.safetensors.index.json"),
    *TOKENIZER_FILES,
)
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length")


def short_name(model: str) -> str:
    """Return a model's name, without folders if it is a path."""
    return PurePath(model).name if model.startswith("/") else model


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A complete model in a local directory.

    `snapshot` pins its content: the hub's commit, or a digest of the configuration, the tokenizer
    and the headers of the weights. `shape` is None if FLOPs cannot be counted. `stop_ids` are the
    end-of-sequence tokens of its configuration, `refiner` is its refiner.json.
    """

    name: str
    path: Path
    config_sha: str
    shape: ModelShape | None
    max_model_len: int
    snapshot: str
    stop_ids: tuple[int, ...] = ()
    refiner: RefinerFile | None = None
    has_chat_template: bool = True

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


class _IncompleteError(UserError):
    """Files of the model are missing; a download may provide them."""


def resolve_model(name: str, *, offline: bool | None = None) -> ModelRef:
    """Return the model in directory `name`, of hub id `org/name[@revision]`, or `embedded`.

    A hub model that is not complete in the local cache is downloaded, unless `offline` (default:
    HF_HUB_OFFLINE). UserError says what is wrong with the model and what to do.
    """
    if offline is None:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    folder = Path(name).expanduser()
    if name == EMBEDDED:
        folder = Path(__file__).parents[1] / EMBEDDED
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
    except _IncompleteError as missing:
        if offline:
            raise UserError(
                missing.message,
                hint=f"on a node with a network: {_download_command(match)}",
            ) from missing
    return _inspect(name, _snapshot(match, name, local=False))


def check_model(ref: ModelRef) -> None:
    """Raise StopError if the model has changed since the run was planned."""
    if _inspect(ref.name, ref.path).snapshot != ref.snapshot:
        raise StopError(
            f"model {ref.name!r} in {ref.path} has changed since this run was planned",
            hint="restore the model, or start a new run: --run DIR (or another name)",
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
        raise _IncompleteError(
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
    config = read_model_json(name, path / "config.json")
    _refuse_code(name, config, path / "config.json")
    tokenizer: dict[str, Any] = {}
    if (path / "tokenizer_config.json").exists():
        tokenizer = read_model_json(name, path / "tokenizer_config.json")
        _refuse_code(name, tokenizer, path / "tokenizer_config.json")
    if not any(all((path / file).is_file() for file in files) for files in TOKENIZERS):
        raise _IncompleteError(
            f"model {name!r}: no tokenizer in {path}",
            hint="it needs tokenizer.json, or tokenizer.model, or vocab.json and merges.txt",
        )
    headers = [(file, _check_weights(name, path / file)) for file in _weight_files(name, path)]
    commit = path.name if path.parent.name == "snapshots" else None
    return ModelRef(
        name=name,
        path=path,
        config_sha=sha256_file(path / "config.json"),
        shape=(
            ModelShape.from_config(config) if config.get("model_type") in ARCHITECTURES else None
        ),
        max_model_len=_context_length(name, config),
        snapshot=commit or _fingerprint(path, headers),
        stop_ids=_stop_ids(name, path, config),
        refiner=read_refiner(path),
        has_chat_template=bool(tokenizer.get("chat_template"))
        or any((path / template).exists() for template in CHAT_TEMPLATES),
    )


@contextmanager
def _open(name: str, file: Path) -> Iterator[BinaryIO]:
    """Open a file of a model; UserError if it is missing or cannot be read."""
    try:
        with file.open("rb") as stream:
            yield stream
    except FileNotFoundError:
        raise _IncompleteError(
            f"model {name!r}: {file.name} is missing in {file.parent}",
            hint="is this the directory with config.json, the tokenizer and safetensors?",
        ) from None
    except OSError as error:
        raise UserError(
            f"model {name!r}: cannot read {file}: {error.strerror}",
            hint="workers need read permission on the whole directory",
        ) from error


def read_model_json(name: str, file: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model; UserError if there is none."""
    with _open(name, file) as stream:
        return _parse_object(name, file, stream.read(MAX_JSON + 1))


def _parse_object(name: str, file: Path, raw: bytes) -> dict[str, Any]:
    try:
        data = json.loads(raw) if len(raw) <= MAX_JSON else None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise UserError(
            f"model {name!r}: {file} is not a valid JSON object",
            hint="the file is damaged; copy or download the model again",
        )
    return data


def _refuse_code(name: str, config: dict[str, Any], file: Path) -> None:
    if config.get("auto_map"):
        raise UserError(
            f"model {name!r}: {file.name} requires the model's own Python code (auto_map)",
            hint="proxhpc runs no code of a model; use one that transformers supports itself",
        )


def _weight_files(name: str, path: Path) -> list[str]:
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").exists():
        return ["model.safetensors"]
    if not index.exists():
        pickles = any(path.glob("*.bin"))
        raise _IncompleteError(
            f"model {name!r}: no model.safetensors in {path}",
            hint="pickled weights (*.bin) are never loaded; convert them to safetensors"
            if pickles
            else "copy or download the model's weights",
        )
    weight_map = read_model_json(name, index).get("weight_map")
    files = list(weight_map.values()) if isinstance(weight_map, dict) else []
    # A name with a folder could point outside of the directory.
    if not files or not all(isinstance(f, str) and Path(f).name == f for f in files):
        raise UserError(
            f"model {name!r}: {index} names no weight files of this directory",
            hint="the index is damaged; copy or download the model again",
        )
    return sorted(set(files))


def _check_weights(name: str, file: Path) -> bytes:
    """Return the header of a safetensors file, after checking the file's size against it."""
    with _open(name, file) as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(min(length, MAX_JSON + 1))
    expected = 8 + length + max(_data_ends(_parse_object(name, file, header)), default=0)
    if len(header) != length or size != expected:
        raise UserError(
            f"model {name!r}: {file.name} has {size:,} bytes, its header says {expected:,}",
            hint="the file is truncated or damaged; copy or download it again",
        )
    return header


def _data_ends(header: dict[str, Any]) -> Iterator[int]:
    for tensor in header.values():
        offsets = tensor.get("data_offsets") if isinstance(tensor, dict) else None
        if isinstance(offsets, list) and offsets and isinstance(offsets[-1], int):
            yield offsets[-1]


def _context_length(name: str, config: dict[str, Any]) -> int:
    for key in _CONTEXT_KEYS:
        if type(config.get(key)) is int and config[key] > 0:
            return int(config[key])
    raise UserError(
        f"model {name!r}: config.json has no context length",
        hint=f"one of {', '.join(_CONTEXT_KEYS)} must be a positive whole number",
    )


def _stop_ids(name: str, path: Path, config: dict[str, Any]) -> tuple[int, ...]:
    sources = [config]
    if (path / "generation_config.json").exists():
        sources.append(read_model_json(name, path / "generation_config.json"))
    stop_ids: set[int] = set()
    for source in sources:
        ids = source.get("eos_token_id")
        stop_ids.update(i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int)
    return tuple(sorted(stop_ids))


def _fingerprint(path: Path, headers: list[tuple[str, bytes]]) -> str:
    """Return a digest of configuration, tokenizer and weight headers; weights are not read."""
    digest = hashlib.sha256()
    for file in (path / name for name in sorted(_PINNED_FILES)):
        if file.is_file():
            digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    for file_name, header in headers:
        digest.update(f"{file_name} {hashlib.sha256(header).hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()[:40]}"

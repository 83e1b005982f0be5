"""Weights on disk: headers and samples of safetensors files, checked against a config.json.

The format: eight bytes with the size of a JSON header, the header, and the tensors' bytes.
"""

import hashlib
import json
import os
import re
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from proxhpc.account.architectures import ARCHITECTURES, ModelConfig
from proxhpc.errors import UserError

MAX_JSON = 64 * 1024 * 1024  # bytes; the largest real index or header is a few MiB
SAMPLE_BYTES = 1024  # of each tensor: they show whether it was replaced or has no numbers
_READ_BYTES = 1024 * 1024  # read at a time
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# By type: the array's type code, and the bits that are all set in infinity and NaN.
_EXPONENTS = {
    "F64": ("Q", 0x7FF << 52),
    "F32": ("I", 0xFF << 23),
    "BF16": ("H", 0xFF << 7),
    "F16": ("H", 0x1F << 10),
}
# Bytes of a value; formats of quantized weights have no others.
_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
_COPY_AGAIN = "copy or download the model again"
# Weights that old checkpoints have and no model reads.
_UNUSED = re.compile(r".*\.(inv_freq|attn\.bias|(attn\.|attention\.)?masked_bias|attention\.bias)")
_LAYER = re.compile(r"(?:.*?\.)?(?:layers|h|blocks)\.(\d+)\..*")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


class IncompleteModelError(UserError):
    """Files of the model are missing; a download may provide them."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor: its file, type and shape, and where its bytes are in the file."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@contextmanager
def open_model_file(name: str, file: Path) -> Iterator[BinaryIO]:
    """Open a file of a model; UserError if it is missing or cannot be read."""
    try:
        with file.open("rb") as stream:
            yield stream
    except FileNotFoundError:
        hint = "is this the directory with config.json, the tokenizer and safetensors?"
        if snapshots := sorted(file.parent.glob("snapshots/*")):
            hint = f"this is a folder of the hub's cache: name {snapshots[-1]}"
        raise IncompleteModelError(
            f"model {name!r}: {file.name} is missing in {file.parent}", hint=hint
        ) from None
    except OSError as error:
        raise UserError(
            f"model {name!r}: cannot read {file}: {error.strerror}",
            hint="workers need read permission on the whole directory",
        ) from error


def read_model_json(name: str, file: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model; UserError if there is none."""
    with open_model_file(name, file) as stream:
        return _parse_object(name, file, stream.read(MAX_JSON + 1))


def _parse_object(name: str, file: Path, raw: bytes) -> dict[str, Any]:
    try:
        data = json.loads(raw) if len(raw) <= MAX_JSON else None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise UserError(
            f"model {name!r}: {file} is not a valid JSON object",
            hint=f"the file is damaged; {_COPY_AGAIN}",
        )
    return data


class Weights:
    """The weights of model `name` in `path`. UserError if they are damaged or not all there."""

    def __init__(self, name: str, path: Path) -> None:
        self._name, self._path = name, path
        self.files = self._find_files()
        self.source = WEIGHTS if self.files == [WEIGHTS] else INDEX
        self._headers: dict[str, str] = {}
        self.tensors: dict[str, Tensor] = {}
        for file in self.files:
            tensors = self._read_header(file)
            if twice := next((tensor for tensor in tensors if tensor in self.tensors), None):
                raise self._error(
                    f"{twice} is in {self.tensors[twice].file} and in {file}",
                    "files of two models are mixed: copy or download the model to a new directory",
                )
            self.tensors |= tensors

    def _error(self, what: str, hint: str) -> UserError:
        return UserError(f"model {self._name!r}: {what}", hint=hint)

    def _find_files(self) -> list[str]:
        name, index = self._name, self._path / INDEX
        single = (self._path / WEIGHTS).exists()
        if not index.exists():
            if not single:
                pickles = any(self._path.glob("*.bin"))
                raise IncompleteModelError(
                    f"model {name!r}: no {WEIGHTS} in {self._path}",
                    hint="pickled weights (*.bin) are never loaded; convert them to safetensors"
                    if pickles
                    else "copy or download the model's weights",
                )
            # vLLM loads every file; transformers this one.
            others = sorted({file.name for file in self._path.glob("*.safetensors")} - {WEIGHTS})
            if others:
                raise self._error(
                    f"{others[0]} is beside {WEIGHTS}, and no index names it",
                    "move it to another directory: vLLM would load both",
                )
            return [WEIGHTS]
        weight_map = read_model_json(name, index).get("weight_map")
        files = list(weight_map.values()) if isinstance(weight_map, dict) else []
        # A name with a folder could point outside of the directory.
        if not files or not all(isinstance(f, str) and Path(f).name == f for f in files):
            raise self._error(
                f"{index} names no weight files of this directory",
                f"the index is damaged; {_COPY_AGAIN}",
            )
        names = sorted(set(files))
        if single and names != [WEIGHTS]:
            raise self._error(
                f"{self._path} has {WEIGHTS} and {INDEX}, which names other files",
                "keep one of the two: engines differ in which they load",
            )
        return names

    def _read_header(self, file: str) -> dict[str, Tensor]:
        path = self._path / file
        with open_model_file(self._name, path) as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            raw = stream.read(min(length, MAX_JSON + 1))
        header = _parse_object(self._name, path, raw)
        header.pop("__metadata__", None)
        self._headers[file] = hashlib.sha256(raw).hexdigest()
        start = 8 + length
        try:
            tensors = {name: _tensor(file, start, value) for name, value in header.items()}
        except (KeyError, TypeError, ValueError):
            raise self._error(f"the header of {file} is damaged", _COPY_AGAIN) from None
        expected = max((tensor.stop for tensor in tensors.values()), default=start)
        if len(raw) != length or size != expected:
            raise self._error(
                f"{file} has {size:,} bytes, its header says {expected:,}",
                "the file is truncated or damaged; copy or download it again",
            )
        spans = sorted((tensor.start, tensor.stop) for tensor in tensors.values())
        if any(left[1] != right[0] for left, right in pairwise([(0, start), *spans])):
            raise self._error(f"the tensors of {file} overlap or leave gaps", _COPY_AGAIN)
        return tensors

    @cached_property
    def rows(self) -> int | None:
        """Rows of the embedding: ids from here on have none. None if that is unknown."""
        found = (t.shape[0] for n, t in self.tensors.items() if n.endswith(_EMBEDDINGS) and t.shape)
        return next(found, None)

    def check(self, config: Mapping[str, Any]) -> None:
        """Raise UserError unless the weights are those that a config.json asks for."""
        if "quantization_config" in config:
            types = {tensor.dtype for tensor in self.tensors.values()}
            if types <= _EXPONENTS.keys():
                raise self._error(
                    f"config.json has a quantization_config, but {self.source} has no quantized "
                    f"weights ({', '.join(sorted(types))})",
                    "remove quantization_config, or quantize the weights",
                )
        else:
            self._check_types()
            if config.get("model_type") in ARCHITECTURES:
                self._compare(ModelConfig(config))
        vocab = config.get("vocab_size")
        if self.rows is not None and type(vocab) is int and vocab != self.rows:
            raise self._error(
                f"the embedding in {self.source} has {self.rows:,} rows, vocab_size in config.json "
                f"is {vocab:,}",
                "config.json belongs to other weights: copy both from one model",
            )
        layers = config.get("num_hidden_layers")
        matches = map(_LAYER.fullmatch, self.tensors)
        numbers = {int(match[1]) for match in matches if match}
        missing = sorted(set(range(layers)) - numbers) if type(layers) is int and numbers else []
        if missing:
            raise self._error(f"{self.source} has no weights of layer {missing[0]}", _COPY_AGAIN)

    def _check_types(self) -> None:
        """Raise UserError for weights whose values need a scale, or have an unknown type."""
        for name, tensor in self.tensors.items():
            is_weight = name.endswith("weight") and not _UNUSED.fullmatch(name)
            if is_weight and tensor.dtype not in _EXPONENTS:
                raise self._error(
                    f"{name} in {tensor.file} has type {tensor.dtype}, and config.json no "
                    "quantization_config",
                    "copy config.json from the same model, or save the weights as BF16",
                )

    def _compare(self, config: ModelConfig) -> None:
        expected = dict(config.weights())
        shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        if config.type == "gpt2" and "wte.weight" in shapes:  # as OpenAI's own
            shapes = {f"transformer.{name}": shape for name, shape in shapes.items()}
        missing = [name for name in expected if name not in shapes]
        extra = [name for name in shapes if name not in expected and not _UNUSED.fullmatch(name)]
        if config.tied:
            extra = [name for name in extra if name != config.head]
        if missing:
            count = f"{len(missing):,} of {len(expected):,} weights" if missing[1:] else "a weight"
            raise self._error(
                f"{self.source} lacks {count} of a {config.type}: {missing[0]}",
                _why_missing(missing, extra, config.head),
            )
        for name, shape in expected.items():
            if shapes[name] != shape:
                raise self._error(
                    f"{name} in {self.tensors.get(name, next(iter(self.tensors.values()))).file} "
                    f"has shape {list(shapes[name])}, config.json asks for {list(shape)}",
                    "config.json belongs to other weights: copy both from one model",
                )
        if extra:
            raise self._error(
                f"{self.source} has {extra[0]}, which a {config.type} of config.json does not have",
                "it would be left out: correct config.json, or copy both from one model",
            )

    def digest(self) -> str:
        """Return a digest of headers and samples.

        UserError for a sample without numbers, and for a layer, embedding or head of zeros.
        """
        zeros: dict[str, bool] = {}  # by matrix or layer; a layer without norms is no model's
        digest = hashlib.sha256(json.dumps(self._headers, sort_keys=True).encode())
        for file in self.files:
            tensors = [(n, t) for n, t in self.tensors.items() if t.file == file]
            with open_model_file(self._name, self._path / file) as stream:
                for name, tensor in sorted(tensors, key=lambda item: item[1].start):
                    sample = _sample(stream, tensor)
                    digest.update(sample)
                    if not _all_finite(sample, tensor.dtype):
                        raise self._error(
                            f"{name} in {file} has values that are no finite numbers",
                            "its training has diverged, or the file is damaged: take an earlier "
                            "checkpoint",
                        )
                    layer = _LAYER.fullmatch(name)
                    part = f"layer {layer[1]}" if layer else name
                    if zeros.get(part, bool(layer) or len(tensor.shape) > 1):
                        zeros[part] = not any(sample) and _is_zeros(stream, tensor)
        if empty := [part for part, is_empty in zeros.items() if is_empty]:
            raise self._error(
                f"{empty[0]} in {self.source} has only zeros",
                f"its download was interrupted, or a disk was full: {_COPY_AGAIN}",
            )
        return digest.hexdigest()


def _tensor(file: str, base: int, value: Mapping[str, Any]) -> Tensor:
    start, stop = map(int, value["data_offsets"])
    if not 0 <= start <= stop:
        raise ValueError(f"offsets {start}, {stop}")
    dtype, shape = str(value["dtype"]), tuple(value["shape"])
    if dtype in _SIZES and stop - start != prod(shape) * _SIZES[dtype]:
        raise ValueError(f"{stop - start} bytes of shape {shape}")
    return Tensor(file, dtype, shape, base + start, base + stop)


def _sample(stream: BinaryIO, tensor: Tensor) -> bytes:
    """Return some bytes from the middle of a tensor."""
    middle = (tensor.stop - tensor.start - SAMPLE_BYTES) // 2 // 8 * 8
    stream.seek(tensor.start + max(0, middle))
    return stream.read(min(SAMPLE_BYTES, tensor.stop - tensor.start))


def _is_zeros(stream: BinaryIO, tensor: Tensor) -> bool:
    """Return whether all bytes of a tensor are zeros; reads up to the first one that is not."""
    stream.seek(tensor.start)
    chunks = range(tensor.start, tensor.stop, _READ_BYTES)
    return all(
        not stream.read(min(_READ_BYTES, tensor.stop - start)).lstrip(b"\0") for start in chunks
    )


def _all_finite(sample: bytes, dtype: str) -> bool:
    if dtype not in _EXPONENTS:
        return True
    code, mask = _EXPONENTS[dtype]
    values = array(code, sample[: len(sample) // 8 * 8])
    return all(value & mask != mask for value in values)


def _why_missing(missing: list[str], extra: list[str], head: str) -> str:
    first = missing[0]
    for name in extra:
        if name.endswith(f".{first}"):
            prefix = name.removesuffix(first)
            return f"the names begin with {prefix!r}: save the model that the wrapper holds"
        if first.endswith(f".{name}"):
            return "it was saved without its head (AutoModel): save an AutoModelForCausalLM"
    if missing == [head]:
        return "save the whole model; if head and embedding are the same, set tie_word_embeddings"
    return _COPY_AGAIN

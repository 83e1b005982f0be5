"""A small Llama on a CPU that reads prompts packed into one row of tokens, without padding.

Beside the matrix products there is little work: weights of norms are part of the next matrix, the
first layer's projections are looked up by token, and the last layer and the vocabulary are computed
only where an answer is read off.
"""

import json
import math
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Self

from proxhpc.engines.packed_kernels import KEYS, TILE, Cache, Heads, RowSpan, align, make_kernels

PASS = 64  # rows of a pass come in multiples: oneDNN compiles a kernel for every new shape
MAX_VOCAB = 16_384  # the first layer's table has a row for each token
MAX_POSITIONS = 32_768  # of the table of rotations
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "max_position_embeddings"),
)
_FIXED = {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_scaling": None,
    "quantization_config": None,
}


class Layer(NamedTuple):
    """Weights of a layer; query, key and value are one matrix, as are gate and up."""

    qkv: Any
    out: Any
    gate_up: Any
    down: Any


class PackedLlama:
    """The weights, and one pass over packed rows."""

    @classmethod
    def load(cls, folder: Path, dtype: Any = None) -> Self | None:
        """Load a model; None if it is not a small Llama of the plain kind.

        Without a precision, it is read in the one that is fastest on this processor.
        """
        config = json.loads((folder / "config.json").read_text())
        file = folder / "model.safetensors"
        if not _is_plain(config) or not file.exists():
            return None
        from safetensors.torch import load_file

        weights = load_file(file)
        if {name: tuple(weight.shape) for name, weight in weights.items()} != _shapes(config):
            return None
        return cls(config, weights, dtype)

    def __init__(self, config: dict[str, Any], weights: dict[str, Any], dtype: Any) -> None:
        """Prepare the weights: norms and the scale of scores are multiplied into matrices."""
        import torch

        self.device = torch.device("cpu")
        self._eps, self._hidden = config.get("rms_norm_eps", 1e-6), config["hidden_size"]
        self._size = _head_dim(config)
        self._inner = config["num_attention_heads"] * self._size
        positions = torch.arange(config["max_position_embeddings"]).float()
        steps = torch.arange(0, self._size, 2).float() / self._size
        angles = torch.outer(positions, _theta(config) ** -steps)
        heads = Heads(config["num_attention_heads"], self._size, angles)
        sizes = self._hidden, config["intermediate_size"]
        self._kernels = make_kernels(heads, sizes, dtype)
        weights = {name: weight.float() for name, weight in weights.items()}
        self._layers = [
            self._layer(weights, f"model.layers.{n}.") for n in range(config["num_hidden_layers"])
        ]
        embed = weights["model.embed_tokens.weight"]
        head = embed if config.get("tie_word_embeddings", False) else weights["lm_head.weight"]
        # Rows come in multiples of PASS.
        embed = torch.nn.functional.pad(embed, (0, 0, 0, -len(embed) % PASS))
        self._embed = embed.to(self._kernels.dtype)
        self.head = (head * weights["model.norm.weight"]).to(self._kernels.dtype)
        first = self._kernels.project(self._embed, self._eps, self._layers[0].qkv)
        self._first_qkv = first.clone()

    def _layer(self, weights: dict[str, Any], prefix: str) -> Layer:
        import torch

        def weight(name: str) -> Any:
            return weights[f"{prefix}{name}.weight"]

        def interleave(matrix: Any) -> Any:
            """Put the two numbers that are rotated together side by side, in each head."""
            heads = matrix.view(-1, 2, self._size // 2, self._hidden)
            return heads.transpose(1, 2).reshape(matrix.shape)

        query = interleave(weight("self_attn.q_proj")) / math.sqrt(self._size)
        key, value = interleave(weight("self_attn.k_proj")), weight("self_attn.v_proj")
        matrix, after = self._kernels.matrix, weight("post_attention_layernorm")
        gate_up = (weight(f"mlp.{name}_proj") * after for name in ("gate", "up"))
        return Layer(
            matrix(torch.cat([query, key, value]) * weight("input_layernorm")),
            matrix(weight("self_attn.o_proj")),
            self._kernels.gate_up(*gate_up),
            matrix(weight("mlp.down_proj")),
        )

    def new_caches(self, slots: int) -> list[Cache]:
        """A cache for each layer."""
        return [self._kernels.new_cache(n, slots) for n in range(len(self._layers))]

    def read(self, rows: "_Rows", answers: "_Rows", caches: Sequence[Cache]) -> Any:
        """Final states, normed, of those of `rows` whose numbers are the values of `answers`."""
        kernels, eps = self._kernels, self._eps
        ids, positions, slots = rows.tensors()
        x, inner = kernels.rows(self._embed, ids, "x"), self._inner
        queried, spans = positions, rows.spans
        for n, (layer, cache) in enumerate(zip(self._layers, caches, strict=True)):
            if n:
                qkv = kernels.project(x, eps, layer.qkv)
            else:
                qkv = kernels.rows(self._first_qkv, ids, "projected")
            kernels.put(cache, qkv[:, inner:], positions, slots)
            queries = qkv[:, :inner]
            if layer is self._layers[-1]:
                chosen, queried, _ = answers.tensors()
                x, queries, spans = x[chosen], queries[chosen], answers.spans
            x = kernels.add(x, kernels.attend(queries, queried, cache, spans), layer.out)
            x = kernels.feed(x, eps, layer.gate_up, layer.down)
        return kernels.norm(x, eps)


class PackedReader:
    """Passes over the drafts of some prompts.

    A sequence is a prompt and a draft without its last token.
    """

    def __init__(
        self, model: PackedLlama, prompts: Sequence[Sequence[int]], sizes: Sequence[int]
    ) -> None:
        self._model = model
        self._prompts = [list(prompt) for prompt in prompts]
        lengths = [len(prompt) + n - 1 for prompt, n in zip(prompts, sizes, strict=True)]
        slots = list(accumulate((align(n, KEYS) for n in lengths), initial=0))
        self._places = [(slot, align(n, KEYS)) for slot, n in zip(slots, lengths, strict=False)]
        self._unused = slots[-1]
        self._caches = model.new_caches(self._unused + KEYS)

    def read(self, drafts: Any, settled: int) -> tuple[Any, Any]:
        """Logits of what each draft allows from token `settled` on, and all logits of the first.

        `drafts` has `tokens` [drafts, width], the `sizes` of the drafts, and the ids `allowed`
        [drafts, width, choices].
        """
        import torch

        rows, answers = _Rows(self._unused), _Rows(self._unused)
        for prompt, ids, size, place in zip(
            self._prompts, drafts.tokens.tolist(), drafts.sizes, self._places, strict=True
        ):
            start = len(prompt) + settled - 1  # reads the last token before the open ones
            first = start if settled else 0
            sequence = (prompt + ids[: size - 1])[first:]
            row = len(rows.values)
            answers.add(range(row + start - first, row + len(sequence)), start, place)
            rows.add(sequence, first, place)
        states = self._model.read(rows, answers, self._caches)
        starts = torch.tensor([span.row for span in answers.spans])
        at = starts[:, None] + torch.arange(drafts.tokens.shape[1] - settled)
        states = states[at.clamp(max=len(states) - 1)].float()
        head = self._model.head
        allowed = head[drafts.allowed[:, settled:]].float()
        values = (allowed @ states[..., None])[..., 0]
        return values, states[:, 0] @ head.float().t() if not settled else None

    def select(self, indices: list[int]) -> None:
        """Go on with some of the drafts only."""
        self._prompts = [self._prompts[n] for n in indices]
        self._places = [self._places[n] for n in indices]


class _Rows:
    """Rows of a pass: ids, or numbers of other rows, with their positions, slots and spans.

    Each span is padded to a multiple of TILE rows and the pass to one of PASS, with the slot
    `unused`.
    """

    def __init__(self, unused: int) -> None:
        self.values: list[int] = []
        self.positions: list[int] = []
        self.slots: list[int] = []
        self.spans: list[RowSpan] = []
        self._unused = unused

    def add(self, values: Sequence[int], position: int, place: tuple[int, int]) -> None:
        """Add the rows of one sequence from a position on."""
        rows = align(len(values), TILE)
        self.spans.append(RowSpan(len(self.values), rows, position, *place))
        first = place[0] + position
        self.values += values
        self.positions += range(position, position + len(values))
        self.slots += range(first, first + len(values))
        self._pad(rows - len(values))

    def tensors(self) -> tuple[Any, Any, Any]:
        """Values, positions and slots."""
        import torch

        self._pad(-len(self.values) % PASS)
        return torch.tensor(self.values), torch.tensor(self.positions), torch.tensor(self.slots)

    def _pad(self, rows: int) -> None:
        self.values += [0] * rows
        self.positions += [0] * rows
        self.slots += [self._unused] * rows


def _is_plain(config: dict[str, Any]) -> bool:
    """Return True if the configuration is one that this file computes."""
    rope = config.get("rope_parameters") or {}
    return (
        all(config.get(key, value) == value for key, value in _FIXED.items())
        and all(isinstance(config.get(key), int) for key in _SIZES)
        and config["max_position_embeddings"] <= MAX_POSITIONS
        and rope.get("rope_type", "default") == "default"
        and config.get("num_key_value_heads") in (None, config["num_attention_heads"])
        and config["vocab_size"] <= MAX_VOCAB
    )


def _head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _theta(config: dict[str, Any]) -> float:
    rope = config.get("rope_parameters") or {}
    return float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor that the weights must hold."""
    hidden, vocab, ff = config["hidden_size"], config["vocab_size"], config["intermediate_size"]
    inner = config["num_attention_heads"] * _head_dim(config)
    layer = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        **{f"self_attn.{name}_proj": (inner, hidden) for name in "qkv"},
        "self_attn.o_proj": (hidden, inner),
        "mlp.gate_proj": (ff, hidden),
        "mlp.up_proj": (ff, hidden),
        "mlp.down_proj": (hidden, ff),
    }
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.{n}.{name}.weight": shape
        for n in range(config["num_hidden_layers"])
        for name, shape in layer.items()
    }
    shapes |= {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes

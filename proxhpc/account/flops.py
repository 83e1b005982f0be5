"""FLOPs as pure functions of a model's shape and integer token sums.

One multiply-add counts as two FLOPs. Matrix products count, and so do attention scores and weighted
sums over the keys that each query attends to. Norms, activations, softmax, rotary embedding,
sampling and padding do not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from math import ceil
from operator import add, attrgetter
from typing import Any, NamedTuple, Self

from proxhpc.errors import UserError

# Dense decoders with four attention projections and a gated MLP of three matrices.
GATED_DECODERS = frozenset(
    {"granite", "llama", "mistral", "olmo", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"}
)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a dense decoder with gated MLPs that determine its FLOPs."""

    hidden: int
    layers: int
    heads: int
    head_dim: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the shape in a Hugging Face `config.json`; UserError for other architectures."""
        model_type = config.get("model_type")
        if model_type not in GATED_DECODERS:
            raise UserError(
                f"cannot count the FLOPs of a model of type {model_type!r}",
                hint=f"supported types are {', '.join(sorted(GATED_DECODERS))}",
            )
        hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
        return cls(
            hidden=hidden,
            layers=_size(config, "num_hidden_layers"),
            heads=heads,
            head_dim=_size(config, "head_dim", hidden // heads),
            kv_heads=_size(config, "num_key_value_heads", heads),
            intermediate=_size(config, "intermediate_size"),
            vocab=_size(config, "vocab_size"),
            tied=config.get("tie_word_embeddings") is True,
        )

    @property
    def body_parameters(self) -> int:
        """Weights in the matrix products of all layers, without embedding, head and norms."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        """All weights: body, embedding, head unless tied, two norms per layer and the last norm.

        Biases and per-head norms (below 0.1 %) are not included.
        """
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.body_parameters + embeddings + (2 * self.layers + 1) * self.hidden

    @property
    def paper_parameters(self) -> int:
        """N in the ProX paper's FLOPs: all weights except the input embedding."""
        return self.parameters - self.vocab * self.hidden


class ModelWork(NamedTuple):
    """The work of a model on one request, without padding.

    `fed` tokens passed through the layers, with `attended` (query, key) pairs. The head ran on
    `logits` of them.
    """

    fed: int
    attended: int
    logits: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Integer sums over requests, from which the FLOPs of any model shape can be computed.

    Of `prompt_tokens`, `cached_tokens` came from a prefix cache; `new_tokens` were sampled. `fed`
    tokens passed through the layers and the head ran on `logits` of them. `attended` counts the
    (query, key) pairs of full causal attention; `attended_decoding` are those whose query is not a
    prompt token. `attended_cached` are the pairs that the prefix cache saved.
    """

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    fed: int = 0
    new_tokens: int = 0
    attended: int = 0
    attended_decoding: int = 0
    attended_cached: int = 0
    logits: int = 0

    @classmethod
    def of_request(cls, n: int, c: int, m: int, work: ModelWork | None = None) -> Self:
        """Return the usage of one request: n prompt tokens, c of them cached, and m sampled.

        Without `work`, each sampled token takes one pass and the last one is not fed. Token p (from
        0) attends to p + 1 keys.
        """
        if not (0 <= c <= n and m >= 0):
            raise ValueError(f"impossible token counts: prompt {n}, cached {c}, new {m}")
        cached = causal_pairs(c)
        if work is None:
            end = n + max(m - 1, 0)
            work = ModelWork(end - c, causal_pairs(end) - cached, m)
        decoding = work.attended - (causal_pairs(n) - cached)
        return cls(1, n, c, work.fed, m, work.attended, decoding, cached, work.logits)

    @property
    def prefilled(self) -> int:
        """Prompt tokens that passed through the layers."""
        return self.prompt_tokens - self.cached_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*map(add, _sums(self), _sums(other)))

    def excess_over(self, other: "Usage") -> "Usage":
        """Return the amount by which each sum is above that of `other`, at least zero."""
        pairs = zip(_sums(self), _sums(other), strict=True)
        return Usage(*(max(0, mine - others) for mine, others in pairs))


_sums = attrgetter(*(f.name for f in fields(Usage)))


def causal_pairs(tokens: int) -> int:
    """Return the number of (query, key) pairs in causal attention over `tokens` tokens."""
    return tokens * (tokens + 1) // 2


def flops(shape: ModelShape, usage: Usage) -> int:
    """Return the exact FLOPs of inference: layers, head and attention.

    2·body·fed + 2·hidden·vocab·logits + 4·layers·heads·head_dim·attended.
    """
    return prefill_flops(shape, usage) + decode_flops(shape, usage)


def prefill_flops(shape: ModelShape, usage: Usage) -> int:
    """Return the part of `flops` for reading prompts."""
    return _layers(shape, usage.prefilled, usage.attended - usage.attended_decoding)


def decode_flops(shape: ModelShape, usage: Usage) -> int:
    """Return the part of `flops` for generating: all runs of the head, and the layers' work."""
    head = 2 * shape.hidden * shape.vocab * usage.logits
    return _layers(shape, usage.fed - usage.prefilled, usage.attended_decoding) + head


def cached_flops(shape: ModelShape, usage: Usage) -> int:
    """Return the FLOPs that the prefix cache saved, which are not part of `flops`."""
    return _layers(shape, usage.cached_tokens, usage.attended_cached)


def _layers(shape: ModelShape, fed: int, attended: int) -> int:
    attention = 4 * shape.layers * shape.heads * shape.head_dim * attended
    return 2 * shape.body_parameters * fed + attention


def paper_flops(shape: ModelShape, tokens: int) -> int:
    """Return the ProX paper's estimate of inference, 2·N·D, with N without the input embedding.

    D is the sum of the tokens that each stage reads: all raw tokens in the doc stage, those of the
    kept documents in the chunk stage. Prompts, decoding and attention are not included.
    """
    return 2 * shape.paper_parameters * tokens


def training_flops(parameters: int, tokens: int) -> int:
    """Return the usual estimate of training, 6·N·D for forward and backward passes."""
    return 6 * parameters * tokens


def affordable_tokens(flops: int, parameters: int) -> int:
    """Return the training tokens of a model of `parameters` that cost `flops`, rounded down."""
    return flops // (6 * parameters)


def break_even_parameters(flops: int, raw_tokens: int, refined_tokens: int) -> int | None:
    """Return the model size from which refining and training on the result costs less.

    It is the smallest N with 6·N·raw ≥ flops + 6·N·refined for one epoch, or None if the refined
    corpus is not smaller. It does not consider the quality of the trained model.
    """
    saved = raw_tokens - refined_tokens
    return ceil(Fraction(flops, 6 * saved)) if saved > 0 else None


def sum_or_none(numbers: Sequence[int | None]) -> int | None:
    """Return the sum, or None if one of the numbers is None."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if type(value) is not int or value <= 0:
        raise UserError(
            f"config.json: {key} is {value!r}, not a positive whole number",
            hint="the directory does not contain a usable model",
        )
    return value

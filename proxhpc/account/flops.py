"""FLOPs as pure functions of a model's shape and integer token sums.

One multiply-add counts as two FLOPs. Matrix products count, and so do attention scores and weighted
sums over the keys that each query attends to. Norms, activations, softmax, rotary embedding,
sampling and padding do not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from math import ceil, prod
from operator import add, attrgetter
from typing import Any, NamedTuple, Self

from proxhpc.account.architectures import ModelConfig


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model that determine its FLOPs.

    Each token is multiplied by the `active` weights in the layers: all but embedding, head, norms,
    biases, and the experts that it is not routed to. `parameters` are all weights. Of the layers,
    `window_layers` attend to the last `window` tokens only.
    """

    hidden: int
    layers: int
    heads: int
    head_dim: int
    vocab: int
    active: int
    parameters: int
    window: int = 0
    window_layers: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the shape in a Hugging Face `config.json`; UserError for other architectures."""
        model = ModelConfig(config)
        parameters = sum(prod(shape) for _, shape in model.weights())
        sizes = model.hidden, model.layers, model.heads, model.head_dim, model.vocab
        return cls(*sizes, model.active_weights(), parameters, *model.sliding_window())

    @property
    def paper_parameters(self) -> int:
        """N in the ProX paper's FLOPs: all weights except the input embedding."""
        return self.parameters - self.vocab * self.hidden


class ModelWork(NamedTuple):
    """The work of a model on one request, without padding.

    `fed` tokens passed through the layers, with `attended` (query, key) pairs. The head ran on
    `logits` of them. A sliding window of `window` tokens leaves out `masked` of the pairs.
    """

    fed: int
    attended: int
    logits: int
    masked: int = 0
    window: int = 0

    @classmethod
    def of_passes(cls, n: int, c: int, m: int, window: int = 0) -> Self:
        """Return the work of a pass over n prompt tokens, c of them cached, and m - 1 new ones."""
        end = n + max(m - 1, 0)
        masked = _masked_pairs(end, window) - _masked_pairs(c, window)
        return cls(end - c, causal_pairs(end) - causal_pairs(c), m, masked, window)


@dataclass(frozen=True, slots=True)
class Usage:
    """Integer sums over requests, from which the FLOPs of any model shape can be computed.

    Of `prompt_tokens`, `cached_tokens` came from a prefix cache; `new_tokens` were sampled. `fed`
    tokens passed through the layers and the head ran on `logits` of them. `attended` counts the
    (query, key) pairs of full causal attention; `attended_decoding` are those whose query is not a
    prompt token. `attended_cached` are the pairs that the prefix cache saved. The sums with
    `masked` count those pairs of each that a sliding window leaves out.
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
    masked: int = 0
    masked_decoding: int = 0
    masked_cached: int = 0

    @classmethod
    def of_request(cls, n: int, c: int, m: int, work: ModelWork | None = None) -> Self:
        """Return the usage of one request: n prompt tokens, c of them cached, and m sampled.

        Without `work`, each sampled token takes one pass and the last one is not fed. Token p (from
        0) attends to p + 1 keys.
        """
        if not (0 <= c <= n and m >= 0):
            raise ValueError(f"impossible token counts: prompt {n}, cached {c}, new {m}")
        work = work or ModelWork.of_passes(n, c, m)
        cached, masked_cached = causal_pairs(c), _masked_pairs(c, work.window)
        decoding = work.attended - (causal_pairs(n) - cached)
        masked_decoding = work.masked - (_masked_pairs(n, work.window) - masked_cached)
        pairs = work.attended, decoding, cached, work.logits
        return cls(1, n, c, work.fed, m, *pairs, work.masked, masked_decoding, masked_cached)

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


def _masked_pairs(tokens: int, window: int) -> int:
    """Return how many of these pairs are outside of a sliding window; 0 is none."""
    return causal_pairs(max(0, tokens - window)) if window else 0


def flops(shape: ModelShape, usage: Usage) -> int:
    """Return the exact FLOPs of inference: layers, head and attention.

    2·active·fed + 2·hidden·vocab·logits + 4·heads·head_dim·pairs, where pairs are
    layers·attended − window_layers·masked.
    """
    return prefill_flops(shape, usage) + decode_flops(shape, usage)


def prefill_flops(shape: ModelShape, usage: Usage) -> int:
    """Return the part of `flops` for reading prompts."""
    attended = usage.attended - usage.attended_decoding
    return _layers(shape, usage.prefilled, attended, usage.masked - usage.masked_decoding)


def decode_flops(shape: ModelShape, usage: Usage) -> int:
    """Return the part of `flops` for generating: all runs of the head, and the layers' work."""
    head = 2 * shape.hidden * shape.vocab * usage.logits
    fed = usage.fed - usage.prefilled
    return _layers(shape, fed, usage.attended_decoding, usage.masked_decoding) + head


def cached_flops(shape: ModelShape, usage: Usage) -> int:
    """Return the FLOPs that the prefix cache saved, which are not part of `flops`."""
    return _layers(shape, usage.cached_tokens, usage.attended_cached, usage.masked_cached)


def _layers(shape: ModelShape, fed: int, attended: int, masked: int = 0) -> int:
    pairs = shape.layers * attended - shape.window_layers * masked
    return 2 * shape.active * fed + 4 * shape.heads * shape.head_dim * pairs


def paper_flops(shape: ModelShape, tokens: int) -> int:
    """Return the ProX paper's estimate of inference, 2·N·D, with N without the input embedding.

    D is the sum of the tokens that each stage reads: all raw tokens in the doc stage, those of the
    kept documents in the chunk stage. Prompts, decoding and attention are not included.
    """
    return 2 * shape.paper_parameters * tokens


def training_flops(parameters: int, tokens: int) -> int:
    """Return the usual estimate of training, 6·N·D for forward and backward passes."""
    return 6 * parameters * tokens


def pretraining_flops(shape: ModelShape, sequences: int, length: int) -> int:
    """Return the exact FLOPs of training on packed sequences: three forward passes.

    The backward pass costs two, and every token attends to those before it in its sequence.
    Forward passes that gradient checkpointing repeats are not included.
    """
    tokens = sequences * length
    masked = sequences * _masked_pairs(length, shape.window)
    layers = _layers(shape, tokens, sequences * causal_pairs(length), masked)
    return 3 * (layers + 2 * shape.hidden * shape.vocab * tokens)


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

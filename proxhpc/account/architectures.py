"""The weights of model architectures, derived from a config.json.

The dimensions of a weight are letters: H hidden size, V vocabulary, P positions, A width of all
query heads, K width of all key heads, D width of a head, Q = A + 2K, I width of the MLP, J = 2I,
T = 3H, E experts, M width of an expert, S width of the shared expert, 1.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from proxhpc.errors import UserError

Dimensions = tuple[int, ...]
_EXPERTS = ".experts."


def _weights(text: str) -> dict[str, str]:
    """Read `name:dimensions`, separated by blanks; the names of weights lack their suffix."""
    pairs = (word.split(":") for word in text.split())
    return {name if name.endswith(".bias") else f"{name}.weight": dims for name, dims in pairs}


_ATTENTION = _weights(
    "self_attn.q_proj:AH self_attn.k_proj:KH self_attn.v_proj:KH self_attn.o_proj:HA"
)
_BIASES = _weights("self_attn.q_proj.bias:A self_attn.k_proj.bias:K self_attn.v_proj.bias:K")
_MLP = _weights("mlp.gate_proj:IH mlp.up_proj:IH mlp.down_proj:HI")
_NORMS = _weights("input_layernorm:H post_attention_layernorm:H")
_MORE_NORMS = _weights("pre_feedforward_layernorm:H post_feedforward_layernorm:H")
_HEAD_NORMS = _weights("self_attn.q_norm:D self_attn.k_norm:D")
_QWEN_EXPERTS = _weights(
    "mlp.gate:EH mlp.experts.*.gate_proj:MH mlp.experts.*.up_proj:MH mlp.experts.*.down_proj:HM"
)
_SHARED_EXPERT = _weights(
    "mlp.shared_expert.gate_proj:SH mlp.shared_expert.up_proj:SH mlp.shared_expert.down_proj:HS "
    "mlp.shared_expert_gate:1H"
)
_LLAMA = _ATTENTION | _MLP | _NORMS


@dataclass(frozen=True, slots=True)
class _Architecture:
    """Weights of a layer and outside of the layers; `experts` replace the MLP of some layers.

    `defaults` are those of transformers for keys that a config.json may leave out.
    """

    layer: Mapping[str, str]
    experts: Mapping[str, str] = field(default_factory=dict)
    outside: Mapping[str, str] = field(
        default_factory=lambda: _weights("model.embed_tokens:VH model.norm:H")
    )
    layers: str = "model.layers"
    head: str = "lm_head.weight"
    defaults: Mapping[str, Any] = field(default_factory=dict)


_GEMMA = {"head_dim": 256, "tie_word_embeddings": True, "sliding_window": 4096}
ARCHITECTURES = {
    **dict.fromkeys(("llama", "granite"), _Architecture(_LLAMA)),
    "smollm3": _Architecture(_LLAMA, defaults={"tie_word_embeddings": True}),
    "mistral": _Architecture(_LLAMA, defaults={"num_key_value_heads": 8, "sliding_window": 4096}),
    "qwen2": _Architecture(_LLAMA | _BIASES),
    "qwen3": _Architecture(_LLAMA | _HEAD_NORMS, defaults={"head_dim": 128}),
    "gemma": _Architecture(_LLAMA, defaults=_GEMMA),
    "gemma2": _Architecture(_LLAMA | _MORE_NORMS, defaults=_GEMMA),
    "gemma3_text": _Architecture(_LLAMA | _MORE_NORMS | _HEAD_NORMS, defaults=_GEMMA),
    "olmo": _Architecture(_ATTENTION | _MLP, outside=_weights("model.embed_tokens:VH")),
    "olmo2": _Architecture(
        _ATTENTION
        | _MLP
        | _weights(
            "post_attention_layernorm:H post_feedforward_layernorm:H "
            "self_attn.q_norm:A self_attn.k_norm:K"
        )
    ),
    "phi3": _Architecture(
        _weights("self_attn.qkv_proj:QH self_attn.o_proj:HA mlp.gate_up_proj:JH mlp.down_proj:HI")
        | _NORMS
    ),
    "mixtral": _Architecture(
        _ATTENTION
        | _NORMS
        | _weights(
            "block_sparse_moe.gate:EH block_sparse_moe.experts.*.w1:IH "
            "block_sparse_moe.experts.*.w2:HI block_sparse_moe.experts.*.w3:IH"
        ),
        defaults={"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "qwen2_moe": _Architecture(_LLAMA | _BIASES, _QWEN_EXPERTS | _SHARED_EXPERT),
    "qwen3_moe": _Architecture(_LLAMA | _HEAD_NORMS, _QWEN_EXPERTS),
    "gpt2": _Architecture(
        _weights(
            "attn.c_attn:HT attn.c_attn.bias:T attn.c_proj:HH attn.c_proj.bias:H "
            "mlp.c_fc:HI mlp.c_fc.bias:I mlp.c_proj:IH mlp.c_proj.bias:H "
            "ln_1:H ln_1.bias:H ln_2:H ln_2.bias:H"
        ),
        outside=_weights(
            "transformer.wte:VH transformer.wpe:PH transformer.ln_f:H transformer.ln_f.bias:H"
        ),
        layers="transformer.h",
        defaults={"tie_word_embeddings": True},
    ),
    "gpt_neox": _Architecture(
        _weights(
            "attention.query_key_value:TH attention.query_key_value.bias:T attention.dense:HH "
            "attention.dense.bias:H mlp.dense_h_to_4h:IH mlp.dense_h_to_4h.bias:I "
            "mlp.dense_4h_to_h:HI mlp.dense_4h_to_h.bias:H input_layernorm:H "
            "input_layernorm.bias:H post_attention_layernorm:H post_attention_layernorm.bias:H"
        ),
        outside=_weights(
            "gpt_neox.embed_in:VH gpt_neox.final_layer_norm:H gpt_neox.final_layer_norm.bias:H"
        ),
        layers="gpt_neox.layers",
        head="embed_out.weight",
    ),
}
# Other names of the same sizes: of GPT-2, and of mixtures of experts.
_ALIASES = {
    "hidden_size": ("n_embd",),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "intermediate_size": ("n_inner",),
    "max_position_embeddings": ("n_positions",),
    "num_experts": ("num_local_experts",),
}


class ModelConfig:
    """A config.json of a known architecture; UserError for another one or wrong sizes."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.type = config.get("model_type")
        architecture = ARCHITECTURES.get(str(self.type))
        if architecture is None:
            raise UserError(
                f"cannot count the FLOPs of a model of type {self.type!r}",
                hint=f"supported types are {', '.join(sorted(ARCHITECTURES))}",
            )
        self._architecture, self._config = architecture, {**architecture.defaults, **config}
        self.head = architecture.head
        self.hidden, self.heads = self._size("hidden_size"), self._size("num_attention_heads")
        self.layers, self.vocab = self._size("num_hidden_layers"), self._size("vocab_size")
        self.head_dim = self._size("head_dim", self.hidden // self.heads)
        self.tied = self._config.get("tie_word_embeddings") is True
        self.experts = 0
        if architecture.experts or self.type == "mixtral":
            self.experts = self._size("num_experts")
            self.active_experts = self._size("num_experts_per_tok")
            if self.active_experts > self.experts:
                raise UserError(
                    f"config.json: num_experts_per_tok is {self.active_experts}, more than the "
                    f"{self.experts} experts",
                    hint="copy config.json from the model that was trained",
                )

    def _size(self, key: str, default: int | None = None) -> int:
        names = (key, *_ALIASES.get(key, ()))
        values = (self._config.get(name) for name in names)
        value = next((value for value in values if value is not None), default)
        if type(value) is not int or value <= 0:
            raise UserError(
                f"config.json: {key} is {value!r}, not a positive whole number",
                hint="the directory does not contain a usable model",
            )
        return value

    def _dimension(self, letter: str) -> int:
        keys = self._size("num_key_value_heads", self.heads) * self.head_dim
        width = self.heads * self.head_dim
        known = {"H": self.hidden, "V": self.vocab, "D": self.head_dim, "A": width, "K": keys}
        known |= {"Q": width + 2 * keys, "T": 3 * self.hidden, "E": self.experts, "1": 1}
        if letter in known:
            return known[letter]
        if letter in "IJ":
            default = 4 * self.hidden if self.type == "gpt2" else None
            return self._size("intermediate_size", default) * (1 + (letter == "J"))
        others = {"P": "max_position_embeddings", "M": "moe_intermediate_size"}
        return self._size(others.get(letter, "shared_expert_intermediate_size"))

    def layer_weights(self, layer: int) -> dict[str, Dimensions]:
        """Return the shapes of the weights of a layer, without the layer's own prefix."""
        spec = dict(self._architecture.layer)
        if self._architecture.experts and self._is_sparse(layer):
            spec = {name: dims for name, dims in spec.items() if name not in _MLP}
            spec |= self._architecture.experts
        if self._config.get("attention_bias") is True and "self_attn.q_proj.weight" in spec:
            spec |= _BIASES | {"self_attn.o_proj.bias": "H"}
        if self._config.get("mlp_bias") is True and "mlp.up_proj.weight" in spec:
            spec |= _weights("mlp.gate_proj.bias:I mlp.up_proj.bias:I mlp.down_proj.bias:H")
        return {name: tuple(map(self._dimension, dims)) for name, dims in spec.items()}

    def _is_sparse(self, layer: int) -> bool:
        dense = self._config.get("mlp_only_layers") or []
        return layer not in dense and (layer + 1) % self._size("decoder_sparse_step", 1) == 0

    def weights(self) -> Iterator[tuple[str, Dimensions]]:
        """Yield name and shape of every weight of a checkpoint."""
        outside = dict(self._architecture.outside)
        if not self.tied:
            outside[self._architecture.head] = "VH"
        for name, dims in outside.items():
            yield name, tuple(map(self._dimension, dims))
        for layer in range(self.layers):
            for name, shape in self.layer_weights(layer).items():
                names = [name]
                if _EXPERTS in name:
                    names = [name.replace("*", str(expert)) for expert in range(self.experts)]
                for each in names:
                    yield f"{self._architecture.layers}.{layer}.{each}", shape

    def active_weights(self) -> int:
        """Return the weights of the layers by which one token is multiplied."""
        total = 0
        for layer in range(self.layers):
            for name, shape in self.layer_weights(layer).items():
                if len(shape) == 2:
                    total += prod(shape) * (self.active_experts if _EXPERTS in name else 1)
        return total

    def sliding_window(self) -> tuple[int, int]:
        """Return the tokens that layers with a sliding window attend to, and their number."""
        window, used = (self._config.get(f"{use}sliding_window") for use in ("", "use_"))
        if type(window) is not int or window <= 0 or used is False:
            return 0, 0
        types = self._config.get("layer_types")
        if isinstance(types, list):
            layers = types.count("sliding_attention")
        elif self.type == "gemma2":
            layers = (self.layers + 1) // 2
        elif self.type == "gemma3_text":
            pattern = self._size("sliding_window_pattern", 6)
            layers = self.layers - self.layers // pattern
        elif self.type in ("qwen2", "qwen3", "qwen2_moe"):
            layers = max(0, self.layers - self._size("max_window_layers", 28)) if used else 0
        elif self.type == "qwen3_moe":
            layers = self.layers if used else 0
        else:
            layers = self.layers if self.type in ("mistral", "mixtral", "phi3") else 0
        return (window, layers) if layers else (0, 0)

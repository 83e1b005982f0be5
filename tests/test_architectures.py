"""The weights and FLOPs of each known architecture, against transformers' own models."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from proxhpc.account.architectures import ARCHITECTURES, ModelConfig
from proxhpc.account.flops import ModelShape, ModelWork, Usage, flops

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
WINDOW = {"sliding_window": 16}
HEADS = {"head_dim": 12}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
GPT2 = {"intermediate_size": None, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
SOME_WINDOWS = WINDOW | {"use_sliding_window": True, "max_window_layers": 1}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", HEADS | {"tie_word_embeddings": True}),
    ("mistral", WINDOW),
    ("mistral", {"sliding_window": None}),
    ("granite", {}),
    ("smollm3", {}),
    ("qwen2", SOME_WINDOWS),
    ("qwen3", HEADS),
    ("gemma", HEADS),
    ("gemma2", HEADS | WINDOW),
    ("gemma3_text", HEADS | WINDOW | {"num_hidden_layers": 7}),
    ("olmo", {}),
    ("olmo2", {}),
    ("phi3", WINDOW),
    ("mixtral", {"num_local_experts": 4}),
    ("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 28, "mlp_only_layers": [1]}),
    ("qwen3_moe", EXPERTS | HEADS | {"decoder_sparse_step": 2}),
    ("gpt2", GPT2),
    ("gpt_neox", {}),
]
PROMPT, NEW = 30, 6


def tiny_model(folder: Path, kind: str, changes: dict[str, Any]) -> Any:
    """Save a random model; return it as it is loaded again."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, **SIZES | changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    with (folder / "model.safetensors").open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    return {k: tuple(v["shape"]) for k, v in header.items() if k != "__metadata__"}


def products(model: Any) -> list[int]:
    """Count the FLOPs of all products with weights from now on, in the only item of a list."""
    total = [0]

    def add(module: Any, arguments: Any, _: Any) -> None:
        experts = type(module).__name__.endswith("Experts")
        weights = sum(w.numel() // (w.shape[0] if experts else 1) for w in matrices(module))
        chosen = model.config.num_experts_per_tok if experts else 1
        total[0] += 2 * weights * chosen * (arguments[0].numel() // arguments[0].shape[-1])

    def matrices(module: Any) -> list[Any]:
        return [w for w in module.parameters(recurse=False) if w.dim() > 1]

    for module in model.modules():
        if matrices(module) and "Embedding" not in type(module).__name__:
            module.register_forward_hook(add)
    return total


def attention(shape: ModelShape) -> int:
    """The FLOPs of attention, summed over layers and queries."""
    fed = PROMPT + NEW - 1
    total = 0
    for layer in range(shape.layers):
        seen = shape.window if layer < shape.window_layers else fed
        total += sum(min(query + 1, seen) for query in range(fed))
    return 4 * shape.heads * shape.head_dim * total


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_weights_and_flops_are_those_of_transformers(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    pytest.importorskip("transformers")
    import torch

    model = tiny_model(tmp_path, kind, changes)
    config = json.loads((tmp_path / "config.json").read_text())
    assert dict(ModelConfig(config).weights()) == saved_shapes(tmp_path)
    shape = ModelShape.from_config(config)
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    total = products(model)
    ids = torch.arange(3, 3 + PROMPT)[None]
    with torch.inference_mode():
        out = model(ids, logits_to_keep=1, use_cache=True)
        for token in range(NEW - 1):
            ids = torch.tensor([[token + 3]])
            cache = out.past_key_values
            out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    work = ModelWork.of_passes(PROMPT, 0, NEW, shape.window)
    assert flops(shape, Usage.of_request(PROMPT, 0, NEW, work)) == total[0] + attention(shape)


def test_all_architectures_are_cases() -> None:
    assert {kind for kind, _ in CASES} == set(ARCHITECTURES)


def test_layers_with_a_window_are_those_of_transformers(tmp_path: Path) -> None:
    """The pattern is the same whether config.json lists the layers or not."""
    transformers = pytest.importorskip("transformers")
    for kind, changes in CASES:
        config = transformers.AutoConfig.for_model(kind, **SIZES | changes).to_dict()
        types = config.pop("layer_types", None)
        window, layers = ModelConfig(config | {"model_type": kind}).sliding_window()
        if types is not None:
            assert layers == types.count("sliding_attention"), kind
            assert bool(window) == bool(layers)

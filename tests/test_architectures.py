"""The weights and FLOPs of each known architecture, against transformers' own models."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from proxhpc.account.architectures import ARCHITECTURES, ModelConfig
from proxhpc.account.flops import ModelShape, ModelWork, Usage, flops
from runs import load_tool

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


def save_tiny(folder: Path, kind: str, changes: dict[str, Any]) -> None:
    """Save a random model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, **SIZES | changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    with (folder / "model.safetensors").open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    return {k: tuple(v["shape"]) for k, v in header.items() if k != "__metadata__"}


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_weights_and_flops_are_those_of_transformers(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    pytest.importorskip("transformers")
    save_tiny(tmp_path, kind, changes)
    config = json.loads((tmp_path / "config.json").read_text())
    assert dict(ModelConfig(config).weights()) == saved_shapes(tmp_path)
    shape = ModelShape.from_config(config)
    counted = load_tool("flop_hooks").CountedModel(tmp_path)
    assert shape.parameters == sum(weight.numel() for weight in counted.model.parameters())
    for prompt, cached, new in ((30, 0, 6), (30, 20, 1)):
        work = ModelWork.of_passes(prompt, cached, new, shape.window)
        usage = Usage.of_request(prompt, cached, new, work)
        assert flops(shape, usage) == counted.count(prompt, cached, new)


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

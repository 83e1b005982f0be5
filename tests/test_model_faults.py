"""Model directories that people bring by mistake: each is refused before a run, by file and fix."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxhpc.cli.main import main
from proxhpc.errors import StopError, UserError
from proxhpc.run.models import check_model, resolve_model
from proxhpc.run.weights import Weights
from runs import document, local_site, manifest, write_jsonl
from tiny_models import edit_json, save_llama, save_tokenizer

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return save_llama(tmp_path_factory.mktemp("model") / "llama", tie_word_embeddings=False)


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "llama"))


def config(**changes: object) -> Change:
    return lambda model: edit_json(model / "config.json", **changes)


def weights(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    """Change the weights, which are in a dict by name."""

    def save(model: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = model / "model.safetensors"
        changed = {name: tensor.clone() for name, tensor in change(load_file(file)).items()}
        save_file(changed, file, metadata={"format": "pt"})

    return save


def both(*changes: Change) -> Change:
    return lambda model: [change(model) for change in changes]


def without(part: str) -> Change:
    return weights(lambda old: {k: v for k, v in old.items() if part not in k})


def renamed(old: str, new: str) -> Change:
    return weights(lambda w: {k.replace(old, new, 1): v for k, v in w.items()})


def filled(part: str, value: float, dtype: str = "float32") -> Change:
    import torch

    kind = getattr(torch, dtype)
    return weights(
        lambda w: {k: (v * 0 + value if part in k else v).to(kind) for k, v in w.items()}
    )


def write(name: str, text: str | bytes) -> Change:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda model: (model / name).write_bytes(data)


def only(*changes: Change) -> Change:
    """Apply changes to an empty directory."""

    def start(model: Path) -> None:
        shutil.rmtree(model)
        model.mkdir()

    return both(start, *changes)


def in_two_files(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = sorted(load_file(model / "model.safetensors").items())
    (model / "model.safetensors").unlink()
    index = {}
    for number, part in enumerate((tensors[:9], tensors[9:]), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file(dict(part), model / name, metadata={"format": "pt"})
        index |= {key: name for key, _ in part}
    edit_json(model / "model.safetensors.index.json", weight_map=index)


def header(tensor: str, **changes: object) -> Change:
    """Change what the header of the weights says of a tensor; its bytes stay."""

    def save(model: Path) -> None:
        file = model / "model.safetensors"
        raw = file.read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        parsed = json.loads(raw[8:end])
        other = parsed[tensor.replace("gate", "up")]["data_offsets"]
        parsed[tensor] |= changes or {"data_offsets": other}
        text = json.dumps(parsed).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])

    return save


def in_both_files(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    in_two_files(model)
    first, second = (load_file(file) for file in sorted(model.glob("model-*.safetensors")))
    name = next(iter(first))
    save_file(second | {name: first[name]}, model / SHARD, metadata={"format": "pt"})


def typed(part: str, dtype: str) -> Change:
    import torch

    kind = getattr(torch, dtype)
    return weights(lambda w: {k: v.to(kind) if part in k else v for k, v in w.items()})


GATE = "model.layers.1.mlp.gate_proj.weight"
MOE = {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 5}
ADAPTER = write("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "a/b"}')
GPTQ = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
SHARD = "model-00002-of-00002.safetensors"
FAULTS: dict[str, tuple[Change, str, str]] = {
    "lora": (only(ADAPTER), r"adapter_config.json .*LoRA.* of 'a/b'", "merge it"),
    "model and adapter": (ADAPTER, "adapter_config.json", "move the adapter's files away"),
    "gguf": (only(write("m-q4.gguf", "GGUF")), "m-q4.gguf is a GGUF file", "safetensors"),
    "pickle": (
        lambda m: (m / "model.safetensors").rename(m / "pytorch_model.bin"),
        "no model.safetensors",
        "convert them",
    ),
    "empty": (only(), "config.json is missing", "directory with config.json"),
    "hub cache": (
        only(lambda m: (m / "snapshots" / "0123").mkdir(parents=True)),
        "config.json is missing",
        "snapshots/0123",
    ),
    "missing shard": (
        both(in_two_files, lambda m: (m / SHARD).unlink()),
        f"{SHARD} is missing",
        "is this the directory",
    ),
    "two sets of weights": (
        lambda m: (shutil.copy(m / "model.safetensors", m / "x"), in_two_files(m),
                   (m / "x").rename(m / "model.safetensors")),
        "has model.safetensors and model.safetensors.index.json",
        "keep one",
    ),
    "stray weights": (
        lambda m: shutil.copy(m / "model.safetensors", m / "old.safetensors"),
        "old.safetensors is beside model.safetensors",
        "move it",
    ),
    "missing head": (without("lm_head"), "lacks a weight of a llama: lm_head", "tie_word_emb"),
    "missing layer": (without("layers.1."), r"lacks 9 of 21 weights .*layers\.1", "copy or down"),
    "missing norm": (without("model.norm"), r"lacks a weight .*model\.norm", "copy or download"),
    "wrapper": (renamed("", "module."), "lacks 21 of 21 weights", "begin with 'module.'"),
    "without its head": (renamed("model.", ""), "lacks 20 of 21 weights", "AutoModelForCausalLM"),
    "wrong shape": (
        config(num_key_value_heads=4),
        r"k_proj.weight in model.safetensors has shape \[16, 32\], .* asks for \[32, 32\]",
        "copy both from one model",
    ),
    "biases of another architecture": (
        weights(lambda w: w | {"model.layers.0.self_attn.q_proj.bias": w["model.norm.weight"]}),
        "model.safetensors has model.layers.0.self_attn.q_proj.bias, which a llama",
        "would be left out",
    ),
    "fewer layers": (config(num_hidden_layers=1), "has model.layers.1.", "would be left out"),
    "longer vocabulary": (config(vocab_size=400), r"\[320, 32\], config.json asks", "copy both"),
    "nan": (filled("layers.1.mlp.up", float("nan")), r"layers.1.mlp.up\S+ in model.s", "diverged"),
    "infinite": (filled("norm", float("inf"), "bfloat16"), "no finite numbers", "diverged"),
    "infinite in float16": (filled("q_proj", -1e9, "float16"), "no finite numbers", "diverged"),
    "zeros": (filled("", 0), "head.weight in model.safetensors has only zeros", "interrupted"),
    "zeros at the end": (filled("layers.1", 0), "layer 1 in model.safetensors has only", "copy or"),
    "gptq": (config(**GPTQ), r"no quantized weights \(F32\)", "remove quantization_config"),
    "remote code": (
        config(model_type="mine", auto_map={"AutoModelForCausalLM": "modeling.My"}),
        r"config.json: transformers has no .* 'mine', .*\(auto_map\)",
        "install a version of transformers",
    ),
    "another architecture": (
        config(model_type="mistral"),
        "no LlamaForCausalLM of model_type 'mistral'",
        "correct config.json",
    ),
    "unknown architecture": (
        config(model_type="mine", architectures=["MyForCausalLM"]),
        "config.json: transformers has no MyForCausalLM",
        "correct config.json",
    ),
    "no architecture": (config(architectures=None), "names no architectures", "LlamaForCausalLM"),
    "multimodal": (
        config(architectures=["Gemma3ForConditionalGeneration"], vision_config={}),
        "config.json: Gemma3ForConditionalGeneration also reads images",
        "choose a text model",
    ),
    "encoder": (
        config(model_type="bert", architectures=["BertModel"]),
        "config.json: a BertModel writes no text",
        "choose a text model",
    ),
    "encoder and decoder": (
        config(model_type="t5", architectures=["T5ForConditionalGeneration"]),
        "a T5ForConditionalGeneration writes no text",
        "choose a text model",
    ),
    "classifier": (
        config(architectures=["LlamaForSequenceClassification"]),
        "a LlamaForSequenceClassification writes no text",
        "choose a text model",
    ),
    "no end token": (
        both(
            config(eos_token_id=None),
            lambda m: (m / "generation_config.json").unlink(),
            lambda m: edit_json(m / "tokenizer_config.json", eos_token=None),
        ),
        "config.json has no eos_token_id",
        "set eos_token_id",
    ),
    "end token beyond the vocabulary": (
        lambda m: edit_json(m / "generation_config.json", eos_token_id=[2, 320]),
        "eos_token_id in generation_config.json is 320, but the embedding has 320 rows",
        "set it to the id",
    ),
    "end token by name": (config(eos_token_id="</s>"), "is '</s>', .* whole number", "set it to"),
    "no file of weights": (write("model.safetensors", ""), "not a valid JSON object", "damaged"),
    "no safetensors": (write("model.safetensors", "PK" * 99), "not a valid JSON", "copy or down"),
    "a pointer of Git LFS": (
        write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        "model.safetensors is not a valid JSON",
        "copy or download",
    ),
    "bytes of another tensor": (header(GATE), "overlap or leave gaps", "copy or download"),
    "fewer bytes than its shape": (
        header(GATE, data_offsets=[0, 64]),
        "the header of model.safetensors is damaged",
        "copy or download",
    ),
    "unknown type": (header(GATE, dtype="F99"), f"{GATE} in model.safetensors has type F99", "BF1"),
    "integers": (typed("proj", "int8"), "has type I8, and config.json no quantization", "as BF16"),
    "fp8": (typed("proj", "float8_e4m3fn"), "has type F8_E4M3, and config.json no", "as BF16"),
    "a weight in two files": (in_both_files, f"is in model-00001\\S+ and in {SHARD}", "are mixed"),
    "unknown activation": (config(hidden_act="silo"), "has no hidden_act 'silo'", "correct conf"),
    "unknown rope": (
        config(rope_parameters={"full_attention": {"rope_type": "lineer", "factor": 2.0}}),
        "config.json: transformers has no rope_type 'lineer'",
        "correct config.json",
    ),
    "old unknown rope": (
        config(rope_parameters=None, rope_scaling={"type": "jarn", "factor": 2.0}),
        "config.json: transformers has no rope_type 'jarn'",
        "correct config.json",
    ),
    "more experts than there are": (
        config(model_type="mixtral", **MOE),
        "num_experts_per_tok is 5, more than the 4 experts",
        "copy config.json",
    ),
    "damaged header": (
        write("model.safetensors", (19).to_bytes(8, "little") + b'{"a": {"shape": 1}}'),
        "the header of model.safetensors is damaged",
        "copy or download",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_file_and_fix(model: Path, fault: str) -> None:
    change, message, hint = FAULTS[fault]
    resolve_model(str(model))
    change(model)
    with pytest.raises(UserError, match=message) as caught:
        resolve_model(str(model))
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        config(auto_map={"AutoModelForCausalLM": "modeling.My"}),
        config(tie_word_embeddings=None),
        config(max_position_embeddings=1 << 20),
        config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
        in_two_files,
        weights(lambda w: w | {"model.layers.0.rotary_emb.inv_freq": w["model.norm.weight"]}),
        lambda m: edit_json(m / "generation_config.json", eos_token_id=[2, 4], temperature=0.7),
    ],
)  # fmt: skip
def test_what_is_no_fault(model: Path, change: Change) -> None:
    change(model)
    assert resolve_model(str(model)).rows == 320


def test_an_unknown_architecture_needs_all_its_layers(model: Path) -> None:
    config(model_type="cohere", architectures=["CohereForCausalLM"])(model)
    assert resolve_model(str(model)).shape is None
    without("layers.1.")(model)
    with pytest.raises(UserError, match=r"model.safetensors has no weights of layer 1"):
        resolve_model(str(model))


def test_weights_that_are_replaced_in_place_are_noticed(model: Path) -> None:
    ref = resolve_model(str(model))
    weights(lambda w: {k: v + ("layers.1.mlp.down" in k) for k, v in w.items()})(model)
    with pytest.raises(StopError, match="has changed since this run was planned"):
        check_model(ref)


def test_a_hub_snapshot_that_is_replaced_in_place_is_noticed(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "snapshots" / "0123"
    shutil.copytree(saved, folder)
    ref = resolve_model(str(folder))
    assert ref.snapshot == "0123"
    weights(lambda w: {k: v + ("layers.1.mlp.down" in k) for k, v in w.items()})(folder)
    with pytest.raises(StopError, match="has changed"):
        check_model(ref)


def test_samples_of_tensors_are_in_their_middle(model: Path) -> None:
    tensors = Weights("m", model).tensors
    embedding = tensors["model.embed_tokens.weight"]
    assert embedding.stop - embedding.start == 320 * 32 * 4
    raw = bytearray((model / "model.safetensors").read_bytes())
    before = Weights("m", model).digest()
    raw[(embedding.start + embedding.stop) // 2] ^= 1
    (model / "model.safetensors").write_bytes(raw)
    assert Weights("m", model).digest() != before


def test_plan_doctor_and_launch_refuse_a_model(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without("lm_head")(model)
    source = write_jsonl(tmp_path / "in.jsonl", [document(0)])
    stages = [{"level": "chunk", "model": str(model), "prompt": "prox-plain"}]
    path = manifest(tmp_path, [source], engine={"name": "transformers"}, stages=stages)
    site = local_site(tmp_path)
    for command in (["plan"], ["launch"], ["refine", str(source), "--manifest"]):
        where = [] if command[0] == "refine" else ["--site", site]
        assert main([*command, str(path), *where]) == 2
        assert "model.safetensors lacks a weight of a llama" in capsys.readouterr().err
    assert main(["doctor", site, "--manifest", str(path), "--json"]) == 2
    findings = json.loads(capsys.readouterr().out)["findings"]
    (wrong,) = [found for found in findings if found["verdict"] == "error"]
    assert "lm_head.weight" in wrong["result"]
    assert "save the whole model" in wrong["consequence"]


def test_no_weight_of_an_unknown_architecture_is_random(tmp_path: Path) -> None:
    """Plan does not know the weights of this one; the engine does."""
    transformers = pytest.importorskip("transformers")
    from proxhpc.engines.transformers_engine import TransformersEngine

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 320}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 2}
    made = transformers.StableLmConfig(**sizes, **heads, max_position_embeddings=64)
    transformers.StableLmForCausalLM(made).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    without("layers.1.mlp.up_proj")(tmp_path)
    with pytest.raises(UserError, match=r"safetensors lack model.layers.1.mlp.up_proj.weight\n"):
        TransformersEngine(resolve_model(str(tmp_path)))

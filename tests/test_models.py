import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from proxhpc.errors import StopError, UserError
from proxhpc.run.models import ModelRef, check_model, resolve_model
from tiny_models import edit_json, save_llama


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return save_llama(tmp_path_factory.mktemp("model") / "llama", tie_word_embeddings=True)


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "llama"))


def test_a_complete_directory(model: Path) -> None:
    ref = resolve_model(str(model))
    assert (ref.path, ref.max_model_len, ref.stop_ids) == (model, 256, (2,))
    assert ref.shape is not None
    assert ref.shape.parameters == 2 * (2 * 32 * 8 * 6 + 3 * 32 * 64 + 2 * 32) + 32 + 320 * 32
    assert ModelRef.from_dict(json.loads(json.dumps(ref.to_dict()))) == ref
    assert ref.context_length() == 256
    assert ref.context_length(100) == 100
    with pytest.raises(UserError, match="max_model_len is 257"):
        ref.context_length(257)


def test_weights_in_several_files(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    empty = (2).to_bytes(8, "little") + b"{}"
    (model / "model-00002-of-00002.safetensors").write_bytes(empty)
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    edit_json(model / "model.safetensors.index.json", weight_map=weight_map)
    assert resolve_model(str(model)).max_model_len == 256
    (model / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors is missing"):
        resolve_model(str(model))
    edit_json(model / "model.safetensors.index.json", weight_map={"a": "../x.safetensors"})
    with pytest.raises(UserError, match="names no weight files of this directory"):
        resolve_model(str(model))


def test_stop_tokens_and_unknown_shapes(model: Path) -> None:
    edit_json(model / "generation_config.json", eos_token_id=[2, 4])
    edit_json(model / "config.json", model_type="cohere", architectures=["CohereForCausalLM"])
    ref = resolve_model(str(model))
    assert ref.stop_ids == (2, 4)
    assert ref.shape is None
    assert ModelRef.from_dict(ref.to_dict()) == ref


def test_the_snapshot_depends_on_the_tokenizer(model: Path) -> None:
    before = resolve_model(str(model)).snapshot
    assert resolve_model(str(model)).snapshot == before
    edit_json(model / "tokenizer_config.json", model_max_length=7)
    assert resolve_model(str(model)).snapshot != before


def test_files_that_do_not_matter_may_change(model: Path) -> None:
    ref = resolve_model(str(model))
    (model / "trainer_state.json").write_text("{}")
    (model / "notes.txt").write_text("mine")
    (model / "folder.json").mkdir()
    (model / "unreadable.json").symlink_to("nowhere")
    check_model(ref)
    (model / "refiner.json").write_text('{"version": 1, "prompt": "compact", "doc": {}}')
    with pytest.raises(StopError, match="has changed since this run was planned") as error:
        check_model(ref)
    assert error.value.hint.startswith("restore the model, or start a new run")
    with pytest.raises(StopError) as error:
        check_model(replace(ref, name="embedded"))
    hint = "install the version of proxhpc that planned this run, or start a new run"
    assert error.value.hint.startswith(hint)


def truncate_weights(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def truncate_header(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])


def rename_to_pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate_weights, "model.safetensors has"),
        (truncate_header, "not a valid JSON object"),
        (rename_to_pickle, "no model.safetensors"),
        (lambda m: (m / "config.json").unlink(), "config.json is missing"),
        (lambda m: (m / "config.json").write_text("{"), "not a valid JSON object"),
        (lambda m: (m / "config.json").write_text("[1]"), "not a valid JSON object"),
        (lambda m: (m / "tokenizer.json").unlink(), "no tokenizer"),
        (
            lambda m: edit_json(m / "config.json", auto_map={"AutoModel": "x"}, model_type="mine"),
            "auto_map",
        ),
        (lambda m: edit_json(m / "tokenizer_config.json", auto_map={"A": "x"}), "auto_map"),
        (lambda m: edit_json(m / "config.json", max_position_embeddings=None), "context length"),
        (lambda m: edit_json(m / "config.json", hidden_size="32"), "hidden_size is '32'"),
    ],
)
def test_damaged_directories(model: Path, damage: object, message: str) -> None:
    resolve_model(str(model))
    damage(model)  # type: ignore[operator]
    with pytest.raises(UserError, match=message) as caught:
        resolve_model(str(model))
    assert caught.value.hint


def test_unknown_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    for name in (str(tmp_path / "none"), "./none/none", "none", "a/b/c"):
        with pytest.raises(UserError, match="no such directory"):
            resolve_model(name)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="not in the local hub cache") as caught:
        resolve_model("some-org/no.such-model@main", offline=True)
    assert "hf download some-org/no.such-model --revision main" in caught.value.hint


def test_hub_snapshots(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id is looked up in the cache; missing files are downloaded."""
    hub = pytest.importorskip("huggingface_hub")
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "snapshots" / commit
    calls: list[bool] = []

    def download(repo: str, *, revision: str | None, local_files_only: bool, **_: object) -> str:
        calls.append(local_files_only)
        assert (repo, revision) == ("org/name", None)
        if not local_files_only:
            shutil.copytree(model, snapshot, dirs_exist_ok=True)
        return str(snapshot)

    monkeypatch.setattr(hub, "snapshot_download", download)
    snapshot.mkdir(parents=True)
    shutil.copy(model / "config.json", snapshot)
    with pytest.raises(UserError, match="no tokenizer") as caught:
        resolve_model("org/name", offline=True)
    assert "hf download org/name --include" in caught.value.hint
    assert "'*.txt'" in caught.value.hint, "a system prompt may be a text beside refiner.json"
    assert calls == [True]
    ref = resolve_model("org/name", offline=False)
    assert (ref.name, ref.path, ref.snapshot) == ("org/name", snapshot, commit)
    assert calls == [True, True, False]
    assert resolve_model("org/name", offline=False) == ref
    assert calls == [True, True, False, True]

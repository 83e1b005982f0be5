"""refiner.json: models that bring the settings of their stages."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from proxhpc.errors import UserError
from proxhpc.run import models
from proxhpc.run.models import ModelRef, resolve_model
from proxhpc.run.plan import find_models, freeze_manifest
from proxhpc.spec.manifest import Manifest
from proxhpc.spec.refiner_file import NAME, RefinerFile, load_profile, read_refiner
from proxhpc.spec.sections import Stage
from tiny_models import save_walk

WALK: dict[str, Any] = {
    "version": 1,
    "prompt": "walk",
    "doc": {"bias": -0.5},
    "chunk": {"window_lines": 40, "bias": -2.0},
    "notes": {"trained on": "${NOTHING}", "lines": 7},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    folder = save_walk(tmp_path_factory.mktemp("model") / "walk")
    (folder / NAME).write_text(json.dumps(RefinerFile.model_validate(WALK).to_dict()))
    return folder


def manifest(*stages: dict[str, Any], **more: Any) -> Manifest:
    return Manifest.model_validate(
        {
            "name": "x",
            "corpus": {"paths": "*.jsonl"},
            "stages": list(stages),
            "engine": {"name": "transformers"},
        }
        | more,
        context={"base": Path.cwd()},
    )


def test_writing_and_reading_round_trip(saved: Path, tmp_path: Path) -> None:
    assert json.loads((saved / NAME).read_bytes()) == WALK
    read = read_refiner(saved)
    assert read is not None
    assert read.to_dict() == WALK
    assert read.levels == ["doc", "chunk"]
    ref = resolve_model(str(saved))
    assert ref.refiner == read
    assert ModelRef.from_dict(json.loads(json.dumps(ref.to_dict()))) == ref
    copy = Path(shutil.copytree(saved, tmp_path / "walk"))
    (copy / NAME).unlink()
    assert read_refiner(copy) is None
    assert resolve_model(str(copy)).refiner is None
    assert resolve_model(str(copy)).snapshot != ref.snapshot


def test_a_stage_needs_only_the_directory(saved: Path) -> None:
    bare = manifest({"level": "doc", "model": str(saved)}, {"level": "chunk", "model": str(saved)})
    doc, chunk = freeze_manifest(bare, find_models(bare)).stages
    assert (doc.prompt, doc.bias, doc.max_new_tokens, doc.grammar) == ("walk", -0.5, 2, "lines")
    assert (chunk.prompt, chunk.bias, chunk.grammar) == ("walk", -2.0, "lines")
    assert (chunk.numbering, chunk.window_tokens, chunk.window_lines) == ("window", 480, 40)
    assert chunk.max_new_tokens == 41
    # Freezing twice changes nothing.
    again = freeze_manifest(freeze_manifest(bare, find_models(bare)), find_models(bare))
    assert again.stages == (doc, chunk)


def test_keys_of_a_stage_override_the_file(saved: Path) -> None:
    explicit = manifest({"level": "chunk", "model": str(saved), "bias": 1.0, "window_lines": 20})
    (chunk,) = freeze_manifest(explicit, find_models(explicit)).stages
    assert (chunk.prompt, chunk.bias, chunk.window_lines) == ("walk", 1.0, 20)
    other = manifest({"level": "chunk", "model": str(saved), "prompt": "compact"})
    (compact,) = freeze_manifest(other, find_models(other)).stages
    assert compact.prompt == load_profile("compact")
    assert (compact.window_tokens, compact.max_new_tokens, compact.bias) == (1500, 256, 0.0)


def test_contradictions_are_refused(saved: Path, tmp_path: Path) -> None:
    wrong = manifest({"level": "chunk", "model": str(saved), "dialect": "refinex"})
    with pytest.raises(UserError, match=r"refiner\.json of model .* must be prox with prompt"):
        freeze_manifest(wrong, find_models(wrong))
    (tmp_path / "bare").mkdir()
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        shutil.copy(saved / file, tmp_path / "bare")
    biased = manifest({"level": "chunk", "model": str(tmp_path / "bare"), "bias": 1.0})
    with pytest.raises(
        UserError, match="contradicts the profile prox-llama2: .*only with prompt: walk"
    ):
        freeze_manifest(biased, find_models(biased))
    replica = manifest({"level": "chunk", "model": str(saved)}, policy="reference")
    with pytest.raises(UserError, match=r"walk is not for policy: reference"):
        freeze_manifest(replica, find_models(replica))
    one = RefinerFile(version=1, prompt="compact", doc=Stage(level="doc"))
    with pytest.raises(UserError, match="the file does not serve level chunk: it has doc"):
        one.complete(Stage(level="chunk"), "the file")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk": {"window_tokns": 3}}, r"chunk\.window_tokns"),
        ({"chunk": {"model": "a/b"}}, "not allowed in this file"),
        ({"doc": {"window_lines": 3}}, "only with level: chunk"),
        ({"version": 2}, "version"),
        ({"prompt": "wlak"}, "prompt"),
        ({"doc": None, "chunk": None}, "the model serves no level yet"),
    ],
)
def test_a_wrong_file_is_reported_by_line_and_key(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / NAME).write_text(json.dumps(WALK | changes, indent=1))
    with pytest.raises(UserError, match=message) as caught:
        read_refiner(tmp_path)
    assert f"{NAME}:" in caught.value.message


def test_the_embedded_model(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "__file__", str(tmp_path / "run" / "models.py"))
    with pytest.raises(UserError, match="has no embedded refiner") as caught:
        find_models(manifest({"level": "doc", "model": "embedded"}))
    assert "rules" in (caught.value.hint or "")
    (tmp_path / "embedded").symlink_to(saved)
    model = find_models(manifest({"level": "doc", "model": "embedded"}))["doc"]
    assert (model.name, model.path) == ("embedded", saved)
    assert model.refiner is not None

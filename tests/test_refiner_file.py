"""refiner.json: models that bring the settings of their stages."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from proxhpc.cli.main import main
from proxhpc.errors import UserError
from proxhpc.program.replay import ProgramFormat
from proxhpc.refine.prompts import Prompts
from proxhpc.run import models
from proxhpc.run.models import ModelRef, resolve_model
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import check_same_manifest, find_models, freeze_manifest, make_plan
from proxhpc.spec.manifest import Manifest
from proxhpc.spec.profile import Profile, profile_names
from proxhpc.spec.refiner_file import NAME, RefinerFile, load_profile, read_profile, read_refiner
from proxhpc.spec.sections import Stage
from runs import local_site
from tiny_models import save_llama, save_walk

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
        UserError, match=r"contradicts the profile prox-llama2: .*only with prompt: walk"
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
        ({"version": 2}, "version: must be 1, not 2"),
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


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"window": "{lnes}"}, r"window: unknown placeholder \{lnes\} \(possible: \{lines\}\)"),
        ({"window": "{lines} {lines}"}, r"window: must have \{lines\}, each once"),
        ({"window": "{lines"}, r"window: .*\(write \{\{ and \}\} for braces\)"),
        ({"window": "{lines!r}"}, r"unknown placeholder \{lines!r\}"),
        ({"window": "{lines.x}"}, r"unknown placeholder \{lines\.x\}"),
        ({"window": "{lines:9}"}, r"unknown placeholder \{lines:9\}"),
        ({"document": "text"}, r"document: must have \{text\} or \{lines\}, each once"),
        ({"document": "{text}{lines}"}, "document: must have"),
        ({"line": "{line}"}, r"line: must have \{line\} and \{n\}, each once"),
        ({"line": "[{n:99999}]{line}"}, r"line: unknown placeholder \{n:99999\}"),
        ({"line": "[{n:{line}}]{line}"}, "line: unknown placeholder"),
        ({"frame": "{messages}"}, r"unknown placeholder \{messages\}"),
        ({"frame": "{bos}{}{message}"}, r"unknown placeholder \{\}"),
        ({"frame": "{bos}{message}"}, r"frame: has no \{system\} for the system prompt"),
        ({"frame": "{system}{message}", "template_arguments": {"a": 1}}, "only with frame"),
        ({"system": {"file": "missing.txt"}}, "system: cannot read .*missing.txt: No such file"),
        ({"system": {"file": "../system.txt"}}, "system: must be text or"),
        ({"system": {"file": "latin1.txt"}}, "latin1.txt: it is not UTF-8 text"),
        ({"system": 3}, "system: must be text, not 3"),
        ({"stop": [""]}, r"stop\[0\]"),
        ({"prompt": "ultrx"}, 'prompt: must be one of .* did you mean "ultrax"'),
        ({"prompt": "walk"}, "system: not with prompt: walk"),
        ({"chunk": {"dialect": "line"}}, r"chunk\.dialect: must be one of"),
        ({"system": "\ud83d"}, "system: half of a surrogate pair"),
    ],
)
def test_an_unusable_profile_is_one_line(
    tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    profile = {"version": 1, "system": "Clean.", "chunk": {}}
    (tmp_path / "mine.json").write_text(json.dumps(profile | keys))
    with pytest.raises(UserError, match=message) as caught:
        read_profile(str(tmp_path / "mine.json"))
    assert caught.value.message.startswith(f"{tmp_path}/mine.json:1: ")
    assert "\n" not in caught.value.message


def test_a_profile_extends_a_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("\n  Clean ${IT} 🦊 {x}\n\n")
    file = tmp_path / "mine.json"
    file.write_text(
        json.dumps({"version": 1, "prompt": "ultrax", "system": {"file": "system.txt"}})
    )
    mine = read_profile(str(file))
    assert (mine.levels, mine.doc) == (["chunk"], None)
    assert mine.chunk == read_profile("ultrax").chunk
    assert mine.profile("x").system == "Clean ${IT} 🦊 {x}"
    assert RefinerFile.model_validate(json.loads(json.dumps(mine.to_dict()))) == mine
    keys = {
        "name": "mine",
        "line": "{n}\U0001f98a$$ {line}",
        "doc": {},
        "chunk": {"window_chars": 9},
    }
    file.write_text(json.dumps({"version": 1, "prompt": "ultrax", "system": None} | keys))
    mine = read_profile(str(file))
    assert (mine.levels, mine.profile("x").line) == (["doc", "chunk"], "{n}🦊$$ {line}")
    assert mine.profile("x").system is None
    assert mine.chunk is not None
    assert (mine.chunk.window_chars, mine.chunk.dialect) == (9, "ultrax")


@pytest.mark.parametrize("name", profile_names())
def test_a_shipped_profile(name: str) -> None:
    file = read_profile(name)
    assert (file.name, file.prompt) == (name, None)
    if name in ("refinex", "rescraper", "ultrax"):
        with pytest.raises(UserError, match=f"the profile {name} has no system prompt") as caught:
            load_profile(name)
        assert f'"prompt": "{name}", "system"' in (caught.value.hint or "")
    else:
        assert load_profile(name).name == name


def test_the_profiles_in_the_docs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "refining.md").read_text()
    blocks = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    for block in blocks:
        (tmp_path / "profile.json").write_text(block)
        for name in re.findall(r'"file": "(.*?)"', block):
            (tmp_path / name).write_text("Clean.")
        read_profile(str(tmp_path / "profile.json"))
    assert len(blocks) == 3


def stage_of(folder: Path, **keys: Any) -> Manifest:
    return manifest({"level": "chunk", "model": str(folder), "prompt": "ultrax"} | keys)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    pytest.importorskip("transformers")
    return save_llama(tmp_path / "llama")


def test_a_plan_stores_the_profile_and_its_texts(llama: Path, tmp_path: Path) -> None:
    system, file = tmp_path / "system.txt", tmp_path / "mine.json"
    system.write_text("Clean.")
    file.write_text(
        json.dumps({"version": 1, "prompt": "ultrax", "system": {"file": "system.txt"}})
    )
    (tmp_path / "in.jsonl").write_text('{"text": "The fox."}\n')
    corpus = {"corpus": {"paths": str(tmp_path / "in.jsonl")}}
    asked = manifest({"level": "chunk", "model": str(llama), "prompt": str(file)}, **corpus)
    plan = make_plan(asked, RunDir(tmp_path / "run"))
    (stage,) = plan.manifest.stages
    assert isinstance(stage.prompt, Profile)
    assert (stage.prompt.system, stage.dialect, stage.window_chars) == ("Clean.", "ultrax", 48000)
    check_same_manifest(plan, asked)
    assert freeze_manifest(plan.manifest, plan.models) == plan.manifest
    system.write_text("Other.")
    with pytest.raises(UserError, match=r"these keys differ: stages\[0\]\.prompt\.system\n"):
        check_same_manifest(plan, asked)
    system.unlink()
    with pytest.raises(UserError, match=r"system: cannot read .*system\.txt"):
        check_same_manifest(plan, asked)
    assert Prompts.of_stage(stage).wrap(ChatTokenizer(), "x") == ["Clean.|x"]


class ChatTokenizer:
    """Its tokens are texts; its chat template has the system prompt and the message."""

    def chat_frame(self, system: str | None, arguments: object, *, merge: bool = False) -> str:
        return "{system}|{message}"

    def encode(self, text: str, *, first: bool = True) -> list[Any]:
        return [text]


def test_a_models_system_prompt_may_be_in_a_file(llama: Path) -> None:
    keys = {"version": 1, "system": {"file": "system.txt"}, "chunk": {}}
    (llama / NAME).write_text(json.dumps(keys))
    (llama / "system.txt").write_text("Clean.\n")
    asked = manifest({"level": "chunk", "model": str(llama)})
    planned = find_models(asked)
    (llama / "system.txt").write_text("Other.\n")
    ref = ModelRef.from_dict(json.loads(json.dumps(planned["chunk"].to_dict())))
    (stage,) = freeze_manifest(asked, {"chunk": ref}).stages
    assert isinstance(stage.prompt, Profile)
    assert stage.prompt.system == "Clean."


def test_a_stage_cannot_change_what_a_model_has_learned(llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"version": 1, "prompt": "rescraper", "system": None}))
    for keys, message in (
        ({"dialect": "prox"}, "contradicts the profile .*mine.json: dialect: must be rescraper"),
        ({"blank_lines": "numbered"}, "blank_lines: must be skipped"),
        ({"level": "doc"}, r"mine.json does not serve level doc: it has chunk"),
    ):
        wrong = stage_of(llama, prompt=str(file), **keys)
        with pytest.raises(UserError, match=message):
            freeze_manifest(wrong, find_models(wrong))
    right = stage_of(llama, prompt=str(file), dialect="rescraper", numbering="document")
    frozen = freeze_manifest(right, find_models(right))
    assert frozen.stages[0].numbering == "document"
    assert frozen.program_format == ProgramFormat("rescraper", "document", "skipped")


def test_a_model_without_a_chat_template_is_found_before_it_is_loaded(llama: Path) -> None:
    asked = manifest({"level": "chunk", "model": str(llama), "prompt": "chat-template"})
    assert freeze_manifest(asked, find_models(asked))
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        (llama / file).unlink()
    plain = manifest({"level": "chunk", "model": str(llama), "prompt": "prox-plain"})
    assert freeze_manifest(plain, find_models(plain))
    with pytest.raises(UserError, match="has no chat template, which the stage's profile needs"):
        freeze_manifest(asked, find_models(asked))


def test_a_scored_document_has_no_grammar(llama: Path) -> None:
    asked = manifest(
        {"level": "doc", "model": str(llama), "prompt": "teacher", "grammar": "lines"},
        engine={"name": "vllm"},
    )
    with pytest.raises(UserError, match="grammar: not for documents that get scores"):
        freeze_manifest(asked, find_models(asked))
    asked = manifest({"level": "doc", "model": str(llama), "prompt": "teacher"})
    (stage,) = freeze_manifest(asked, find_models(asked)).stages
    assert stage.max_new_tokens == 256


def test_the_embedded_model(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "__file__", str(tmp_path / "run" / "models.py"))
    with pytest.raises(UserError, match="has no embedded refiner") as caught:
        find_models(manifest({"level": "doc", "model": "embedded"}))
    assert "rules" in (caught.value.hint or "")
    (tmp_path / "embedded").mkdir()
    (tmp_path / "embedded/verdicts").symlink_to(saved)
    model = find_models(manifest({"level": "doc", "model": "embedded"}))["doc"]
    assert (model.name, model.path) == ("embedded", saved)
    assert model.refiner is not None


def test_each_command_shows_an_unusable_profile_as_one_line(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "The fox."}\n')
    stage = {"level": "chunk", "model": str(llama), "prompt": "./mine.json", "max_new_tokens": 32}
    keys = {"name": "x", "corpus": {"paths": "in.jsonl"}, "stages": [stage]}
    path = tmp_path / "manifest.yaml"
    path.write_text(json.dumps(keys | {"engine": {"name": "transformers"}}))
    site = str(local_site(tmp_path))
    profile = tmp_path / "mine.json"
    problem = f"{profile}:1: window: unknown placeholder {{lnes}} (possible: {{lines}})"
    profile.write_text('{"version": 1, "system": null, "window": "{lnes}", "chunk": {}}')
    refine = ["refine", str(tmp_path / "in.jsonl"), "--model", str(llama), "--prompt"]
    for command in (["plan", str(path), "--site", site], [*refine, str(profile)]):
        assert main(command) == 2
        assert capsys.readouterr().err == f"proxhpc: {problem}\n"
    doctor = ["doctor", site, "--manifest", str(path), "--json"]
    for text, verdict, result in (
        (profile.read_text(), "error", problem),
        ('{"version": 1, "prompt": "compact"}', "ok", "chunk: compact"),
    ):
        profile.write_text(text)
        main(doctor)
        findings = json.loads(capsys.readouterr().out)["findings"]
        shown = [(f["verdict"], f["result"]) for f in findings if f["check"] == "prompts"]
        assert shown == [(verdict, result)]

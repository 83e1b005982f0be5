"""What plan finds wrong with prompts, tokenizers and lengths, and the prompts that it freezes."""

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxhpc.cli.main import main
from proxhpc.engines.tokenizer import HFTokenizer, load_tokenizer
from proxhpc.errors import StopError, UserError
from proxhpc.launch.launch import Run, prepare_run
from proxhpc.refine import refiner
from proxhpc.refine.preflight import prepare_stage
from proxhpc.refine.prompts import Prompts, freeze_frame
from proxhpc.refine.refiner import open_refiner
from proxhpc.run.plan import Plan
from proxhpc.spec.profile import Profile
from runs import document, local_site, manifest, write_jsonl
from tiny_models import TEMPLATE, edit_json, save_llama, save_tokenizer

BOS, EOT = "{{ bos_token }}", "<|im_end|>"
DATED = BOS + "{{ strftime_now('%d %b %Y') }} " + TEMPLATE
NO_SYSTEM = BOS + (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('No system role') }}"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
)
INSTRUCTIONS = BOS + "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
TRIMMED = BOS + TEMPLATE.replace("m['content']", "m['content'] | trim")
TEXTS = ("[doc]\n[000]Home\n[/doc]", " two  blanks", "\nnew line", "naïve 漢字", "")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("model") / "llama"
    return save_llama(folder, max_position_embeddings=4096)


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "llama"))


def plan_run(folder: Path, model: Path, **stage: Any) -> Run:
    source = write_jsonl(folder / "in.jsonl", [document(0)])
    stages = [{"level": "chunk", "model": str(model), "prompt": "chat-template"} | stage]
    path = manifest(folder, [source], engine={"name": "transformers"}, stages=stages)
    return prepare_run(path, local_site(folder), None)


def save_spaced_tokenizer(folder: Path, template: str, scheme: str) -> Path:
    """Write a tokenizer of Llama's kind, which marks blanks before words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<unk>", "▁", "\n", *map(chr, range(32, 127))]
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    tokenizer.add_special_tokens(["<s>", "</s>", AddedToken("<|im_start|>", rstrip=True), EOT])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **names)
    saved.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@pytest.mark.parametrize("template", [TEMPLATE, NO_SYSTEM, INSTRUCTIONS, TRIMMED])
@pytest.mark.parametrize("system", ["Be brief.", None])
def test_ids_are_those_of_the_whole_rendered_prompt(
    tmp_path: Path, scheme: str, template: str, system: str | None
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = save_spaced_tokenizer(tmp_path, template, scheme)
    own = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    prompts = Prompts(freeze_frame(Profile(system=system), HFTokenizer(folder)))
    for text in TEXTS[: -1 if system else None]:  # a turn of the system prompt alone is trimmed
        turns = [{"role": "user", "content": text}]
        if system and template == NO_SYSTEM:
            turns[0]["content"] = f"{system}\n\n{text}".rstrip()
        elif system:
            turns.insert(0, {"role": "system", "content": system})
        rendered = own.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = own(rendered, add_special_tokens=False).input_ids
        assert prompts.wrap(HFTokenizer(folder), text.rstrip()) == ids, text


def test_special_tokens_in_texts_and_braces_stay_text(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = save_spaced_tokenizer(tmp_path, BOS + "{{ '{x}' }}" + TEMPLATE, "first")
    tokenizer = HFTokenizer(folder)
    system = "Say </s> {message} {system:trim}"
    frozen = freeze_frame(Profile(system=system), tokenizer)
    ids = Prompts(frozen).wrap(tokenizer, "{y} </s>")
    assert tokenizer.special_id("</s>") not in ids
    assert tokenizer.decode(ids).startswith(
        "{x}system\nSay </s> {message} {system:trim}\nuser\n{y} </s>"
    )


def test_a_template_that_changes_the_system_prompt_is_frozen_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    template = "{% if '/quiet' in messages[0]['content'] %}quiet {% endif %}" + TEMPLATE
    tokenizer = HFTokenizer(save_spaced_tokenizer(tmp_path, template, "never"))
    frozen = freeze_frame(Profile(system="Clean {this}. /quiet"), tokenizer)
    assert frozen.system is None
    assert frozen.frame.startswith("quiet {<|im_start|>}system\nClean {{this}}. /quiet")


def test_a_plan_freezes_the_date_of_a_template(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tokenizer(model, DATED)
    run = plan_run(tmp_path, model)
    plan = Plan.load(run.dir)
    profile = plan.prompts["chunk"].profile
    assert "strftime_now" not in profile.frame
    assert "{<|im_start|>}system\n{system}{<|im_end|>}" in profile.frame
    from transformers.utils import chat_template_utils

    class Tomorrow(chat_template_utils.datetime):  # type: ignore[misc]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2099, 12, 31)

    load_tokenizer.cache_clear()
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    opened = asyncio.run(open_refiner(plan.frozen_manifest, plan.models, plan.prompts))
    asyncio.run(opened.close())
    with pytest.raises(StopError, match="chunk stage has other token ids"):
        asyncio.run(open_refiner(plan.manifest, plan.models, plan.prompts))
    # Another launch of the same manifest is the same run.
    assert plan_run(tmp_path, model).plan.prompts == plan.prompts


def test_a_tokenizer_that_reads_the_frame_otherwise_stops_a_worker(
    model: Path, tmp_path: Path
) -> None:
    plan = plan_run(tmp_path, model).plan
    changed = replace(plan.prompts["chunk"], ids=(*plan.prompts["chunk"].ids, 7))
    with pytest.raises(StopError, match="other token ids than when it was planned"):
        asyncio.run(open_refiner(plan.frozen_manifest, plan.models, {"chunk": changed}))


@pytest.mark.parametrize(
    ("stage", "context"),
    [
        ({}, 1500 + 64 + 256),
        ({"window_tokens": 300, "max_new_tokens": 50}, 300 + 64 + 50),
        ({"max_prompt_tokens": 900}, 900 + 256),
        ({"window_tokens": 9000}, 4096),
    ],
)
def test_the_context_is_what_the_stages_need(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Any, context: int
) -> None:
    plan = plan_run(tmp_path, model, **stage).plan
    frame = len(plan.prompts["chunk"].ids)
    fixed = stage.keys() & {"max_prompt_tokens"} or context == 4096
    expected = context if fixed else context + frame
    asked: list[int | None] = []

    async def make(options: Any, *_: object, **__: object) -> None:
        asked.append(options.max_model_len)
        raise StopError("enough")

    monkeypatch.setattr(refiner, "make_engine", make)
    with pytest.raises(StopError, match="enough"):
        asyncio.run(open_refiner(plan.frozen_manifest, plan.models, plan.prompts))
    assert asked == [expected]
    (only,) = plan.frozen_manifest.stages
    assert prepare_stage(plan.frozen_manifest, only, plan.models["chunk"]).context == expected


def beyond_rows(model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([f"word {number}" for number in range(100)])
    tokenizer.save_pretrained(model)


def eos_beyond_rows(model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    more = [f"<|{number}|>" for number in range(100)]
    tokenizer.add_special_tokens({"additional_special_tokens": more})
    tokenizer.add_special_tokens({"eos_token": "<|done|>"})
    tokenizer.save_pretrained(model)
    edit_json(model / "generation_config.json", eos_token_id=2)


def turn_beyond_rows(model: Path) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(model, TEMPLATE.replace("<|im_end|>", "<|turn|>"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    more = [*(f"<|{number}|>" for number in range(100)), "<|turn|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": more})
    tokenizer.save_pretrained(model)


@pytest.mark.parametrize(
    ("damage", "message", "fix"),
    [
        (
            beyond_rows,
            r"its tokenizer has ids up to \d+, the embedding .* 320 rows",
            "copy the tok",
        ),
        (eos_beyond_rows, r"eos_token in tokenizer_config.json is id \d+", "name the end token"),
        (turn_beyond_rows, r"the token '<\|turn\|>', for which the embedding has no row", "choose"),
        (
            lambda m: (m / "chat_template.jinja").unlink(),
            "has no chat template, which the stage's profile needs",
            "choose another `prompt`",
        ),
        (lambda m: save_tokenizer(m, "{{ 1 / 0 }}"), "chat template fails", "choose another"),
        (lambda m: (m / "tokenizer.json").write_text("{}"), "cannot load the tokenizer", "damaged"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused_by_plan(
    model: Path, tmp_path: Path, damage: Any, message: str, fix: str
) -> None:
    damage(model)
    load_tokenizer.cache_clear()
    with pytest.raises(UserError, match=message) as caught:
        plan_run(tmp_path, model)
    assert fix in caught.value.hint
    assert not (tmp_path / "run" / "plan.json").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float33"}, "float33"),
        ({"rms_norm_eps": "1e-6"}, "'rms_norm_eps' expected float"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'factor'"),
    ],
)
def test_a_configuration_that_transformers_refuses_is_refused_by_plan(
    model: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    edit_json(model / "config.json", **change)
    load_tokenizer.cache_clear()
    with pytest.raises(UserError, match=rf"transformers refuses config.json: .*{reason}") as caught:
        plan_run(tmp_path, model)
    assert "\n" not in caught.value.message
    assert "correct config.json" in caught.value.hint


def test_a_model_whose_windows_vllm_refuses_is_refused_before(model: Path, tmp_path: Path) -> None:
    plan = plan_run(tmp_path, model).plan
    (stage,) = plan.frozen_manifest.stages
    edit_json(model / "config.json", use_sliding_window=True, max_window_layers=1)
    engine = plan.manifest.engine.model_copy(update={"name": "vllm"})
    changed = plan.frozen_manifest.model_copy(update={"engine": engine})
    with pytest.raises(UserError, match=r"max_window_layers in config.json is 1 of 2 layers"):
        prepare_stage(changed, stage, plan.models["chunk"])
    prepare_stage(plan.frozen_manifest, stage, plan.models["chunk"])


def test_doctor_finds_what_plan_finds(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beyond_rows(model)
    load_tokenizer.cache_clear()
    source = write_jsonl(tmp_path / "in.jsonl", [document(0)])
    stages = [{"level": "chunk", "model": str(model), "prompt": "prox-plain"}]
    path = manifest(tmp_path, [source], engine={"name": "transformers"}, stages=stages)
    assert main(["doctor", local_site(tmp_path), "--manifest", str(path), "--json"]) == 2
    findings = {each["check"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    assert "its tokenizer has ids up to" in findings["prompts"]["result"]

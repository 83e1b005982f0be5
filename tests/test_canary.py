"""The canary: a run whose answers are mostly unusable stops early, with examples."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from proxhpc import engines
from proxhpc.cli.main import main
from proxhpc.cluster import tasks
from proxhpc.engines.base import Completion, NotANumberError, Request, RequestError
from proxhpc.engines.steps import restrict
from proxhpc.engines.transformers_engine import TransformersEngine
from proxhpc.errors import StopError, UserError
from proxhpc.launch.launch import prepare_run
from proxhpc.program.replay import ProgramFormat
from proxhpc.refine.canary import Canary, why_unusable
from proxhpc.run.ledger import Call
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.spec.manifest import Manifest
from proxhpc.spec.sections import Stage
from runs import local_site, manifest, rows_of, write_jsonl
from test_stage import ScriptedEngine, keep, refine
from tiny_models import damage, save_llama, save_walk

CHAT = "Sure! Here is \x1b[2Jthe cleaned text."
TEXTS = [f"Page {n} about rivers and hills.\nIt has two lines." for n in range(400)]


def stage(**keys: Any) -> Stage:
    return Stage.model_validate({"level": "chunk", "model": "a/b", "prompt": "prox-plain"} | keys)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("untouch_doc()", ""),
        ("# nothing to do\nkeep_all()", ""),
        ("remove_lines(0, 1)\nand some words", ""),
        ("normalize('not there')", ""),
        ("", "no_program"),
        (" \n", "no_program"),
        (CHAT, "not_a_call"),
        ("remove_str(1, 'x')\ndel_lines(2)", "wrong_dialect"),
        ("remove_lines(3, 1)", "reversed_range"),
        ("remove_lines(90, 91)\nremove_lines(95, 96)", "no_such_line"),
        ("keep_doc()", "wrong_level"),
    ],
)
def test_what_is_unusable_of_a_chunk_stage(program: str, reason: str) -> None:
    call = Call(0, 4, program, "stop", 9, 0, 9)
    default = Manifest.model_fields["policy"].default
    assert why_unusable(stage(), call, default, ProgramFormat()) == reason
    assert why_unusable(stage(), call, "reference", ProgramFormat()) == reason


def test_what_else_is_unusable() -> None:
    def why(program: str, finish: str = "stop", **keys: Any) -> str:
        call = Call(0, 4, program, finish, 9, 0, 9)
        return why_unusable(stage(**keys), call, "reference", ProgramFormat())

    assert why("remove_li", "length") == "truncated_call"
    assert why("remove_lines(0, 0)\nremove_li", "length") == ""
    assert why("", prompt="walk", numbering="window") == "", "a walk that keeps every line"
    assert why(CHAT, level="doc") == "not_a_call"
    assert why("# no scores in: x", level="doc", prompt="teacher") == "unclear_verdict"
    assert why("keep_doc() drop_doc()", level="doc") == "unclear_verdict"
    assert why("drop_doc()", level="doc") == ""


def answers(share: float, answer: str = CHAT) -> Callable[[Request], str]:
    """Answer in this share of the requests with `answer`, spread evenly."""
    asked = 0.0

    def respond(request: Request) -> str:
        nonlocal asked
        asked += share
        bad = int(asked) > int(asked - share)
        return answer if bad else keep(request)

    return respond


@pytest.mark.parametrize("level", ["doc", "chunk"])
def test_mostly_garbage_stops_early_with_examples(level: str) -> None:
    engine = ScriptedEngine(answers(0.6))
    levels = {"doc": level == "doc", "chunk": level == "chunk"}
    with pytest.raises(StopError) as caught:
        refine(engine, TEXTS, **levels)
    first, reasons, example, hint, *rest = str(caught.value).splitlines()
    used = "129 of 216 answers of a/b"
    assert first == f"the {level} stage cannot use {used} (prompt: {_prompt(level)})"
    assert reasons == "  not a function call: 129"
    assert example == r'  not a function call: "Sure! Here is \x1b[2Jthe cleaned text."'
    assert "engine.max_unusable" in hint
    assert not rest


def _prompt(level: str) -> str:
    return "prox-llama2" if level == "doc" else "prox-plain"


@pytest.mark.parametrize("share", [0.0, 0.4, 0.5])
def test_less_garbage_does_not_stop(share: float) -> None:
    rows = refine(ScriptedEngine(answers(share)), TEXTS, doc=False)
    flagged = [row for row in rows if row.flags == ("unusable_answer",)]
    assert len(flagged) == share * len(TEXTS)
    assert all(row.rejected == {"not_a_call": 1} for row in flagged)


@pytest.mark.parametrize(("limit", "answers_until"), [(1.0, None), (0.41, None), (0.2, 129)])
def test_a_user_can_allow_any_share(limit: float, answers_until: int | None) -> None:
    watch = Canary([stage()], limit)

    def count_all() -> None:
        for number in range(1000):
            watch.add("chunk", number, "not_a_call" * (number % 5 in (1, 3)), CHAT)

    if answers_until is None:
        count_all()
    else:
        with pytest.raises(StopError, match=f"cannot use 52 of {answers_until} answers"):
            count_all()


def test_refused_requests_count() -> None:
    def refuses(request: Request) -> str:
        raise RequestError("no grammar here", hint="use another engine")

    with pytest.raises(StopError, match="engine refused the request: 20\n"):
        refine(ScriptedEngine(refuses), TEXTS, doc=False)
    rows = refine(ScriptedEngine(refuses), TEXTS[:15], doc=False)
    assert {row.reason for row in rows} == {"request_refused"}


def test_documents_in_a_row_stop_a_run_that_began_well() -> None:
    watch = Canary([stage()], 0.5)
    for number in range(1000):
        watch.add("chunk", number, "", "untouch_doc()")
    for number in range(99):
        for _ in range(7):  # windows
            watch.add("chunk", number, "not_a_call", CHAT)
    watch.add("chunk", 99, "", "untouch_doc()")
    for number in range(99):
        watch.add("chunk", number, "not_a_call", CHAT)
    with pytest.raises(StopError, match="among them all answers to the last 100 documents"):
        watch.add("chunk", 99, "not_a_call", CHAT)


def test_three_different_short_examples() -> None:
    watch = Canary([stage()], 0.5)
    for number in range(50):
        watch.add("chunk", number, "not_a_call", f"{number % 5} {'x' * 1000}")
    (warning,) = watch.warnings()
    _, _, *examples = warning.splitlines()
    assert [line.strip()[:25] for line in examples] == [
        f'not a function call: "{number} x' for number in range(3)
    ]
    assert max(map(len, examples)) < 200


def small_run(folder: Path, count: int, **sections: Any) -> Path:
    """Write a manifest for documents of a tiny model that answers with noise."""
    rows = [{"id": f"d{n}", "text": text} for n, text in enumerate(TEXTS[:count])]
    keys: dict[str, Any] = {"engine": {"name": "transformers", "batch_size": 64}} | sections
    if "stages" not in keys:
        model = save_llama(folder / "noise", max_position_embeddings=512)
        asked = {"model": str(model), "prompt": "prox-plain", "max_new_tokens": 3}
        keys["stages"] = [{"level": "chunk", **asked}]
    return manifest(folder, [write_jsonl(folder / "in.jsonl", rows)], **keys)


def test_a_real_run_stops_says_so_again_and_can_be_told_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rules write the dialect `prox`, of which another one can read nothing."""
    stages = [{"level": "chunk", "dialect": "rescraper"}]
    path = small_run(tmp_path, 300, stages=stages, engine={"name": "rules"})
    command = ["launch", str(path), "--site", local_site(tmp_path, 1)]
    run = RunDir(tmp_path / "run")
    for _ in range(2):
        assert main(command) == 4
        err = capsys.readouterr().err
        assert "proxhpc: the refine stopped: the chunk stage cannot use 100 of 100 answers" in err
        (example,) = re.findall(r'^  not a function call: "(.*)"$', err, re.M)
        assert example.startswith("remove_lines(start=2, end=2)"), "all answers are the same"
        assert main(["status", str(run.root), "--json"]) == 0
        status = json.loads(capsys.readouterr().out)
        assert status["phase"] == "stopped"
        assert status["reason"].startswith("the chunk stage cannot use 100 of 100 answers")
    assert main(["refine", "--manifest", str(path), str(tmp_path / "in.jsonl")]) == 4
    assert "the chunk stage cannot use 100 of 100 answers" in capsys.readouterr().err
    text = path.read_text()
    path.write_text(text.replace("name: rules", "max_unusable: 1.0\n  name: rules"))
    assert main(command) == 0
    warning = "answers of a model cannot be used in 300 of 300 documents"
    assert warning in capsys.readouterr().out
    plan = Plan.load(run)
    assert plan.manifest.engine.max_unusable == 1
    assert {row.flags for row in rows_of(run, plan)} == {("unusable_answer",)}
    assert "answer from which nothing can be read" in run.report_html.read_text()
    # The limit belongs to the launch, not to what the run computes.
    path.write_text(text)
    assert prepare_run(path, None, None).plan.manifest.engine.max_unusable == 0.5


def test_a_small_run_ends_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    path = small_run(tmp_path, 20)
    run = prepare_run(path, local_site(tmp_path), None).dir
    assert tasks.refine_task(str(run.root), 0, 1) == "done"
    (warning,) = [record.getMessage() for record in caplog.records if "canary" not in record.name]
    assert warning.startswith("the chunk stage cannot use 20 of 20 answers of noise")
    capsys.readouterr()
    assert main(["status", str(run.root)]) == 0
    assert "answers of a model cannot be used in 20 of 20 documents" in capsys.readouterr().out
    files = ["refine", "--manifest", str(path), str(tmp_path / "in.jsonl"), "--text"]
    assert main(files) == 0
    assert "the chunk stage cannot use 20 of 20 answers" in capsys.readouterr().err


@pytest.mark.parametrize("style", ["walk", "prox-plain"])
@pytest.mark.parametrize("level", ["doc", "chunk"])
def test_weights_that_are_not_numbers_stop_a_run(tmp_path: Path, style: str, level: str) -> None:
    """Greedy decoding would choose the first of the allowed tokens, which keeps everything."""
    pytest.importorskip("transformers")
    model = damage(
        save_walk(tmp_path / "m")
        if style == "walk"
        else save_llama(tmp_path / "m", max_position_embeddings=512)
    )
    stages = [{"level": level, "model": str(model), "prompt": style}]
    path = small_run(tmp_path, 3, stages=stages)
    run = prepare_run(path, local_site(tmp_path), None).dir
    with pytest.raises(UserError, match="the model's logits are not numbers") as caught:
        tasks.refine_task(str(run.root), 0, 1)
    assert "float32" in caught.value.hint


@pytest.mark.parametrize("count", [8, 60])
def test_a_run_whose_requests_are_refused_stops_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Also a run with a few documents, and nothing of them is committed."""
    pytest.importorskip("transformers")

    def generate(self: TransformersEngine, requests: Any, check: Any) -> Any:
        first = "Page 0 " in self._tokenizer.decode(requests[0].prompt)
        return [Completion("untouch_doc()", "stop", 9, 0, 9) if first else NotANumberError()]

    engine = {"name": "transformers", "batch_size": 1}
    path = small_run(tmp_path, count, engine=engine, commit={"documents": 20})
    run = prepare_run(path, local_site(tmp_path), None).dir
    monkeypatch.setattr(engines, "_ask_once", AsyncMock())
    monkeypatch.setattr(TransformersEngine, "_generate", generate)
    for _ in range(2):
        with pytest.raises(StopError) as caught:
            tasks.refine_task(str(run.root), 0, 1)
        assert "the model's output is not a number" in caught.value.message
    assert not run.ledger(0).exists()
    assert main(["refine", "--manifest", str(path), str(tmp_path / "in.jsonl")]) == 4


def test_a_restricted_answer_of_nan_ends_at_once() -> None:
    """So the vLLM engine, which sees no logits, knows it by its length."""
    torch = pytest.importorskip("torch")
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0], [float("nan")] * 4, [4.0, 3.0, 2.0, 1.0]])
    restrict(logits, [0, 1], [(0, 1), (0, 1)], ends=[3, 3])
    assert logits.argmax(dim=1).tolist() == [1, 3, 0]
    assert not logits.isnan().any()

"""`proxhpc evaluate`: runs a refiner with the workers' code and compares it with baselines."""

import json
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxhpc.cli.main import main
from proxhpc.engines.base import Completion, Request
from proxhpc.engines.transformers_engine import TransformersEngine
from proxhpc.evaluate import systems
from proxhpc.evaluate.gold import GoldRecord, aligned_labels
from proxhpc.evaluate.metrics import GoldLines, token_f1
from proxhpc.evaluate.result import Evaluation, SystemComparison, evaluate
from proxhpc.evaluate.systems import SystemResult
from proxhpc.evaluate.view import render_evaluation
from proxhpc.program.align import EditCosts, TokenizedLine
from proxhpc.program.replay import ProgramFormat
from proxhpc.refine.refiner import Refiner
from proxhpc.refine.stage import StageRunner
from proxhpc.run.ledger import Call, Row
from proxhpc.run.models import ModelRef
from proxhpc.spec.manifest import Manifest
from proxhpc.status.terminal import make_console
from runs import PARAGRAPH, document, manifest, write_jsonl
from tiny_models import save_llama, save_walk

Capture = pytest.CaptureFixture[str]
PAGE = (Path(__file__).parents[1] / "docs" / "evaluate.md").read_text()
NAV = "Home | About | Contact"
LABELS = "B" + "G" * PARAGRAPH.count("\n") + "G"


def block(kind: str) -> str:
    match = re.search(rf"^```{kind}\n(.*?)^```$", PAGE.partition("## An example")[2], re.M | re.S)
    assert match
    return match[1]


def chunk(number: int, **more: Any) -> dict[str, Any]:
    text = document(number)["text"]
    gold = text.removeprefix(f"{NAV}\n")
    return {"text_noisy": text, "text_gold": gold, "line_labels": LABELS, "source": "x"} | more


def scores(out: str, level: str, group: str, system: str) -> dict[str, Any]:
    groups = Evaluation.model_validate_json(out).model_dump(mode="json")["groups"]
    (one,) = [g for g in groups if (g["level"], g["name"]) == (level, group)]
    (result,) = [s for s in one["systems"] if s["name"] == system]
    return {name: score["value"] for name, score in result["scores"].items()} | {
        "lead": result["lead"],
        "documents": result["documents"],
    }


def test_the_example_in_the_docs(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("example.jsonl").write_text(block("json"))
    (command,) = re.findall(r"^proxhpc (.*)$", block("sh"), re.M)
    assert main(command.split()) == 0
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert printed.startswith(block("text"))
    names: dict[str, Any] = {}
    exec(block("python"), names)
    assert names["line_scores"]["line_recall"] == pytest.approx(2 / 3)
    verdict_scores = names["verdict_scores"]
    assert verdict_scores | {"auc": 0} == verdict_scores | {"accuracy": 1, "auc": 0}


def test_scores_by_group(tmp_path: Path, capsys: Capture) -> None:
    rows = [chunk(0), chunk(1, source="y"), chunk(2, line_labels=None)]
    rows += [{"text": document(3)["text"], "keep": True, "unanimous": True, "source": "z"}]
    rows += [{"text": "Buy now!", "keep": 1, "source": "z"}]
    path = write_jsonl(tmp_path / "gold.jsonl.zst", rows)
    assert main(["evaluate", str(path), "--json", "-", "--bootstrap", "20"]) == 0
    out = capsys.readouterr().out
    rules = scores(out, "chunk", "all", "rules")
    assert rules["token_f1"] == rules["line_f1"] == rules["valid_programs"] == 1
    plain = scores(out, "chunk", "source=y", "keep all")
    kept = len(rows[1]["text_gold"].encode()) / len(rows[1]["text_noisy"].encode())
    assert (plain["line_recall"], plain["bytes_kept"]) == (0, 1)
    assert scores(out, "chunk", "source=y", "rules")["bytes_kept"] == pytest.approx(kept)
    assert plain["lead"]["token_f1"]["value"] == pytest.approx(1 - plain["token_f1"])
    lead = scores(out, "chunk", "all", "keep all")["lead"]["token_f1"]
    assert 0 < lead["low"] <= lead["value"] <= lead["high"]
    # Without line labels, those of an alignment count.
    oracle = scores(out, "chunk", "all", "oracle")
    assert (oracle["documents"], oracle["line_f1"]) == (3, 1)
    assert scores(out, "doc", "all", "rules")["accuracy"] == 0.5
    assert scores(out, "doc", "unanimous", "rules")["accuracy"] == 1
    assert json.loads(out)["labels"] == {"B": 3, "G": 18}


def test_a_pair_without_labels_is_aligned() -> None:
    noisy = "Menu\nOne line  stays.\n\nThis line ends with [quote].\nShare"
    assert aligned_labels(noisy, "One line stays.\nThis line ends with.") == "BGBEB"
    assert aligned_labels(noisy, "") == "BBBBB"
    assert aligned_labels(noisy, noisy) == "GGGGG"
    large = "\n".join("ab" * 600)
    assert aligned_labels(large, large[::-1]) == ""


def test_few_lines_of_a_long_page_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, of_pair = Counter[str](), EditCosts.of_pair

    def count(costs: EditCosts, old: TokenizedLine, new: TokenizedLine) -> int:
        compared["pairs"] += 1
        return of_pair(costs, old, new)

    monkeypatch.setattr(EditCosts, "of_pair", count)
    lines = [f"Line  number {n}" if n % 3 else "Share" for n in range(500)]
    gold = [line.replace("  ", " ") for n, line in enumerate(lines) if n % 3]
    gold[100] += " is edited"
    labels = aligned_labels("\n".join(lines), "\n".join(gold))
    assert labels.replace("E", "G") == "".join("G" if n % 3 else "B" for n in range(500))
    assert labels.count("E") == 1
    assert compared["pairs"] < 1000


def test_options_json_and_table(tmp_path: Path, capsys: Capture) -> None:
    hostile = "\x1b]0;owned\x07"
    rows = [chunk(n, source=hostile if n % 2 else "x") for n in range(6)]
    rows[0]["line_labels"] = f"?E{LABELS[2:]}"
    path = write_jsonl(tmp_path / "gold.jsonl", rows)
    target = tmp_path / "out.json"
    base = ["evaluate", str(path), "--bootstrap", "10"]
    assert main([*base, "--json", str(target)]) == 0
    out = capsys.readouterr().out
    rows = [line.split()[0] for line in out.splitlines() if " .9" in line or " 1.000" in line]
    assert rows.count("source=x") == 1, "the refiner's row; the baselines' are in the JSON"
    assert out.count("keep all") == 1
    assert r"source=\x1b]0;owned" in out
    assert "\x1b" not in out
    assert "lines with other labels, not counted: 1 ?\n" in re.sub(" +\n", "\n", out)
    evaluation = json.loads(target.read_bytes())
    assert (evaluation["format"], evaluation["records"]) == ("proxhpc.evaluate/1", 6)
    assert main([*base, "--where", "source=x", "--limit", "2", "--json", str(target)]) == 0
    evaluation = json.loads(target.read_bytes())
    assert (evaluation["records"], evaluation["selection"]["where"]) == (2, ["source=x"])
    assert main([*base, "--exclude", "source=x", "--seed", "-1"]) == 2
    assert "--seed -1" in capsys.readouterr().err


def test_a_level_without_a_stage(tmp_path: Path, capsys: Capture) -> None:
    path = manifest(tmp_path, [tmp_path], stages=[{"level": "chunk"}])
    doc = {"text": document(0)["text"], "keep": 1}
    gold = write_jsonl(tmp_path / "doc.jsonl", [doc])
    command = ["evaluate", str(gold), "--manifest", str(path)]
    assert main(command) == 2
    assert "records are of level doc, the stages of rules not" in capsys.readouterr().err
    write_jsonl(gold, [doc, chunk(0)])
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "has no doc stage" in out
    assert "whole documents" not in out, "a table of baselines alone says nothing of the refiner"


class Scripted:
    """An engine whose answer depends on the text in the window."""

    name, tokenizer, max_model_len = "scripted", None, 2**31 - 1
    cache_tokens, min_in_flight = 0, 9

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers

    async def complete(self, request: Request) -> Completion:
        text = "\n".join(request.lines)
        program = next(answer for mark, answer in self.answers.items() if mark in text)
        return Completion(program, "stop", prompt_tokens=9, cached_tokens=0, new_tokens=3)

    async def close(self) -> None: ...


def scripted(monkeypatch: pytest.MonkeyPatch, answers: dict[str, str]) -> Manifest:
    """A manifest of two stages, whose engine answers as scripted."""
    engine = Scripted(answers)

    async def open_refiner(manifest: Manifest, models: object) -> Refiner:
        runners = {s.level: StageRunner(s, engine, manifest.policy) for s in manifest.stages}
        return Refiner(manifest, runners.get("doc"), runners.get("chunk"))

    monkeypatch.setattr(systems, "open_refiner", open_refiner)
    return Manifest.model_validate(
        {"name": "m", "corpus": {"paths": "-"}, "engine": {"name": "rules"},
         "policy": {"on_removed_share": "drop"},
         "stages": [{"level": "doc"}, {"level": "chunk"}]},
        context={"base": Path.cwd()},
    )  # fmt: skip


def test_programs_are_executed_as_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With edits within lines, rejected statements and limits of the policy."""
    answers = {
        "Number 0": 'remove_lines(start=0, end=0)\nnormalize(source_str="Number 0 of ")',
        "Number 1": "remove_lines(start=0, end=70)",
        "Number 2": "remove_lines(start=1, end=6)",  # too large a share: dropped
        "Number 3": "drop_doc()",
        "Number 4": "keep_doc() or drop_doc()",  # unclear: kept
    }
    two = scripted(monkeypatch, answers)
    records = [
        GoldRecord(str(n), f"f:{n}", "", document(n)["text"], chunk(n)["text_gold"], LABELS)
        for n in range(3)
    ]
    records += [GoldRecord(str(n), f"f:{n}", "", document(n)["text"], keep=False) for n in (3, 4)]
    lines: list[str] = []
    monkeypatch.setattr(systems, "_LOG_SECONDS", 0)
    results = systems.run_systems([two], records, lines.append)
    assert lines[:3] == [f"{n} of 3 documents" for n in (1, 2, 3)]
    rows = results["chunk"][0].rows
    gold_bytes = len(records[0].gold_text or "")
    assert rows[0]["bytes_kept"] == gold_bytes - len("Number 0 of ")
    assert 0.9 < rows[0]["token_f1"] < 1
    assert (rows[0]["removed_right"], rows[0]["programs"], rows[0]["valid"]) == (1, 1, 1)
    assert (rows[1]["removed_right"], rows[1]["missed"], rows[1]["valid"]) == (0, 1, 0)
    assert (rows[2]["bytes_kept"], rows[2]["token_f1"], rows[2]["removed_wrong"]) == (0, 0, 6)
    assert results["chunk"][0].totals.rejected == {"outside_window": 1}
    doc_rows = results["doc"][0].rows
    assert [(row["right"], row["valid"]) for row in doc_rows] == [(1, 1), (0, 0)]
    evaluation = evaluate([two], records, [], rounds=0)
    assert evaluation.groups[0].systems[0].scores["valid_programs"].value == pytest.approx(2 / 3)
    assert ProgramFormat() == Refiner(two, None, None).program_format


def test_verdicts_are_read_as_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With policy: strict, a verdict in bold is none."""
    loose = scripted(monkeypatch, {"Number": "**drop_doc()**"})
    policy = loose.policy.model_copy(update={"strict": True})  # type: ignore[union-attr]
    strict = loose.model_copy(update={"policy": policy})
    gold = GoldRecord("0", "f:0", "", document(0)["text"], keep=False)
    for refiner, valid in ((loose, 1), (strict, 0)):
        (row,) = systems.run_systems([refiner], [gold], print)["doc"][0].rows
        assert (row["right"], row["valid"]) == (valid, valid)


def test_of_a_page_without_an_answer_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    gold = GoldRecord("0", "f:0", "", document(0)["text"], chunk(0)["text_gold"], LABELS)
    (effect,) = evaluate([scripted(monkeypatch, {})], [gold], [], rounds=0).limits
    assert (effect.reason, effect.as_set, effect.without) == ("internal_error", 0, None)


def test_what_each_limit_overruled(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Scores as set and without the limit, by hand."""
    manifest = scripted(
        monkeypatch,
        {
            # Two of three statements are errors, so the window is kept; the third one is right.
            "Number 0": "remove_lines(start=0, end=0)\nhello\ngood bye",
            # Part of a word, and a string that is not there.
            "Number 1": 'normalize(source_str="meadow")\nnormalize(source_str="zzz")',
            "Number 2": "remove_lines(start=0, end=5)",  # a line of nine words is left
            "Number 3": "remove_all()",
            "Number 4": "drop_doc()",
            "Number 5": "drop_doc()",
            "Number 6": "perhaps",
            "Number 7": "drop_doc()",
            "Number 8": "drop_doc()",
        },
    )
    records = [
        GoldRecord(str(n), f"f:{n}", "", document(n)["text"], chunk(n)["text_gold"], LABELS)
        for n in range(4)
    ]
    records[3] = replace(records[3], gold_text="", labels="B" * len(LABELS))
    keeps = {4: True, 5: False, 6: True, 7: False, 8: False}
    records += [
        GoldRecord(str(n), f"f:{n}", "", document(n)["text"], keep=keep)
        for n, keep in keeps.items()
    ]
    evaluation = evaluate([manifest], records, [], rounds=0)
    effects = {effect.reason: effect for effect in evaluation.limits}
    page, short = document(0)["text"], document(2)["text"].split("\n")[-1]
    all_kept = token_f1(page, chunk(0)["text_gold"])
    meadowless = token_f1(document(1)["text"].replace("meadow", ""), chunk(1)["text_gold"])
    as_it_is = token_f1(document(1)["text"], chunk(1)["text_gold"])

    def effect(reason: str) -> tuple[str, int, int, float, float | None, int, int]:
        of = effects[reason]
        return of.key, of.overruled, of.documents, of.as_set, of.without, of.right, of.wrong

    assert effect("error_budget") == ("max_error_share", 1, 1, all_kept, 1, 0, 1)
    assert effect("inside_word") == ("whole_words", 1, 1, as_it_is, meadowless, 1, 0)
    of_short = token_f1(short, chunk(2)["text_gold"])
    assert effect("short") == ("min_kept_words", 1, 1, 0, of_short, 0, 1)
    assert effect("emptied") == ("", 1, 1, 1, 0, 1, 0)
    assert effect("not_found") == ("", 1, 1, as_it_is, None, 0, 0)
    assert effect("not_a_call") == ("", 2, 1, all_kept, None, 0, 0)
    assert effect("doc_program") == ("", 4, 4, 0.75, 0.25, 3, 1)
    assert effect("unclear_verdict") == ("", 1, 1, 1, 0, 1, 0)
    make_console().print(render_evaluation(evaluation))
    out = capsys.readouterr().out
    assert re.search(r"string inside a word \(whole_words\) +1 +1 +\.9\d\d +\.9\d\d +1 of 1", out)


def test_several_refiners_beside_the_baselines(tmp_path: Path, capsys: Capture) -> None:
    """Each lead compares with the first one, on the same resamples of the documents."""
    texts = [f"{document(n)['text']}\nGood words, no end" for n in range(8)]
    rows = [{"text_noisy": t, "text_gold": t.removeprefix(f"{NAV}\n")} for t in texts]
    path = write_jsonl(tmp_path / "gold.jsonl", rows)
    base = ["evaluate", str(path), "--bootstrap", "20", "--json"]
    assert main([*base, "-", "--rules", "gopher", "--rules", "c4"]) == 0
    both = capsys.readouterr().out
    evaluation = Evaluation.model_validate_json(both)
    assert evaluation.refiners == ("rules gopher", "rules c4")
    names = [system.name for system in evaluation.groups[0].systems]
    assert names[:4] == ["rules gopher", "rules c4", "rules", "keep all"]
    assert main([*base, "-", "--rules", "c4", "--rules", "gopher"]) == 0
    other = capsys.readouterr().out
    one, two = (
        scores(both, "chunk", "all", "rules c4"),
        scores(other, "chunk", "all", "rules gopher"),
    )
    assert one["token_f1"] < two["token_f1"], "c4 removes the last line"
    assert one["lead"]["token_f1"]["value"] == two["token_f1"] - one["token_f1"]
    assert one["lead"]["token_f1"]["low"] == -two["lead"]["token_f1"]["high"] > 0
    assert main([*base, str(tmp_path / "out.json"), "--rules", "gopher", "--rules", "c4"]) == 0
    out = capsys.readouterr().out
    assert "lead of rules gopher" in out
    assert "rules c4, chunk stage: " in out


def test_models_are_loaded_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Random models, whose answers cannot be used: a warning, but no stop."""
    pytest.importorskip("transformers")
    models = [save_llama(tmp_path / name, max_position_embeddings=512) for name in ("a", "b")]
    refiner = {"version": 1, "prompt": "prox-plain", "chunk": {"max_new_tokens": 8}}
    for model in models:
        (model / "refiner.json").write_text(json.dumps(refiner))
    row = {"text_noisy": "Home\nThe fox jumps.", "text_gold": "The fox jumps."}
    texts = [row | {"text_noisy": f"Home {n}\nThe fox jumps."} for n in range(130)]
    path = write_jsonl(tmp_path / "gold.jsonl", texts)
    loaded: list[str] = []
    original = TransformersEngine.__init__
    close = TransformersEngine.close

    def load(self: TransformersEngine, model: ModelRef, **options: Any) -> None:
        loaded.append(model.name)
        assert len(loaded) == 1
        original(self, model, **options)

    async def unload(self: TransformersEngine) -> None:
        await close(self)
        loaded.pop()

    monkeypatch.setattr(TransformersEngine, "__init__", load)
    monkeypatch.setattr(TransformersEngine, "close", unload)
    command = ["evaluate", str(path), "--engine", "transformers"]
    for model in models:
        command += ["--model", str(model)]
    out_file = tmp_path / "out.json"
    assert main([*command, "--bootstrap", "0", "--json", str(out_file)]) == 0
    shown = capsys.readouterr()
    evaluation = Evaluation.model_validate_json(out_file.read_bytes())
    assert evaluation.refiners == tuple(map(str, models))
    assert [run.unusable for run in evaluation.execution[:2]] == [1, 1]
    assert shown.err.count("the chunk stage cannot use 130 of 130 answers of ") == 2
    assert "a, chunk stage: 100.0 % of the answers are unusable" in shown.out


def test_refiners_have_different_names(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "gold.jsonl", [chunk(0), chunk(1)])
    strict = manifest(tmp_path, [tmp_path], policy={"strict": True})
    command = ["evaluate", str(path), "--bootstrap", "0", "--json", "-"]
    assert main([*command, "--manifest", str(strict), "--manifest", str(strict)]) == 0
    assert json.loads(capsys.readouterr().out)["refiners"] == ["rules", "rules #2"]
    monkeypatch.setattr(systems, "_refiner_name", str)
    assert systems.refiner_names(["a #1", "a #1"]) == ["a #1", "a #1 #2"]  # type: ignore[list-item]
    assert main([*command, "--manifest", str(strict), "--prompt", "compact"]) == 2
    assert "leave out" in capsys.readouterr().err


def test_split_lines_and_lines_of_other_windows_are_counted_whole() -> None:
    """The first line, split in two, is removed in part; of the second nothing is left."""
    chunks = Manifest.model_validate(
        {"name": "m", "corpus": {"paths": "-"}, "engine": {"name": "rules"},
         "policy": {"min_kept_words": 0}, "stages": [{"level": "chunk"}]},
        context={"base": Path.cwd()},
    )  # fmt: skip
    text = "One here. Two here.\nThree here. Four here.\nFive here."
    gold = GoldRecord("0", "f:0", "", text, "One here.\nFive here.", "CBC")
    windows = (
        Call(0, 3, "remove_lines(1, 2)", "stop", 0, 0, 0),
        Call(3, 5, "remove_lines(2, 3)\nremove_lines(1, 1)", "stop", 0, 0, 0, shown=(1, 5)),
    )
    row = Row("0", 0, 0, "edited", windows=windows, cuts=(10, 32))
    counts = systems._chunk_counts(GoldLines.of(gold), row, Refiner(chunks, None, None))
    assert (counts["removed_right"], counts.get("removed_wrong", 0)) == (1, 0)
    assert (counts["token_f1"], counts["bytes_kept"]) == (1, len("One here.\nFive here."))
    assert (counts["programs"], counts["valid"]) == (2, 2)


def test_the_lead_is_the_refiner_minus_the_system() -> None:
    """The value and both ends of its interval have the sign of the refiner's advantage."""
    records = [GoldRecord(str(n), f"f:{n}", "", "x", "x") for n in range(20)]
    better, worse = (
        SystemResult(name, [{"documents": 1, "token_f1": f1 + n / 100} for n in range(20)])
        for name, f1 in (("better", 0.5), ("worse", 0.2))
    )
    for refiner, system, sign in ((better, worse, 1), (worse, better, -1)):
        comparison = SystemComparison("chunk", [refiner, system], records, refiner.name, 50, 0)
        own, other = comparison.group("all", list(range(20))).systems
        assert own.lead == {}
        lead = other.lead["token_f1"]
        assert (lead.low, lead.value, lead.high) == pytest.approx((sign * 0.3,) * 3)
        interval = own.scores["token_f1"]
        assert interval.low is not None
        assert interval.low < interval.value < interval.high


def test_a_model_is_evaluated_beside_the_rules(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("transformers")
    model = save_llama(tmp_path / "llama")
    stages = [{"level": "chunk", "model": str(model), "prompt": "prox-plain", "max_new_tokens": 16}]
    manifest_path = manifest(tmp_path, [tmp_path], engine={"name": "transformers"}, stages=stages)
    row = {"text_noisy": "Home\nThe fox jumps.", "text_gold": "The fox jumps."}
    path = write_jsonl(tmp_path / "gold.jsonl", [row])
    assert main(["evaluate", "--manifest", str(manifest_path), str(path), "--bootstrap", "0"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[2].startswith("llama ")
    assert out.splitlines()[3].startswith("rules ")
    assert re.search(r"^chunk stage: \S+ documents/s, [1-9]\S*[kM] FLOPs per document$", out, re.M)


def test_the_auc_of_verdicts(tmp_path: Path, capsys: Capture) -> None:
    """It depends on the order of the scores only, not on the bias."""
    pytest.importorskip("transformers")
    folder = save_walk(tmp_path / "walk")
    texts = ["Home", "The brown fox", "jumps over", "a lazy dog", "About us", "lines of it"]
    keeps = [1, 0, 1, 0, 0, 1]
    rows = [{"text": text, "keep": keep} for text, keep in zip(texts, keeps, strict=True)]
    path = write_jsonl(tmp_path / "gold.jsonl", rows)

    def evaluated(bias: float) -> str:
        stages = [{"level": "doc", "model": str(folder), "prompt": "walk", "bias": bias}]
        engine = {"name": "transformers", "dtype": "float32"}
        manifest_path = manifest(tmp_path, [tmp_path], engine=engine, stages=stages)
        out = tmp_path / "out.json"
        command = ["evaluate", "--manifest", str(manifest_path), str(path), "--json", str(out)]
        assert main([*command, "--bootstrap", "50"]) == 0
        assert " AUC " in capsys.readouterr().out.splitlines()[1]
        return out.read_text()

    kept, dropped = evaluated(-100), evaluated(100)
    one, other = (scores(out, "doc", "all", str(folder)) for out in (kept, dropped))
    assert (one["documents_kept"], other["documents_kept"]) == (1, 0)
    assert one["auc"] == other["auc"] == pytest.approx(auc_by_hand(folder, texts, keeps))
    rules = scores(kept, "doc", "all", "rules")
    assert rules["auc"] is None
    assert "auc" not in rules["lead"]


def auc_by_hand(folder: Path, texts: list[str], keeps: list[int]) -> float:
    """The share of pairs in which the document to drop has higher log-odds of dropping."""
    import torch
    from transformers import AutoModelForCausalLM

    from proxhpc.engines.tokenizer import HFTokenizer
    from proxhpc.refine.walk import Walk

    walk = Walk(HFTokenizer(folder))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        last = [model(torch.tensor([walk.verdict_prompt([text])])).logits[0, -1] for text in texts]
    log_odds = [float(row[walk.verdict_ids[1]] - row[walk.verdict_ids[0]]) for row in last]
    drop, keep = ([m for m, k in zip(log_odds, keeps, strict=True) if k == n] for n in (0, 1))
    pairs = [d > k for d in drop for k in keep]
    return sum(pairs) / len(pairs)


@pytest.mark.skipif("PROXHPC_DATA" not in os.environ, reason="PROXHPC_DATA names no gold data")
def test_real_gold(tmp_path: Path, capsys: Capture) -> None:
    """The rules are known to be better than keeping all on these pages."""
    path = Path(os.environ["PROXHPC_DATA"]) / "eval_dev.jsonl.zst"
    command = ["evaluate", str(path), "--limit", "100", "--bootstrap", "200", "--json", "-"]
    assert main([*command, "--where", "source=dragnet"]) == 0
    out = capsys.readouterr().out
    assert scores(out, "chunk", "all", "oracle")["line_f1"] == 1
    lead = scores(out, "chunk", "all", "keep all")["lead"]["token_f1"]
    assert lead["low"] > 0.1

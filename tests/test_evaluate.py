"""`proxhpc evaluate`: a refiner through the workers' own code, beside its baselines."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from proxhpc.cli.main import main
from proxhpc.engines.base import Completion, Request
from proxhpc.evaluate import run
from proxhpc.evaluate.gold import GoldRecord
from proxhpc.evaluate.result import evaluate
from proxhpc.program.replay import Style
from proxhpc.refine.refiner import Refiner
from proxhpc.refine.stage import StageRunner
from proxhpc.spec.manifest import Manifest
from runs import PARAGRAPH, document, manifest, write_jsonl
from tiny_models import save_llama, save_walk

Capture = pytest.CaptureFixture[str]
PAGE = (Path(__file__).parents[1] / "docs" / "evaluate.md").read_text()
NAV = "Home | About | Contact"
LABELS = "B" + "G" * PARAGRAPH.count("\n") + "G"


def block(kind: str) -> str:
    found = re.search(rf"^```{kind}\n(.*?)^```$", PAGE.partition("## An example")[2], re.M | re.S)
    assert found
    return found[1]


def chunk(number: int, **more: Any) -> dict[str, Any]:
    text = document(number)["text"]
    wanted = text.removeprefix(f"{NAV}\n")
    return {"text_noisy": text, "text_gold": wanted, "line_labels": LABELS, "source": "x"} | more


def scores(out: str, level: str, group: str, system: str) -> dict[str, Any]:
    groups = json.loads(out)["groups"]
    (one,) = [g for g in groups if (g["level"], g["name"]) == (level, group)]
    (found,) = [s for s in one["systems"] if s["name"] == system]
    return {name: value["value"] for name, value in found["scores"].items()} | {
        "ahead": found["ahead"],
        "documents": found["documents"],
    }


def test_the_example_of_the_page(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("example.jsonl").write_text(block("json"))
    (command,) = re.findall(r"^proxhpc (.*)$", block("sh"), re.M)
    assert main(command.split()) == 0
    shown = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert shown.startswith(block("text"))
    known: dict[str, Any] = {}
    exec(block("python"), known)
    assert known["scores"]["line_recall"] == pytest.approx(2 / 3)
    assert known["more"] | {"auc": 0} == known["more"] | {"accuracy": 1, "auc": 0}


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
    assert plain["ahead"]["token_f1"]["value"] == pytest.approx(1 - plain["token_f1"])
    # Nobody labelled the lines of one of them: there the oracle has nothing to say.
    oracle = scores(out, "chunk", "all", "oracle")
    assert (oracle["documents"], oracle["line_f1"]) == (2, 1)
    assert scores(out, "doc", "all", "rules")["accuracy"] == 0.5
    assert scores(out, "doc", "unanimous", "rules")["accuracy"] == 1
    assert json.loads(out)["labels"] == {"B": 2, "G": 12}


def test_files_options_and_table(tmp_path: Path, capsys: Capture) -> None:
    hostile = "\x1b]0;owned\x07"
    rows = [chunk(n, source=hostile if n % 2 else "x") for n in range(6)]
    rows[0]["line_labels"] = f"?{LABELS[1:]}"
    path = write_jsonl(tmp_path / "gold.jsonl", rows)
    target = tmp_path / "out.json"
    base = ["evaluate", str(path), "--bootstrap", "10"]
    assert main([*base, "--json", str(target)]) == 0
    out = capsys.readouterr().out
    assert "source=x" in out
    assert r"source=\x1b]0;owned" in out
    assert "\x1b" not in out
    assert "not counted: 1 ?" in out
    assert json.loads(target.read_bytes())["records"] == 6
    assert main([*base, "--where", "source=x", "--limit", "2", "--json", str(target)]) == 0
    assert json.loads(target.read_bytes())["records"] == 2
    assert main([*base, "--exclude", "source=x", "--seed", "-1"]) == 2
    assert "--seed -1" in capsys.readouterr().err


def test_a_level_that_no_stage_has(tmp_path: Path, capsys: Capture) -> None:
    made = manifest(tmp_path, [tmp_path], stages=[{"level": "chunk"}])
    doc = {"text": document(0)["text"], "keep": 1}
    path = write_jsonl(tmp_path / "doc.jsonl", [doc])
    asked = ["evaluate", str(path), "--manifest", str(made)]
    assert main(asked) == 2
    assert "records are of level doc, the refiner's stages are not" in capsys.readouterr().err
    write_jsonl(path, [doc, chunk(0)])
    assert main(asked) == 0
    assert "has no doc stage" in capsys.readouterr().out


class Scripted:
    """An engine that answers by what stands in the window."""

    name, tokenizer, max_model_len, cache_tokens = "scripted", None, 2**31 - 1, 0

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers

    async def complete(self, request: Request) -> Completion:
        text = "\n".join(request.lines)
        program = next(answer for mark, answer in self.answers.items() if mark in text)
        return Completion(program, "stop", prompt_tokens=9, cached_tokens=0, new_tokens=3)

    async def close(self) -> None: ...


def test_what_programs_do_is_what_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edits within lines, rejected statements, limits of the policy: as in a run."""
    two = Manifest.model_validate(
        {"name": "m", "corpus": {"paths": "-"}, "engine": {"name": "rules"},
         "policy": {"on_removed_share": "drop"},
         "stages": [{"level": "doc"}, {"level": "chunk"}]},
        context={"base": Path.cwd()},
    )  # fmt: skip
    answers = {
        "Number 0": 'remove_lines(start=0, end=0)\nnormalize(source_str="Number 0 of ")',
        "Number 1": "remove_lines(start=0, end=70)",
        "Number 2": "remove_lines(start=1, end=6)",  # too much of it: dropped
        "Number 3": "drop_doc()",
        "Number 4": "keep_doc() or drop_doc()",  # unclear: kept
    }
    engine = Scripted(answers)

    async def opened(asked: Manifest, models: object) -> Refiner:
        doc, edit = (StageRunner(stage, engine, asked.policy) for stage in asked.stages)
        return Refiner(asked, doc, edit)

    monkeypatch.setattr(run, "open_refiner", opened)
    records = [
        GoldRecord(str(n), f"f:{n}", "", document(n)["text"], chunk(n)["text_gold"], LABELS)
        for n in range(3)
    ]
    records += [GoldRecord(str(n), f"f:{n}", "", document(n)["text"], keep=False) for n in (3, 4)]
    said: list[str] = []
    monkeypatch.setattr(run, "SAY_SECONDS", 0)
    asked = run.ask(two, records, said.append)
    assert said[:3] == [f"{n} of 3 documents" for n in (1, 2, 3)]
    mine = asked["chunk"][0].cells
    wanted = len(records[0].wanted or "")
    assert mine[0]["bytes_kept"] == wanted - len("Number 0 of ")
    assert 0.9 < mine[0]["token_f1"] < 1
    assert (mine[0]["removed_right"], mine[0]["programs"], mine[0]["valid"]) == (1, 1, 1)
    assert (mine[1]["removed_right"], mine[1]["missed"], mine[1]["valid"]) == (0, 1, 0)
    assert (mine[2]["bytes_kept"], mine[2]["token_f1"], mine[2]["removed_wrong"]) == (0, 0, 6)
    assert asked["chunk"][0].counts.rejected == {"outside_window": 1}
    judged = asked["doc"][0].cells
    assert [(cells["right"], cells["valid"]) for cells in judged] == [(1, 1), (0, 0)]
    found = evaluate(two, records, [], rounds=0)
    assert found.groups[0].systems[0].scores["valid_programs"].value == pytest.approx(2 / 3)
    assert Style() == Refiner(two, None, None).style


def test_a_model_of_ones_own(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("transformers")
    model = save_llama(tmp_path / "llama")
    stages = [{"level": "chunk", "model": str(model), "prompt": "prox-plain", "max_new_tokens": 16}]
    made = manifest(tmp_path, [tmp_path], engine={"name": "transformers"}, stages=stages)
    row = {"text_noisy": "Home\nThe fox jumps.", "text_gold": "The fox jumps."}
    path = write_jsonl(tmp_path / "gold.jsonl", [row])
    asked = ["evaluate", "--manifest", str(made), str(path), "--bootstrap", "0"]
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[2].startswith("llama ")
    assert out.splitlines()[3].startswith("rules ")
    assert re.search(r"^chunk stage: \S+ documents/s, [1-9]\S*[kM] FLOPs a document$", out, re.M)


def test_the_auc_of_verdicts(tmp_path: Path, capsys: Capture) -> None:
    """The order in which thresholds would drop documents, whatever the bias at which they are."""
    pytest.importorskip("transformers")
    folder = save_walk(tmp_path / "walk")
    texts = ["Home", "The brown fox", "jumps over", "a lazy dog", "About us", "lines of it"]
    keeps = [1, 0, 1, 0, 0, 1]
    rows = [{"text": text, "keep": keep} for text, keep in zip(texts, keeps, strict=True)]
    path = write_jsonl(tmp_path / "gold.jsonl", rows)

    def evaluated(bias: float) -> str:
        stages = [{"level": "doc", "model": str(folder), "prompt": "walk", "bias": bias}]
        engine = {"name": "transformers", "dtype": "float32"}
        made = manifest(tmp_path, [tmp_path], engine=engine, stages=stages)
        out = tmp_path / "out.json"
        asked = ["evaluate", "--manifest", str(made), str(path), "--json", str(out)]
        assert main([*asked, "--bootstrap", "50"]) == 0
        assert " AUC " in capsys.readouterr().out.splitlines()[1]
        return out.read_text()

    kept, dropped = evaluated(-100), evaluated(100)
    one, other = (scores(out, "doc", "all", str(folder)) for out in (kept, dropped))
    assert (one["documents_kept"], other["documents_kept"]) == (1, 0)
    assert one["auc"] == other["auc"] == pytest.approx(by_hand(folder, texts, keeps))
    rules = scores(kept, "doc", "all", "rules")
    assert rules["auc"] is None
    assert "auc" not in rules["ahead"]


def by_hand(folder: Path, texts: list[str], keeps: list[int]) -> float:
    """How many pairs of a document to drop and one to keep the model has in that order."""
    import torch
    from transformers import AutoModelForCausalLM

    from proxhpc.engines.tokenizer import HFTokenizer
    from proxhpc.refine.walk import Walk

    walk = Walk(HFTokenizer(folder))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        last = [model(torch.tensor([walk.judge([text])])).logits[0, -1] for text in texts]
    margins = [float(row[walk.verdicts[1]] - row[walk.verdicts[0]]) for row in last]
    drop, keep = ([m for m, k in zip(margins, keeps, strict=True) if k == n] for n in (0, 1))
    pairs = [d > k for d in drop for k in keep]
    return sum(pairs) / len(pairs)


@pytest.mark.skipif("PROXHPC_DATA" not in os.environ, reason="PROXHPC_DATA names no gold data")
def test_real_gold(tmp_path: Path, capsys: Capture) -> None:
    """A sixth of the pages, on which the rules are known to do better than keeping all."""
    path = Path(os.environ["PROXHPC_DATA"]) / "eval_dev.jsonl.zst"
    asked = ["evaluate", str(path), "--limit", "100", "--bootstrap", "200", "--json", "-"]
    assert main([*asked, "--where", "source=dragnet"]) == 0
    out = capsys.readouterr().out
    assert scores(out, "chunk", "all", "oracle")["line_f1"] == 1
    lead = scores(out, "chunk", "all", "keep all")["ahead"]["token_f1"]
    assert lead["low"] > 0.1

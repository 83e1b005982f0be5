"""The examples of the embedded refiner: nothing that it is judged by is among them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from proxhpc.evaluate.gold import iter_records

pytest.importorskip("transformers")
TOOLS = Path(__file__).parent.parent / "tools"
WORDS = [f"{a}{b}" for a in ("alpha", "beta", "gamma", "delta") for b in "wxyz"]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    spec = importlib.util.spec_from_file_location("train_embedded", TOOLS / "train_embedded.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_embedded", module)
    spec.loader.exec_module(module)
    return module


def text(number: int, lines: int) -> str:
    """Lines that no other number has."""
    rows = [[WORDS[(number * 7 + n * k) % 16] for k in range(1, 9)] for n in range(lines)]
    return "\n".join(f"{' '.join(row)} {number} {n}" for n, row in enumerate(rows))


def page(number: int, source: str) -> dict[str, Any]:
    noisy = text(number, 12)
    about = {"id": f"{source}-{number}", "host": f"{source}{number}.example", "source": source}
    gold = "\n".join(noisy.split("\n")[3:])
    return about | {"text_noisy": noisy, "text_gold": gold, "line_labels": "BBB" + "G" * 9}


def labelled(tool: ModuleType, work: Any) -> None:
    """What the labeler would say, without it."""
    rows = [
        {
            "id": r["id"],
            "level": r["level"],
            "chance": [0.9 if m == "D" else 0.2 for m in r["marks"]],
        }
        for r in tool.read(work.file("to-label"))
    ]
    tool.write(work.file("chances"), rows)


def test_what_judges_does_not_teach(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    pages = [page(n, "own") for n in range(40)] + [page(n, "dragnet") for n in range(40, 44)]
    verdicts = [
        {"id": f"v{n}", "text": text(n, 8), "keep": n % 2, "unanimous": True}
        for n in range(100, 130)
    ]
    corpus = [
        {"id": f"c{n}", "text": text(n, 20), "lang": "en", "kind": kind, "host": f"c{n}.example"}
        for n, kind in zip(range(200, 240), ["web_html", "pretraining"] * 20, strict=True)
    ]
    # Copies of what judges, on other hosts.
    for n in range(4):
        copy = {"id": f"copy{n}", "host": f"else{n}.example"}
        corpus.append(corpus[0] | copy | {"text": pages[40]["text_noisy"]})
    for name, rows in (
        ("eval_dev", pages),
        ("eval_docquality_dev", verdicts),
        ("corpus_sample", corpus),
    ):
        tool.write(data / f"{name}.jsonl.zst", rows)
    work = tool.Work(data, tmp_path / "out", Path("python"))
    monkeypatch.setattr(tool, "label", lambda work: labelled(tool, work))
    found = list(tool.read(tool.examples(work)))

    assert {row["source"] for row in found} == {"own", "labeler"}
    judging = [v for v in verdicts if not tool.teaches(v["id"])]
    assert 5 < len(judging) < 25
    texts = {p["text_noisy"] for p in pages[40:]} | {v["text"] for v in judging}
    assert not texts & {row.get("text") or "\n".join(row["lines"]) for row in found}
    held = {row["id"] for row in found if row["split"] == "validation" and row["source"] == "own"}
    assert held
    for row in found:
        teacher, level = row["teacher"], row["level"]
        if row["split"] == "validation":
            assert teacher in ("gold", "human")
        if teacher == "labeler" and level == "chunk":
            assert set(row["keep"]) == {"?"}
        assert len(row["chance"]) == (len(row["lines"]) if level == "chunk" else 1)
        # Parts of a held page's gold text are of its host, and so held as well.
        assert not any(row["id"].startswith(f"gold {name} ") for name in held)
    kinds = {(row["teacher"], row["level"]) for row in found}
    assert kinds == {("gold", "chunk"), ("human", "doc"), ("labeler", "chunk"), ("labeler", "doc")}
    tool.validation(work)
    assert {row["id"] for row in tool.read(work.file("validation"))} == held


def test_pages_with_lone_surrogates_can_be_annotated(tool: ModuleType, tmp_path: Path) -> None:
    path = tool.write(tmp_path / "x.jsonl.zst", [{"text": "a\ud800b\u00e9", "keep": 1}])
    assert [record.text for record in iter_records(path)] == ["a?b\u00e9"]


def test_a_training_needs_data_and_a_place(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_embedded.py", "data"])
    with pytest.raises(SystemExit) as ended:
        tool.main()
    assert ended.value.code == 2
    assert "DATA_DIR and --out are required" in capsys.readouterr().err

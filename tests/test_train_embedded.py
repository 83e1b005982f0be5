"""The training examples of the embedded refiner exclude everything it is evaluated on."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from proxhpc.corpus.hosts import split_of
from proxhpc.evaluate.gold import iter_records
from proxhpc.run.models import resolve_model
from tiny_models import save_walk

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
    """Lines that are unique to this number."""
    rows = [[WORDS[(number * 7 + n * k) % 16] for k in range(1, 9)] for n in range(lines)]
    return "\n".join(f"{' '.join(row)} {number} {n}" for n, row in enumerate(rows))


def page(number: int, source: str) -> dict[str, Any]:
    noisy = text(number, 12)
    about = {"id": f"{source}-{number}", "host": f"{source}{number}.example", "source": source}
    gold = "\n".join(noisy.split("\n")[3:])
    return about | {"text_noisy": noisy, "text_gold": gold, "line_labels": "BBB" + "G" * 9}


def fake_label(tool: ModuleType, work: Any) -> None:
    """Write probabilities in place of the labeler."""
    rows = [
        {
            "id": r["id"],
            "level": r["level"],
            "chance": [0.9 if letter == "D" else 0.2 for letter in r["labels"]],
        }
        for r in work.rows("label-requests")
    ]
    tool.write(work.file("probabilities"), rows)


def test_evaluation_data_is_not_trained_on(
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
    extractors = [page(n, "tests") for n in range(400, 430)]
    tested = [row for row in extractors if split_of(row["host"], row["id"]) == "validation"]
    assert 1 < len(tested) < 10
    # Copies of evaluation pages, on other hosts.
    for n, original in enumerate([pages[40]] * 4 + tested[:1]):
        copy = {"id": f"copy{n}", "host": f"else{n}.example"}
        corpus.append(corpus[0] | copy | {"text": original["text_noisy"]})
    for name, rows in (
        ("eval_dev", pages),
        ("eval_docquality_dev", verdicts),
        ("corpus_sample", corpus),
    ):
        tool.write(data / f"{name}.jsonl.zst", rows)
    tool.write(data / "tests.jsonl.zst", extractors)
    work = tool.Workspace(data, tmp_path / "out", Path("python"), tests=data / "tests.jsonl.zst")
    monkeypatch.setattr(tool, "label", lambda work: fake_label(tool, work))
    examples = list(tool.read(tool.make_examples(work)))

    assert {row["source"] for row in examples} == {"own", "tests", "labeler"}
    assert [row["id"] for row in tool.held_out_tests(work)] == [row["id"] for row in tested]
    assert {row["id"] for row in examples if row["source"] == "tests"} == {
        row["id"] for row in extractors if row not in tested
    }
    evaluated = [v for v in verdicts if not tool.is_for_training(v["id"])]
    assert 5 < len(evaluated) < 25
    texts = {p["text_noisy"] for p in pages[40:] + tested} | {v["text"] for v in evaluated}
    for rows in (work.rows("all-examples"), examples):
        assert not texts & {row.get("text") or "\n".join(row["lines"]) for row in rows}
    validation = [row for row in examples if row["split"] == "validation"]
    held_out = {row["id"] for row in validation if row["source"] == "own"}
    assert held_out
    for row in examples:
        teacher, level = row["teacher"], row["level"]
        if row["split"] == "validation":
            assert teacher in ("gold", "human")
        if teacher == "labeler" and level == "chunk":
            assert set(row["keep"]) == {"?"}
        assert len(row["chance"]) == (len(row["lines"]) if level == "chunk" else 1)
        # Parts of a held-out page's gold text have its host, so they are held out as well.
        assert not any(row["id"].startswith(f"gold {name} ") for name in held_out)
    people = [row for row in examples if row["teacher"] == "human"]
    trained = {row["id"] for row in people if row["split"] == "train"}
    assert trained == {f"{row['id']} (training)" for row in people if row["split"] != "train"}
    kinds = {(row["teacher"], row["level"]) for row in examples}
    assert kinds == {("gold", "chunk"), ("human", "doc"), ("labeler", "chunk"), ("labeler", "doc")}
    assert {row["id"] for row in tool.validation_pages(work)} == held_out


def test_extra_pages_have_labels_and_no_verdicts(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, extra = tmp_path / "data", tmp_path / "pages.jsonl.zst"
    data.mkdir()
    kinds = [("documentation", "en"), ("documentation", "de"), ("readme", "en")]
    pages = [
        page(n, "extra") | {"kind": kind, "lang": lang, "keep": 1}
        for n, (kind, lang) in enumerate(kinds * 20, start=300)
    ]
    tool.write(extra, pages)
    tool.write(data / "eval_dev.jsonl.zst", [page(n, "own") for n in range(40)])
    tool.write(data / "eval_docquality_dev.jsonl.zst", [])
    corpus = [
        {"id": f"c{n}", "text": text(n, 20), "lang": "en", "kind": "pretraining", "host": f"c{n}.x"}
        for n in range(200, 210)
    ]
    tool.write(data / "corpus_sample.jsonl.zst", corpus)
    work = tool.Workspace(data, tmp_path / "out", Path("python"), extra)
    monkeypatch.setattr(tool, "label", lambda work: fake_label(tool, work))
    monkeypatch.setattr(tool, "EXTRA_VALIDATION", 2)
    examples = list(tool.read(tool.make_examples(work)))

    groups = tool.extra_groups(work)
    assert {group for group, _ in groups.values()} == {"documentation", "languages", "texts"}
    added = [row for row in examples if row["source"] in tool.SHARES["chunk"]]
    added = [row for row in added if row["source"] != "labeler"]
    short = [row for row in added if row["id"].endswith(" (part)")]
    for row in short:  # without the menu
        noisy = next(page for page in pages if f"{page['id']} (part)" == row["id"])["text_noisy"]
        assert row["text"] in noisy.split("\n", 3)[3]
    assert len(short) > 20
    assert all("chance" not in row for row in added)
    assert {row["program"] for row in added if row["level"] == "doc"} == {"?"}
    for level in ("chunk", "doc"):
        shares: dict[str, float] = {}
        for row in examples:
            if (row["level"], row["split"]) == (level, "train"):
                group = "gold" if row["source"] == "own" else row["source"]
                group = "short" if row in short else group
                lines = len(row["lines"]) if level == "chunk" else 1
                shares[group] = shares.get(group, 0) + row["weight"] * lines**tool.PAGE_POWER
        wanted = {name: share for name, share in tool.SHARES[level].items() if name in shares}
        assert len(wanted) == len(tool.SHARES[level]) - 1  # labelled pages, people's verdicts
        assert shares == pytest.approx({name: 1000 * share for name, share in wanted.items()})
        held_out = [row for row in added if (row["level"], row["split"]) == (level, "validation")]
        assert len(held_out) == 2


def test_pages_with_lone_surrogates_can_be_annotated(tool: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.zst"
    tool.write(path, [{"text": "a\ud800b\u00e9", "keep": 1}])
    assert [record.text for record in iter_records(path)] == ["a?b\u00e9"]


def test_lines_of_unknown_worth_are_not_evaluated(tool: ModuleType, tmp_path: Path) -> None:
    row = page(1, "tests") | {"line_labels": "B?B" + "G" * 8 + "?"}
    tool.write(tmp_path / "x.jsonl.zst", [row | {"host": f"h{n}.example"} for n in range(20)])
    work = tool.Workspace(tmp_path, tmp_path, Path("python"), tests=tmp_path / "x.jsonl.zst")
    lines = row["text_noisy"].split("\n")
    known = {"text_noisy": "\n".join([lines[0], *lines[2:11]]), "line_labels": "BB" + "G" * 8}
    tested = list(tool.held_out_tests(work))
    assert tested
    assert all(each == row | known | {"host": each["host"]} for each in tested)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "DATA_DIR and --out are required"),
        ("--out out --verdicts", "--layers and --verdicts need --base"),
        ("--out out --layers 0", "--layers and --verdicts need --base"),
        ("--out out --base base --layers 0", "--layers 0: must be from 1 to 2, those of base"),
        ("--out out --base base --layers 3", "--layers 3: must be from 1 to 2, those of base"),
        ("--out out --base none --layers 1", "--base: model 'none': no such directory"),
        ("--out old --tests tests", "made without any of its pages; delete this folder, or choose"),
    ],
)
def test_training_stops_before_the_first_step(
    options: str,
    message: str,
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_walk(tmp_path / "base")
    (tmp_path / "old" / "data").mkdir(parents=True)
    for name in ("pages", "held-out-tests"):
        tool.write(tmp_path / "old" / "data" / f"{name}.jsonl.zst", [])
    monkeypatch.setattr(sys, "argv", ["train_embedded.py", "data", *options.split()])
    with pytest.raises(SystemExit) as error:
        tool.main()
    assert error.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_model_for_verdicts_starts_from_the_first_layers(
    tool: ModuleType, tmp_path: Path
) -> None:
    load_file = pytest.importorskip("safetensors.torch").load_file
    base = save_walk(tmp_path / "base")
    folder = tool.first_layers(base, 1, tmp_path / "first")
    assert (shape := resolve_model(str(folder)).shape)
    assert shape.layers == 1
    before, after = (load_file(path / "model.safetensors") for path in (base, folder))
    assert set(before) - set(after) == {name for name in before if ".layers.1." in name}
    assert all(after[name].equal(before[name]) for name in after)

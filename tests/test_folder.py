"""`proxhpc refine FILE… --out DIR`: files of a person become a run, without a manifest."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from proxhpc.cli.main import main
from proxhpc.corpus.inputs import describe_input
from proxhpc.corpus.probe import guess_fields
from proxhpc.errors import UserError
from proxhpc.folder import complete_choice, plan_folder
from proxhpc.preview import RefinerChoice
from proxhpc.run.paths import RunDir
from proxhpc.spec.manifest import load_manifest
from runs import PARAGRAPH, check_balance, document, write_jsonl

Capture = pytest.CaptureFixture[str]
RULES = RefinerChoice(engine="rules")
HOSTILE = "\x1b]0;owned\x07.jsonl"


def text(number: int) -> str:
    return str(document(number)["text"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files of every kind, some of which cannot be refined."""
    root = tmp_path / "in [1]"
    write_jsonl(root / "news.jsonl", [document(n) for n in range(12)])
    write_jsonl(
        root / "forum.jsonl.zst", [{"content": text(n), "title": "x"} for n in range(12, 20)]
    )
    (root / "sub").mkdir()
    for n in range(20, 23):
        (root / "sub" / f"page{n}.txt").write_text(text(n))
    (root / "notes.md").write_text(f"# Notes\n\n{PARAGRAPH}")
    (root / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (root / "sub" / "binary.txt").write_bytes(b"\0\1\2" * 100)
    (root / "package.json").write_text('{\n  "name": "x",\n  "version": "1"\n}\n')
    return root


def corpus(run: RunDir) -> Iterator[dict[str, Any]]:
    for part in sorted(run.corpus.glob("part-*")):
        with zstandard.open(part, "rb") as file:
            yield from map(json.loads, file.read().splitlines())


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(root.rglob("*"))}


def test_one_command_makes_a_corpus_and_a_report_of_a_folder(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    before, out = snapshot(folder), tmp_path / "clean"
    assert main(["refine", str(folder), "--out", str(out), "--engine", "rules"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(
        "6 files: 1 .jsonl, 1 .jsonl.zst, 1 .md, 3 .txt\n"
        'text: field "content" of in [1]/forum.jsonl.zst\n'
        'text: field "text" of in [1]/news.jsonl\n'
        "left out: in [1]/logo.png: not a known kind of file\n"
        "left out: in [1]/package.json: no field 'text'; it has: name, version\n"
        "left out: in [1]/sub/binary.txt: binary, not text\n"
        "model: none, the rules\n"
        f"run directory: {out}\n"
    )
    assert f"corpus  {out}/corpus" in " ".join(shown.split(" "))
    run = RunDir(out)
    assert check_balance(run) == {"documents": 24, "written": 24}
    texts = {row["id"]: row["text"] for row in corpus(run)}
    assert texts["sub/page20.txt"] == text(20).removeprefix("Home | About | Contact\n")
    assert texts["doc-3"] == text(3).removeprefix("Home | About | Contact\n")
    assert "The river rises" in texts["notes.md"]
    assert run.report_html.exists()
    assert snapshot(folder) == before
    # The manifest is that of the run: the same command, or a launch, resumes it.
    assert load_manifest(run.manifest).corpus.text == ("content", "text")
    assert main(["launch", str(out)]) == 0
    assert main(["refine", str(folder), "--out", str(out), "--engine", "rules"]) == 0
    assert capsys.readouterr().out.count("finished") == 2


def test_a_run_reads_exactly_the_files_that_were_found(folder: Path, tmp_path: Path) -> None:
    run, _ = plan_folder([folder], tmp_path / "clean", "", RULES)
    names = sorted(info.name for info in run.plan.inputs)
    assert names == [
        "forum.jsonl.zst",
        "news.jsonl",
        "notes.md",
        *(f"sub/page{n}.txt" for n in range(20, 23)),
    ]
    with pytest.raises(UserError, match=r"other options: stages") as error:
        plan_folder(
            [folder], tmp_path / "clean", "", RefinerChoice(engine="rules", prompt="compact")
        )
    assert "proxhpc launch" in error.value.hint


def test_many_small_files_are_few_shards(tmp_path: Path) -> None:
    for n in range(300):
        path = tmp_path / "in" / f"{n % 7}" / f"{n}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(n))
    run, lines = plan_folder([tmp_path / "in"], tmp_path / "out", "", RULES)
    assert len(run.plan.inputs) == 300
    assert len(run.plan.shards) == 1
    assert lines[0] == "300 files: 300 .txt"
    assert run.plan.manifest.corpus.paths == (f"{tmp_path}/in/**/*.txt",)


def test_no_shard_is_a_small_rest(tmp_path: Path) -> None:
    """The worker that took a rest would load its models in vain."""
    for n in range(130):
        (tmp_path / f"{n}.txt").write_text("Onions. " * 208)
    run, _ = plan_folder([tmp_path], tmp_path.parent / "out", "", RULES)
    assert [len(shard.spans) for shard in run.plan.shards] == [130]


@pytest.mark.parametrize("inside", ["in/clean", "in", "in/../in/deep/clean"])
def test_nothing_is_written_into_an_input_folder(tmp_path: Path, inside: str) -> None:
    write_jsonl(tmp_path / "in" / "a.jsonl", [document(1)])
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="where nothing is written"):
        plan_folder([tmp_path / "in"], tmp_path / inside, "", RULES)
    assert snapshot(tmp_path) == before


def test_files_by_name_and_a_named_field(tmp_path: Path, capsys: Capture) -> None:
    rows = [{"text": text(n), "body": text(n + 50), "id": n} for n in range(4)]
    first = write_jsonl(tmp_path / "a.jsonl", rows)
    second = write_jsonl(tmp_path / "b.jsonl", [{"text": text(9)}])
    page = tmp_path / "c.txt"
    page.write_text(text(30))
    out = tmp_path / "out"
    command = ["refine", *map(str, (first, second, page)), "--engine", "rules", "--out", str(out)]
    assert main([*command, "--field", "body"]) == 0
    shown = capsys.readouterr().out
    assert "left out: b.jsonl: no field 'body'; it has: text" in shown.replace(
        f"{tmp_path.name}/", ""
    )
    texts = {row["id"]: row["text"] for row in corpus(RunDir(out))}
    assert set(texts) == {"0", "1", "2", "3", "c.txt"}
    assert texts["0"].endswith("Number 50 of the series ends with this line.")


def test_a_field_that_is_a_label_elsewhere(tmp_path: Path) -> None:
    """`review` has the texts of two files; one of them has a short `text`, too."""
    write_jsonl(tmp_path / "in" / "a.jsonl", [{"text": text(1)}])
    write_jsonl(tmp_path / "in" / "b.jsonl", [{"text": "positive", "review": text(2)}])
    run, lines = plan_folder([tmp_path / "in"], tmp_path / "out", "", RULES)
    assert run.plan.manifest.corpus.text == ("review", "text")
    assert 'text: field "review" of in/b.jsonl' in lines
    write_jsonl(tmp_path / "in" / "c.jsonl", [{"review": "good", "text": text(3)}])
    run, lines = plan_folder([tmp_path / "in"], tmp_path / "out2", "", RULES)
    assert len(run.plan.inputs) == 2
    assert any("has a field of other files' texts, too" in line for line in lines)
    read = [item for span in run.plan.shards[0].spans for item in run.plan.read(span)]
    assert {getattr(item, "text", "") for item in read} < {text(1), text(2), text(3), ""}


def test_what_cannot_be_refined_at_all_is_an_error(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "logo.png").write_bytes(b"\x89PNG")
    (tmp_path / "in" / "letter.txt.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "in" / "page.html").write_text("<p>Text</p>")
    (tmp_path / "in" / HOSTILE).write_text("[1]\n")
    out = str(tmp_path / "out")
    assert main(["refine", str(tmp_path / "in"), "--out", out]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("proxhpc: no file that can be refined in ")
    assert shown.splitlines()[-1].startswith("  known suffixes are .jsonl, .ndjson, .json, .wet, ")
    assert len(shown.splitlines()) < 8
    assert "page.html: not a known kind of file: extract its text first\n" in shown
    assert "logo.png: not a known kind of file\n" in shown
    assert "letter.txt.gz: not a known kind of file: unpack it\n" in shown
    assert "\x1b" not in shown
    assert not (tmp_path / "out").exists()
    assert main(["refine", str(tmp_path / "none"), "--out", out]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    for wrong in (["--diff"], ["--limit", "3"], ["--text"], ["--plain"], ["--original"]):
        assert main(["refine", str(tmp_path), "--out", out, *wrong]) == 2
    assert main(["refine", "--out", out]) == 2
    assert main(["refine", "-", "--out", out]) == 2
    capsys.readouterr()
    assert main(["refine", str(tmp_path)]) == 2
    assert "is a folder\n  to refine the files in it, add --out DIR" in capsys.readouterr().err


def test_the_exit_status_is_not_0_if_every_document_is_quarantined(
    tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "latin.txt").write_bytes("café".encode("latin-1"))
    command = ["refine", str(tmp_path / "in"), "--engine", "rules"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "no record is a document" in capsys.readouterr().err
    assert main(["refine", str(tmp_path / "in" / "latin.txt")]) == 1
    (tmp_path / "empty.jsonl").touch()
    assert main(["refine", str(tmp_path / "empty.jsonl")]) == 1
    (tmp_path / "in" / "good.txt").write_text(text(1))
    assert main([*command, "--out", str(tmp_path / "out2")]) == 0
    assert "quarantined" in capsys.readouterr().out


def test_the_model_is_the_embedded_one_if_it_can_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, line = complete_choice(RefinerChoice())
    assert line == "model: embedded, engine transformers"
    assert data["stages"] == [{"level": "chunk", "model": "embedded"}]
    data, line = complete_choice(RefinerChoice(doc_model="embedded", model="embedded"))
    assert line == "model: embedded, engine transformers"
    assert [stage["level"] for stage in data["stages"]] == ["doc", "chunk"]
    monkeypatch.setattr("proxhpc.folder.is_installed", lambda package: package != "torch")
    data, line = complete_choice(RefinerChoice())
    assert data == {"engine": {"name": "rules"}, "stages": [{"level": "chunk", "model": None}]}
    assert line.startswith("model: none, the rules: torch not installed; pip install ")


def test_stages_of_a_manifest(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "mine.yaml"
    made.write_text(
        "name: mine\ncorpus: {paths: elsewhere/*.jsonl, text: [content, text]}\n"
        "engine: {name: rules}\nstages: [{level: doc}, {level: chunk}]\n"
        "commit: {documents: 7}\nsite: gpu\n"
    )
    run, lines = plan_folder([folder], tmp_path / "clean", "", RefinerChoice(manifest=made))
    manifest = run.plan.manifest
    assert [stage.level for stage in manifest.stages] == ["doc", "chunk"]
    assert (manifest.name, manifest.commit.documents, manifest.site) == ("clean", 7, None)
    assert run.site.kind == "local"
    assert len(run.plan.inputs) == 6
    assert lines[-1] == f"stages and policy: those of {made}"
    made.write_text(made.read_text().replace("[content, text]", "content, id: title"))
    run, lines = plan_folder([folder], tmp_path / "other", "", RefinerChoice(manifest=made))
    assert "left out: in [1]/news.jsonl: no field 'content'; it has: id, text, url" in lines
    assert run.plan.manifest.corpus.id == "title"


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"url": "x" * 90, "text": "y" * 40}, "text"),
        ({"text": "y" * 39, "html": "x" * 90}, "html"),
        ({"content": "y" * 50, "text": "y" * 60}, "text"),
        ({"content": {"body": "y" * 50}, "raw": "x" * 90}, "content.body"),
        ({"doc": {"pages": {"summary": "y" * 50}}, "n": 5}, "doc.pages.summary"),
        ({"a b": "y" * 50, "c.d": "y" * 50, "e": "z"}, "e"),
        ({"n": 5, "list": ["x" * 50]}, ""),
        ({}, ""),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst", ".parquet"])
def test_the_field_with_the_text_is_guessed(
    tmp_path: Path, row: dict[str, Any], field: str, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist([row] * 3), path)
    else:
        write_jsonl(path, [b"{broken", [1], row, row])
    assert guess_fields(describe_input(path), 1 << 20).text == field


def test_damaged_and_deep_files_are_looked_at(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl.zst", [{"text": "x" * 50}] * 50)
    path.write_bytes(path.read_bytes()[:-5])
    assert guess_fields(describe_input(path), 1 << 20).text in ("text", "")
    deep: dict[str, Any] = {"text": "x" * 50}
    for _ in range(200):
        deep = {"a": deep}
    assert (
        guess_fields(describe_input(write_jsonl(tmp_path / "b.jsonl", [deep])), 1 << 20).text == ""
    )


def test_a_field_is_for_out(tmp_path: Path, capsys: Capture) -> None:
    assert main(["refine", "--field", "body", str(tmp_path / "a.jsonl")]) == 2
    assert "--field is for --out" in capsys.readouterr().err

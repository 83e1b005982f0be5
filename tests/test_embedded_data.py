"""The pages for the embedded refiner: their lines, labels and frames, and what is held out."""

import importlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from proxhpc.corpus.hosts import split_of

pytest.importorskip("transformers")
TOOLS = Path(__file__).parent.parent / "tools"
PAGE = """<html><head><title>No</title></head><body><nav><ul><li><a href=x>Home</a>
<li>Blog</ul></nav><main role="main"><h1>A title</h1><p>Some
   <b>text</b>.<table><tr><td>one<td>two</table><pre>if x:
    y  z

done</pre><div class="toc"><a href=y>Part</a></div><script>no()</script></main>
<footer>Copyright</footer></body></html>"""


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("embedded_data")


def test_lines_and_labels_of_a_page(tool: ModuleType) -> None:
    lines = tool.html_lines(PAGE)
    letters = "".join(tool.labels(lines, tool.MAIN, tool.FRAME, tool.UNKNOWN))
    assert list(zip((line.text for line in lines), letters, strict=True)) == [
        ("Home", "B"),
        ("Blog", "B"),
        ("A title", "G"),
        ("Some text.", "G"),
        ("one\ttwo", "G"),
        ("if x:", "G"),
        ("    y  z", "G"),
        ("done", "G"),
        ("Part", "?"),
        ("Copyright", "B"),
    ]
    assert [line.linked for line in lines] == [4, 0, 0, 0, 0, 0, 0, 0, 4, 0]


def test_a_page_without_any_known_element_has_no_labels(tool: ModuleType) -> None:
    lines = tool.html_lines("<body><p>Menu<p>Text</body>")
    assert "".join(tool.labels(lines, tool.MAIN, tool.FRAME, tool.UNKNOWN)) == "??"


def document(tool: ModuleType, number: int, lang: str = "de") -> Any:
    lines = ["menu", f"text {number}", "contents", "end"]
    about = (f"id {number}", f"host {number}", "documentation", lang, "MIT")
    return tool.Document(*about, lines, "BG?B")


def test_frames_are_of_other_hosts_of_the_same_split(tool: ModuleType) -> None:
    hosts = [f"frame {number}" for number in range(30)]
    frames = {
        ("web", "en", split): [
            tool.Frame(host, [host], []) for host in hosts if split_of(host, "") == split
        ]
        for split in ("train", "validation")
    }
    seen = set()
    for number in range(200):
        before = document(tool, number)
        (dress,) = tool.dresses(replace(before, lang="en"))
        after = tool.dressed(before, tool.defaultdict(list, frames), dress)
        good = [line for line, label in zip(after.lines, after.labels, strict=True) if label != "B"]
        assert good == [f"text {number}", "contents"]
        if after.lines[0].startswith("frame"):
            assert split_of(after.lines[0], "") == before.split
            seen.add(before.split)
        else:
            assert after.lines[0] in ("menu", f"text {number}")
    assert seen == {"train", "validation"}


def test_texts_of_other_languages_are_evaluated_in_every_frame(tool: ModuleType) -> None:
    documents = [document(tool, number) for number in range(40)]
    counts = {each.split: len(list(tool.dresses(each))) for each in documents}
    assert counts == {"train": 1, "validation": len(set(tool.DRESSES))}


def test_frames_of_labelled_pages_are_for_training(tool: ModuleType) -> None:
    hosts = {split_of(name, ""): name for name in (f"h{number}" for number in range(40))}
    rows = [
        {"source": source, "host": host, "lang": "en", "text_noisy": "a\nb", "line_labels": "BG"}
        for host in hosts.values()
        for source in ("wcxb", tool.EVALUATION_SOURCE)
    ]
    found = list(tool.web_frames(rows))
    assert found == [("en", tool.Frame(hosts["train"], ["a"], []))]


def test_no_source_is_also_held_out(tool: ModuleType) -> None:
    sources = yaml.safe_load(tool.SOURCES.read_text(encoding="utf-8"))
    held_out = {source["package"] for source in sources.pop("held_out")}
    held_out |= {"python-flask-doc", "sqlite3-doc", "tomcat10-docs", "fortunes", "dict-foldoc"}
    listed = {
        variant["package"]
        for group in sources.values()
        for source in group
        for variant in tool.languages(source)
    }
    assert len(listed) > 100
    assert not listed & held_out
    assert not any("{}" in package for package in listed)


def test_files_come_in_the_order_of_hashes_whatever_the_archive(
    tool: ModuleType, tmp_path: Path
) -> None:
    names = [f"p/{number}.txt" for number in range(9)]
    orders = []
    for order in (names, names[::-1]):
        archive = tmp_path / "p-1.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for name in [*order, "p/no.bin"]:
                entry = tarfile.TarInfo(name)
                entry.size = len(name)
                tar.addfile(entry, io.BytesIO(name.encode()))
        orders.append(list(tool.Packages(tmp_path).pypi("p", r"\.txt$")))
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == [(name, name.encode()) for name in names]
    assert orders[0] != sorted(orders[0])


def test_the_yardstick_leaves_out_lines_of_unknown_worth(tool: ModuleType) -> None:
    harm = importlib.import_module("embedded_harm")
    row = {"id": "1", "host": "h", "text_noisy": "menu\ntext\n\ncontents", "line_labels": "BG??"}
    bare = harm.record("doc x", row, bare=True)
    assert (bare["text_noisy"], bare["line_labels"], bare["keep"]) == ("text\n", "G?", 1)
    page = harm.record("page x", row)
    assert (page["text_noisy"], page["text_gold"]) == ("menu\ntext\n", "text\n")
    assert "keep" not in page


def test_the_yardstick_samples_the_same_documents_in_any_order(tool: ModuleType) -> None:
    harm = importlib.import_module("embedded_harm")
    records = [
        {"id": str(number), "source": group, "text_noisy": "x" * number * 1000}
        for number in range(20)
        for group in ("a", harm.WEB)
    ]
    chosen = list(harm.sample(records, 3))
    assert {each["id"] for each in chosen} == {each["id"] for each in harm.sample(records[::-1], 3)}
    assert [each["source"] for each in chosen].count("a") == 3
    assert all(len(r["text_noisy"]) < harm.MAX_CHARS for r in chosen if r["source"] == "a")


def test_the_bias_of_verdicts_follows_people_where_it_does_no_harm(tool: ModuleType) -> None:
    harm = importlib.import_module("embedded_harm")
    people = [(-0.9, True), (-0.6, True), (-0.3, True), (-2.0, False)]
    documentation = [-3.0] * 19 + [-0.7]
    assert harm.best_verdict_bias(documentation, people) == 1.0  # the smallest that is always right
    documentation[:1] = [-0.5]  # 10 % would go
    assert harm.best_verdict_bias(documentation, people) == 0.5
    assert harm.best_verdict_bias([4.0] * 20, people) == min(harm.BIASES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model m", "scores need --verdicts, too"),
        ("--verdicts m", "scores need --model, too"),
        ("--model m --choose-bias", "--choose-bias needs --verdicts"),
        ("--verdicts m --choose-bias", "m/refiner.json has no `doc`"),
        ("--model m --verdicts none", "none/refiner.json has no `doc`"),
        ("--model m --verdicts bad", "bad/refiner.json"),
    ],
)
def test_the_yardstick_needs_a_model_for_verdicts(
    options: str,
    message: str,
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("m", '{"version": 1, "prompt": "walk", "chunk": {}}'), ("bad", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "refiner.json").write_text(text)
    monkeypatch.setattr("sys.argv", ["x", "data", "pages", "--out", "out", *options.split()])
    with pytest.raises(SystemExit):
        importlib.import_module("embedded_harm").main()
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

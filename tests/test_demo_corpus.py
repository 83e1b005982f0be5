"""The demo: pages with gold labels from their HTML, and what the embedded model removes of them."""

import gzip
import importlib.util
import json
from collections import Counter
from itertools import takewhile
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxhpc.cli.main import main
from proxhpc.inspect.diff import diff_lines

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "manifests" / "demo"
PAGES = sorted(DEMO.glob("pages-*.jsonl"))


def tool() -> Any:
    spec = importlib.util.spec_from_file_location("demo_pages", ROOT / "tools" / "demo_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gold() -> dict[str, dict[str, Any]]:
    rows = map(orjson.loads, (DEMO / "gold.jsonl").read_bytes().splitlines())
    return {row["id"]: row for row in rows}


def test_labels_follow_the_html() -> None:
    """Menus and tables of contents are boilerplate; headings and code are text."""
    pages = tool()
    example = pages.SITES[-1]
    site = pages.Site(
        *(getattr(example, name) for name in example.__slots__[:5]), "main", ".bar", ""
    )
    html = """<head><title>Not text</title><script>if (a < b) {}</script></head>
        <nav><ul><li>Home <li><a href="/x">About</a></ul></nav>
        <main><h1><a href="#self">Onions</a><a class="headerlink" href="#o">¶</a></h1>
        <ul><li><a href="#one">One</a></li></ul><p>They grow<br>in <b>gar</b>dens, see
        <a href="#one">one</a>.</p><div class="bar">Share</div>
        <p>On <i class="bar">May 1</i></p><table><tr><td>a<td>b</table>
        <pre>for x:\n    y()\n</pre></main><footer>© Someone &amp; Co.</footer>"""
    assert pages.labelled_lines(html, site) == [
        ("Home", "B"), ("About", "B"), ("Onions", "G"), ("One", "B"), ("They grow", "G"),
        ("in gardens, see one.", "G"), ("Share", "B"), ("On May 1", "B"), ("a b", "G"),
        ("for x:", "G"), ("    y()", "G"), ("© Someone & Co.", "B"),
    ]  # fmt: skip


def test_pages_have_a_source_a_license_and_labels(gold: dict[str, dict[str, Any]]) -> None:
    lines = b"".join(path.read_bytes() for path in PAGES).splitlines()
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            assert line.startswith(b'{"id": "broken"')
    assert len(lines) == len(rows) + 1 == len(gold) + 1
    licenses = (DEMO / "LICENSE").read_text("utf-8")
    for row in rows:
        label = gold[row["id"]]
        assert list(row) == ["id", "url", "text", "source", "license"], "the run sees no labels"
        assert f"| {row['source']} | {row['license']} |" in licenses
        assert label["text_noisy"] == row["text"]
        assert len(label["line_labels"]) == row["text"].count("\n") + 1
    texts = Counter(row["text"] for row in rows)
    assert sum(texts.values()) - len(texts) == 3
    shares = Counter("".join(row["line_labels"] for row in gold.values()))
    assert 0.3 < shares["B"] / shares.total() < 0.7


def test_the_demo_is_small() -> None:
    size = sum(len(gzip.compress(path.read_bytes(), 6)) for path in DEMO.iterdir())
    assert size <= 150_000


def test_what_the_demo_removes_is_boilerplate(
    gold: dict[str, dict[str, Any]], capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """At least 95 % of the removed lines, most of the boilerplate, no page with text, no prose."""
    pytest.importorskip("transformers")
    assert main(["refine", "--manifest", "demo", *map(str, PAGES)]) == 0
    removed: Counter[str] = Counter()
    left: Counter[str] = Counter()
    rows = {row["id"]: row for row in map(orjson.loads, capsysbinary.readouterr().out.splitlines())}
    assert gold.keys() <= rows.keys()
    for name, page in gold.items():
        before, after = page["text_noisy"].split("\n"), rows[name]["text"]
        assert after or not page["keep"], name
        changes = diff_lines(before, after.split("\n") if after else [])
        gone = {change.number for change in changes if change.kind == "removed"}
        if "B" not in page["line_labels"]:
            assert max((len(before[number]) for number in gone), default=0) < 80, "only headings"
        for number, label in enumerate(page["line_labels"]):
            (removed if number in gone else left)[label] += 1
    assert removed["B"] >= 0.95 * removed.total(), removed
    assert removed["B"] >= 0.6 * (removed["B"] + left["B"]), left


def test_the_demo_ends_with_a_document_and_three_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROXHPC_RUNS", raising=False)
    assert main(["launch", "demo-rules"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    numbers = next(line for line in lines if line.startswith("documents"))
    assert " 64 " in numbers
    header = next(line.split() for line in lines if "duplicates" in line and "read" in line)
    assert "quarantined" in header
    start = next(n for n, line in enumerate(lines) if line.startswith("before and after: "))
    shown = [*takewhile(bool, lines[start + 1 :])]
    assert 5 <= len(shown) <= 25
    assert any(line.startswith("  - ") for line in shown)
    assert max(map(len, shown)) <= 78
    commands = lines[lines.index("", start) :][-3:]
    assert [" ".join(line.replace("next", "").split()[:2]) for line in commands] == [
        "proxhpc inspect", "proxhpc review", "proxhpc verify"
    ]  # fmt: skip

"""Pages with labels from tests of open-source extractors."""

import gzip
import importlib
import json
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("transformers")
pytest.importorskip("bs4")
TOOLS = Path(__file__).parent.parent / "tools"
PARAGRAPHS = [
    f"Paragraph {number} tells at some length what happened to the {number} people of the "
    f"{name} village, who had lived there for more years than anybody in the county remembers."
    for number, name in enumerate(("first", "second", "third", "fourth"))
]
HEAD = '<html lang="en-GB"><head><title>T</title>{}</head><body><ul><li>Home<li>Sign in</ul>'
BODY = "<h1>The village</h1>" + "".join(f"<p>{text}</p>" for text in PARAGRAPHS)
FOOT = "<p class=ad>Buy our ten best offers of this week now</p><p>Terms of use</p></body></html>"
ARTICLE = f"<div class='ad'>Subscribe to read more of our news</div><div class=story>{BODY}</div>"
PAGE = HEAD.format("") + ARTICLE + FOOT


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("extractor_pages")


def commit(folder: Path, files: dict[str, bytes]) -> None:
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "tests"]):
        subprocess.run([*git, *command], check=True)
    (folder / ".git").rename(folder.with_name("bare"))
    subprocess.run(["rm", "-r", folder], check=True)
    folder.with_name("bare").rename(folder)


def test_a_line_is_good_bad_or_unknown(tool: ModuleType) -> None:
    expected = ["One two three four five six seven.", "Short heading", "Eight nine ten eleven."]
    lines = {
        "One two three four five six seven.": "G",
        "Short heading": "G",
        "one TWO three four five six, seven": "G",  # other letters and signs
        "Five words that nobody expects": "B",
        "One two three four five, then others": "?",  # partly
        "heading": "?",  # within a longer line
        "Menu": "B",
        "Title": "?",
    }
    letters = tool.labels(list(lines), frozenset(["Title", "T"]), expected)
    assert dict(zip(lines, letters, strict=True)) == lines


def test_selectors_are_read_not_run(tool: ModuleType) -> None:
    code = """selectors: [
      // '.comment'
      ['.lead', ".text p"],
      'article',
    ],
    transforms: { '.x': $n => process.exit() },
    clean: ['.ad'],"""
    assert list(tool.choices(code, "selectors")) == [[".lead", ".text p"], ["article"]]
    assert list(tool.choices(code, "clean")) == [[".ad"]]
    assert list(tool.choices(code, "other")) == []


def test_pages_of_three_extractors(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages, out = tmp_path / "packages", tmp_path / "tests.jsonl.zst"
    canonical = '<link rel="canonical" href="https://www.news.example/a">'
    case = "test/test-pages/village-1"
    commit(
        packages / "mozilla+readability",
        {
            f"{case}/source.html": (HEAD.format(canonical) + ARTICLE + FOOT).encode(),
            f"{case}/expected.html": f"<div>{BODY}</div>".encode(),
            "test/test-pages/short/source.html": b"<p>Too short.</p>",
            "test/test-pages/short/expected.html": b"<p>Too short.</p>",
        },
    )
    extractor = b"content: { selectors: [['.story', '.none'], 'body'], clean: ['h1'] }"
    commit(
        packages / "postlight+parser",
        {
            "fixtures/www.site.example.html": PAGE.encode(),
            "fixtures/without.example.html": PAGE.encode(),
            "src/extractors/custom/www.site.example/index.js": extractor,
        },
    )
    body = {"summary": PARAGRAPHS[:1], "sections": [{"headline": [], "paragraphs": PARAGRAPHS[1:]}]}
    other = {"summary": [], "sections": [{"headline": ["No"], "paragraphs": ["Another page."] * 9}]}
    data = "tests/resources/parser/test_data/uk"
    commit(
        packages / "flairNLP+fundus",
        {
            f"{data}/Paper.json": json.dumps(
                {"V1": {"body": other}, "V2": {"body": body}}
            ).encode(),
            f"{data}/Paper_2025_01_02.html.gz": gzip.compress(PAGE.encode()),
        },
    )
    monkeypatch.setattr("sys.argv", ["x", "--out", str(out), "--packages", str(packages)])
    tool.main()
    rows = list(importlib.import_module("train_embedded").read(out))
    assert [(row["host"], row["lang"], row["line_labels"]) for row in rows] == [
        ("news.example", "en", "BBB?GGGGBB"),
        ("site.example", "en", "BBB?GGGGBB"),
        ("Paper", "en", "BBB?GGGGBB"),
    ]
    assert all(row["text_gold"] == "\n".join(PARAGRAPHS) for row in rows)

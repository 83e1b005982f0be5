"""Pages with labels from tests of open-source extractors."""

import gzip
import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from conftest import lack

pytest.importorskip("transformers")
TOOLS = Path(__file__).parent.parent / "tools"
PARAGRAPHS = [
    f"Paragraph {number} tells at some length what happened to the {number} people of the "
    f"{name} village, who had lived there for more years than anybody in the county remembers."
    for number, name in enumerate(("first", "second", "third", "fourth"))
]
HEAD = '<html lang="en-GB"><head><title>T</title>{}</head><body><ul><li>Home<li>Sign in</ul>'
BODY = "<h1>The village</h1>" + "".join(f"<p>{text}</p>" for text in PARAGRAPHS)
FOOT = "<p class=ad>Buy our ten best offers of this week now</p><p>Terms of use</p>" + "<p>Ad" * 5
LETTERS = "BBB?GGGGBBBBBBB"
ARTICLE = f"<div class='ad'>Subscribe to read more of our news</div><div class=story>{BODY}</div>"
PAGE = HEAD.format("") + ARTICLE + FOOT


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if importlib.util.find_spec("bs4") is None:
        lack("bs4", "no Python package beautifulsoup4; install the extra dev")
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
    code = """content: {
      selectors:
      [
        // '.comment'
        ['.lead', ".text p"], // a "note" { of somebody
        /* '.other', [ */ 'article[title="}"]', 'it\\'s // no comment',
      ],
      transforms: { '.x': $n => process.exit() },
      clean: ['.ad'],
    },
    next: { clean: ['.all'], links: [] }"""
    content = tool.object_of(code, "content")
    selectors = [[".lead", ".text p"], ['article[title="}"]'], ["it\\'s // no comment"]]
    assert list(tool.choices(content, "selectors")) == selectors
    assert list(tool.choices(content, "clean")) == [[".ad"]]
    assert list(tool.choices(content, "links")) == []
    assert tool.object_of(code, "other") == ""


def test_selected_text_occurs_once(tool: ModuleType) -> None:
    html = b"<div class=a>One<p class=b>Two</p><p class=c>Three</p></div><p class=b>Four</p>"
    code = "content: { selectors: [['.b', '.a', '.c', 'div']], clean: %s }, x: { clean: ['div'] }"
    assert tool.selected(html, code % "['.c', '.a p.c']") == ["One", "Two", "Four"]
    assert tool.selected(html, code % "['p:first']") is None
    assert tool.selected(html, code % "['p::after']") is None


@pytest.mark.parametrize(
    ("language", "expected"), [(' lang=" EN-us "', "en"), (' lang=""', "en"), ("", "en")]
)
def test_what_a_page_says_about_itself(tool: ModuleType, language: str, expected: str) -> None:
    head = '<link rel=canonical href="https://[abc"><link rel=canonical href="{}">'
    page = tool.BeautifulSoup(
        f"<html{language}>{head.format('//WWW.News.example:80/a')}", "html.parser"
    )
    assert (tool.own_host(page), tool.language_of(page)) == ("news.example", expected)
    assert tool.own_host(tool.BeautifulSoup(head.format("/a"), "html.parser")) == ""


def test_pages_of_three_extractors(
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    packages, out = tmp_path / "packages", tmp_path / "tests.jsonl.zst"
    canonical = '<link rel="canonical" href="https://www.news.example/a">'
    case = "test/test-pages/village-1"
    commit(
        packages / "mozilla+readability",
        {
            f"{case}/source.html": (HEAD.format(canonical) + ARTICLE + FOOT).encode(),
            f"{case}/expected.html": f"<div>{BODY}</div>".encode(),
            "test/test-pages/nowhere/source.html": PAGE.encode(),  # no host
            "test/test-pages/nowhere/expected.html": f"<div>{BODY}</div>".encode(),
            "test/test-pages/few/source.html": (HEAD.format(canonical) + ARTICLE).encode(),
            "test/test-pages/few/expected.html": f"<div>{BODY}</div>".encode(),
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
            "fixtures/other.example.html": PAGE.encode(),
            "src/extractors/custom/www.site.example/index.js": extractor,
            "src/extractors/custom/other.example/index.js": b"content: { selectors: ['p:first'] }",
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
    assert capsys.readouterr().out.splitlines() == [
        "mozilla/readability: 1 of 4 pages, 0 with unknown selectors",
        "postlight/parser: 1 of 2 pages, 1 with unknown selectors",
        "flairNLP/fundus: 1 of 1 pages, 0 with unknown selectors",
    ]
    rows = list(importlib.import_module("train_embedded").read(out))
    assert [(row["host"], row["lang"], row["line_labels"]) for row in rows] == [
        ("news.example", "en", LETTERS),
        ("site.example", "en", LETTERS),
        ("paper", "en", LETTERS),
    ]
    assert all(row["text_gold"] == "\n".join(PARAGRAPHS) for row in rows)

"""News and other web pages with line labels, from tests of open-source extractors of text.

    pip install beautifulsoup4
    python tools/extractor_pages.py --out FILE [--packages DIR]

It writes FILE (JSON lines) with the keys of `eval_dev` that tools/train_embedded.py reads, for its
`--tests`. The repositories are cloned (`--packages`: the folder to keep them in). Each test is a
page and what the extractor should find on it, which people wrote or checked:

mozilla/readability  the HTML that is left of the page
postlight/parser     CSS selectors of a site's text, and of what is not text within it
flairNLP/fundus      headings and paragraphs, for newspapers in 30 countries

A line is good if it is an expected line, or 80 % of its 4-grams are expected; bad if at most 20 %
are; unknown otherwise. Titles are unknown, and so are short lines all of whose words are expected
somewhere. Pages are left out that are short or very long, that lack 15 % of the expected text, or
whose selectors CSS lacks, and those of Readability that name no host: most were made up to test
one function.
"""

import argparse
import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from soupsieve import SelectorSyntaxError

from html_lines import html_lines
from package_files import Packages
from proxhpc.corpus.hosts import host_of
from train_embedded import write

LICENCES = {
    "mozilla/readability": "Apache-2.0",
    "postlight/parser": "Apache-2.0 OR MIT",
    "flairNLP/fundus": "MIT",
}
GRAM = 4  # words, or letters of scripts without blanks
GOOD, BAD = 0.8, 0.2  # shares of a line's n-grams that are expected
MIN_CHARS, MAX_CHARS, MIN_RECALL = 500, 60_000, 0.85
MIN_LINES = 15  # of a page: a real one has a frame
STRING = r"'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"|`(?:\\.|[^`\\])*`"  # of JavaScript
COMMENT = r"//[^\n]*|/\*.*?\*/"
WORDS = re.compile(r"[^\W\u2E80-\u9FFF\uAC00-\uD7AF\u0E00-\u0E7F]+|[^\W]")

Test = tuple[str, bytes, Sequence[str] | None]
"""Name of a page, its HTML, and the expected lines; None if CSS does not have its selectors."""


def readability(packages: Packages, repository: str) -> Iterator[Test]:
    """Tests of Readability."""
    files = dict(packages.git(repository, "test/test-pages"))
    for name, html in files.items():
        if name.endswith("/source.html"):
            folder = name.removesuffix("/source.html")
            expected = decoded(files[f"{folder}/expected.html"])
            yield folder.removeprefix("test/test-pages/"), html, texts(expected)


def postlight(packages: Packages, repository: str) -> Iterator[Test]:
    """Tests of Postlight's parser."""
    code = dict(packages.git(repository, "src/extractors/custom"))
    for name, html in packages.git(repository, "fixtures"):
        extractor = code.get(f"src/extractors/custom/{site_of(name)}/index.js")
        if extractor and name.endswith(".html"):
            yield name, html, selected(html, extractor.decode())


def fundus(packages: Packages, repository: str) -> Iterator[Test]:
    """Tests of Fundus: of the texts of a publisher, a page's is the one that it has most of."""
    files = dict(packages.git(repository, "tests/resources/parser/test_data"))
    for name, data in files.items():
        if name.endswith(".html.gz"):
            html = gzip.decompress(data)
            publisher = re.sub(r"_[0-9_]+\.html\.gz$", ".json", name)
            articles = [article_lines(each) for each in json.loads(files[publisher]).values()]
            page = "\n".join(texts(decoded(html)))
            yield name.split("/")[-1], html, max(articles, key=lambda lines: recall(lines, page))


def article_lines(article: dict[str, Any]) -> list[str]:
    """The lines of an article of Fundus."""
    body = article.get("body") or {"summary": [], "sections": []}
    lines = list(body["summary"])
    for section in body["sections"]:
        lines += [*section["headline"], *section["paragraphs"]]
    return [clean(line) for text in lines for line in text.split("\n")]


def selected(html: bytes, extractor: str) -> list[str] | None:
    """The lines that an extractor of Postlight selects, or None if CSS lacks a selector."""
    code = object_of(extractor, "content")
    page = BeautifulSoup(decoded(html), "html.parser")
    elements: list[Any] = []
    try:
        for choice in choices(code, "selectors"):
            if elements := page.select(", ".join(choice)):
                break
        elements = outermost(elements)
        for choice in choices(code, "clean"):
            for element in elements:
                for part in element.select(", ".join(choice)):
                    part.decompose()
    except (SelectorSyntaxError, NotImplementedError):
        return None
    return [line for element in elements for line in texts(str(element))]


def outermost(elements: Sequence[Any]) -> list[Any]:
    """The elements that are not within another one of them."""
    found = {id(element) for element in elements}
    return [
        element for element in elements if not any(id(each) in found for each in element.parents)
    ]


def object_of(code: str, key: str) -> str:
    """The object of a key in JavaScript, without its comments; nothing if there is none."""
    text = re.sub(rf"({STRING})|{COMMENT}", lambda match: match[1] or "", code, flags=re.DOTALL)
    start = re.search(rf"\b{key}:\s*\{{", text)
    if not start:
        return ""
    depth = 1
    for match in re.finditer(rf"{STRING}|[{{}}]", text[start.end() :]):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if not depth:
            return text[start.end() : start.end() + match.start()]
    return text[start.end() :]


def choices(code: str, key: str) -> Iterator[list[str]]:
    """The selectors of an array in JavaScript; those of an inner array belong together."""
    start = re.search(rf"\b{key}:\s*\[", code)
    if not start:
        return
    together: list[str] | None = None
    for sign, string in re.findall(rf"([\[\]])|({STRING})", code[start.end() :]):
        if sign == "[":
            together = []
        elif sign == "]":
            if together is None:
                return
            yield together
            together = None
        elif together is None:
            yield [string[1:-1]]
        else:
            together.append(string[1:-1])


def decoded(html: bytes) -> str:
    """The text of an HTML file."""
    return html.decode("utf-8", "replace")


def texts(html: str) -> list[str]:
    """The lines of an HTML page."""
    return [clean(line.text) for line in html_lines(html)]


def clean(line: str) -> str:
    """A line without runs of blanks."""
    return " ".join(line.split())


def grams(text: str) -> list[tuple[str, ...]]:
    """The n-grams of a text."""
    words = WORDS.findall(text.casefold())
    return [tuple(words[at : at + GRAM]) for at in range(len(words) - GRAM + 1)]


def recall(expected: Sequence[str], text: str) -> float:
    """The share of the expected n-grams that a text has."""
    wanted, found = Counter(grams("\n".join(expected))), Counter(grams(text))
    return (wanted & found).total() / max(1, wanted.total())


def labels(lines: Sequence[str], titles: frozenset[str], expected: Sequence[str]) -> str:
    """A letter for each line: G good, B bad, ? unknown."""
    wanted = set(grams("\n".join(expected)))
    whole, words = set(expected), set(WORDS.findall("\n".join(expected).casefold()))
    letters = []
    for line in lines:
        found = grams(line)
        share = sum(gram in wanted for gram in found) / max(1, len(found))
        if line in titles:
            letters.append("?")
        elif line in whole or (found and share >= GOOD):
            letters.append("G")
        elif found:
            letters.append("B" if share <= BAD else "?")
        else:
            is_part = all(word in words for word in WORDS.findall(line.casefold()))
            letters.append("?" if is_part else "B")
    return "".join(letters)


def row(repository: str, test: Test) -> dict[str, Any] | None:
    """The row of a test, or None if the page has too little of what is expected."""
    name, html, expected = test
    page = decoded(html)
    lines = texts(page)
    if expected is None or sum(map(len, expected)) < MIN_CHARS:
        return None
    if len(lines) < MIN_LINES or sum(map(len, lines)) > MAX_CHARS:
        return None
    head = BeautifulSoup(page, "html.parser")
    site = "" if repository == "mozilla/readability" else site_of(name)
    if not (host := own_host(head) or host_of({"host": site}, "host", "url")):
        return None
    titles = frozenset(clean(part.get_text()) for part in head.select("h1, title"))
    letters = labels(lines, titles, expected)
    good = [line for line, letter in zip(lines, letters, strict=True) if letter == "G"]
    if recall(expected, "\n".join(good)) < MIN_RECALL:
        return None
    return {
        "id": f"{repository} {name}",
        "host": host,
        "source": repository,
        "kind": "web_html",
        "lang": language_of(head),
        "licence": LICENCES[repository],
        "text_noisy": "\n".join(lines),
        "text_gold": "\n".join(good),
        "line_labels": letters,
    }


def own_host(page: BeautifulSoup) -> str:
    """The host that a page names as its own, or nothing."""
    for selector, key in (("link[rel=canonical]", "href"), ('meta[property="og:url"]', "content")):
        for element in page.select(selector):
            if host := host_of({"url": element.get(key)}, "host", "url"):
                return host
    return ""


def site_of(name: str) -> str:
    """The site, or the folder, that a test is named after."""
    first = name.removeprefix("fixtures/").split("/")[0]
    return re.split(r"--|_\d", first)[0].removesuffix(".html")


def language_of(page: BeautifulSoup) -> str:
    """The language that a page names, or English."""
    element = page.select_one("html[lang]")
    language = str(element["lang"]).strip().lower() if element else ""
    return re.split(r"[-_]", language)[0] or "en"


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--packages", type=Path, metavar="DIR", help="clones (beside FILE)")
    arguments = parser.parse_args()
    packages = Packages(arguments.packages or arguments.out.parent / "packages")
    rows = []
    for repository, tests in zip(LICENCES, (readability, postlight, fundus), strict=True):
        every = list(tests(packages, repository))
        found = [page for test in every if (page := row(repository, test))]
        refused = sum(expected is None for _, _, expected in every)
        counts = f"{len(found)} of {len(every)} pages, {refused} with unknown selectors"
        print(f"{repository}: {counts}", flush=True)
        rows += found
    write(arguments.out, rows)


if __name__ == "__main__":
    main()

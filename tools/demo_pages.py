"""Write the corpus of the shipped demo: manifests/demo/python-docs.jsonl.

python tools/demo_pages.py

Its pages are topics of Python's language reference, which come with Python (pydoc_data), with the
menus and notices of an imaginary site around them, as a crawler's text extractor leaves them. Some
pages have nothing else, and two are also found at a second address. `line_labels` has a letter for
each line, G for text and B for boilerplate. Another release of Python has other texts.
"""

import re
from pathlib import Path
from pydoc_data.topics import topics

import orjson

OUT = Path(__file__).resolve().parent.parent / "manifests" / "demo"
SITE = "https://docs.example.org"  # imaginary
CHARACTERS = range(900, 6500)  # of a topic
MIN_PROSE = 0.55  # share of a topic's characters that is in paragraphs, not in grammar or code
REPEATED = ("global", "objects")  # also under the address of another release

HEAD = """\
Skip to main content
Home | Downloads | Documentation | Jobs | Community
Python {version} » English
The Python Language Reference »
Search this site
Sign in
"""
NOTICE = """\
We use cookies to improve this site. Accept all | Settings
"""
FOOT = """\
Previous topic: {previous}
Next topic: {next}
This page
Report a bug
Show source
Share on Facebook
Share on Twitter
Was this page helpful? Yes | No
Subscribe to our newsletter
© Copyright 2001-2023, Python Software Foundation.
Privacy policy | Terms of use | Legal notice
Last updated on Dec 04, 2023. Created using Sphinx."""

EMPTY_PAGES = {
    "search.html": "Search results\n0 results found\nShow more results\nAdvanced search",
    "login.html": "Log in\nUser name\nPassword\nForgot your password?\nCreate an account",
    "old/whatsnew.html": "404 - page not found\nGo back to the home page",
    "genindex.html": "Index\n" + " | ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ") + "\n{index}",
}


def main() -> None:
    """Write the pages and print their number."""
    chosen = sorted(name for name in topics if is_prose(topics[name]))
    rows = [page(name, chosen, "3.11") for name in chosen]
    rows += [page(name, chosen, "3.10") for name in REPEATED]
    rows += [empty_page(path, chosen) for path in EMPTY_PAGES]
    rows.sort(key=lambda row: row["url"])
    OUT.mkdir(exist_ok=True)
    data = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    (OUT / "python-docs.jsonl").write_bytes(data)
    print(f"{len(rows)} pages, {len(data) / 1000:.0f} KB")


def is_prose(topic: str) -> bool:
    """Whether a topic has a suitable length, and is text rather than grammar and code."""
    prose = sum(len(block) for block in blocks(topic) if not block.startswith(" "))
    return len(topic) in CHARACTERS and prose >= MIN_PROSE * len(topic)


def blocks(topic: str) -> list[str]:
    """The lines of a topic without underlines: a paragraph is one line, as on a page."""
    lines = []
    for block in re.split(r"\n\s*\n", topic):
        kept = [line for line in block.split("\n") if not re.fullmatch(r"\s*[*=~^-]{3,}", line)]
        if kept and kept[0].startswith(" "):
            lines += [line.rstrip() for line in kept]
        else:
            lines.append(re.sub(r"\s+", " ", " ".join(kept)).strip())
    return [line for line in lines if line]


def page(name: str, names: list[str], version: str) -> dict[str, object]:
    """A topic as a crawler finds it on the site of a release."""
    at = names.index(name)
    around = {"previous": names[at - 1], "next": names[(at + 1) % len(names)], "version": version}
    text = blocks(topics[name])
    return row(f"{SITE}/{version}/reference/{name}.html", text, around, cookies=at % 3 == 0)


def empty_page(path: str, names: list[str]) -> dict[str, object]:
    """A page without text."""
    index = "\n".join(f"{name}, {n}" for n, name in enumerate(names, 3))
    around = {"previous": "about", "next": "copyright", "version": "3.11"}
    lines = EMPTY_PAGES[path].format(index=index).split("\n")
    return row(f"{SITE}/3.11/{path}", [], around | {"own": lines}, cookies=True)


def row(
    url: str, text: list[str], around: dict[str, object], *, cookies: bool
) -> dict[str, object]:
    """A record of the corpus; `own` in `around` are lines of a page without text."""
    before = (HEAD.format(**around) + NOTICE * cookies).splitlines() + list(around.get("own", []))
    after = FOOT.format(**around).splitlines()
    labels = "B" * len(before) + "G" * len(text) + "B" * len(after)
    return {
        "id": url.removeprefix(f"{SITE}/"),
        "url": url,
        "text": "\n".join([*before, *text, *after]),
        "line_labels": labels,
        "keep": int(bool(text)),
        "license": "PSF-2.0",  # manifests/demo/LICENSE
    }


if __name__ == "__main__":
    main()

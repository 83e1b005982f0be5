"""Pieces of the page: everything that is not `Drawn` is escaped."""

import re
from collections.abc import Iterable, Sequence
from html import escape

from proxhpc.status.terminal import safe, whole

_NUMBER = re.compile(r"-?[\d,.]+(e[+-]\d+)?[kMGT]?( %| s)?|\?")
MAX_ROWS = 100  # of a table whose length the run decides; the JSON has all


class Drawn(str):
    """Markup of our own, to be left as it is."""

    __slots__ = ()


def section(title: str, *parts: str) -> str:
    """A part of the page under its heading."""
    return f"<section><h2>{untrusted_text(title)}</h2>\n{''.join(parts)}</section>"


def heading(title: str) -> str:
    """A heading within a section."""
    return f"<h3>{untrusted_text(title)}</h3>\n"


def note(words: str) -> str:
    """A remark."""
    return f"<p class=note>{untrusted_text(words)}</p>\n"


def more(number: int, what: str) -> str:
    """That a table goes on in the JSON; nothing if it does not."""
    rest = number - MAX_ROWS
    return note(f"And {whole(rest)} more {what}: see report.json.") if rest > 0 else ""


def maybe(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that is left out when it is empty."""
    return html_table(header, rows) if rows else ""


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, which scrolls by itself where the page is too narrow for it."""
    rows = list(rows)
    first = rows[0] if rows else [""] * len(header)
    pairs = zip(header, first, strict=True)
    head = "".join(
        f"<th scope=col{_kind(below)}>{untrusted_text(name)}</th>" for name, below in pairs
    )
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>\n" for row in rows)
    thead = f"<thead><tr>{head}</tr></thead>\n" if any(header) else ""
    return f"<div class=wide><table>{thead}<tbody>\n{body}</tbody></table></div>\n"


def _cell(value: str) -> str:
    return f"<td{_kind(value)}>{untrusted_text(value)}</td>"


def _kind(value: str) -> str:
    if isinstance(value, Drawn):
        return " class=drawn"
    return " class=number" if _NUMBER.fullmatch(value) else ""


def untrusted_text(value: str, limit: int = 2000) -> str:
    """Text of strangers: no markup, no control characters, and its own reading direction."""
    if isinstance(value, Drawn):
        return value
    words = escape(safe(value, limit))
    return words if words.isascii() else f"<bdi>{words}</bdi>"

"""The report as one page: no scripts, nothing loaded, every text escaped."""

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from proxhpc.report import text
from proxhpc.report.flow import diagram
from proxhpc.report.style import STYLE
from proxhpc.status.terminal import safe, short, whole

_NUMBER = re.compile(r"-?[\d,.]+(e[+-]\d+)?[kMGT]?( %| s)?|\?")
MAX_ROWS = 100  # input files and workers; the JSON has all


def page(report: dict[str, Any]) -> str:
    """The whole document."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    name = _text(report["name"])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{name}: report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{_body(report)}\n</main>\n</body>\n</html>\n"
    )


def _body(report: dict[str, Any]) -> str:
    return "\n".join(
        [
            _head(report),
            _section(
                "Documents",
                diagram(report),
                _table(("", "documents", ""), text.flow(report)),
                _duplicates(report),
            ),
            _section(
                "Size",
                _table(("", "raw", "refined", "written", "kept"), text.sizes(report)),
                _note(f"Tokens: {report['tokens']['counted']}."),
            ),
            _section("Edits", *_edits(report)),
            _section(
                "Compute",
                _table(text.WORK, text.work(report)),
                _table(text.COSTS, text.costs(report)),
                _maybe(text.SPARED, text.spared(report)),
                _note(text.FORMULAS[0]),
            ),
            *_training(report),
            _section("Input files", *_inputs(report)),
            _section("Workers", *_workers(report)),
        ]
    )


def _head(report: dict[str, Any]) -> str:
    documents, tokens = report["documents"], report["tokens"]
    figures = [
        (text.percent(documents["kept_ratio"]), "of the documents kept"),
        (text.percent(tokens["kept_ratio"]), "of the tokens kept"),
        (short(tokens["written"]), "tokens in the corpus"),
        (text.power(report["flops"]["exact"]), "FLOPs to refine"),
    ]
    tiles = "".join(f"<li><b>{_text(a)}</b><span>{_text(b)}</span></li>" for a, b in figures)
    about = f"engine {report['engine']}, proxhpc {report['code']}"
    return f"<h1>{_text(report['name'])}</h1>\n{_note(about)}\n<ul class=figures>{tiles}</ul>"


def _duplicates(report: dict[str, Any]) -> str:
    docs = report["documents"]
    return _note(
        f"Documents in = kept + edited + dropped + quarantined; kept + edited = duplicates + "
        f"written. {whole(docs['near_duplicates'])} of the duplicates have nearly the same text "
        f"as what is kept, the others the same. They came in {whole(docs['duplicate_sets'])} sets, "
        f"the largest of {whole(docs['largest_duplicate_set'])}. Documents that bear the id of an "
        f"earlier one, with another text: {whole(docs['shared_ids'])}."
    )


def _edits(report: dict[str, Any]) -> Iterable[str]:
    edits = report["edits"]
    rows = [
        ("lines removed", whole(edits["lines_removed"])),
        ("strings replaced", whole(edits["strings_replaced"])),
        ("windows with a program", whole(edits["windows"])),
    ]
    rows += [(f"not executed: {name}", whole(n)) for name, n in edits["rejected"].items()]
    rows += [(f"flagged: {name}", whole(n)) for name, n in edits["flags"].items()]
    yield _table(("", ""), rows)


def _training(report: dict[str, Any]) -> Iterable[str]:
    if lines := text.training(report):
        yield _section("Training on it", _table(("", ""), lines), _note(text.FORMULAS[1]))


def _inputs(report: dict[str, Any]) -> Iterable[str]:
    keys = ("documents", "kept", "edited", "dropped", "quarantined", "duplicates", "written")
    rows = [
        (entry["name"], *(whole(entry[key]) for key in keys), text.percent(entry["kept_ratio"]))
        for entry in report["inputs"][:MAX_ROWS]
    ]
    yield _table(("file", *keys, "share written"), rows)
    yield _more(len(report["inputs"]), "files")


def _workers(report: dict[str, Any]) -> Iterable[str]:
    yield _table(("", ""), text.timing(report))
    everyone = report["execution"]["by_worker"]
    rows = [
        (
            *(entry[key] for key in ("worker", "host", "state")),
            whole(entry["shards"]),
            whole(entry["documents"]),
            f"{entry['busy_seconds']:.0f} s",
            entry["message"],
        )
        for entry in everyone[:MAX_ROWS]
    ]
    yield _table(("worker", "host", "state", "shards", "documents", "at work", ""), rows)
    yield _more(len(everyone), "workers")


def _more(number: int, what: str) -> str:
    rest = number - MAX_ROWS
    return _note(f"And {whole(rest)} more {what}: see report.json.") if rest > 0 else ""


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{_text(title)}</h2>\n{''.join(parts)}</section>"


def _note(words: str) -> str:
    return f"<p class=note>{_text(words)}</p>\n"


def _maybe(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that is left out when it is empty."""
    return _table(header, rows) if rows else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rows = list(rows)
    first = rows[0] if rows else [""] * len(header)
    pairs = zip(header, first, strict=True)
    head = "".join(f"<th scope=col{_kind(below)}>{_text(name)}</th>" for name, below in pairs)
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>\n" for row in rows)
    thead = f"<thead><tr>{head}</tr></thead>\n" if any(header) else ""
    return f"<div class=wide><table>{thead}<tbody>\n{body}</tbody></table></div>\n"


def _cell(value: str) -> str:
    return f"<td{_kind(value)}>{_text(value)}</td>"


def _kind(value: str) -> str:
    return " class=number" if _NUMBER.fullmatch(value) else ""


def _text(value: str) -> str:
    """Text of strangers: no markup, no control characters, and its own reading direction."""
    words = escape(safe(value, 2000))
    return words if words.isascii() else f"<bdi>{words}</bdi>"

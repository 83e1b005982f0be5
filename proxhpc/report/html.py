"""The report as one HTML page: no scripts, nothing loaded, every text escaped."""

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from proxhpc.account.quantity import quantity
from proxhpc.assemble.stats import ExampleTexts
from proxhpc.report import examples, flow, rows, text
from proxhpc.report.advice import next_steps
from proxhpc.report.model import AccountBase, Report
from proxhpc.status.terminal import duration, percentage, safe, short, whole

_MAX_CHARS = 2000  # of one text
_NUMBER = re.compile(r"[-+]?[\d,.]+(e[+-]\d+)?[kMGT]?( %| s)?|\?")


def report_page(report: AccountBase, texts: Sequence[ExampleTexts] = ()) -> str:
    """The whole page; `texts` are those of the documents that the report names."""
    by_source = {text.source: text for text in texts}
    boxes, bands = flow.document_flow(report.documents)
    chosen = report.examples if isinstance(report, Report) else ()
    return render_page(
        "page.html",
        report=report,
        is_finished=isinstance(report, Report),
        remaining=text.remaining(report),
        steps=next_steps(report),
        boxes=boxes,
        bands=bands,
        texts=by_source,
        shown=[(one, by_source[one.source]) for one in chosen if one.source in by_source],
    )


def render_page(template: str, package: str = "proxhpc.report", **values: object) -> str:
    """A page from a template of a package, in the report's style.

    Everything printed in a template goes through `_printed`.
    """
    style = (files("proxhpc.report") / "templates" / "style.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(
        autoescape=True,
        finalize=_printed,
        loader=ChoiceLoader([PackageLoader("proxhpc.report"), PackageLoader(package)]),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals |= {
        "text": text,
        "flow": flow,
        "rows": rows,
        "examples": examples,
        "quantity": quantity,
        "style": Markup(style),  # noqa: S704 - our own file
        "style_digest": digest,
    }
    formats = (whole, short, duration, percentage, text.percent, text.power, rows.span)
    environment.filters |= {function.__name__: function for function in formats}
    environment.filters |= {"cell_class": _cell_class, "limited": safe}
    return environment.get_template(template).render(**values)


def _printed(value: object) -> str:
    """What `{{ value }}` prints.

    Texts come from corpora, logs and hosts: they get no markup, no control characters, and no
    influence on the reading direction of the text around them.
    """
    if isinstance(value, Markup):
        return value
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"a template prints {value!r}")
    escaped = escape(safe(value, _MAX_CHARS))
    return escaped if escaped.isascii() else Markup("<bdi>{}</bdi>").format(escaped)


def _cell_class(cell: object) -> str:
    if not isinstance(cell, str):
        return Markup(" class=bar") if isinstance(cell, rows.Bar) else Markup(" class=lane")
    return Markup(" class=number") if _NUMBER.fullmatch(cell) else ""

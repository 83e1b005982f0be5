"""The report as one page: no scripts, nothing loaded, every text escaped."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from proxhpc.assemble.examples import ExampleTexts
from proxhpc.report import text
from proxhpc.report.charts import area, bar, histogram, lane
from proxhpc.report.examples import copies, example
from proxhpc.report.flow import diagram
from proxhpc.report.markup import (
    MAX_ROWS,
    Drawn,
    heading,
    html_table,
    maybe,
    more,
    note,
    section,
)
from proxhpc.report.markup import untrusted_text as escaped
from proxhpc.report.style import STYLE
from proxhpc.status.terminal import duration, percentage, short, whole


def page(report: dict[str, Any], shown: Sequence[ExampleTexts] = ()) -> str:
    """The whole document; `shown` are the documents that the report names."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    name = escaped(report["name"])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{name}: report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{_body(report, {one.source: one for one in shown})}\n</main>\n</body>\n</html>\n"
    )


def _body(report: dict[str, Any], shown: dict[str, ExampleTexts]) -> str:
    return "\n".join(
        [
            _head(report),
            section("Documents", *_documents(report)),
            section("Size", *_size(report)),
            section("Programs", *_programs(report)),
            section("Compute", *_compute(report)),
            section("Duplicates", *_duplicates(report, shown)),
            section("Before and after", *_examples(report, shown)),
            section("Input files", *_inputs(report)),
            section("Workers", *_workers(report)),
        ]
    )


def _head(report: dict[str, Any]) -> str:
    documents, tokens = report["documents"], report["tokens"]
    figures = [
        (text.percent(documents["written_ratio"]), "of the documents are in the corpus"),
        (text.percent(tokens["written_ratio"]), "of the tokens are in the corpus"),
        (short(tokens["written"]), "tokens in the corpus"),
        (text.power(report["flops"]["exact"]), "FLOPs to refine"),
    ]
    tiles = "".join(f"<li><b>{escaped(a)}</b><span>{escaped(b)}</span></li>" for a, b in figures)
    about = f"engine {report['engine']}, proxhpc {report['code']}"
    return f"<h1>{escaped(report['name'])}</h1>\n{note(about)}\n<ul class=figures>{tiles}</ul>"


def _documents(report: dict[str, Any]) -> Iterable[str]:
    yield diagram(report)
    yield html_table(("", "documents", ""), text.flow(report))
    yield note(
        "Documents in = kept + edited + dropped + quarantined; kept + edited = duplicates + "
        "written."
    )
    yield heading("Where the raw tokens went")
    total = report["tokens"]["read"]
    rows = [
        (
            f"{one['outcome']}: {one['reason']}" if one["reason"] else one["outcome"],
            whole(one["raw_tokens"]),
            percentage(one["raw_tokens"], total),
            bar(one["raw_tokens"] / total if total else 0.0, one["outcome"]),
        )
        for one in report["outcomes"]
    ]
    yield html_table(("", "tokens", "share", ""), rows)
    yield note("Of edited documents, the tokens that were taken away. All add up to the raw ones.")


def _size(report: dict[str, Any]) -> Iterable[str]:
    yield html_table(("", "raw", "refined", "written", "kept"), text.sizes(report))
    bins = report["distributions"]
    tokens = histogram("documents by tokens", bins["tokens"])
    lines = histogram("documents by lines", bins["lines"])
    yield f"<div class=charts>{tokens}{lines}</div>\n"
    yield note(
        f"Tokens: {report['tokens']['counted']}. Bars begin at the number below them and double in "
        "width; refined documents are those that reach the merge, duplicates among them."
    )


def _programs(report: dict[str, Any]) -> Iterable[str]:
    edits = report["edits"]
    rows = [
        ("lines removed", whole(edits["lines_removed"])),
        ("strings replaced", whole(edits["strings_replaced"])),
        ("windows with a program", whole(edits["windows"])),
    ]
    rows += [(f"not executed: {name}", whole(n)) for name, n in edits["rejected"].items()]
    rows += [(f"flagged: {name}", whole(n)) for name, n in edits["flags"].items()]
    yield html_table(("", ""), rows)
    calls = [
        (f"{level} stage", name, whole(number), percentage(number, sum(found["calls"].values())))
        for level, found in report["programs"].items()
        for name, number in found["calls"].items()
    ]
    yield maybe(("", "call", "times", "share"), calls)
    ends = [
        (f"{level} stage", _END.get(name, name), whole(number))
        for level, found in report["programs"].items()
        for name, number in found["finishes"].items()
    ]
    yield maybe(("", "answers", "number"), ends)


_END = {"stop": "complete", "length": "cut at their length limit"}


def _compute(report: dict[str, Any]) -> Iterable[str]:
    if any(stage["model"] for stage in report["stages"]):
        yield html_table(text.WORK, text.work(report))
        yield html_table(text.COSTS, text.costs(report))
        yield maybe(text.SPARED, text.spared(report))
        yield note(text.FORMULAS[0])
    else:
        yield note("The programs were written without a model: no FLOPs.")
    yield heading("Estimate and truth")
    yield html_table(text.ESTIMATE, text.estimate_rows(report))
    if lines := text.training(report):
        yield heading("Training on it")
        yield html_table(("", ""), lines)
        yield _training_bars(report["comparison"])
        yield note(text.FORMULAS[1])


def _training_bars(found: dict[str, Any]) -> str:
    """Training on raw tokens against refining and training on what is left."""
    if found["parameters"] is None or not found["raw_flops"]:
        return ""
    rows = [
        (name, text.power(found[key]), bar((found[key] or 0) / found["raw_flops"], kind))
        for name, key, kind in (
            ("training on raw", "raw_flops", "in"),
            ("training on refined", "refined_flops", "written"),
            ("refining", "refining_flops", "edited"),
        )
    ]
    return html_table(("", "FLOPs", ""), rows)


def _duplicates(report: dict[str, Any], shown: dict[str, ExampleTexts]) -> Iterable[str]:
    docs, sets = report["documents"], report["duplicate_sets"]
    yield note(
        f"{whole(docs['duplicates'])} documents were left out for another one, "
        f"{whole(docs['near_duplicates'])} of them for one with nearly the same text, the others "
        f"for the same. They came in {whole(docs['duplicate_sets'])} sets, the largest of "
        f"{whole(docs['largest_duplicate_set'])}. Documents that bear the id of an earlier one, "
        f"with another text: {whole(docs['shared_ids'])}."
    )
    most = max((one["sets"] for one in sets["sizes"]), default=0)
    sizes = [
        (_span(one["from"], one["to"]), whole(one["sets"]), bar(one["sets"] / most, "duplicates"))
        for one in sets["sizes"]
    ]
    yield maybe(("documents in a set", "sets", ""), sizes)
    if sets["largest"]:
        yield heading("The largest sets")
    for one in sets["largest"]:
        yield copies(one["size"], one["id"], shown.get(one["source"]))


def _span(low: int, high: int) -> str:
    return f"{low} to {high}" if high > low else str(low)


def _examples(report: dict[str, Any], shown: dict[str, ExampleTexts]) -> Iterable[str]:
    found = [shown[one["source"]] for one in report["examples"] if one["source"] in shown]
    yield note(
        f"{len(found)} edited and dropped documents, chosen by the plan's digest as seed: a "
        "document's hash decides, so that each was as likely. Open one to see what changed."
        if found
        else "No document was edited or dropped."
    )
    yield from map(example, found)


def _inputs(report: dict[str, Any]) -> Iterable[str]:
    keys = ("documents", "kept", "edited", "dropped", "quarantined", "duplicates", "written")
    rows = [
        (
            entry["name"],
            *(whole(entry[key]) for key in keys),
            text.percent(entry["written_ratio"]),
            bar(entry["written_ratio"] or 0.0, "written"),
        )
        for entry in report["inputs"][:MAX_ROWS]
    ]
    yield html_table(("file", *keys, "share written", ""), rows)
    yield more(len(report["inputs"]), "files")


def _workers(report: dict[str, Any]) -> Iterable[str]:
    yield html_table(("", ""), text.timing(report))
    yield from _timeline(report["execution"]["timeline"])
    everyone = report["execution"]["by_worker"]
    rows = [
        (
            *(entry[key] for key in ("worker", "host")),
            _ENDS["gone"] if entry["state"] in ("starting", "working") else entry["state"],
            whole(entry["shards"]),
            whole(entry["documents"]),
            f"{entry['busy_seconds']:.0f} s",
            short(entry["tokens_per_second"]),
            entry["message"],
        )
        for entry in everyone[:MAX_ROWS]
    ]
    yield html_table(
        ("worker", "host", "state", "shards", "documents", "at work", "tokens/s", ""), rows
    )
    yield more(len(everyone), "workers")


def _timeline(found: dict[str, Any]) -> Iterable[str]:
    if not any(found["tokens_per_second"]):
        return
    total = area("tokens per second, all workers", found["tokens_per_second"], found["seconds"])
    yield f"<div class=charts>{total}</div>\n"
    highest = max(max(one["tokens_per_second"]) for one in found["workers"])
    rows = [
        (
            one["worker"],
            lane(one["tokens_per_second"], highest, one["failed"], one["deaths_noted"]),
            short(max(one["tokens_per_second"])),
            Drawn(f"<span class=trouble>{escaped(_ENDS.get(one['end'], ''))}</span>"),
        )
        for one in found["workers"]
    ]
    yield html_table(("worker", f"over {duration(found['seconds'])}", "tokens/s at most", ""), rows)
    yield note(
        "From what workers said when they committed. Red: it failed. Yellow: it noted that a "
        "worker or engine had died at work on a shard. At most 32 workers, failed ones first."
    )


_ENDS = {"failed": "failed", "gone": "ended without a word"}

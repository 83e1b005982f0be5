"""The dataset card, which describes the corpus and how to load it, and the checksums.

The card does not mention shards, workers or paths, so the same documents and manifest give the same
card.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from proxhpc import __version__
from proxhpc.assemble.summary import MergeSummary
from proxhpc.run.models import short_name
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan

_MAX_LISTED_FILES = 100  # input files in the table
_MARKUP = re.compile(r"[\\`*\[\]<>|~&#!@:$\"]|(?<=www)\.", re.IGNORECASE)


def dataset_card(plan: Plan, summary: MergeSummary) -> bytes:
    """README.md of a corpus, with the front matter that `datasets.load_dataset` reads."""
    name = plan.manifest.name
    blocks = [
        _front_matter(name, plan.manifest.output.format if summary.parts else ""),
        f"# {_cell(name)}",
        f"Refined with proxhpc {_cell(__version__)}: small language models or rules wrote a"
        " program for every document, and the programs were executed on the raw text.",
        *_counts(plan, summary),
        *_rows(plan, summary),
        *_settings(plan),
        *_files(summary),
    ]
    return "\n\n".join(blocks).encode() + b"\n"


def checksums(run: RunDir, summary: MergeSummary, card: bytes) -> bytes:
    """SHA256SUMS of every other file of the corpus, for `sha256sum -c`."""
    sums = {part.name: part.sha256 for part in summary.parts}
    sums[run.card.name] = hashlib.sha256(card).hexdigest()
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())).encode()


def _front_matter(name: str, suffix: str) -> str:
    lines = ["---", f"pretty_name: {json.dumps(name)}", "tags:", "- pretraining", "- proxhpc"]
    if suffix:
        lines += ["configs:", "- config_name: default", "  data_files:"]
        lines += ["  - split: train", f"    path: part-*.{suffix}"]
    return "\n".join([*lines, "---"])


def _counts(plan: Plan, summary: MergeSummary) -> Iterator[str]:
    counts, duplicates = summary.counts, summary.duplicates
    yield "## What became of the documents"
    yield _table(
        ("", "documents", "bytes of text", "tokens"),
        [
            ("raw input", counts.documents, counts.bytes_in, counts.tokens_in),
            ("refined", counts.in_corpus, counts.bytes_out, counts.tokens_out),
            ("in this corpus", summary.written, summary.text_bytes, summary.tokens),
        ],
    )
    yield f"Tokens are counted as: {_cell(short_name(plan.token_unit))}."
    rows: list[tuple[str | int, ...]] = [("kept unchanged", counts.kept), ("edited", counts.edited)]
    rows += [(f"dropped, {reason}", n) for reason, n in sorted(counts.dropped.items())]
    rows += [(f"quarantined, {reason}", n) for reason, n in sorted(counts.quarantined.items())]
    rows += [("all documents of the input", counts.documents)]
    rows += [("refined, but a duplicate", duplicates.documents - duplicates.near)]
    if plan.manifest.dedup.near:
        rows += [("refined, but a near-duplicate", duplicates.near)]
    rows += [("refined, and in this corpus", summary.written)]
    yield _table(("outcome", "documents"), rows)
    yield (
        f"There are {duplicates.sets:,} duplicate sets; the largest has {duplicates.largest_set:,}"
        f" documents. {summary.shared_ids.documents:,} documents have the id of an earlier document"
        " with another text."
    )
    if plan.against:
        yield (
            f"{duplicates.external:,} documents are duplicates of documents of another corpus."
            f" {duplicates.external_documents:,} documents of that corpus were compared;"
            f" {duplicates.external_unreadable:,} of its records could not be read."
        )


def _rows(plan: Plan, summary: MergeSummary) -> Iterator[str]:
    yield "## Rows"
    rows = [
        ("id", "string; the record's own id, or its source"),
        ("text", "string; the refined text"),
        ("every other field", "as in the raw record; original_… if its name is taken"),
    ]
    output = plan.manifest.output
    if output.format == "parquet":
        rows[2] = ("metadata", "JSON; every other field of the raw record")
    if output.original:
        rows.append(("original_text", "string; the raw text"))
    if output.provenance:
        rows.append(("proxhpc.source", "the raw record's input file and its position there"))
        rows.append(("proxhpc.outcome", "kept or edited"))
        programs = {"doc": "the program for the document", "chunk": "the programs for its windows"}
        rows += [(f"proxhpc.{s.level}", programs[s.level]) for s in plan.manifest.stages]
    yield _table(("field", "content"), rows)
    if output.provenance and output.format == "parquet":
        yield "The column `proxhpc` is JSON."
    if summary.parts:
        yield '```python\nimport datasets\n\ncorpus = datasets.load_dataset("path/to/here")\n```'
    yield "`sha256sum -c SHA256SUMS` checks the files."


def _settings(plan: Plan) -> Iterator[str]:
    yield "## How it was made"
    manifest = plan.manifest.model_dump(mode="json")
    stages = [
        stage | {"model": short_name(stage["model"] or "none")} for stage in manifest["stages"]
    ]
    settings = {
        "corpus": {k: v for k, v in manifest["corpus"].items() if k != "paths"},
        "stages": stages,
        "engine": manifest["engine"],
        "policy": manifest["policy"],
        "dedup": manifest["dedup"],
        "output": manifest["output"],
    }
    models = [(level, short_name(ref.name), ref.snapshot) for level, ref in plan.models.items()]
    if models:
        yield _table(("stage", "model", "snapshot"), models)
    yield _fenced(settings)


def _files(summary: MergeSummary) -> Iterator[str]:
    yield "## Input"
    keys = ("documents", "kept", "edited", "dropped", "quarantined", "duplicates", "written")
    labels = {"kept": "kept unchanged", "written": "in this corpus"}
    rows = [(f.name, *(getattr(f, key) for key in keys)) for f in summary.files[:_MAX_LISTED_FILES]]
    yield _table(("file", *(labels.get(key, key) for key in keys)), rows)
    if (unlisted := len(summary.files) - _MAX_LISTED_FILES) > 0:
        yield f"And {unlisted:,} more files."


def _fenced(data: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=10**6)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text}{fence}"


def _table(header: Iterable[str], rows: Iterable[Iterable[str | int]]) -> str:
    lines = [[_cell(name) for name in header]]
    lines += [[_cell(cell) for cell in row] for row in rows]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: str | int) -> str:
    """A number with separators, or text without active Markdown, HTML or invisible characters."""
    if isinstance(value, int):
        return f"{value:,}"
    printable = "".join(char if char.isprintable() else "\ufffd" for char in value)
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", printable)

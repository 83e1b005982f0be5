"""The dataset card, which describes the corpus and how to load it, and the checksums.

The card does not mention shards, workers or paths, so the same documents and manifest give the same
card. Its text is in `templates/card.md`.
"""

import hashlib
import json
import re

import yaml

from proxhpc import __version__
from proxhpc.account.reasons import reason_text
from proxhpc.assemble.shape import RowShape, features
from proxhpc.assemble.summary import MergeSummary
from proxhpc.run.models import short_name
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan

Rows = list[tuple[str | int, ...]]

_MAX_LISTED_FILES = 100  # input files in the table
_MARKUP = re.compile(r"[\\`*\[\]<>|~&#!@:$\"]|(?<=www)\.", re.IGNORECASE)


def dataset_card(plan: Plan, summary: MergeSummary, shape: RowShape) -> bytes:
    """README.md of a corpus, with the front matter that `datasets.load_dataset` reads."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # not while a run is refined

    environment = Environment(
        autoescape=False,  # noqa: S701 - Markdown
        loader=PackageLoader("proxhpc.assemble"),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"plain": _plain, "json": json.dumps}
    settings = _settings(plan)
    longest = max((len(run) for run in re.findall("`+", settings)), default=0)
    models = [(level, short_name(ref.name), ref.snapshot) for level, ref in plan.models.items()]
    card = environment.get_template("card.md").render(
        plan=plan,
        summary=summary,
        version=__version__,
        features=yaml.safe_dump(features(shape), sort_keys=False, allow_unicode=True),
        mixed=not features(shape),
        size_category=_size_category(summary.written),
        token_unit=short_name(plan.token_unit),
        sizes=_sizes(summary),
        outcomes=_outcomes(plan, summary),
        models=models and [("stage", "model", "snapshot"), *models],
        settings=settings,
        fence="`" * max(3, longest + 1),
        files=_files(summary),
        unlisted=max(0, len(summary.files) - _MAX_LISTED_FILES),
    )
    return card.encode()


def checksums(run: RunDir, summary: MergeSummary, card: bytes) -> bytes:
    """SHA256SUMS of every other file of the corpus, for `sha256sum -c`."""
    sums = {part.name: part.sha256 for part in summary.parts}
    sums[run.card.name] = hashlib.sha256(card).hexdigest()
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())).encode()


def _size_category(documents: int) -> str:
    """Return the size as the Hugging Face hub names it: `10K<n<100K`."""
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    place = max(0, len(str(documents)) - 3)
    if place == 0:
        return f"n<{names[0]}"
    return f"{names[place - 1]}<n<{names[place]}" if place < len(names) else f"n>{names[-1]}"


def _sizes(summary: MergeSummary) -> Rows:
    counts = summary.counts
    return [
        ("", "documents", "bytes of text", "tokens"),
        ("raw input", counts.documents, counts.bytes_in, counts.tokens_in),
        ("refined", counts.in_corpus, counts.bytes_out, counts.tokens_out),
        ("in this corpus", summary.written, summary.text_bytes, summary.tokens),
    ]


def _outcomes(plan: Plan, summary: MergeSummary) -> Rows:
    counts, duplicates = summary.counts, summary.duplicates
    rows: Rows = [
        ("outcome", "documents"),
        ("kept unchanged", counts.kept),
        ("edited", counts.edited),
        *(
            (f"{outcome}: {reason_text(reason)}", n)
            for outcome, reasons in (
                ("dropped", counts.dropped),
                ("quarantined", counts.quarantined),
            )
            for reason, n in sorted(reasons.items())
        ),
        ("all documents of the input", counts.documents),
        ("refined, but a duplicate", duplicates.documents - duplicates.near - duplicates.same_url),
    ]
    if plan.manifest.dedup.url:
        rows.append(("refined, but with the URL of another document", duplicates.same_url))
    if plan.manifest.dedup.near:
        rows.append(("refined, but a near-duplicate", duplicates.near))
    left_out = summary.left_out.items()
    rows += [(f"refined, but left out: {reason_text(reason)}", n) for reason, n in left_out]
    return [*rows, ("refined, and in this corpus", summary.written)]


def _settings(plan: Plan) -> str:
    sections = {"corpus", "stages", "engine", "policy", "dedup", "output"}
    manifest = plan.manifest.model_dump(mode="json", include=sections)
    del manifest["corpus"]["paths"]
    for stage in manifest["stages"]:
        stage["model"] = short_name(stage["model"] or "none")
    return yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True, width=10**6)


def _files(summary: MergeSummary) -> Rows:
    keys = ("documents", "kept", "edited", "dropped", "quarantined", "duplicates", "written")
    labels = {"kept": "kept unchanged", "written": "in this corpus"}
    files = summary.files[:_MAX_LISTED_FILES]
    rows: Rows = [(file.name, *(getattr(file, key) for key in keys)) for file in files]
    return [("file", *(labels.get(key, key) for key in keys)), *rows]


def _plain(value: str | int) -> str:
    """A number with separators, or text without active Markdown, HTML or invisible characters."""
    if isinstance(value, int):
        return f"{value:,}"
    printable = "".join(char if char.isprintable() else "\ufffd" for char in value)
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", printable)

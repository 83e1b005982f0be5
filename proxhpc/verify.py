"""Checks every checksum and count of a run from its files, independently of earlier checks.

Ledgers are read completely and counted again, and their spans must cover the inputs. The counts of
the merge and the report must be those of the ledgers. Every file of the corpus must have its
checksum and its number of documents. Damaged files are named; `repair` removes them, so the next
launch writes only those again.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from proxhpc.account.counts import Counts
from proxhpc.account.quantity import quantity
from proxhpc.assemble.coverage import coverage_problems
from proxhpc.assemble.replay import SpanStats, holds
from proxhpc.assemble.summary import MergeSummary
from proxhpc.corpus.disk import sha256_file
from proxhpc.corpus.document import SpanEnd
from proxhpc.corpus.inputs import check_unchanged
from proxhpc.corpus.parquet import count_rows, require_pyarrow
from proxhpc.corpus.streams import count_lines
from proxhpc.errors import ProxError, StopError
from proxhpc.outputs import OutputModel
from proxhpc.run.ledger import read_ledger
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.pool import open_pool
from proxhpc.run.shards import missing_shards
from proxhpc.status.totals import RunTotals, run_totals


@dataclass(slots=True)
class Verification:
    """What was checked; damaged files, each with its problem; and counts that do not agree."""

    shards: int = 0
    not_refined: int = 0
    counts: Counts = field(default_factory=Counts)
    parts: int = 0
    documents_written: int = 0
    damaged_inputs: dict[Path, str] = field(default_factory=dict)
    damaged_ledgers: dict[Path, str] = field(default_factory=dict)
    damaged_corpus: dict[Path, str] = field(default_factory=dict)
    wrong_sums: list[str] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        """Whether nothing is damaged and all counts agree."""
        return not (self.damaged or self.wrong_sums)

    @property
    def damaged(self) -> dict[Path, str]:
        """All damaged files, each with its problem."""
        return self.damaged_inputs | self.damaged_ledgers | self.damaged_corpus

    def to_output(self) -> "VerifyOutput":
        """What `--json` prints."""
        return VerifyOutput(
            intact=self.intact,
            shards=self.shards,
            not_refined=self.not_refined,
            totals=run_totals(self.counts, None),
            parts=self.parts,
            documents_written=self.documents_written,
            damaged={str(path): problem for path, problem in self.damaged.items()},
            wrong_sums=tuple(self.wrong_sums),
        )


class VerifyOutput(OutputModel):
    """Result of checking every checksum and count of a run."""

    format: Literal["proxhpc.verify/1"] = "proxhpc.verify/1"
    """Kind and version of this document."""
    intact: bool
    """Whether nothing is damaged and all counts agree."""
    shards: int
    """Shards of the run."""
    not_refined: int
    """Shards that are not refined yet."""
    totals: RunTotals
    """Sums over the intact ledgers; they do not include the merge."""
    parts: int
    """Intact files of the corpus."""
    documents_written: int
    """Documents in them."""
    damaged: dict[str, str]
    """Damaged files, by path, each with its problem."""
    wrong_sums: tuple[str, ...]
    """Counts that do not agree."""


def verify_run(run: RunDir, *, processes: int = 1) -> Verification:
    """Check everything that a run has written; writes nothing. UserError if there is no run."""
    plan = Plan.load(run)
    result = Verification(shards=len(plan.shards))
    _check_inputs(plan, result)
    _check_ledgers(run, plan, result, processes)
    if run.merge_summary.exists():
        if plan.manifest.output.format == "parquet":
            require_pyarrow("reading the corpus")  # or every part would be called damaged
        _check_corpus(run, result)
    return result


def repair(run: RunDir, result: Verification) -> list[Path]:
    """Remove damaged files and what was made from them, for the next launch to write again.

    Only for the holder of the `advance` lease. Inputs are never removed.
    """
    damaged: list[Path] = []
    if result.damaged_ledgers or result.damaged_corpus or result.wrong_sums:
        # First the files that mark the run as finished, in case this process is killed.
        damaged += [run.report_json, run.merge_summary]
        damaged += [run.checksums] if run.checksums in result.damaged_corpus else []
    damaged += result.damaged_ledgers
    damaged += [path for path in result.damaged_corpus if path.parent == run.corpus]
    removed = [path for path in dict.fromkeys(damaged) if path.exists()]
    for path in removed:
        path.unlink()
    return removed


def _check_inputs(plan: Plan, result: Verification) -> None:
    for info in (*plan.inputs, *plan.against):
        try:
            check_unchanged(info)
        except (ProxError, OSError) as error:
            result.damaged_inputs[info.path] = str(error).splitlines()[0]


def _check_ledgers(run: RunDir, plan: Plan, result: Verification, processes: int) -> None:
    missing = set(missing_shards(run, plan))
    result.not_refined = len(missing)
    refined = [shard for shard in range(len(plan.shards)) if shard not in missing]
    with open_pool(run, plan, processes, command="verify") as pool:
        contents = pool.map("verify", _read_shard, refined)
    all_spans: list[SpanStats] = []
    for shard, (counts, spans, problem) in zip(refined, contents, strict=True):
        if problem:
            result.damaged_ledgers[run.ledger(shard)] = problem
        result.counts += counts
        all_spans += spans
    if missing or result.damaged_ledgers:
        return
    for file, problem in coverage_problems(plan, all_spans).items():
        # The span ends do not show which ledger of the file is wrong.
        for number, planned in enumerate(plan.shards):
            if any(span.file == file for span in planned.spans):
                inconsistent = f"with the other ledgers of its input: {problem}"
                result.damaged_ledgers[run.ledger(number)] = inconsistent


def _read_shard(run: RunDir, plan: Plan, shard: int) -> tuple[Counts, list[SpanStats], str]:
    """A ledger's counts and spans, or what is wrong with it."""
    counts, ends = Counts(), list[SpanEnd]()
    spans = [SpanStats(span.file, span.start, span.stop) for span in plan.shards[shard].spans]
    try:
        for item in read_ledger(run.ledger(shard), plan.digest, shard):
            if isinstance(item, SpanEnd):
                ends.append(item)
                counts.blank_lines += item.blank
                continue
            item.add_to(counts)
            for span in spans:
                if holds(span, item.file, item.position):
                    span.add(item)
    except (ProxError, OSError) as error:
        return Counts(), [], str(error).splitlines()[0]
    if [end.file for end in ends] != [span.file for span in spans]:
        return Counts(), [], "it does not have the spans of its shard"
    for span, end in zip(spans, ends, strict=True):
        span.finish(end)
    if sum(span.records for span in spans) != counts.documents:
        return Counts(), [], "it has rows outside of its spans"
    return counts, spans, ""


def _check_corpus(run: RunDir, result: Verification) -> None:
    """Check the merge's counts against the ledgers', and every file of the corpus."""
    try:
        summary = MergeSummary.load(run)
        assert summary is not None  # the caller checked that the file exists
        summary.check()
    except StopError as error:
        result.damaged_corpus[run.merge_summary] = error.message
        return
    if not result.damaged_ledgers and summary.counts != result.counts:
        result.wrong_sums.append(f"{run.merge_summary} does not have the sums of the ledgers")
    documents = {part.name: part.documents for part in summary.parts}
    for name, problem in _damaged_files(run, documents, result):
        result.damaged_corpus[run.corpus / name] = problem
    if not result.damaged_corpus and result.documents_written != summary.written:
        result.wrong_sums.append(
            f"{run.merge_summary} has {quantity(summary.written, 'document')} written,"
            f" the corpus has {result.documents_written}"
        )
    if run.report_json.exists():
        totals = run_totals(summary.counts, summary).documents
        if _report_documents(run.report_json) != totals.model_dump():
            result.wrong_sums.append(f"{run.report_json} does not have the sums of the merge")


def _report_documents(report: Path) -> object:
    """The document counts of a report; None if it is damaged."""
    try:
        return json.loads(report.read_bytes())["documents"]
    except (ValueError, KeyError, TypeError):
        return None


def _damaged_files(
    run: RunDir, documents: dict[str, int], result: Verification
) -> Iterator[tuple[str, str]]:
    """Names of damaged files of the corpus, each with its problem; counts the intact parts."""
    try:
        lines = run.checksums.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        yield run.checksums.name, str(error)
        return
    digests = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in sorted(documents.keys() - digests.keys()):
        yield name, f"{run.checksums.name} does not list it"
    for path in sorted(run.corpus.glob("part-*")):
        if path.name not in digests:
            yield path.name, "it is not part of the corpus, but readers of part-* would read it"
    for name, digest in digests.items():
        path = run.corpus / Path(name).name
        try:
            if sha256_file(path) != digest:
                yield name, "its SHA-256 differs"
                continue
            count = count_rows if path.suffix == ".parquet" else count_lines
            counted = count(path) if name in documents else 0
        except (OSError, ProxError) as error:
            yield name, str(error).splitlines()[0]
            continue
        if counted != documents.get(name, 0):
            yield name, f"it has {quantity(counted, 'document')}, not {documents.get(name, 0)}"
        elif name in documents:
            result.parts += 1
            result.documents_written += counted


def render_verification(run: RunDir, result: Verification) -> Iterator[str]:
    """Lines for a terminal: what was checked, and what to do."""
    counts, refined = result.counts, result.shards - result.not_refined
    documents = quantity(counts.documents, "document")
    yield f"{refined:,} of {quantity(result.shards, 'ledger')} read: {documents}"
    yield (
        f"  kept unchanged {counts.kept:,}, edited {counts.edited:,},"
        f" dropped {counts.dropped.total():,}, quarantined {counts.quarantined.total():,}"
    )
    if result.parts:
        documents = quantity(result.documents_written, "document")
        yield f"{quantity(result.parts, 'part')} of the corpus read: {documents}"
    yield from (f"DAMAGED {path}: {problem}" for path, problem in result.damaged.items())
    yield from (f"WRONG {problem}" for problem in result.wrong_sums)
    if result.intact:
        pending = (
            f"; {quantity(result.not_refined, 'shard is', 'shards are')} not refined yet"
            if result.not_refined
            else ""
        )
        yield f"all checksums and counts agree{pending}"
    elif result.damaged_inputs:
        yield "restore the inputs, or start a new run"
    else:
        yield f"run `proxhpc verify {run.root} --repair`, then `proxhpc launch` again"

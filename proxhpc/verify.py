"""Proves a run again from its files, whatever was proved before: every checksum, every count.

Ledgers are read whole and their sums made anew; their spans must tile the inputs; the merge's and
the report's numbers must be the ledgers'; every file of the corpus must have its digest and its
number of documents. What is damaged is named, and with `repair` taken away, so that the next
launch makes just that again.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from proxhpc.account.counts import Counts
from proxhpc.assemble.coverage import coverage_problems
from proxhpc.assemble.replay import SpanCounter, SpanStats
from proxhpc.assemble.summary import MergeSummary
from proxhpc.corpus.disk import sha256_file
from proxhpc.corpus.document import SpanEnd
from proxhpc.corpus.inputs import check_unchanged
from proxhpc.corpus.parquet import count_rows, require_pyarrow
from proxhpc.corpus.streams import count_lines
from proxhpc.errors import ProxError, StopError
from proxhpc.outputs import OutputModel
from proxhpc.run.ledger import Row, read_ledger
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.pool import open_pool
from proxhpc.run.shards import missing_shards
from proxhpc.status.totals import RunTotals, run_totals


@dataclass(slots=True)
class Verification:
    """What was proved, and what is damaged: a file and what is wrong with it."""

    shards: int = 0
    not_refined: int = 0  # shards that are not refined yet
    counts: Counts = field(default_factory=Counts)
    parts: int = 0
    documents_written: int = 0
    damaged_inputs: dict[Path, str] = field(default_factory=dict)
    damaged_ledgers: dict[int, str] = field(default_factory=dict)
    damaged_corpus: dict[Path, str] = field(default_factory=dict)
    wrong_sums: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing is damaged."""
        return not (
            self.damaged_inputs or self.damaged_ledgers or self.damaged_corpus or self.wrong_sums
        )

    def to_output(self, run: RunDir) -> "VerifyOutput":
        """What `--json` prints."""
        damaged = {str(path): problem for path, problem in self.damaged_inputs.items()}
        damaged |= {str(run.ledger(n)): problem for n, problem in self.damaged_ledgers.items()}
        damaged |= {str(path): problem for path, problem in self.damaged_corpus.items()}
        return VerifyOutput(
            good=self.good,
            shards=self.shards,
            not_refined=self.not_refined,
            totals=run_totals(self.counts, None),
            parts=self.parts,
            documents_written=self.documents_written,
            damaged=damaged,
            wrong_sums=tuple(self.wrong_sums),
        )


class VerifyOutput(OutputModel):
    """Result of checking every checksum and count of a run."""

    format: Literal["proxhpc.verify/1"] = "proxhpc.verify/1"
    """Name and version of this document's format."""
    good: bool
    """Whether nothing is damaged or contradictory."""
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


def verify(run: RunDir, *, processes: int = 1) -> Verification:
    """Read everything that a run has written and prove it. Writes nothing.

    UserError where there is no run.
    """
    plan = Plan.load(run)
    proof = Verification(shards=len(plan.shards))
    _inputs(plan, proof)
    _ledgers(run, plan, proof, processes)
    if run.merge_summary.exists():
        if plan.manifest.output.format == "parquet":
            require_pyarrow("reading the corpus")  # without it they are not damaged
        _corpus(run, proof)
    return proof


def repair(run: RunDir, proof: Verification) -> list[Path]:
    """Take away what is damaged and what was made of it; the next launch makes it again.

    For the holder of the `advance` lease only. Inputs are not ours to mend.
    """
    taken: list[Path] = []
    if proof.damaged_ledgers or proof.damaged_corpus or proof.wrong_sums:
        # What says that the run is finished goes first, whatever happens in between.
        taken += [run.report_json, run.merge_summary]
        taken += [run.checksums] if run.checksums in proof.damaged_corpus else []
    taken += [run.ledger(shard) for shard in proof.damaged_ledgers]
    taken += [path for path in proof.damaged_corpus if path.parent == run.corpus]
    taken = [path for path in dict.fromkeys(taken) if path.exists()]
    for path in taken:
        path.unlink()
    return taken


def _inputs(plan: Plan, proof: Verification) -> None:
    for info in (*plan.inputs, *plan.against):
        try:
            check_unchanged(info)
        except (ProxError, OSError) as error:
            proof.damaged_inputs[info.path] = str(error).splitlines()[0]


def _ledgers(run: RunDir, plan: Plan, proof: Verification, processes: int) -> None:
    left = set(missing_shards(run, plan))
    proof.not_refined = len(left)
    done = [shard for shard in range(len(plan.shards)) if shard not in left]
    spans: dict[int, list[SpanStats]] = {}
    with open_pool(run, plan, processes, command="verify") as pool:
        for shard, (counts, own, problem) in pool.each("verify", _read, done):
            if problem:
                proof.damaged_ledgers[shard] = problem
                continue
            proof.counts += counts
            spans[shard] = own
    proof.damaged_ledgers = dict(sorted(proof.damaged_ledgers.items()))
    if not left and not proof.damaged_ledgers:
        # Which of an input's ledgers is at fault cannot be told from where its spans end.
        for file, problem in coverage_problems(
            plan, (span for _, own in sorted(spans.items()) for span in own)
        ).items():
            for shard, about in enumerate(plan.shards):
                if any(span.file == file for span in about.spans):
                    proof.damaged_ledgers[shard] = f"with the others of its input: {problem}"


Read = tuple[Counts, list[SpanStats], str]


def _read(run: RunDir, plan: Plan, shard: int) -> Read:
    """A ledger's counts and the tiles of its spans, or what is wrong with it."""
    counts, rows, ends = Counts(), list[Row](), list[SpanEnd]()
    tiles: list[SpanStats] = []
    try:
        for item in read_ledger(run.ledger(shard), plan.digest, shard):
            if isinstance(item, Row):
                item.add_to(counts)
                rows.append(Row("", item.file, item.position, item.outcome))
            else:
                ends.append(item)
                counts += Counts(blank_lines=item.blank)
    except (ProxError, OSError) as error:
        return Counts(), [], str(error).splitlines()[0]
    spans = plan.shards[shard].spans
    if [end.file for end in ends] != [span.file for span in spans]:
        return Counts(), [], "it does not have the spans of its shard"
    for span, end in zip(spans, ends, strict=True):
        own = [r for r in rows if r.file == span.file and span.start <= r.position]
        own = [r for r in own if span.stop is None or r.position < span.stop]
        seen = SpanCounter()
        for row in own:
            seen.add(row)
        tiles.append(seen.stats(span, end))
    if sum(tile.records for tile in tiles) != len(rows):
        return Counts(), [], "it has rows outside of its spans"
    return counts, tiles, ""


def _corpus(run: RunDir, proof: Verification) -> None:
    """The merge's sums against the ledgers', and every file of the corpus."""
    try:
        summary = MergeSummary.load(run)
        assert summary is not None  # the caller has seen it
        summary.check()
    except StopError as error:
        proof.damaged_corpus[run.merge_summary] = error.message
        return
    if not proof.damaged_ledgers and summary.counts != proof.counts:
        proof.wrong_sums.append(f"{run.merge_summary} does not have the sums of the ledgers")
    for name, problem in _files(run, {part.name: part.documents for part in summary.parts}, proof):
        proof.damaged_corpus[run.corpus / name] = problem
    if not proof.damaged_corpus and proof.documents_written != summary.written:
        found = proof.documents_written
        wrong = f"{summary.written} documents written, in the corpus there are {found}"
        proof.wrong_sums.append(f"{run.merge_summary}: {wrong}")
    if run.report_json.exists():
        documents = run_totals(summary.counts, summary).documents
        if _report_documents(run.report_json) != documents.model_dump():
            proof.wrong_sums.append(f"{run.report_json} does not have the sums of the merge")


def _report_documents(report: Path) -> object:
    """The document counts of a report; None if it is damaged."""
    try:
        return json.loads(report.read_bytes())["documents"]
    except (ValueError, KeyError, TypeError):
        return None


def _files(
    run: RunDir, documents: dict[str, int], proof: Verification
) -> Iterator[tuple[str, str]]:
    """Files of the corpus that are damaged, by name, and what is wrong with each."""
    try:
        lines = run.checksums.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        yield run.checksums.name, str(error)
        return
    digests = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in sorted(documents.keys() - digests.keys()):
        yield name, f"{run.checksums.name} does not have it"
    for path in sorted(run.corpus.glob("part-*")):
        if path.name not in digests:
            yield path.name, "it is no part of the corpus, and whoever reads part-* would read it"
    for name, digest in digests.items():
        path = run.corpus / Path(name).name
        try:
            if sha256_file(path) != digest:
                yield name, "its SHA-256 is another"
                continue
            count = count_rows if path.suffix == ".parquet" else count_lines
            found = count(path) if name in documents else 0
        except (OSError, ProxError) as error:
            yield name, str(error).splitlines()[0]
            continue
        if found != documents.get(name, 0):
            yield name, f"it has {found} documents, not {documents.get(name, 0)}"
        elif name in documents:
            proof.parts += 1
            proof.documents_written += found


def render_verification(run: RunDir, proof: Verification) -> Iterable[str]:
    """What was proved, for people, and what to do."""
    done = proof.shards - proof.not_refined
    yield f"{done:,} of {proof.shards:,} ledgers read: {proof.counts.documents:,} documents"
    counts = proof.counts
    yield (
        f"  kept {counts.kept:,}, edited {counts.edited:,}, dropped {counts.dropped.total():,},"
        f" quarantined {counts.quarantined.total():,}"
    )
    if proof.parts:
        yield f"{proof.parts:,} parts of the corpus read: {proof.documents_written:,} documents"
    for path, problem in {
        **proof.damaged_inputs,
        **{run.ledger(shard): why for shard, why in proof.damaged_ledgers.items()},
        **proof.damaged_corpus,
    }.items():
        yield f"DAMAGED {path}: {problem}"
    yield from (f"WRONG {problem}" for problem in proof.wrong_sums)
    if proof.good:
        yield "all of it agrees" + (
            "" if not proof.not_refined else f"; {proof.not_refined:,} shards to refine"
        )
    elif proof.damaged_inputs:
        yield "put the inputs back as they were, or start a new run"
    else:
        yield f"proxhpc verify {run.root} --repair takes it away; the next launch makes it again"

"""The merge: runs its phases, and publishes the parts as a corpus.

Phases write files atomically; their completion marker is written last. Each file records the digest
of its inputs. So a merge can be killed at any point and run again: it resumes with the
first file that is missing or was made from something else. The corpus depends on the documents and
the manifest only, not on shards, workers, processes or attempts.

Parts appear under their final names one by one. The corpus is complete when SHA256SUMS, which
covers all other files, exists, and the merge is done when `merge/summary.json` exists.
"""

import re
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from proxhpc.account.quantity import quantity
from proxhpc.assemble.benchmark import write_indexes
from proxhpc.assemble.card import checksums, dataset_card
from proxhpc.assemble.examples import replay_examples, write_examples
from proxhpc.assemble.listings import join_listings
from proxhpc.assemble.match import match_documents
from proxhpc.assemble.match_result import MatchResult
from proxhpc.assemble.rounds import all_groups
from proxhpc.assemble.shape import merge_shapes
from proxhpc.assemble.shuffle import scatter_group
from proxhpc.assemble.sketch import SketchReceipt, sketch_group
from proxhpc.assemble.summary import MergeSummary, summarize_merge
from proxhpc.assemble.write import PartReceipt, finished_part, write_part
from proxhpc.corpus.disk import write_atomic
from proxhpc.dedup.sorting import DEFAULT_MEMORY
from proxhpc.errors import RetryError, StopError
from proxhpc.faults import fault_point
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.pool import Pool, ReportProgress, open_pool
from proxhpc.run.shards import missing_shards, shard_groups

# A part, or the draft of a part, card or checksums that a killed writer left. Users may have put
# other files into the folder; those are never deleted.
_DELETABLE = re.compile(
    r"part-\d{5,}\.(jsonl|jsonl\.zst|jsonl\.gz|parquet)"
    r"|\.(part-\d{5,}\.(jsonl|jsonl\.zst|jsonl\.gz|parquet)|README\.md|SHA256SUMS)\.[0-9a-f]+\.tmp"
)


def merge_run(
    run: RunDir,
    plan: Plan | None = None,
    *,
    processes: int = 1,
    memory: int | None = None,
    progress: ReportProgress | None = None,
) -> MergeSummary:
    """Write the missing files of a refined run's corpus, and return the merge's counts.

    `memory` is how many bytes all processes together may use, beyond what they need anyway; by
    default DEFAULT_MEMORY and the indexes of benchmarks. `plan` is the run's by default.

    UserError if a benchmark needs more; RetryError while shards are not refined; StopError naming
    the input, ledger or file of the merge that is damaged or does not balance.
    """
    plan = plan or Plan.load(run)
    check_refined(run, plan)
    with open_pool(run, plan, processes, progress) as pool:
        receipts = sketch_all(pool, memory)
        memory = memory or DEFAULT_MEMORY
        match = match_documents(pool, receipts, memory)
        summary = MergeSummary.load(run)
        if summary and summary.match_digest == match.digest and not _missing_files(run, summary):
            return summary
        _retract(run, plan, len(match.parts))
        return _finish(pool, receipts, match, memory // pool.processes)


def sketch_all(pool: Pool, memory: int | None) -> list[SketchReceipt]:
    """Sketch the groups whose files are not current; the receipts of all."""
    unit = partial(sketch_group, memory=write_indexes(pool, memory) // pool.processes)
    return pool.map("sketch", unit, all_groups(pool.plan))


def check_refined(run: RunDir, plan: Plan) -> None:
    """Raise RetryError unless every shard has its ledger."""
    missing = list(missing_shards(run, plan))
    if missing:
        raise RetryError(
            f"not refined yet: {len(missing)} of {quantity(len(plan.shards), 'shard')};"
            f" the first without a ledger is {run.ledger(missing[0])}",
            hint="run `proxhpc launch` to refine them, then merge again",
        )


def describe_missing_files(run: RunDir) -> str:
    """The missing or truncated files of a merged run's corpus, in a few words.

    "" if none, or if there is no merge summary.
    """
    summary = MergeSummary.load(run)
    missing = _missing_files(run, summary) if summary else []
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"{missing[0]}{more}" if missing else ""


def _missing_files(run: RunDir, summary: MergeSummary) -> list[str]:
    """Names of a published corpus's files that do not exist or have another size."""
    parts = [part.name for part in summary.parts if _size(run, part.name) != part.bytes_stored]
    others = [path.name for path in (run.card, run.checksums) if not path.exists()]
    return parts + others


def _size(run: RunDir, name: str) -> int | None:
    try:
        return run.corpus.joinpath(name).stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _retract(run: RunDir, plan: Plan, parts: int) -> None:
    """Delete the files that mark the corpus as complete, and parts that it will not have."""
    run.merge_summary.unlink(missing_ok=True)
    run.checksums.unlink(missing_ok=True)
    if run.corpus.is_dir():
        suffix = plan.manifest.output.format
        wanted = {run.part(part, suffix).name for part in range(parts)}
        for path in run.corpus.iterdir():
            if _DELETABLE.fullmatch(path.name) and path.name not in wanted:
                path.unlink()


def _finish(
    pool: Pool, receipts: Sequence[SketchReceipt], match: MatchResult, memory: int
) -> MergeSummary:
    """Write parts and listings, check that all counts balance, and publish.

    `memory` is for each process, in bytes.
    """
    run, plan = pool.run, pool.plan
    numbers = range(len(match.parts))
    if plan.manifest.output.shuffle and not all(
        finished_part(run, plan, match, number) for number in numbers
    ):
        scatter = partial(scatter_group, memory=memory)
        pool.map("scatter", scatter, range(len(shard_groups(plan))))
    parts = pool.map("write", partial(write_part, memory=memory), numbers)
    shutil.rmtree(run.shuffled, ignore_errors=True)
    duplicates = [(shard, record) for _, shard, record in match.largest_sets]
    texts = replay_examples(pool, [*duplicates, *match.shared_id_examples])
    names = {text.key: (text.id, text.source) for text in texts}
    _write_listings(pool, receipts, match)
    summary = summarize_merge(plan, receipts, match, parts, names)
    _check_parts(run, parts)
    write_examples(pool, receipts, [*summary.stats.example_keys, *duplicates], texts)
    run.corpus.mkdir(parents=True, exist_ok=True)
    card = dataset_card(plan, summary, merge_shapes(part.shape for part in parts))
    write_atomic(run.card, card)
    fault_point("card written")
    write_atomic(run.checksums, checksums(run, summary, card))
    fault_point("checksums written")
    summary.save(run)
    fault_point("merge summarized")
    return summary


def _write_listings(pool: Pool, receipts: Sequence[SketchReceipt], match: MatchResult) -> None:
    """Join the groups' listings of duplicates, quarantined records and parts of a benchmark."""
    run = pool.run
    files = run.match_files(match.digest)
    listings = {
        run.duplicates: [(files.duplicates(n), digest) for n, digest in enumerate(match.listings)],
        run.quarantine: [(run.sketch_quarantine(r.group), r.quarantine) for r in receipts],
        run.benchmark_hits: [
            (run.sketch_benchmark(r.group), r.benchmark_listing) for r in receipts
        ],
    }
    unit = partial(_write_listing, listings=[*listings.items()])
    pool.map("listings", unit, range(len(listings)))


def _write_listing(
    run: RunDir,
    plan: Plan,
    number: int,
    *,
    listings: Sequence[tuple[Path, Sequence[tuple[Path, str]]]],
) -> None:
    path, pieces = listings[number]
    join_listings(path, [piece for piece in pieces if piece[1]])


def _check_parts(run: RunDir, parts: Sequence[PartReceipt]) -> None:
    for part in parts:
        if (size := _size(run, part.name)) != part.bytes_stored:
            raise StopError(
                f"{run.corpus / part.name} has {quantity(size or 0, 'byte')},"
                f" not the {part.bytes_stored} that were written",
                hint="the file system lost them, or another program writes there; merge again",
            )

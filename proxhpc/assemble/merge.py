"""The merge: sketch, match, write, and what makes a folder of parts a published corpus.

Every phase leaves files that are whole or absent, the one that says "done" last, and each names by
digest what it was made of. So a merge may be killed anywhere and run again: it goes on with the
first thing that is missing or was made of something else. What it writes depends on the documents
and the manifest alone, not on shards, workers, processes or attempts.

The parts appear under their final names one by one. The corpus is finished when SHA256SUMS is
there, which covers every other file, and the run when `merge/summary.json` is.
"""

import re
import shutil
from collections.abc import Sequence

from proxhpc.assemble.card import checksums, dataset_card
from proxhpc.assemble.examples import write_examples
from proxhpc.assemble.listings import name_documents, write_duplicates, write_quarantine
from proxhpc.assemble.match import MatchResult, match_documents
from proxhpc.assemble.shuffle import scatter_group
from proxhpc.assemble.sketch import SketchReceipt, all_groups, shard_groups, sketch_group
from proxhpc.assemble.summary import MergeSummary, summarise
from proxhpc.assemble.write import PartReceipt, finished_part, write_part
from proxhpc.corpus.disk import write_atomic
from proxhpc.errors import RetryError, StopError
from proxhpc.faults import fault_point
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.pool import Pool, ReportProgress, open_pool
from proxhpc.run.shards import missing_shards

DEFAULT_MEMORY = 1 << 30  # bytes for matching

# A part, or what a killed writer left of one, of the card or of the checksums. Nothing else in the
# folder is ours to delete.
_PART = re.compile(
    r"part-\d{5,}\.(jsonl\.zst|parquet)"
    r"|\.(part-\d{5,}\.(jsonl\.zst|parquet)|README\.md|SHA256SUMS)\.[0-9a-f]+\.tmp"
)


def merge_run(
    run: RunDir,
    plan: Plan | None = None,
    *,
    processes: int = 1,
    memory: int = DEFAULT_MEMORY,
    progress: ReportProgress | None = None,
) -> MergeSummary:
    """Make the corpus of a refined run, or what is missing of it, and return its counts.

    `memory` bytes are what matching may take in all processes together, beside what they need
    anyway. `plan` is the run's if not given.

    RetryError while shards are not refined; StopError naming the input, ledger or file of the
    merge where something does not fit or does not balance.
    """
    plan = plan or Plan.load(run)
    check_refined(run, plan)
    with open_pool(run, plan, processes, progress) as pool:
        receipts = pool.map("sketch", sketch_group, all_groups(plan))
        found = match_documents(pool, receipts, memory)
        summary = MergeSummary.load(run)
        if summary and summary.match == found.digest and not _lost(run, summary):
            return summary
        _retract(run, plan, len(found.parts))
        return _finish(pool, receipts, found)


def check_refined(run: RunDir, plan: Plan) -> None:
    """Raise RetryError unless every shard has its ledger."""
    left = list(missing_shards(run, plan))
    if left:
        raise RetryError(
            f"{len(left)} of {len(plan.shards)} shards are not refined yet;"
            f" the first without a ledger is {run.ledger(left[0])}",
            hint="proxhpc launch refines them; then merge again",
        )


def describe_missing_files(run: RunDir) -> str:
    """The files of a merged run's corpus that are gone or cut, in a few words; "" for none.

    "" too without the merge's summary, when nobody can tell.
    """
    summary = MergeSummary.load(run)
    lost = _lost(run, summary) if summary else []
    more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    return f"{lost[0]}{more}" if lost else ""


def _lost(run: RunDir, summary: MergeSummary) -> list[str]:
    """Names of the files of a published corpus that are not there, or not in their size."""
    lost = [part.name for part in summary.parts if _size(run, part.name) != part.bytes_stored]
    others = [path for path in (run.card, run.checksums) if not path.exists()]
    return [*lost, *(path.name for path in others)]


def _size(run: RunDir, name: str) -> int | None:
    try:
        return run.corpus.joinpath(name).stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _retract(run: RunDir, plan: Plan, parts: int) -> None:
    """Take back what says that the corpus is finished, and what will not be part of it."""
    run.merge_summary.unlink(missing_ok=True)
    run.checksums.unlink(missing_ok=True)
    if run.corpus.is_dir():
        suffix = plan.manifest.output.format
        wanted = {run.part(part, suffix).name for part in range(parts)}
        for path in run.corpus.iterdir():
            if _PART.fullmatch(path.name) and path.name not in wanted:
                path.unlink()


def _finish(pool: Pool, receipts: Sequence[SketchReceipt], found: MatchResult) -> MergeSummary:
    """Write parts and listings, prove the balance, and publish."""
    run, plan = pool.run, pool.plan
    todo = range(len(found.parts))
    if plan.manifest.output.shuffle and not all(finished_part(run, plan, found, n) for n in todo):
        pool.map("scatter", scatter_group, range(len(shard_groups(plan))))
    parts = pool.map("write", write_part, todo)
    shutil.rmtree(run.shuffled, ignore_errors=True)
    named = range(len(receipts)) if found.duplicates or found.shared_id_examples else ()
    name = {place: who for own in pool.map("list", name_documents, named) for place, who in own}
    write_duplicates(run, found, name)
    write_quarantine(run, receipts)
    summary = summarise(plan, receipts, found, parts, name)
    _check_parts(run, parts)
    shown = [(example.shard, example.number) for example in summary.stats.examples]
    write_examples(pool, [*shown, *((shard, number) for _, shard, number in found.largest_sets)])
    run.corpus.mkdir(parents=True, exist_ok=True)
    card = dataset_card(plan, summary)
    write_atomic(run.card, card)
    fault_point("card written")
    write_atomic(run.checksums, checksums(run, summary, card))
    fault_point("corpus sealed")
    write_atomic(run.merge_summary, summary.encode())
    fault_point("merge summed")
    return summary


def _check_parts(run: RunDir, parts: Sequence[PartReceipt]) -> None:
    """Raise StopError unless the parts on disk are as long as they were written."""
    for part in parts:
        if (size := _size(run, part.name)) != part.bytes_stored:
            raise StopError(
                f"{run.corpus / part.name} has {size or 0} bytes, not the {part.bytes_stored} that"
                " were written",
                hint="the file system lost them, or somebody else writes there; merge again",
            )

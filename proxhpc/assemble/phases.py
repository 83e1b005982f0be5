"""The phases of a merge as Slurm arrays: which units are pending, and one array element's share.

Units are idempotent; of N elements, element i does units i, i+N, i+2N, … Pending units are found by
file names alone, because this is asked often. The merge after the last array goes through all
phases, checks every file, and redoes what is missing or damaged, so the arrays only save time.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from proxhpc.assemble.benchmark import write_indexes
from proxhpc.assemble.match import (
    match_documents,
    pending_rounds,
    round_names,
    round_units,
    run_round,
    start_match,
)
from proxhpc.assemble.match_result import read_match, require_match
from proxhpc.assemble.merge import check_refined, sketch_all
from proxhpc.assemble.rounds import all_groups, compared_bytes
from proxhpc.assemble.shuffle import scatter_group
from proxhpc.assemble.sketch import sketch_group
from proxhpc.assemble.write import write_part
from proxhpc.dedup.sorting import DEFAULT_MEMORY
from proxhpc.run.merge_phases import ROUND_NAMES, MergePhaseName
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.pool import ReportProgress, Unit, open_pool
from proxhpc.run.shards import shard_groups

# Every array waits in the queue. A smaller corpus, of about 20 million documents, is matched sooner
# by one job with its cores.
_ONE_JOB_BYTES = 80 << 30


@dataclass(frozen=True, slots=True)
class PendingUnits:
    """The units of a phase that are not done, of `total`."""

    phase: MergePhaseName
    total: int
    units: tuple[int, ...]


def pending_units(run: RunDir, plan: Plan) -> list[PendingUnits]:
    """The pending units of each phase, in order; later phases are listed after the match."""
    match = read_match(run)
    pending = [_pending(run.sketch_receipt, "sketch", len(all_groups(plan)))]
    if in_arrays(plan):
        pending.append(PendingUnits("start", 1, () if run.match_source.exists() else (0,)))
        pending += [PendingUnits(*each) for each in pending_rounds(run, plan)]
    else:
        pending.append(PendingUnits("match", 1, () if match else (0,)))
    if match:
        parts = _pending(run.part_receipt, "write", len(match.parts))
        if plan.manifest.output.shuffle:
            scatter = _pending(run.scattered, "scatter", len(shard_groups(plan)))
            pending.append(scatter if parts.units else replace(scatter, units=()))
        pending.append(parts)
    return pending


def merge_progress(run: RunDir, plan: Plan) -> list[tuple[str, int, int]]:
    """Each phase with its finished units and all; those of `match` are of all rounds."""
    match = {"match", "start", *ROUND_NAMES}
    phases = {
        each.phase: (each.total - len(each.units), each.total)
        for each in pending_units(run, plan)
        if each.phase not in match
    }
    rounds = pending_rounds(run, plan)
    total = 1 + sum(each.total for each in rounds)
    done = total - sum(len(each.units) for each in rounds) - (not run.match_source.exists())
    sketch = phases.pop("sketch")
    return [("sketch", *sketch), ("match", done, total), *((n, *u) for n, u in phases.items())]


def run_share(
    run: RunDir,
    phase: MergePhaseName,
    share: tuple[int, int],
    *,
    processes: int = 1,
    memory: int | None = None,
    progress: ReportProgress | None = None,
) -> None:
    """Do the units i, i+N, … of a phase for the share (i, N), skipping those that are done.

    `match` has no shares: one element does all of it. The processes use `memory` as `merge_run`
    does. StopError if an earlier phase is not done; other errors as `merge_run` raises them.
    """
    plan = Plan.load(run)
    check_refined(run, plan)
    number, count = share
    total = memory or DEFAULT_MEMORY
    with open_pool(run, plan, processes, progress) as pool:
        if phase in ("match", "start"):
            receipts = sketch_all(pool, memory)
            if phase == "match":
                match_documents(pool, receipts, total)
            else:
                start_match(run, plan, receipts)
            return
        units = range(number, _total(run, plan, phase), count)
        if phase in ROUND_NAMES:
            run_round(pool, phase, units, total)
            return
        if phase == "sketch":
            total = write_indexes(pool, memory)
        for _ in pool.each(phase, _unit(phase, total // processes), units):
            pass  # a unit's result is in its file


def in_arrays(plan: Plan) -> bool:
    """Whether the match phase is worth an array for each of its rounds."""
    return compared_bytes(plan) > _ONE_JOB_BYTES


def _unit(phase: MergePhaseName, memory: int) -> Unit[Any]:
    units = {"sketch": sketch_group, "scatter": scatter_group, "write": write_part}
    return partial(units[phase], memory=memory)


def _total(run: RunDir, plan: Plan, phase: MergePhaseName) -> int:
    if phase == "write":
        return len(require_match(run).parts)
    if phase == "scatter":
        return len(shard_groups(plan)) if plan.manifest.output.shuffle else 0
    if phase in ROUND_NAMES:
        return round_units(plan, phase) if phase in round_names(plan) else 0
    return len(all_groups(plan))


def _pending(path: Callable[[int], Path], phase: MergePhaseName, total: int) -> PendingUnits:
    """The units whose file does not exist, by one listing of its folder."""
    folder = path(0).parent
    names = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    return PendingUnits(phase, total, tuple(n for n in range(total) if path(n).name not in names))

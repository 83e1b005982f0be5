"""The phases of a merge as Slurm arrays: which units are pending, and one array element's share.

Units are idempotent; of N elements, element i does units i, i+N, i+2N, … Pending units are found by
file names alone, because this is asked often. The merge after the last array goes through all
phases, checks every file, and redoes what is missing or damaged, so the arrays only save time.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from proxhpc.assemble.match import match_documents, read_match, require_match
from proxhpc.assemble.merge import DEFAULT_MEMORY, check_refined
from proxhpc.assemble.shuffle import scatter_group
from proxhpc.assemble.sketch import all_groups, sketch_group
from proxhpc.assemble.write import write_part
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.pool import ReportProgress, Unit, open_pool
from proxhpc.run.shards import shard_groups

MergePhaseName = Literal["sketch", "match", "scatter", "write"]

_UNITS: dict[MergePhaseName, Unit[Any]] = {
    "sketch": sketch_group,
    "scatter": scatter_group,
    "write": write_part,
}


@dataclass(frozen=True, slots=True)
class PendingUnits:
    """The units of a phase that are not done, of `total`."""

    phase: MergePhaseName
    total: int
    units: tuple[int, ...]


def pending_units(run: RunDir, plan: Plan) -> list[PendingUnits]:
    """The pending units of each phase, in order; later phases are listed after the match."""
    match = read_match(run)
    pending = [
        _pending(run.sketch_receipt, "sketch", len(all_groups(plan))),
        PendingUnits("match", 1, () if match else (0,)),
    ]
    if match:
        parts = _pending(run.part_receipt, "write", len(match.parts))
        if plan.manifest.output.shuffle:
            scatter = _pending(run.scattered, "scatter", len(shard_groups(plan)))
            pending.append(scatter if parts.units else replace(scatter, units=()))
        pending.append(parts)
    return pending


def run_share(
    run: RunDir,
    phase: MergePhaseName,
    share: tuple[int, int],
    *,
    processes: int = 1,
    memory: int = DEFAULT_MEMORY,
    progress: ReportProgress | None = None,
) -> None:
    """Do the units i, i+N, … of a phase for the share (i, N), skipping those that are done.

    The match phase has no shares: one element does all of it, within `memory` bytes.
    RetryError while shards are not refined; StopError if an earlier phase is not done, or as
    `merge_run` raises it.
    """
    plan = Plan.load(run)
    check_refined(run, plan)
    number, count = share
    with open_pool(run, plan, processes, progress) as pool:
        if phase == "match":
            match_documents(pool, pool.map("sketch", sketch_group, all_groups(plan)), memory)
            return
        for _ in pool.each(phase, _UNITS[phase], range(number, _total(run, plan, phase), count)):
            pass  # a unit's result is in its file


def _total(run: RunDir, plan: Plan, phase: MergePhaseName) -> int:
    if phase == "write":
        return len(require_match(run).parts)
    if phase == "scatter":
        return len(shard_groups(plan)) if plan.manifest.output.shuffle else 0
    return len(all_groups(plan))


def _pending(path: Callable[[int], Path], phase: MergePhaseName, total: int) -> PendingUnits:
    """The units whose file does not exist, by one listing of its folder."""
    folder = path(0).parent
    names = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    return PendingUnits(phase, total, tuple(n for n in range(total) if path(n).name not in names))

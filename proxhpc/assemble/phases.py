"""The phases of a merge as arrays: what is left of each, and the share of one element.

Units of a phase are idempotent, and of N elements one does every Nth. What is left is told from
names alone, for it is asked often. The merge behind the last array goes through all phases, proves
what it finds, and makes again what is not as it should be; so an array only saves time.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from proxhpc.assemble.match import match_documents, read_match
from proxhpc.assemble.merge import DEFAULT_MEMORY, check_refined
from proxhpc.assemble.shuffle import scatter_group
from proxhpc.assemble.sketch import all_groups, shard_groups, sketch_group
from proxhpc.assemble.survivors import require_match
from proxhpc.assemble.write import write_part
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.pool import ReportProgress, Unit, open_pool

MergePhaseName = Literal["sketch", "match", "scatter", "write"]

_UNITS: dict[MergePhaseName, Unit[Any]] = {
    "sketch": sketch_group,
    "scatter": scatter_group,
    "write": write_part,
}


@dataclass(frozen=True, slots=True)
class PendingUnits:
    """What is left of a phase: numbers of its units, of `total`."""

    phase: MergePhaseName
    total: int
    units: tuple[int, ...]


def pending_units(run: RunDir, plan: Plan) -> list[PendingUnits]:
    """What is left of the phases, in order; how many parts are written is known once matched."""
    found = read_match(run)
    out = [
        _left(run.sketch_receipt, "sketch", len(all_groups(plan))),
        PendingUnits("match", 1, () if found else (0,)),
    ]
    if found:
        parts = _left(run.part_receipt, "write", len(found.parts))
        if plan.manifest.output.shuffle:
            rows = _left(run.scattered, "scatter", len(shard_groups(plan)))
            out.append(rows if parts.units else replace(rows, units=()))
        out.append(parts)
    return out


def run_share(
    run: RunDir,
    phase: MergePhaseName,
    shares: tuple[int, int],
    *,
    processes: int = 1,
    memory: int = DEFAULT_MEMORY,
    progress: ReportProgress | None = None,
) -> None:
    """Do one of so many `shares` (its number and theirs) of a phase; what is done stays.

    The match has no shares: its one element does all, within `memory` bytes.
    RetryError while shards are not refined; StopError where the phase before is not done, or as
    `merge` does.
    """
    plan = Plan.load(run)
    check_refined(run, plan)
    number, of = shares
    with open_pool(run, plan, processes, progress) as pool:
        if phase == "match":
            match_documents(pool, pool.map("sketch", sketch_group, all_groups(plan)), memory)
            return
        for _ in pool.each(phase, _UNITS[phase], range(number, _total(run, plan, phase), of)):
            pass  # its result is in a file


def _total(run: RunDir, plan: Plan, phase: MergePhaseName) -> int:
    if phase == "write":
        return len(require_match(run).parts)
    if phase == "scatter":
        return len(shard_groups(plan)) if plan.manifest.output.shuffle else 0
    return len(all_groups(plan))


def _left(path: Callable[[int], Path], phase: MergePhaseName, total: int) -> PendingUnits:
    """The units of which `path` is not there, by one listing of its folder."""
    folder = path(0).parent
    names = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    return PendingUnits(phase, total, tuple(n for n in range(total) if path(n).name not in names))

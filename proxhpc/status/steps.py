"""How far each step from raw corpus to report is."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from proxhpc.plan import Plan
from proxhpc.rundir import RunDir


@dataclass(frozen=True, slots=True)
class Step:
    """One step; `total` units are None where nobody can tell yet."""

    name: Literal["refine", "sketch", "match", "write", "report"]
    done: int
    total: int | None

    @property
    def finished(self) -> bool:
        """Whether nothing is left of it."""
        return self.total is not None and self.done >= self.total


def steps(run: RunDir, plan: Plan, left: int) -> tuple[Step, ...]:
    """All steps of a run of which `left` shards are not refined."""
    shards = len(plan.shards)
    refine = Step("refine", shards - left, shards)
    if run.merge_summary.exists():
        report = Step("report", int(run.report_json.exists()), 1)
        return refine, Step("sketch", 1, 1), Step("match", 1, 1), Step("write", 1, 1), report
    report = Step("report", 0, 1)
    if left or not run.merge.is_dir():
        return refine, Step("sketch", 0, None), Step("match", 0, 1), Step("write", 0, None), report
    return (refine, *_merging(run, plan), report)


def _merging(run: RunDir, plan: Plan) -> tuple[Step, Step, Step]:
    from proxhpc.assemble.match import read_match  # numpy: not before there is something to merge
    from proxhpc.assemble.sketch import all_groups

    groups = len(all_groups(plan))
    found = read_match(run)
    sketched = groups if found else _files(run.sketch_counts(0).parent)
    parts = len(found.parts) if found else None
    written = _files(run.part_receipt(0).parent) if found else 0
    return (
        Step("sketch", min(sketched, groups), groups),
        Step("match", int(found is not None), 1),
        Step("write", written if parts is None else min(written, parts), parts),
    )


def _files(folder: Path) -> int:
    """Finished JSON files in a folder; none where it is not there."""
    try:
        return sum(
            entry.name.endswith(".json") and not entry.name.startswith(".")
            for entry in os.scandir(folder)
        )
    except FileNotFoundError:
        return 0

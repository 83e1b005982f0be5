"""Which shards of a run are finished, and which attempts on one have a file."""

import os
from collections.abc import Iterator

from proxhpc.run.paths import SHARDS_PER_FOLDER, RunDir, ledger_name
from proxhpc.run.plan import Plan


def attempts(run: RunDir, shard: int) -> list[int]:
    """Numbers of the attempts on `shard` that have a file."""
    prefix = run.attempt(shard, 0).name.removesuffix("0")
    names = (entry.name for entry in os.scandir(run.shard_folder(shard)))
    numbers = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return sorted(int(number) for number in numbers if number.isdigit())


def missing_shards(run: RunDir, plan: Plan) -> Iterator[int]:
    """Shards without a published ledger, in order; one folder listing per thousand shards."""
    total = len(plan.shards)
    for first in range(0, total, SHARDS_PER_FOLDER):
        folder = run.shard_folder(first)
        names = {entry.name for entry in os.scandir(folder)} if folder.exists() else set()
        last = min(first + SHARDS_PER_FOLDER, total)
        yield from (shard for shard in range(first, last) if ledger_name(shard) not in names)

"""The shards of a run: which are finished, their attempts, and their groups in the merge."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from proxhpc.run.paths import SHARDS_PER_FOLDER, RunDir
from proxhpc.run.plan import Plan, keep_with_plan

MIN_GROUP_BYTES = 32 << 20
MAX_GROUPS = 4096
MAX_GROUP_SHARDS = 64
_SHARD_FILE = re.compile(r"(\d+)\.(?:a(\d+)|ledger\.zst)")


@dataclass(slots=True)
class ShardFolder:
    """What a folder of 1,000 shards holds: published ledgers, and attempts by shard."""

    finished: set[int] = field(default_factory=set)
    attempts: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))


def list_folder(run: RunDir, shard: int) -> ShardFolder:
    """List the folder of `shard`; empty if it does not exist."""
    listing = ShardFolder()
    try:
        names = [entry.name for entry in os.scandir(run.shard_folder(shard))]
    except FileNotFoundError:
        return listing
    for match in filter(None, map(_SHARD_FILE.fullmatch, names)):
        if match[2] is None:
            listing.finished.add(int(match[1]))
        else:
            listing.attempts[int(match[1])].append(int(match[2]))
    return listing


def attempts(run: RunDir, shard: int) -> list[int]:
    """Return the numbers of the attempts on `shard` that have a file, ascending."""
    return sorted(list_folder(run, shard).attempts[shard])


def missing_shards(run: RunDir, plan: Plan) -> Iterator[int]:
    """Yield the shards without a published ledger, in order."""
    total = len(plan.shards)
    for first in range(0, total, SHARDS_PER_FOLDER):
        finished = list_folder(run, first).finished
        last = min(first + SHARDS_PER_FOLDER, total)
        yield from (shard for shard in range(first, last) if shard not in finished)


def group_bytes(total: int) -> int:
    """Return the minimum input bytes of a group, for a corpus of `total` bytes."""
    return max(MIN_GROUP_BYTES, total // MAX_GROUPS)


@keep_with_plan
def shard_groups(plan: Plan) -> list[range]:
    """Return the groups of neighbouring shards that the merge processes together.

    A group has 32 MiB of input or more, and at most 64 shards. Larger runs have larger groups, so
    that there are at most about 4,096: a group has several files, and file quotas are limited.
    """
    limit = group_bytes(plan.estimated_bytes)
    starts, size = [0], 0
    for number, shard in enumerate(plan.shards):
        if size >= limit or number - starts[-1] == MAX_GROUP_SHARDS:
            starts.append(number)
            size = 0
        size += shard.estimated_bytes
    return [range(a, b) for a, b in pairwise([*starts, len(plan.shards)])]

"""The documents that reach the corpus, replayed again."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from proxhpc.assemble.match import MatchResult, load_survivor_flags, read_match
from proxhpc.assemble.replay import ReplayedRecord, replay_shard
from proxhpc.assemble.sketch import read_receipt
from proxhpc.dedup.hashes import Sketch, load_sketch
from proxhpc.errors import StopError
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan


class CorpusRow(NamedTuple):
    """A row of the corpus, the number of its input file, and the size of its text."""

    row: dict[str, Any]
    file: int
    text_bytes: int
    tokens: int


def require_match(run: RunDir) -> MatchResult:
    """The result of the match phase. StopError if there is none."""
    result = read_match(run)
    if result is None:
        raise StopError(f"there is no {run.match}", hint="merge again from the start")
    return result


def load_survivors(run: RunDir, match: MatchResult, group: int) -> Sketch:
    """A group's documents that survived deduplication, in input order."""
    receipt = read_receipt(run, group)
    if receipt is None:
        raise StopError(f"there is no {run.sketch_receipt(group)}", hint="merge again")
    documents = load_sketch(run, group, receipt.files)
    return documents[load_survivor_flags(run, group, match.flag_digests[group], receipt.documents)]


def replay_documents(run: RunDir, plan: Plan, documents: Sketch) -> Iterator[ReplayedRecord]:
    """Replay these documents of one group, in input order."""
    for shard in np.unique(documents["shard"]).tolist():
        wanted = documents["record"][documents["shard"] == shard].tolist()
        for item in replay_shard(run, plan, shard, wanted):
            if isinstance(item, ReplayedRecord):
                yield item

"""Write: one part of the corpus, from the raw input, the ledgers and the survivors."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import orjson

from proxhpc.assemble.hashed import load_sketch
from proxhpc.assemble.match import Match, PartRange, load_alive, read_match
from proxhpc.assemble.replay import Refined, replay_shard
from proxhpc.assemble.rows import corpus_row
from proxhpc.assemble.sketch import groups, read_receipt
from proxhpc.corpus.disk import write_atomic
from proxhpc.corpus.writer import PartWriter
from proxhpc.errors import StopError
from proxhpc.faults import reach
from proxhpc.plan import Plan
from proxhpc.rundir import RunDir


@dataclass(frozen=True, slots=True)
class PartReceipt:
    """What one part holds: its rows, the file on disk, and sums over its documents.

    `bytes_raw` are those of the rows, `text_bytes` those of the texts alone.
    `files` counts documents by number of input file, in input order.
    """

    match: str
    name: str
    documents: int
    bytes_raw: int
    bytes_stored: int
    sha256: str
    text_bytes: int
    tokens: int
    files: dict[int, int]

    def encode(self) -> bytes:
        """JSON form."""
        options = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
        return orjson.dumps(asdict(self), option=options)

    @classmethod
    def decode(cls, raw: bytes) -> "PartReceipt":
        """Read what `encode` wrote."""
        return cls.from_dict(orjson.loads(raw))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "PartReceipt":
        """From its parsed JSON form."""
        files = {int(file): count for file, count in data["files"].items()}
        return cls(**data | {"files": files})


def write(run: RunDir, plan: Plan, part: int) -> PartReceipt:
    """Write one part, unless that was done, and return what it holds.

    The part appears under its name when it is whole, its receipt after it.
    """
    match = read_match(run)
    if match is None or part >= len(match.parts):
        raise StopError(f"{run.match} knows no part {part}", hint="merge again from the start")
    if earlier := _done(run, match, part):
        return earlier
    run.part(part).parent.mkdir(parents=True, exist_ok=True)
    run.part_receipt(part).parent.mkdir(parents=True, exist_ok=True)
    text_bytes = tokens = 0
    files: Counter[int] = Counter()
    with PartWriter(run.part(part), plan.manifest.output.level) as writer:
        for refined in _documents(run, plan, match.parts[part]):
            writer.write(corpus_row(plan, refined))
            text_bytes += refined.row.bytes_out
            tokens += refined.row.tokens_out
            files[refined.row.file] += 1
        _check(writer, match.parts[part])
        made = writer.close()
    receipt = PartReceipt(
        match=match.digest,
        name=made.name,
        documents=made.documents,
        bytes_raw=made.bytes_raw,
        bytes_stored=made.bytes,
        sha256=made.sha256,
        text_bytes=text_bytes,
        tokens=tokens,
        files=dict(sorted(files.items())),
    )
    reach("part written")
    write_atomic(run.part_receipt(part), receipt.encode())
    return receipt


def _done(run: RunDir, match: Match, part: int) -> PartReceipt | None:
    """The receipt of a part that is there, whole, and made of this match."""
    try:
        receipt = PartReceipt.decode(run.part_receipt(part).read_bytes())
        size = run.part(part).stat().st_size
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None  # a damaged receipt says nothing; the part is simply made again
    same = receipt.match == match.digest and receipt.bytes_stored == size
    return receipt if same else None


def _check(writer: PartWriter, wanted: PartRange) -> None:
    if (writer.documents, writer.bytes_raw) != (wanted.documents, wanted.bytes):
        raise StopError(
            f"{writer.path} came to {writer.documents} documents with {writer.bytes_raw} bytes,"
            f" not the {wanted.documents} with {wanted.bytes} of the match",
            hint="an input or a ledger changed during the merge; merge again",
        )


def _documents(run: RunDir, plan: Plan, part: PartRange) -> Iterator[Refined]:
    """Yield the part's documents, in input order."""
    for group, shards in enumerate(groups(plan)):
        if shards.stop <= part.first[0] or shards.start > part.last[0]:
            continue
        receipt = read_receipt(run, group)
        if receipt is None:
            raise StopError(f"there is no {run.sketch_counts(group)}", hint="merge again")
        hashes = load_sketch(run, group, receipt.files)
        hashes = hashes[load_alive(run, group, receipt.documents)]
        places = hashes["shard"].astype(np.uint64) << np.uint64(32) | hashes["number"]
        first, last = (np.uint64(shard << 32 | number) for shard, number in (part.first, part.last))
        hashes = hashes[(places >= first) & (places <= last)]
        for shard in np.unique(hashes["shard"]).tolist():
            wanted = hashes["number"][hashes["shard"] == shard].tolist()
            for item in replay_shard(run, plan, shard, wanted):
                if isinstance(item, Refined):
                    yield item

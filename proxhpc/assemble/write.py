"""Write: one part of the corpus, from the raw input, the ledgers and the survivors."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import orjson

from proxhpc.assemble.columns import ParquetEncoder
from proxhpc.assemble.match import MatchResult
from proxhpc.assemble.parts import PartRange, sort_keys
from proxhpc.assemble.rows import corpus_row
from proxhpc.assemble.shuffle import gather_part
from proxhpc.assemble.sketch import shard_groups
from proxhpc.assemble.survivors import CorpusRow, load_survivors, replay_survivors, require_match
from proxhpc.corpus.disk import write_atomic
from proxhpc.corpus.writer import Encoder, JsonLines, PartWriter
from proxhpc.errors import StopError
from proxhpc.faults import fault_point
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.spec.sections import Output


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


def write_part(run: RunDir, plan: Plan, part: int) -> PartReceipt:
    """Write one part, unless that was done, and return what it holds.

    The part appears under its name when it is whole, its receipt after it.
    """
    match, output = require_match(run), plan.manifest.output
    if part >= len(match.parts):
        raise StopError(f"{run.match} knows no part {part}", hint="merge again from the start")
    if earlier := finished_part(run, plan, match, part):
        return earlier
    path = run.part(part, output.format)
    path.parent.mkdir(parents=True, exist_ok=True)
    run.part_receipt(part).parent.mkdir(parents=True, exist_ok=True)
    text_bytes = tokens = 0
    files: Counter[int] = Counter()
    rows = gather_part(run, plan, match, part) if output.shuffle else _rows(run, plan, match, part)
    with PartWriter(path, _encoder(output)) as writer:
        for item in rows:
            writer.write(item.row)
            text_bytes += item.text_bytes
            tokens += item.tokens
            files[item.file] += 1
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
    fault_point("part written")
    write_atomic(run.part_receipt(part), receipt.encode())
    return receipt


def _encoder(output: Output) -> Encoder:
    return ParquetEncoder(output) if output.format == "parquet" else JsonLines(output.level)


def finished_part(run: RunDir, plan: Plan, match: MatchResult, part: int) -> PartReceipt | None:
    """The receipt of a part that is there, whole, and made of this match."""
    try:
        receipt = PartReceipt.decode(run.part_receipt(part).read_bytes())
        size = run.part(part, plan.manifest.output.format).stat().st_size
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


def _rows(run: RunDir, plan: Plan, match: MatchResult, number: int) -> Iterator[CorpusRow]:
    """Yield the rows of a part in input order."""
    part = match.parts[number]
    first, last = np.uint64(part.first), np.uint64(part.last)
    for group, shards in enumerate(shard_groups(plan)):
        if shards.stop <= part.first >> 32 or shards.start > part.last >> 32:
            continue
        documents = load_survivors(run, match, group)
        at = sort_keys(documents, plan.manifest.output)
        for refined in replay_survivors(run, plan, documents[(at >= first) & (at <= last)]):
            row = refined.row
            yield CorpusRow(corpus_row(plan, refined), row.file, row.bytes_out, row.tokens_out)

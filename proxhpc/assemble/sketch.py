"""Sketch: the refined documents of a group of shards as numbers, and its checked counts.

The corpus to compare with, where there is one, is sketched as it is, in groups behind the run's.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import xxhash

from proxhpc.account.counts import Counts
from proxhpc.assemble.replay import ReplayedRecord, SpanStats, replay_shard
from proxhpc.assemble.rows import corpus_row, quarantine_row, sort_key
from proxhpc.assemble.stats import CorpusStats
from proxhpc.corpus.disk import write_atomic
from proxhpc.corpus.document import Bad, Document, End, Span
from proxhpc.corpus.writer import PartWriter
from proxhpc.dedup.arrays import add_checksum, read_checksummed
from proxhpc.dedup.bands import damaged_file, file_digest
from proxhpc.dedup.hashes import SketchDigests, SketchWriter
from proxhpc.errors import StopError
from proxhpc.faults import fault_point
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan, Shard, split_into_shards

MAX_GROUPS = 4096
MAX_SHARDS = 64
MIN_BYTES = 32 << 20
MAX_GROUP_FILES = 10_000  # in a group of the corpus to compare with
_LONGEST = {"jsonl.zst": 1 << 32, "parquet": 1 << 31}  # bytes of a row
_TAIL = 4096  # bytes; the summary frame, which ends a ledger, lies within them


@dataclass(frozen=True)
class SketchReceipt:
    """What one group came to. `sources` and its files' digests tell whether it is still so.

    `documents` are those that are matched, `unreadable` records that the corpus to compare with
    has beside them; of the run's own, `counts` tells. `aside` is the digest of the file with what
    was set aside, "" for none.
    """

    plan: str
    group: int
    sources: tuple[str, ...]
    files: SketchDigests
    documents: int
    unreadable: int
    counts: Counts
    spans: tuple[tuple[SpanStats, ...], ...]  # by shard
    quarantine: str = ""
    stats: CorpusStats = field(default_factory=CorpusStats)

    def encode(self) -> bytes:
        """JSON form."""
        data = vars(self) | {"counts": self.counts.to_dict(), "traits": self.stats.to_dict()}
        data.pop("digest", None)
        options = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
        return orjson.dumps(data, default=tuple, option=options)

    @classmethod
    def decode(cls, raw: bytes) -> "SketchReceipt":
        """Read what `encode` wrote."""
        data: dict[str, Any] = orjson.loads(raw)
        spans = tuple(tuple(SpanStats(*tile) for tile in shard) for shard in data.pop("spans"))
        counts = Counts.from_dict(data.pop("counts"))
        data["stats"] = CorpusStats.from_dict(data["stats"])
        sources, files = tuple(data.pop("sources")), SketchDigests(*data.pop("files"))
        return cls(**data, sources=sources, files=files, counts=counts, spans=spans)

    @cached_property
    def digest(self) -> str:
        """Identifies the group's content; what is made of it carries this on."""
        return xxhash.xxh3_128_hexdigest(self.encode())


def shard_groups(plan: Plan) -> list[range]:
    """Shards of each group: neighbours, of 32 MiB together or more in a large run.

    There are about 4,096 groups at most, unless of 64 shards each: three files a group are few
    for any quota, and a group is minutes of work.
    """
    limit = max(MIN_BYTES, plan.estimated_bytes // MAX_GROUPS)
    cuts, size = [0], 0
    for shard, about in enumerate(plan.shards):
        if size >= limit or shard - cuts[-1] == MAX_SHARDS:
            cuts.append(shard)
            size = 0
        size += about.estimated_bytes
    return [range(a, b) for a, b in pairwise([*cuts, len(plan.shards)])]


def external_pieces(plan: Plan) -> list[Shard]:
    """The corpus to compare with, in as few pieces as a group of the run's is large."""
    size = max(MIN_BYTES, sum(info.estimated_bytes for info in plan.against) // MAX_GROUPS)
    return [*split_into_shards(plan.against, size, MAX_GROUP_FILES)]


def all_groups(plan: Plan) -> range:
    """Numbers of all groups: the run's, then those of the corpus to compare with."""
    return range(len(shard_groups(plan)) + len(external_pieces(plan)))


def sketch_group(run: RunDir, plan: Plan, group: int) -> SketchReceipt:
    """Sketch one group, unless that was done, and return what it came to.

    The numbers of groups go on behind the run's with those of the corpus to compare with.
    """
    own = shard_groups(plan)
    work = _Group(run, plan, group) if group < len(own) else _Against(run, plan, group, len(own))
    sources = work.sources()
    earlier = read_receipt(run, group)
    same = earlier and (earlier.plan, earlier.sources) == (plan.digest, sources)
    if earlier and same and all(path.exists() for path in _files(run, earlier)):
        return earlier
    run.sketch(group).parent.mkdir(parents=True, exist_ok=True)
    run.sketch_receipt(group).unlink(missing_ok=True)
    receipt = work.make(sources)
    fault_point("sketch written")
    write_atomic(run.sketch_receipt(group), add_checksum(receipt.encode()))
    return receipt


def external_records(plan: Plan, piece: Shard) -> Iterator[Document | Bad]:
    """The records of a piece of the corpus to compare with."""
    for span in piece.spans:
        for item in plan.read_against(span):
            if not isinstance(item, End):
                yield item


def read_receipt(run: RunDir, group: int) -> SketchReceipt | None:
    """The receipt of a group, None if it has none."""
    try:
        return SketchReceipt.decode(read_checksummed(run.sketch_receipt(group)))
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise damaged_file(run.sketch_receipt(group)) from error


def _files(run: RunDir, receipt: SketchReceipt) -> Iterator[Path]:
    """What was written for a group beside its receipt."""
    yield from (run.sketch(receipt.group), run.bands(receipt.group))
    if receipt.files.signatures:
        yield run.signatures(receipt.group)
    if receipt.quarantine:
        yield run.sketch_quarantine(receipt.group)


def ledger_tail(path: Path) -> str:
    """Identify a ledger by its length and its last bytes, which hold its own digest."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL))
            return f"{size}-{xxhash.xxh3_64_hexdigest(file.read())}"
    except FileNotFoundError:
        raise StopError(
            f"there is no ledger {path}", hint="launch again: the shard is refined anew"
        ) from None


@dataclass
class _Group:
    """The work on one group of shards."""

    run: RunDir
    plan: Plan
    group: int
    counts: Counts = field(default_factory=Counts)
    stats: CorpusStats = field(default_factory=CorpusStats)
    spans: list[tuple[SpanStats, ...]] = field(default_factory=list)
    aside: PartWriter | None = None
    drafts: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.shards = shard_groups(self.plan)[self.group]
        self.hasher = SketchWriter(self.plan.manifest.dedup)

    def sources(self) -> tuple[str, ...]:
        """What the group is made of."""
        return tuple(ledger_tail(self.run.ledger(shard)) for shard in self.shards)

    def make(self, sources: tuple[str, ...]) -> SketchReceipt:
        """Replay the shards; write the hashes and what was set aside."""
        with self.drafts:
            for shard in self.shards:
                self._add_shard(shard)
            return self._finish(sources)

    def _add_shard(self, shard: int) -> None:
        tiles, counts = [], Counts()
        for item in replay_shard(self.run, self.plan, shard):
            if isinstance(item, SpanStats):
                tiles.append(item)
                counts.blank_lines += item.blank
                continue
            item.row.add_to(counts)
            self.stats.add(self.plan, shard, item)
            if item.text is not None:
                self._add_document(shard, item)
            elif item.row.outcome == "quarantined":
                self._set_aside(item)
        counts.check(f"shard {shard}")
        if counts.documents != sum(tile.records for tile in tiles):
            raise StopError(f"shard {shard}: not every record is in one of its spans")
        self.counts += counts
        self.spans.append(tuple(tiles))

    def _finish(self, sources: tuple[str, ...]) -> SketchReceipt:
        aside = self.run.sketch_quarantine(self.group)
        if self.aside is not None:
            self.aside.close()
        else:
            aside.unlink(missing_ok=True)
        if len(self.hasher) != self.counts.in_corpus:
            found = f"{len(self.hasher)} of {self.counts.in_corpus}"
            raise StopError(f"group {self.group}: {found} hashed")
        return SketchReceipt(
            plan=self.plan.digest,
            group=self.group,
            sources=sources,
            files=self.hasher.write(self.run, self.group),
            documents=len(self.hasher),
            unreadable=0,
            counts=self.counts,
            stats=self.stats,
            spans=tuple(self.spans),
            quarantine=file_digest(aside),
        )

    def _add_document(self, shard: int, item: ReplayedRecord) -> None:
        row = orjson.dumps(corpus_row(self.plan, item), option=orjson.OPT_APPEND_NEWLINE)
        if len(row) >= _LONGEST[self.plan.manifest.output.format]:
            raise StopError(
                f"document {item.row.id!r} is too large for one row: {len(row)} bytes",
                hint="set corpus.max_record_bytes lower",
            )
        if item.document is None or item.text is None:
            raise ValueError(f"record {item.number} is not for the corpus")
        at = sort_key(self.plan, item.row)
        self.hasher.add(item.document, item.text, (shard, item.number), size=len(row), place=at)

    def _set_aside(self, item: ReplayedRecord) -> None:
        if self.aside is None:
            writer = PartWriter(self.run.sketch_quarantine(self.group))
            self.aside = self.drafts.enter_context(writer)
        self.aside.write(quarantine_row(self.plan, item))


@dataclass
class _Against:
    """The work on one piece of the corpus to compare with."""

    run: RunDir
    plan: Plan
    group: int
    first: int  # group of that corpus

    def __post_init__(self) -> None:
        self.number = self.group - self.first
        self.piece = external_pieces(self.plan)[self.number]

    def sources(self) -> tuple[str, ...]:
        """What the group is made of; each file is compared with the plan when it is read."""
        return tuple(_span(self.plan, span) for span in self.piece.spans)

    def make(self, sources: tuple[str, ...]) -> SketchReceipt:
        """Write the hashes of the texts as they are."""
        hasher = SketchWriter(self.plan.manifest.dedup)
        unreadable = 0
        shard = len(self.plan.shards) + self.number
        for number, item in enumerate(external_records(self.plan, self.piece)):
            if isinstance(item, Bad):
                unreadable += 1
            else:
                hasher.add(item, item.text, (shard, number))
        return SketchReceipt(
            plan=self.plan.digest,
            group=self.group,
            sources=sources,
            files=hasher.write(self.run, self.group),
            documents=len(hasher),
            unreadable=unreadable,
            counts=Counts(),
            spans=(),
        )


def _span(plan: Plan, span: Span) -> str:
    return f"{plan.against[span.file].fingerprint}-{span.start}-{span.stop}"


def spans_of(receipt: SketchReceipt) -> Iterator[SpanStats]:
    """All tiles of a group, in input order."""
    for shard in receipt.spans:
        yield from shard

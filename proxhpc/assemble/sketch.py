"""The sketch phase: replays a group of shards and stores its documents as numbers, with counts.

The external corpus (`dedup.against`), if there is one, is sketched without replay, in groups that
are numbered after the run's own.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import xxhash

from proxhpc.account.counts import Counts
from proxhpc.assemble.replay import ReplayedRecord, SpanStats, replay_shard
from proxhpc.assemble.rows import corpus_row, quarantine_row, sort_key
from proxhpc.assemble.stats import CorpusStats
from proxhpc.corpus.disk import write_atomic
from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.writer import PartWriter
from proxhpc.dedup.arrays import add_checksum, damaged_file, file_digest, read_checksummed
from proxhpc.dedup.hashes import SketchDigests, SketchWriter
from proxhpc.errors import StopError
from proxhpc.faults import fault_point
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan, Shard, split_into_shards
from proxhpc.run.shards import group_bytes, shard_groups

MAX_GROUP_FILES = 10_000  # in a group of the external corpus
_MAX_ROW_BYTES = {"jsonl.zst": 1 << 32, "parquet": 1 << 31}
_TAIL = 4096  # bytes at the end of a ledger; they hold its summary frame


@dataclass(frozen=True)
class SketchReceipt:
    """The counts of one group; `sources` and file digests tell whether its files are current.

    `documents` are those to be matched. `unreadable` counts records of the external corpus; those
    of the run are in `counts`. `spans_by_shard` has the run's spans. `quarantine` is the digest of
    the file with the group's quarantined records, "" if there are none.
    """

    plan: str
    group: int
    sources: tuple[str, ...]
    files: SketchDigests
    documents: int
    unreadable: int = 0
    counts: Counts = field(default_factory=Counts)
    spans_by_shard: tuple[tuple[SpanStats, ...], ...] = ()
    quarantine: str = ""
    stats: CorpusStats = field(default_factory=CorpusStats)

    def encode(self) -> bytes:
        """JSON form."""
        data = vars(self) | {"counts": self.counts.to_dict(), "stats": self.stats.to_dict()}
        data.pop("digest", None)
        options = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
        return orjson.dumps(data, default=tuple, option=options)

    @classmethod
    def decode(cls, raw: bytes) -> "SketchReceipt":
        """Read what `encode` wrote."""
        data: dict[str, Any] = orjson.loads(raw)
        return cls(
            **data
            | {
                "sources": tuple(data["sources"]),
                "files": SketchDigests(*data["files"]),
                "counts": Counts.from_dict(data["counts"]),
                "stats": CorpusStats.from_dict(data["stats"]),
                "spans_by_shard": tuple(
                    tuple(SpanStats(*span) for span in spans) for spans in data["spans_by_shard"]
                ),
            }
        )

    @cached_property
    def digest(self) -> str:
        """Identifies the group's content, and so what is made from it."""
        return xxhash.xxh3_128_hexdigest(self.encode())

    @property
    def spans(self) -> Iterator[SpanStats]:
        """All spans of the group, in input order."""
        for spans in self.spans_by_shard:
            yield from spans


def external_pieces(plan: Plan) -> list[Shard]:
    """The external corpus, split into pieces of about the size of a group."""
    size = group_bytes(sum(info.estimated_bytes for info in plan.against))
    return [*split_into_shards(plan.against, size, MAX_GROUP_FILES)]


def external_records(plan: Plan, piece: Shard) -> Iterator[Document | BadRecord]:
    """The records of a piece of the external corpus."""
    for span in piece.spans:
        for item in plan.read_against(span):
            if not isinstance(item, SpanEnd):
                yield item


def all_groups(plan: Plan) -> range:
    """Numbers of all groups: the run's, then those of the external corpus."""
    return range(len(shard_groups(plan)) + len(external_pieces(plan)))


def sketch_group(run: RunDir, plan: Plan, group: int) -> SketchReceipt:
    """Sketch one group, unless its files are current, and return its receipt."""
    own_groups = shard_groups(plan)
    sketcher: _ShardSketcher | _ExternalSketcher
    if group < len(own_groups):
        sketcher = _ShardSketcher(run, plan, group, own_groups[group])
    else:
        sketcher = _ExternalSketcher(run, plan, group, group - len(own_groups))
    sources = sketcher.sources()
    earlier = read_receipt(run, group)
    same = earlier and (earlier.plan, earlier.sources) == (plan.digest, sources)
    if earlier and same and all(path.exists() for path in _files(run, earlier)):
        return earlier
    run.sketch(group).parent.mkdir(parents=True, exist_ok=True)
    run.sketch_receipt(group).unlink(missing_ok=True)
    receipt = sketcher.sketch(sources)
    fault_point("sketch written")
    write_atomic(run.sketch_receipt(group), add_checksum(receipt.encode()))
    return receipt


def read_receipt(run: RunDir, group: int) -> SketchReceipt | None:
    """The receipt of a group, None if it has none."""
    try:
        return SketchReceipt.decode(read_checksummed(run.sketch_receipt(group)))
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise damaged_file(run.sketch_receipt(group)) from error


def _files(run: RunDir, receipt: SketchReceipt) -> Iterator[Path]:
    """A group's files beside its receipt."""
    yield from (run.sketch(receipt.group), run.bands(receipt.group))
    if receipt.files.signatures:
        yield run.signatures(receipt.group)
    if receipt.quarantine:
        yield run.sketch_quarantine(receipt.group)


def ledger_tail(path: Path) -> str:
    """Identify a ledger by its length and its last bytes, which include its own digest."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL))
            return f"{size}-{xxhash.xxh3_64_hexdigest(file.read())}"
    except FileNotFoundError:
        raise StopError(
            f"there is no ledger {path}",
            hint="run `proxhpc launch` again; it refines the shard again",
        ) from None


@dataclass
class _ShardSketcher:
    """Sketches one group of shards."""

    run: RunDir
    plan: Plan
    group: int
    shards: range
    counts: Counts = field(default_factory=Counts)
    stats: CorpusStats = field(default_factory=CorpusStats)
    spans_by_shard: list[tuple[SpanStats, ...]] = field(default_factory=list)
    quarantine: PartWriter | None = None
    drafts: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.writer = SketchWriter(self.plan.manifest.dedup)

    def sources(self) -> tuple[str, ...]:
        """What the sketch is made from."""
        return tuple(ledger_tail(self.run.ledger(shard)) for shard in self.shards)

    def sketch(self, sources: tuple[str, ...]) -> SketchReceipt:
        """Replay the shards; write the documents' hashes and the quarantined records."""
        with self.drafts:
            for shard in self.shards:
                self._add_shard(shard)
            return self._finish(sources)

    def _add_shard(self, shard: int) -> None:
        spans, counts = [], Counts()
        for item in replay_shard(self.run, self.plan, shard):
            if isinstance(item, SpanStats):
                spans.append(item)
                counts.blank_lines += item.blank_lines
                continue
            item.row.add_to(counts)
            self.stats.add(self.plan, shard, item)
            if item.text is not None:
                self._add_document(shard, item)
            elif item.row.outcome == "quarantined":
                self._add_quarantined(item)
        counts.check(f"shard {shard}")
        if counts.documents != sum(span.records for span in spans):
            raise StopError(f"shard {shard}: a record is in none of its spans")
        self.counts += counts
        self.spans_by_shard.append(tuple(spans))

    def _add_document(self, shard: int, record: ReplayedRecord) -> None:
        row = orjson.dumps(corpus_row(self.plan, record), option=orjson.OPT_APPEND_NEWLINE)
        if len(row) >= _MAX_ROW_BYTES[self.plan.manifest.output.format]:
            raise StopError(
                f"document {record.row.id!r} is too large for one row: {len(row)} bytes",
                hint="set corpus.max_record_bytes lower",
            )
        if record.document is None or record.text is None:
            raise ValueError(f"record {record.number} does not reach the corpus")
        self.writer.add(
            record.document,
            record.text,
            (shard, record.number),
            row_bytes=len(row),
            sort_key=sort_key(self.plan, record.row),
        )

    def _add_quarantined(self, record: ReplayedRecord) -> None:
        if self.quarantine is None:
            writer = PartWriter(self.run.sketch_quarantine(self.group))
            self.quarantine = self.drafts.enter_context(writer)
        self.quarantine.write(quarantine_row(self.plan, record))

    def _finish(self, sources: tuple[str, ...]) -> SketchReceipt:
        path = self.run.sketch_quarantine(self.group)
        if self.quarantine is not None:
            self.quarantine.close()
        else:
            path.unlink(missing_ok=True)
        if len(self.writer) != self.counts.in_corpus:
            hashed = f"{len(self.writer)} of {self.counts.in_corpus}"
            raise StopError(f"group {self.group}: {hashed} documents hashed")
        return SketchReceipt(
            plan=self.plan.digest,
            group=self.group,
            sources=sources,
            files=self.writer.write(self.run, self.group),
            documents=len(self.writer),
            counts=self.counts,
            stats=self.stats,
            spans_by_shard=tuple(self.spans_by_shard),
            quarantine=file_digest(path),
        )


@dataclass
class _ExternalSketcher:
    """Sketches one piece of the external corpus."""

    run: RunDir
    plan: Plan
    group: int
    number: int  # of the piece

    def __post_init__(self) -> None:
        self.piece = external_pieces(self.plan)[self.number]

    def sources(self) -> tuple[str, ...]:
        """What the sketch is made from; reading a file checks it against the plan."""
        return tuple(_span_source(self.plan, span) for span in self.piece.spans)

    def sketch(self, sources: tuple[str, ...]) -> SketchReceipt:
        """Write the hashes of the raw texts."""
        writer = SketchWriter(self.plan.manifest.dedup)
        unreadable = 0
        shard = len(self.plan.shards) + self.number
        for number, record in enumerate(external_records(self.plan, self.piece)):
            if isinstance(record, BadRecord):
                unreadable += 1
            else:
                writer.add(record, record.text, (shard, number))
        return SketchReceipt(
            plan=self.plan.digest,
            group=self.group,
            sources=sources,
            files=writer.write(self.run, self.group),
            documents=len(writer),
            unreadable=unreadable,
        )


def _span_source(plan: Plan, span: Span) -> str:
    return f"{plan.against[span.file].fingerprint}-{span.start}-{span.stop}"

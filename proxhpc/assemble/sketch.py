"""The sketch phase: replays a group of shards and stores its documents as numbers, with counts.

The external corpus (`dedup.against`), if there is one, is sketched without replay, in groups that
are numbered after the run's own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np
import orjson
import xxhash
import zstandard
from pydantic import PlainSerializer

from proxhpc.account.counts import Counts
from proxhpc.assemble.benchmark import Benchmark, BenchmarkCounts, open_benchmarks
from proxhpc.assemble.patches import PatchWriter
from proxhpc.assemble.replay import ReplayedRecord, SpanStats, missing_ledger, replay_shard
from proxhpc.assemble.rounds import EXCHANGES, external_pieces, unit_count
from proxhpc.assemble.rows import corpus_row, quarantine_row, record_source, sort_key
from proxhpc.assemble.stats import CorpusStats, ExampleTexts, encode_examples, example_texts
from proxhpc.corpus.disk import write_atomic
from proxhpc.corpus.document import BadRecord, Document, SpanEnd
from proxhpc.corpus.writer import PartWriter
from proxhpc.dedup.arrays import file_digest, load_json, read_blocks, save_json
from proxhpc.dedup.exchange import ExchangeWriter
from proxhpc.dedup.hashes import (
    NO_FILES,
    SKETCH_DTYPE,
    RecordKey,
    RowNumbers,
    Sketch,
    SketchDigests,
    SketchWriter,
)
from proxhpc.dedup.sorting import Flags, Scratch
from proxhpc.errors import StopError
from proxhpc.faults import fault_point
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.shards import shard_groups

_MAX_ROW_BYTES = {True: 1 << 31, False: 1 << 32}  # of parquet, of JSON lines
_HELD_EXAMPLES = 256  # texts; a third of them are usually still chosen
_BLOCK = 1 << 14  # documents that are read at a time
_TAIL = 4096  # bytes at the end of a ledger; they hold its summary frame

SortedCounts = Annotated[Counts, PlainSerializer(Counts.to_dict)]  # reasons in order


@dataclass(slots=True)
class SketchReceipt:
    """The counts of one group; `sources` and file digests show whether its files are current.

    `documents` are those to be matched. `unreadable` counts records of the external corpus; those
    of the run are in `counts`. `spans_by_shard` has the run's spans. `quarantine` is the digest of
    the file with the group's quarantined records, `names` that of the names of external records,
    `benchmark_listing` that of documents with parts of a benchmark, `examples` that of texts for
    the report, which are not stored with `dedup.lines`; "" if there are none. `ranked` counts
    documents with a value of `dedup.by`, `with_url` those with a URL in `dedup.url`.
    """

    plan: str
    group: int
    sources: list[str]
    files: SketchDigests = NO_FILES
    documents: int = 0
    unreadable: int = 0
    ranked: int = 0
    with_url: int = 0
    counts: SortedCounts = field(default_factory=Counts)
    spans_by_shard: list[list[SpanStats]] = field(default_factory=list)
    quarantine: str = ""
    names: str = ""
    benchmark: BenchmarkCounts = field(default_factory=BenchmarkCounts)
    benchmark_listing: str = ""
    examples: str = ""
    stats: CorpusStats = field(default_factory=CorpusStats)

    @property
    def identity(self) -> str:
        """What the group's files are made from."""
        return " ".join([self.plan, *self.sources])

    @property
    def spans(self) -> Iterator[SpanStats]:
        """All spans of the group, in input order."""
        return chain.from_iterable(self.spans_by_shard)


def external_records(plan: Plan, piece: int) -> Iterator[Document | BadRecord]:
    """The records of a piece of the external corpus."""
    for span in external_pieces(plan)[piece].spans:
        for item in plan.read_against(span):
            if not isinstance(item, SpanEnd):
                yield item


def sketch_group(run: RunDir, plan: Plan, group: int, memory: int) -> SketchReceipt:
    """Sketch one group, unless its files are current, and return its receipt.

    `memory` is for the rows of the exchange, in bytes.
    """
    groups = shard_groups(plan)
    piece = group - len(groups)  # of the external corpus
    if piece < 0:
        sources = [ledger_tail(run.ledger(shard)) for shard in groups[group]]
    else:  # reading a file checks it against the plan
        sources = [
            f"{plan.against[span.file].fingerprint}-{span.start}-{span.stop}"
            for span in external_pieces(plan)[piece].spans
        ]
    earlier = read_receipt(run, group)
    if (
        earlier
        and (earlier.plan, earlier.sources) == (plan.digest, sources)
        and all(path.exists() for path in _files(run, earlier))
    ):
        return earlier
    run.sketch(group).parent.mkdir(parents=True, exist_ok=True)
    run.sketch_receipt(group).unlink(missing_ok=True)
    receipt = SketchReceipt(plan.digest, group, sources)
    scratch = Scratch(run.sketch(group).parent, memory)
    units = unit_count(plan, "exact")
    hashes = ExchangeWriter(run.sketch_hashes(group), EXCHANGES["hashes"].columns, units, scratch)
    with SketchWriter(run, group, plan.manifest.dedup, hashes, external=piece >= 0) as writer:
        if piece < 0:
            _add_shards(run, plan, groups[group], receipt, writer)
        else:
            _add_external(run, plan, piece, receipt, writer)
    receipt.documents, receipt.files = writer.documents, writer.digests
    receipt.ranked, receipt.with_url = writer.ranked, writer.with_url
    fault_point("sketch written")
    save_json(run.sketch_receipt(group), receipt)
    return receipt


def read_receipt(run: RunDir, group: int) -> SketchReceipt | None:
    """The receipt of a group, None if it has none."""
    return load_json(run.sketch_receipt(group), SketchReceipt)


def require_receipt(run: RunDir, group: int) -> SketchReceipt:
    """The receipt of a group. StopError if it has none."""
    receipt = read_receipt(run, group)
    if receipt is None:
        raise StopError(f"there is no {run.sketch_receipt(group)}", hint="merge again")
    return receipt


def read_sketch(run: RunDir, group: int) -> Iterator[Sketch]:
    """Yield the documents of a group in blocks. StopError if they are not what was written."""
    yield from read_blocks(run.sketch(group), require_receipt(run, group).files.documents, _BLOCK)


def load_chosen(run: RunDir, group: int, chosen: Flags) -> Sketch:
    """The chosen ones of a group's documents."""
    documents = [np.empty(0, SKETCH_DTYPE)]
    start = 0
    for block in read_sketch(run, group):
        documents.append(block[chosen[start : start + len(block)]])
        start += len(block)
    return np.concatenate(documents)


def _files(run: RunDir, receipt: SketchReceipt) -> list[Path]:
    paths = {
        run.sketch: True,
        run.sketch_hashes: True,
        run.signatures: receipt.files.signatures,
        run.sketch_lines: receipt.files.lines,
        run.patches: receipt.spans_by_shard,  # not of the external corpus
        run.sketch_quarantine: receipt.quarantine,
        run.sketch_names: receipt.names,
        run.sketch_benchmark: receipt.benchmark_listing,
        run.sketch_examples: receipt.examples,
    }
    return [path(receipt.group) for path, is_written in paths.items() if is_written]


def ledger_tail(path: Path) -> str:
    """Identify a ledger by its length and its last bytes, which include its own digest."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL))
            return f"{size}-{xxhash.xxh3_64_hexdigest(file.read())}"
    except FileNotFoundError:
        raise missing_ledger(path) from None


def _add_shards(
    run: RunDir, plan: Plan, shards: range, receipt: SketchReceipt, writer: SketchWriter
) -> None:
    """Replay the shards; add their documents and counts, and write the group's listings."""
    texts: dict[RecordKey, ExampleTexts] = {}
    paths = run.sketch_quarantine(receipt.group), run.sketch_benchmark(receipt.group)
    patches = PatchWriter(run.patches(receipt.group), receipt.identity, plan.manifest)
    benchmarks = open_benchmarks(run, plan)
    receipt.benchmark.skipped = sum(each.skipped for each in benchmarks)
    with PartWriter(paths[0]) as quarantine, PartWriter(paths[1]) as hits, patches:
        for shard in shards:
            spans, counts = [], Counts()
            for item in replay_shard(run, plan, shard):
                if isinstance(item, SpanStats):
                    spans.append(item)
                    counts.blank_lines += item.blank_lines
                    continue
                item.row.add_to(counts)
                if receipt.stats.add(plan, shard, item) and not plan.manifest.dedup.lines:
                    texts[shard, item.number] = example_texts(plan, shard, item)
                    if len(texts) > _HELD_EXAMPLES:
                        texts = _chosen(receipt.stats, texts)
                if item.document is not None and item.text is not None:
                    if _contains_benchmark(benchmarks, plan, item, receipt, hits):
                        continue
                    row = corpus_row(plan, item)
                    line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
                    _check_size(plan, item.row.id, len(line))
                    patches.add(shard, item, row, line)
                    numbers = RowNumbers(len(line), sort_key(plan, item.row), item.row.tokens_out)
                    writer.add(item.document, item.text, (shard, item.number), numbers)
                elif item.row.outcome == "quarantined":
                    quarantine.write(quarantine_row(plan, item))
            counts.check(f"shard {shard}")
            if counts.documents != sum(span.records for span in spans):
                raise StopError(f"shard {shard}: a record is in none of its spans")
            receipt.counts += counts
            receipt.spans_by_shard.append(spans)
    for path, listing in zip(paths, (quarantine, hits), strict=True):
        if not listing.documents:
            path.unlink()
    receipt.quarantine, receipt.benchmark_listing = map(file_digest, paths)
    path = run.sketch_examples(receipt.group)
    if examples := encode_examples(_chosen(receipt.stats, texts).values()):
        write_atomic(path, zstandard.compress(examples))
    else:
        path.unlink(missing_ok=True)  # of a sketch that was killed
    receipt.examples = file_digest(path)
    reached = receipt.counts.in_corpus - receipt.benchmark.left_out
    if writer.documents != reached:
        hashed = f"{writer.documents} of {reached}"
        raise StopError(f"group {receipt.group}: {hashed} documents hashed")


def _chosen(
    stats: CorpusStats, texts: Mapping[RecordKey, ExampleTexts]
) -> dict[RecordKey, ExampleTexts]:
    """The texts that are still among the examples, in input order."""
    return {key: texts[key] for key in sorted(stats.example_keys & texts.keys())}


def _contains_benchmark(
    benchmarks: Sequence[Benchmark],
    plan: Plan,
    item: ReplayedRecord,
    receipt: SketchReceipt,
    listing: PartWriter,
) -> bool:
    """Whether a document is left out because it contains parts of a benchmark; it is listed.

    If several contain it, one for which it is left out counts, then the largest share.
    """
    hits = [(each.settings.drop, each.find(item.text or "")) for each in benchmarks]
    found = [(drop, hit) for drop, hit in hits if hit]
    if not found:
        return False
    is_left_out, hit = max(found, key=lambda each: (each[0], each[1].share))
    row, counts = item.row, receipt.benchmark
    source = record_source(plan, row)
    listing.write({"id": row.id, "source": source, "left_out": is_left_out, "item": hit})
    counts.by_file[hit.file] += 1
    if is_left_out:
        counts.left_out += 1
        counts.left_out_tokens += row.tokens_out
        counts.left_out_by_input[row.file] += 1
    return is_left_out


def _check_size(plan: Plan, name: str, size: int) -> None:
    """Raise StopError if a row of so many bytes is too large for the format."""
    if size >= _MAX_ROW_BYTES[plan.manifest.output.format == "parquet"]:
        raise StopError(
            f"document {name!r} is too large for one row: {size} bytes",
            hint="set corpus.max_record_bytes lower",
        )


def _add_external(
    run: RunDir, plan: Plan, piece: int, receipt: SketchReceipt, writer: SketchWriter
) -> None:
    """Add the documents of a piece, and write the names of its records, to read it no more."""
    shard, path = len(plan.shards) + piece, run.sketch_names(receipt.group)
    with PartWriter(path) as names:
        for number, record in enumerate(external_records(plan, piece)):
            document = None if isinstance(record, BadRecord) else record
            source = f"{plan.against[record.file].name}:{record.position}"
            names.write({"id": document.id if document else "", "source": source})
            if document is None:
                receipt.unreadable += 1
            else:
                writer.add(document, document.text, (shard, number), RowNumbers())
    receipt.names = file_digest(path)

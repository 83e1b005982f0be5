"""From sources of labels to a file of examples and a summary that accounts for every document.

Documents of held-out files and of validation hosts are indexed first, to keep training clear of
both, and validation clear of held-out documents. Examples wait in a temporary file until it is
known how many there are to choose from; only a few bytes of each stay in memory.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any

import orjson
import zstandard

from proxhpc.annotate.balance import Balance
from proxhpc.annotate.examples import WindowLimits, make_examples
from proxhpc.annotate.gold import GoldSource
from proxhpc.annotate.labels import LabelSource, SourceDocument
from proxhpc.annotate.leakage import NearDuplicateIndex
from proxhpc.annotate.programs import RunSource
from proxhpc.annotate.summary import AnnotationSummary, SummaryCounter
from proxhpc.corpus.disk import write_atomic, writing
from proxhpc.corpus.document import BadRecord
from proxhpc.corpus.writer import PartWriter
from proxhpc.errors import UserError
from proxhpc.evaluate.gold import GoldFields, iter_records
from proxhpc.program.syntax import Dialect
from proxhpc.run.paths import RunDir


@dataclass(frozen=True, slots=True)
class AnnotateOptions:
    """How documents are split into windows, examples balanced and evaluation data avoided.

    `untouched` is the largest share of training windows without an edit, `per_source` the largest
    number of training documents of a source (None: no limit). `fields` are those of the files in
    `held_out`.
    """

    dialect: Dialect = "prox"
    windows: WindowLimits = field(default_factory=WindowLimits)
    untouched: float = 1.0
    per_source: int | None = None
    held_out: tuple[Path, ...] = ()
    fields: GoldFields = field(default_factory=GoldFields)
    seed: int = 0


def open_sources(paths: Sequence[Path], out: Path, options: AnnotateOptions) -> list[LabelSource]:
    """A source for each path: a directory is a run, anything else a file of gold records.

    UserError if `out` would overwrite an input.
    """
    for path in (*paths, *options.held_out):
        if path.exists() and out.exists() and path.samefile(out):
            raise UserError(f"--out {out} would overwrite an input", hint="name another file")
    return [
        RunSource(RunDir(path.absolute()), options.fields)
        if path.is_dir()
        else GoldSource(path, options.fields, options.dialect)
        for path in paths
    ]


def annotate(
    sources: Sequence[LabelSource], out: Path, options: AnnotateOptions
) -> AnnotationSummary:
    """Write the examples of all sources to `out` and the summary beside it.

    UserError or RetryError if an input cannot be read or `out` cannot be written.
    """
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no directory {out.parent}")
    counter = SummaryCounter()
    balance = Balance(options.seed, options.untouched, options.per_source)
    with tempfile.TemporaryFile(dir=out.parent) as file:
        with zstandard.ZstdCompressor().stream_writer(file, closefd=False) as waiting:
            leakage_filter = _LeakageFilter(sources, options, counter)
            for item in chain.from_iterable(source.documents() for source in sources):
                for row in _document_examples(item, leakage_filter, options, counter):
                    balance.add(counter.documents, row)
                    with writing(out):
                        waiting.write(orjson.dumps(row) + b"\n")
        file.seek(0)
        with zstandard.ZstdDecompressor().stream_reader(file) as rows, PartWriter(out) as part:
            for line, reason in zip(BufferedReader(rows), balance.reasons(), strict=True):
                if reason:
                    counter.examples_left_out[reason] += 1
                else:
                    row = orjson.loads(line)
                    part.write(row)
                    counter.add_written(row)
            counter.check()
            summary = counter.summary(part.close().sha256)
    write_atomic(summary_path(out), f"{summary.to_json()}\n".encode())
    return summary


def summary_path(out: Path) -> Path:
    """The path of an examples file's summary."""
    return out.with_name(f"{out.name.removesuffix('.zst').removesuffix('.jsonl')}.summary.json")


class _LeakageFilter:
    """Finds documents that must not be in training or validation."""

    def __init__(
        self, sources: Sequence[LabelSource], options: AnnotateOptions, counter: SummaryCounter
    ) -> None:
        self._options, self._counter = options, counter
        self._held_out_hosts: set[str] = set()
        self._held_out = NearDuplicateIndex(self._held_out_texts())
        validation_texts = (
            document.text
            for source in sources
            for document in source.documents()
            if isinstance(document, SourceDocument) and document.split == "validation"
        )
        self._validation = NearDuplicateIndex(validation_texts)

    def _held_out_texts(self) -> Iterator[str]:
        for path in self._options.held_out:
            for record in iter_records(path, self._options.fields):
                self._counter.held_out += 1
                if record.host:
                    self._held_out_hosts.add(record.host)
                yield record.text

    def reason(self, document: SourceDocument) -> str:
        """Why a document must be left out; empty if it may be used.

        Validation avoids held-out documents, too: it chooses limits and the best weights.
        """
        if document.host in self._held_out_hosts:
            return "held_out_host"
        is_duplicate = self._held_out.has_duplicate_of(document.text) or (
            document.split == "train" and self._validation.has_duplicate_of(document.text)
        )
        return "near_duplicate" if is_duplicate else ""


def _document_examples(
    item: SourceDocument | BadRecord,
    leakage_filter: _LeakageFilter,
    options: AnnotateOptions,
    counter: SummaryCounter,
) -> Iterator[dict[str, Any]]:
    """The examples of a document; counts what becomes of it."""
    counter.documents += 1
    if isinstance(item, BadRecord):
        counter.documents_left_out[item.reason] += 1
        return
    counter.without_host += not item.host
    if reason := leakage_filter.reason(item):
        counter.documents_left_out[reason] += 1
        return
    labels = item.read_labels()
    counter.discarded.update(labels.discarded)
    created = 0
    for example in make_examples(item, labels, options.windows, options.dialect):
        if isinstance(example, str):
            counter.discarded["chunk", example] += 1
        else:
            created += 1
            yield example
    counter.created += created
    if created:
        counter.used += 1
    else:
        counter.documents_left_out["no_example"] += 1

"""Sources in, one file of examples and a summary out; every document and window accounted for.

What a refiner will be judged by comes first: documents of held-out files and of validation hosts
are signed before any is taught, so that training is kept clear of both, and validation of what is
held out. Examples wait in a temporary file until it is known how many there are to choose from; of
each only some bytes stay in memory.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

import orjson
import zstandard

from proxhpc.annotate.balance import Balance
from proxhpc.annotate.examples import TrainingExample, UnmatchedLines, WindowCutter, examples
from proxhpc.annotate.labels import LabelSource, Subject
from proxhpc.annotate.leakage import NearDuplicateIndex
from proxhpc.annotate.summary import Summary
from proxhpc.corpus.disk import write_atomic, writing
from proxhpc.corpus.document import Bad
from proxhpc.corpus.writer import PartWriter
from proxhpc.errors import UserError
from proxhpc.evaluate.gold import GoldFields, records
from proxhpc.program.syntax import Dialect
from proxhpc.spec.sections import Near


@dataclass(frozen=True, slots=True)
class Options:
    """How examples are cut, balanced and kept clear of what refiners are judged by.

    `untouched` is the largest share of windows without an edit in training, `per_source` the most
    training documents of a source (None: no limit). Files `held_out` have `fields`.
    """

    dialect: Dialect = "prox"
    cut: WindowCutter = field(default_factory=WindowCutter)
    untouched: float = 1.0
    per_source: int | None = None
    held_out: tuple[Path, ...] = ()
    fields: GoldFields = field(default_factory=GoldFields)
    near: Near = field(default_factory=Near)
    seed: int = 0


def annotate(sources: Sequence[LabelSource], out: Path, options: Options) -> Summary:
    """Write the examples of all sources to `out`, the summary beside it; the summary.

    UserError or RetryError where an input cannot be read or `out` not be written.
    """
    summary = Summary()
    balance = Balance(options.seed, options.untouched, options.per_source)
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no directory {out.parent}")
    with tempfile.TemporaryFile(dir=out.parent) as file:
        with zstandard.ZstdCompressor().stream_writer(file, closefd=False) as waiting:
            for example in _made(sources, options, summary):
                balance.add(summary.documents, example)
                with writing(out):
                    waiting.write(orjson.dumps(example.row) + b"\n")
        file.seek(0)
        with zstandard.ZstdDecompressor().stream_reader(file) as rows:
            _publish(zip(BufferedReader(rows), balance.verdicts(), strict=True), out, summary)
    data = orjson.dumps(summary.to_dict(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    write_atomic(summary_path(out), data)
    return summary


def _publish(made: Iterable[tuple[bytes, str]], out: Path, summary: Summary) -> None:
    """Write the examples for which there is no reason to leave them out."""
    with PartWriter(out) as part:
        for line, reason in made:
            if reason:
                summary.not_chosen[reason] += 1
            else:
                row = orjson.loads(line)
                part.write(row)
                summary.write(row)
        summary.check()
        summary.sha256 = part.close().sha256


def summary_path(out: Path) -> Path:
    """Where the summary of an examples file is."""
    return out.with_name(f"{out.name.removesuffix('.zst').removesuffix('.jsonl')}.summary.json")


class _Guard:
    """Says which documents must not be trained on, or not be chosen by."""

    def __init__(self, sources: Sequence[LabelSource], options: Options, summary: Summary) -> None:
        self._options, self._summary = options, summary
        self._hosts: set[str] = set()
        self._held_out = NearDuplicateIndex(self._held_out_texts(), options.near)
        self._validation = NearDuplicateIndex(_validation_texts(sources), options.near)

    def _held_out_texts(self) -> Iterator[str]:
        for path in self._options.held_out:
            for record in records(path, self._options.fields):
                self._summary.held_out += 1
                if record.host:
                    self._hosts.add(record.host)
                yield record.text

    def objection(self, subject: Subject) -> str:
        """Why a document must not be taught; empty if it may.

        Validation too is kept clear of what is held out: limits and the best weights are chosen
        by it.
        """
        if subject.host in self._hosts:
            return "held_out_host"
        near = self._held_out.has(subject.text)
        if subject.split == "train":
            near = near or self._validation.has(subject.text)
        return "near_duplicate" if near else ""


def _validation_texts(sources: Sequence[LabelSource]) -> Iterator[str]:
    for source in sources:
        for subject in source.subjects():
            if isinstance(subject, Subject) and subject.split == "validation":
                yield subject.text


def _made(
    sources: Sequence[LabelSource], options: Options, summary: Summary
) -> Iterator[TrainingExample]:
    """The examples of all documents that may be taught."""
    guard = _Guard(sources, options, summary)
    for source in sources:
        for item in source.subjects():
            yield from _taught(item, guard, options, summary)


def _taught(
    item: Subject | Bad, guard: _Guard, options: Options, summary: Summary
) -> Iterator[TrainingExample]:
    """The examples of a document; what becomes of it is counted."""
    summary.documents += 1
    if isinstance(item, Bad):
        summary.left_out[item.reason] += 1
        return
    summary.without_host += not item.host
    if reason := guard.objection(item):
        summary.left_out[reason] += 1
        return
    lesson = item.teach()
    summary.aside.update(lesson.aside)
    made = 0
    for found in examples(item, lesson, options.cut, options.dialect):
        if isinstance(found, UnmatchedLines):
            summary.aside["chunk", found.reason] += 1
        else:
            made += 1
            yield found
    summary.made += made
    if made:
        summary.taught += 1
    else:
        summary.left_out["nothing_to_teach"] += 1

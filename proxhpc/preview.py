"""Refines documents on this machine, to preview what a model does to them.

Stages, engines, policy and printed records are those of a run, but there is no run directory:
nothing is stored, resumed or merged.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import orjson
from pydantic import ValidationError

from proxhpc.account.counts import Counts
from proxhpc.account.flops import flops, sum_or_none
from proxhpc.account.quantity import quantity
from proxhpc.assemble.rows import build_row
from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.inputs import Format, describe_input, detect_format, printable_path
from proxhpc.corpus.jsonl import LineStream, read_jsonl, split_lines
from proxhpc.corpus.probe import guess_fields
from proxhpc.corpus.readers import Fields, read_span
from proxhpc.corpus.text import read_text
from proxhpc.engines.device import count_gpus
from proxhpc.errors import UserError
from proxhpc.extras import is_installed
from proxhpc.inspect.document import Inspection
from proxhpc.inspect.view import render_inspection
from proxhpc.refine.pump import IN_FLIGHT_BYTES, IN_FLIGHT_DOCUMENTS, Budget, Pace, in_order
from proxhpc.refine.refiner import Refiner, open_refiner
from proxhpc.report.text import power
from proxhpc.run.ledger import Row, bad_row
from proxhpc.run.models import ModelRef
from proxhpc.run.plan import find_models, freeze_manifest
from proxhpc.spec.load import reasons
from proxhpc.spec.manifest import Manifest, load_manifest
from proxhpc.spec.sections import EMBEDDED
from proxhpc.status.terminal import make_console, safe, whole
from proxhpc.worker.worker import event_weight

IN_FLIGHT_SECONDS = 5.0  # of work in flight: more of it helps engines, less is printed sooner
PreviewFormat = Literal["json", "text", "diff"]
NamedDocument = tuple[str, Document | BadRecord]


@dataclass(frozen=True, slots=True)
class RefinerChoice:
    """The options that name models, or a manifest that has them; without a model, the rules."""

    manifest: Path | None = None
    engine: str | None = None
    model: str | None = None
    doc_model: str | None = None
    prompt: str | None = None

    def open(self) -> Manifest:
        """Return the manifest in the file, or one made for the models."""
        if self.manifest is None:
            keys = {"name": "preview", "corpus": {"paths": "-", "id": "id"}}
            return make_manifest(keys | self.sections())
        if self.engine or self.model or self.doc_model or self.prompt:
            raise UserError(
                "--manifest names models, profiles and engine",
                hint="leave out --model, --doc-model, --prompt and --engine",
            )
        return load_manifest(self.manifest)

    def sections(self) -> dict[str, Any]:
        """Return the stages and the engine of a manifest for the models."""
        stages, engine = [("doc", self.doc_model), ("chunk", self.model)], self.engine
        if self.model or self.doc_model:
            stages = [stage for stage in stages if stage[1]]
            # Without a GPU, or for a tiny model, documents are refined before vLLM has started.
            large = {self.model, self.doc_model} - {None, EMBEDDED}
            worth_starting = large and is_installed("vllm") and count_gpus()
            engine = engine or ("vllm" if worth_starting else "transformers")
        style: dict[str, str | None] = {"prompt": self.prompt} if self.prompt else {}
        return {
            "engine": {"name": engine or "rules"},
            "stages": [{"level": level, "model": name} | style for level, name in stages],
        }


def make_manifest(data: dict[str, Any]) -> Manifest:
    """A manifest with relative paths from the current folder."""
    try:
        return Manifest.model_validate(data, context={"base": Path.cwd()})
    except ValidationError as error:
        raise UserError(
            reasons(error),
            hint="--model and --doc-model take a directory or a hub id, --prompt a profile",
        ) from None


def read_documents(
    manifest: Manifest, paths: Sequence[Path], *, plain: bool = False, guess: bool = False
) -> Iterator[NamedDocument]:
    """Documents and bad records of files, each with its source, `<file>:<position>`.

    With `guess`, the field with the text is guessed where a file has not the manifest's. `-` is
    standard input: JSON lines, or one document if `plain`. UserError for what it cannot read.
    """
    corpus = manifest.corpus
    fields, limit = Fields(corpus.text, corpus.id), corpus.max_record_bytes
    for number, path in enumerate(paths):
        name = "stdin" if path == Path("-") else printable_path(path)
        items: Iterator[Document | BadRecord | SpanEnd]
        if name == "stdin":
            # `read1` returns what has arrived. The writer may wait for an answer to it.
            piped = cast(BufferedReader, sys.stdin.buffer)
            chunks = iter(partial(piped.read1, 1 << 20), b"")
            if plain:
                items = read_text(chunks, Span(number), name, limit)
            else:
                lines = LineStream(split_lines(chunks, 0, limit))
                items = read_jsonl(lines, Span(number), fields, name, limit)
        else:
            kind = _format(path, manifest)
            text_name, found = name if kind == "text" else "", fields
            if guess and kind != "text" and path.is_file():
                found = _guess(path, kind, fields, limit)
            items = read_span(path, kind, Span(number), found, limit, name=text_name)
        for item in items:
            if not isinstance(item, SpanEnd):
                yield f"{name}:{item.position}", item


def _format(path: Path, manifest: Manifest) -> Format:
    try:
        return detect_format(path, manifest.corpus.format)
    except UserError:
        if path.is_dir():
            raise
        return "text"


def _guess(path: Path, kind: Format, fields: Fields, limit: int) -> Fields:
    """Return the field with the text of a file, as `refine --out` finds it, and tell it."""
    found = guess_fields(describe_input(path, kind), limit)
    if not found.text or found.names.intersection(fields.text):
        return fields
    sys.stderr.write(safe(f'text: field "{found.text}" of {path}') + "\n")
    return replace(fields, text=(*fields.text, found.text))


def refine_documents(
    manifest: Manifest,
    documents: Iterator[NamedDocument],
    output: PreviewFormat,
    limit: int | None = None,
) -> int:
    """Refine and print in the order of the input, with a summary on stderr.

    Returns the exit status: 1 if every record is quarantined, or there is none.
    """
    models = find_models(manifest)
    printer = _Printer(freeze_manifest(manifest, models), models, output)
    asyncio.run(printer.refine(islice(documents, limit)))
    printer.summarize()
    return int(printer.counts.quarantined.total() == printer.counts.documents)


def refine_in_order(
    refiner: Refiner, documents: Iterator[NamedDocument]
) -> AsyncGenerator[tuple[NamedDocument, Row], None]:
    """Each document with its row, in order; many are refined at the same time."""

    async def read() -> AsyncIterator[NamedDocument]:
        # One at a time, because a program may write a line and wait for its row.
        while (named := await asyncio.to_thread(next, documents, None)) is not None:
            yield named

    async def refine(named: NamedDocument) -> Row:
        item = named[1]
        return bad_row(item) if isinstance(item, BadRecord) else await refiner.refine(item)

    pace = Pace(refiner.min_in_flight, IN_FLIGHT_SECONDS)
    budget = Budget(IN_FLIGHT_DOCUMENTS, IN_FLIGHT_BYTES, pace)
    return in_order(read(), refine, lambda named: event_weight(named[1]), budget)


class _Printer:
    """Refines documents, prints their rows and counts them."""

    def __init__(
        self, manifest: Manifest, models: dict[str, ModelRef], output: PreviewFormat
    ) -> None:
        self.manifest, self.models, self.output = manifest, models, output
        self.console = make_console()
        self.counts = Counts()

    async def refine(self, documents: Iterator[NamedDocument]) -> None:
        refiner = await open_refiner(self.manifest, self.models)
        try:
            async for (source, item), row in refine_in_order(refiner, documents):
                self._print_row(source, item, row)
            refiner.canary.check_refusals()
        finally:
            await refiner.close()
        for warning in refiner.canary.warnings():
            sys.stderr.write(f"proxhpc: {warning}\n")

    def _print_row(self, source: str, item: Document | BadRecord, row: Row) -> None:
        row.add_to(self.counts)
        if row.outcome == "quarantined":
            problem = safe(f"{source}: {row.reason}: {row.detail}".strip(": "), 500)
            sys.stderr.write(f"proxhpc: {problem}\n")
        text = None
        if isinstance(item, Document) and row.outcome in ("kept", "edited"):
            text = row.replay(item.text, self.manifest.policy, self.manifest.program_format).text
        if self.output == "diff":
            inspection = Inspection(
                source=source,
                shard=None,
                published=True,
                row=row,
                format=self.manifest.program_format,
                token_unit="tokens" if self.models else "bytes / 4",
                document=item if isinstance(item, Document) else None,
                after=text,
            )
            self.console.print(render_inspection(inspection), soft_wrap=True)
        elif self.output == "json":
            original = self.manifest.output.original
            self._write(_json(source, item, row, text, original) + b"\n")
        elif text is not None:
            self._write(text.encode("utf-8", "surrogatepass") + b"\n" * (not text.endswith("\n")))

    def _write(self, data: bytes) -> None:
        # A corpus is UTF-8 in every locale, so this bypasses the text layer.
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def summarize(self) -> None:
        counts = self.counts
        parts = [
            f"kept unchanged {whole(counts.kept)}",
            f"edited {whole(counts.edited)}",
            f"dropped {whole(counts.dropped.total())}",
            f"quarantined {whole(counts.quarantined.total())}",
        ]
        costs: list[int | None] = []
        for level, model in self.models.items():
            usage = counts.doc if level == "doc" else counts.chunk
            parts.append(f"{level} stage: {quantity(usage.prompt_tokens, 'token')} in")
            costs.append(flops(model.shape, usage) if model.shape else None)
        total = sum_or_none(costs)
        if total is None:
            parts.append("FLOPs unknown")
        elif total:
            parts.append(f"{power(total)} FLOPs")
        sys.stderr.write(f"{quantity(counts.documents, 'document')}: {', '.join(parts)}\n")


def _json(
    source: str, item: Document | BadRecord, row: Row, text: str | None, original: bool
) -> bytes:
    """A row as in the corpus; its `text` is null for a document that does not reach it."""
    document = item if isinstance(item, Document) else Document("", "", row.file, row.position)
    provenance: dict[str, Any] = {"source": source, "outcome": row.outcome, "reason": row.reason}
    if row.doc:
        provenance["doc"] = row.doc.program
    provenance["chunk"] = [call.program for call in row.windows]
    provenance |= {"rejected": row.rejected, "lenient": row.lenient, "flags": row.flags}
    first = {"original_text": document.text if item is document else None} if original else {}
    return orjson.dumps(build_row(document, text, first, {"proxhpc": provenance}))

"""Refining documents right here, for a first look at a model on one's own data.

The same stages, engines and policy as in a run, and the same records as of its corpus, but no run
directory: nothing is kept, resumed or merged.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import orjson
from pydantic import ValidationError

from proxhpc.account.counts import Counts
from proxhpc.account.flops import flops
from proxhpc.assemble.rows import build_row
from proxhpc.corpus.document import Bad, Document, End, Span
from proxhpc.corpus.inputs import resolve, shown, unreadable
from proxhpc.corpus.jsonl import read_jsonl, split_lines
from proxhpc.corpus.readers import Fields, read_span
from proxhpc.errors import UserError
from proxhpc.inspect import Inspection, render_inspection
from proxhpc.program.replay import replay
from proxhpc.refine.pump import IN_FLIGHT_DOCUMENTS, Budget, in_order
from proxhpc.refine.refiner import Refiner, open_refiner
from proxhpc.report.text import power
from proxhpc.run.ledger import Row, bad_row
from proxhpc.run.models import ModelRef
from proxhpc.run.plan import find_models, freeze_manifest
from proxhpc.spec.load import follows
from proxhpc.spec.manifest import Manifest, load_manifest
from proxhpc.spec.sections import EMBEDDED
from proxhpc.status.terminal import make_console, safe, whole
from proxhpc.worker.worker import IN_FLIGHT_BYTES, event_weight

PreviewOptions = Literal["json", "text", "diff"]
NamedDocument = tuple[str, Document | Bad]


def preview_manifest(
    path: Path | None,
    *,
    engine: str | None,
    model: str | None,
    doc_model: str | None,
    prompt: str | None,
) -> Manifest:
    """The manifest in a file, or that of a model or two; without either, of the rules."""
    if path is not None:
        if engine or model or doc_model:
            raise UserError("--manifest names the models and the engine: give it alone")
        return load_manifest(path)
    stages = [("doc", doc_model), ("chunk", model)]
    if model or doc_model:
        stages = [stage for stage in stages if stage[1]]
        # The embedded model is done with many documents before vLLM would have started.
        large = {model, doc_model} - {None, EMBEDDED}
        engine = engine or ("vllm" if large and find_spec("vllm") else "transformers")
    style: dict[str, str | None] = {"prompt": prompt} if prompt else {}
    data = {
        "name": "here",
        "corpus": {"paths": "-", "id": "id"},
        "engine": {"name": engine or "rules"},
        "stages": [{"level": level, "model": name} | style for level, name in stages],
    }
    try:
        return Manifest.model_validate(data, context={"base": Path.cwd()})
    except ValidationError as error:
        found = [problem["msg"] for problem in error.errors() if not follows(problem)]
        raise UserError(
            "; ".join(text.removeprefix("Value error, ").strip() for text in found),
            hint="--model and --doc-model take a directory or a hub id, --prompt a prompt style",
        ) from None


def items(
    manifest: Manifest, paths: Sequence[Path], *, plain: bool = False
) -> Iterator[NamedDocument]:
    """Documents and bad records of files, each with the name of where it stands.

    `-` is standard input: JSON lines, or with `plain` one document. UserError for a file that
    cannot be read.
    """
    corpus = manifest.corpus
    fields, limit = Fields(corpus.text, corpus.id), corpus.max_record_bytes
    for number, path in enumerate(paths):
        name = "stdin" if path == Path("-") else shown(path)
        found: Iterator[Document | Bad | End]
        if name == "stdin" and not plain:
            # What is there, not whole blocks: the writer may wait for an answer.
            piped = cast(BufferedReader, sys.stdin.buffer)
            chunks = iter(partial(piped.read1, 1 << 20), b"")
            lines = split_lines(chunks, 0, limit)
            found = read_jsonl(lines, Span(number), fields, name, limit)
        elif name == "stdin" or not _is_corpus(path, manifest):
            found = iter([_whole(path, name, number, limit)])
        else:
            found = read_span(path, corpus.format, Span(number), fields, limit)
        for item in found:
            if not isinstance(item, End):
                yield f"{name}:{item.position}", item


def _is_corpus(path: Path, manifest: Manifest) -> bool:
    try:
        resolve(path, manifest.corpus.format)
    except UserError:
        if path.is_dir():
            raise
        return False
    return True


def _whole(path: Path, name: str, number: int, limit: int) -> Document | Bad:
    """A file as one document of plain text."""
    try:
        if name == "stdin":
            data = sys.stdin.buffer.read(limit + 1)
        else:
            with path.open("rb") as file:
                data = file.read(limit + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    head = data[:2000]
    if len(data) > limit:
        return Bad("too_long", number, 0, len(data), head, f"more than {limit:,} bytes")
    try:
        return Document(name, data.decode("utf-8"), number, 0)
    except UnicodeDecodeError as error:
        return Bad("invalid_utf8", number, 0, len(data), head, str(error))


def refine_documents(
    manifest: Manifest,
    found: Iterator[NamedDocument],
    form: PreviewOptions,
    limit: int | None = None,
) -> int:
    """Refine and print, in the order of the input, then a summary on stderr; the exit status.

    That is 1 where not one record could be read.
    """
    models = find_models(manifest)
    manifest = freeze_manifest(manifest, models)
    printer = _Printer(manifest, models, form)
    asyncio.run(_refine(manifest, islice(found, limit), printer))
    printer.sum_up()
    return int(printer.bad == printer.counts.documents > 0)


async def _refine(manifest: Manifest, found: Iterator[NamedDocument], printer: "_Printer") -> None:
    refiner = await open_refiner(manifest, printer.models)
    try:
        async for (source, item), row in rows(refiner, found):
            printer.show(source, item, row)
    finally:
        await refiner.close()


def rows(
    refiner: Refiner, found: Iterator[NamedDocument]
) -> AsyncGenerator[tuple[NamedDocument, Row], None]:
    """Each item with its row, in order, many in flight."""

    async def events() -> AsyncIterator[NamedDocument]:
        # One by one: who writes line by line into a pipe is answered line by line.
        while (event := await asyncio.to_thread(next, found, None)) is not None:
            yield event

    async def work(event: NamedDocument) -> Row:
        item = event[1]
        return bad_row(item) if isinstance(item, Bad) else await refiner.refine(item)

    budget = Budget(IN_FLIGHT_DOCUMENTS, IN_FLIGHT_BYTES)
    return in_order(events(), work, lambda event: event_weight(event[1]), budget)


class _Printer:
    """Prints results and counts them."""

    def __init__(
        self, manifest: Manifest, models: dict[str, ModelRef], form: PreviewOptions
    ) -> None:
        self.manifest, self.models, self.form = manifest, models, form
        self.style = manifest.chunk_style
        self.console = make_console()
        self.counts, self.bad = Counts(), 0

    def show(self, source: str, item: Document | Bad, row: Row) -> None:
        """One result, as asked for."""
        row.add_to(self.counts)
        if row.outcome == "quarantined":
            self.bad += isinstance(item, Bad)
            said = safe(f"{source}: {row.reason}: {row.detail}".strip(": "), 500)
            sys.stderr.write(f"proxhpc: {said}\n")
        text = self._text(item, row)
        if self.form == "diff":
            self.console.print(
                render_inspection(self._inspection(source, item, row, text)), soft_wrap=True
            )
        elif self.form == "json":
            self._write(_json(source, item, row, text) + b"\n")
        elif text is not None:
            self._write(text.encode("utf-8", "surrogatepass") + b"\n" * (not text.endswith("\n")))

    def _text(self, item: Document | Bad, row: Row) -> str | None:
        if isinstance(item, Bad) or row.outcome not in ("kept", "edited"):
            return None
        doc = row.doc.emitted if row.doc else None
        windows = [call.window for call in row.windows]
        return replay(item.text, doc, windows, self.manifest.policy, self.style).text

    def _inspection(
        self, source: str, item: Document | Bad, row: Row, text: str | None
    ) -> Inspection:
        return Inspection(
            source=source,
            shard=None,
            published=True,
            row=row,
            style=self.style,
            token_unit="tokens" if self.manifest.engine.name != "rules" else "bytes / 4",
            before=item.text if isinstance(item, Document) else None,
            after=text,
        )

    def _write(self, data: bytes) -> None:
        # Not the text layer: a corpus is UTF-8 whatever the locale says.
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def sum_up(self) -> None:
        """How many of what, and what it cost."""
        counts = self.counts
        parts = [f"kept {whole(counts.kept)}", f"edited {whole(counts.edited)}"]
        parts += [f"dropped {whole(counts.dropped.total())}"]
        parts += [f"quarantined {whole(counts.quarantined.total())}"]
        costs: list[int | None] = []
        for level, model in self.models.items():
            usage = counts.doc if level == "doc" else counts.chunk
            parts.append(f"{level} stage: {whole(usage.prompt_tokens)} tokens in")
            costs.append(flops(model.shape, usage) if model.shape else None)
        known = [cost for cost in costs if cost is not None]
        if len(known) < len(costs):
            parts.append("FLOPs unknown")
        elif cost := sum(known):
            parts.append(f"{power(cost)} FLOPs")
        sys.stderr.write(f"{whole(counts.documents)} documents: {', '.join(parts)}\n")


def _json(source: str, item: Document | Bad, row: Row, text: str | None) -> bytes:
    """A row like the corpus's; `text` is null where nothing stays."""
    document = item if isinstance(item, Document) else Document("", "", row.file, row.position)
    about: dict[str, Any] = {"source": source, "outcome": row.outcome, "reason": row.reason}
    if row.doc:
        about["doc"] = row.doc.program
    about["chunk"] = [call.program for call in row.windows]
    about |= {"rejected": row.rejected, "flags": row.flags}
    return orjson.dumps(build_row(document, text, {}, {"proxhpc": about}))

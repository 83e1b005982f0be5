"""One document of a run: its row, its raw text, and what its programs make of it."""

from dataclasses import asdict, dataclass, field
from typing import Any

from proxhpc.assemble.rows import record_source
from proxhpc.corpus.document import Bad, Document, Span
from proxhpc.errors import ShardError, StopError
from proxhpc.inspect.find import FoundRow
from proxhpc.inspect.survivor import Survivor, survivor_of
from proxhpc.program.replay import ReplayResult, ProgramFormat, replay
from proxhpc.program.syntax import FIRST_LINE
from proxhpc.run.ledger import Call, Row, text_digest
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan


@dataclass(frozen=True, slots=True)
class Inspection:
    """A document before and after.

    `before` is None for a record that could not be read, `after` for what does not reach the
    merge. `duplicate_of` is what the merge kept in its place. `notes` say what does not fit
    together. `shard` is None for what is no part of a run.
    """

    source: str
    shard: int | None
    published: bool
    row: Row
    style: ProgramFormat
    token_unit: str
    before: str | None
    after: str | None
    notes: tuple[str, ...] = field(default=())
    duplicate_of: Survivor | None = None

    def number(self, line: int) -> int | None:
        """What the model saw in front of a line; None for a line that no model saw."""
        for call in self.row.windows:
            if call.start <= line < call.stop:
                base = 0 if self.style.numbering == "document" else call.start
                return line - base + FIRST_LINE[self.style.dialect]
        return None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        row = self.row
        return {
            "id": row.id,
            "source": self.source,
            "shard": self.shard,
            "published": self.published,
            "status": row.outcome,
            "reason": row.reason,
            "detail": row.detail,
            "flags": list(row.flags),
            "rejected": row.rejected,
            "bytes": [row.bytes_in, row.bytes_out],
            "tokens": [row.tokens_in, row.tokens_out],
            "token_unit": self.token_unit,
            "lines_removed": row.lines_removed,
            "strings_replaced": row.strings_replaced,
            "doc_program": _call(row.doc) if row.doc else None,
            "chunk_programs": [_call(call) for call in row.windows],
            "before": self.before,
            "after": self.after,
            "unreadable": row.head.decode("utf-8", "replace") if self.before is None else None,
            "duplicate_of": asdict(self.duplicate_of) if self.duplicate_of else None,
            "notes": list(self.notes),
        }


def examine_document(run: RunDir, plan: Plan, found: FoundRow) -> Inspection:
    """Read the raw record of a row again and run its programs.

    StopError when the input is no longer what was refined.
    """
    row = found.row
    style = plan.manifest.chunk_style
    document = _read(plan, row)
    after: str | None = None
    notes: list[str] = []
    if document is not None and row.outcome != "quarantined":
        outcome = _outcome(plan, row, document.text, style, notes)
        if outcome is not None and outcome.outcome in ("kept", "edited"):
            after = outcome.text
    return Inspection(
        source=record_source(plan, row),
        shard=found.shard,
        published=found.published,
        row=row,
        style=style,
        token_unit=plan.token_unit,
        before=document.text if document else None,
        after=after,
        notes=tuple(notes),
        duplicate_of=survivor_of(run, plan, found),
    )


def _read(plan: Plan, row: Row) -> Document | None:
    plan.check_input(row.file)
    span = Span(row.file, row.position, row.position + 1)
    item = next((i for i in plan.read(span) if isinstance(i, Document | Bad)), None)
    if isinstance(item, Document):
        if item.id == row.id and text_digest(item.text) == row.digest:
            return item
    elif item is not None and row.outcome == "quarantined" and not row.digest:
        return None
    raise StopError(
        f"input {plan.inputs[row.file].path} is not what was refined: the record at"
        f" {row.position} is another now",
        hint="put the old input back, or start a new run with this one",
    )


def _outcome(
    plan: Plan, row: Row, text: str, style: ProgramFormat, notes: list[str]
) -> ReplayResult | None:
    doc = row.doc.emitted if row.doc else None
    windows = [call.window for call in row.windows]
    try:
        outcome = replay(text, doc, windows, plan.manifest.policy, style)
    except ShardError as error:
        notes.append(error.message)
        return None
    if (outcome.outcome, outcome.reason) != (row.outcome, row.reason):
        now = f"{outcome.outcome} {outcome.reason}".strip()
        notes.append(f"the programs now make it {now}: this proxhpc is not the one that wrote it")
    return outcome


def _call(call: Call) -> dict[str, Any]:
    return {
        "lines": [call.start, call.stop],
        "program": call.program,
        "finish": call.finish,
        "prompt_tokens": call.prompt,
        "cached_tokens": call.cached,
        "new_tokens": call.new,
    }

"""Documents of a run: their rows, raw texts, and the texts that their programs make of them."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from proxhpc.assemble.rows import record_source
from proxhpc.corpus.document import BadRecord, Document, Span
from proxhpc.errors import ShardError, StopError
from proxhpc.inspect.find import FoundRow, find_rows, not_found, sample_rows
from proxhpc.inspect.model import BenchmarkItem, InspectedDocument, InspectedProgram, Survivor
from proxhpc.inspect.survivor import MergeEffects
from proxhpc.program.lines import Range, first_parts, line_starts
from proxhpc.program.replay import ProgramFormat, ReplayResult, window_lines
from proxhpc.run.ledger import Call, Row, text_digest
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan


@dataclass(frozen=True)
class Inspection:
    """A document before and after.

    `document` is None for a record that could not be read, `after` for a document that does not
    reach the merge. `removed` are the ranges of removed lines. `notes` name contradictions. `shard`
    is None for a document of no run. `merge_program` removed repeated lines after the others.
    `left_out` is the reason for which the merge left it out, `benchmark_item` what of a benchmark
    it contains.
    """

    source: str
    shard: int | None
    published: bool
    row: Row
    format: ProgramFormat
    token_unit: str
    document: Document | None
    after: str | None
    removed: Sequence[Range] = ()
    notes: tuple[str, ...] = ()
    duplicate_of: Survivor | None = None
    merge_program: str = ""
    left_out: str = ""
    benchmark_item: BenchmarkItem | None = None

    @property
    def before(self) -> str | None:
        """The raw text; None for a record that could not be read."""
        return self.document.text if self.document else None

    @property
    def outcome(self) -> str:
        """What became of the document."""
        outcome = "left_out" if self.left_out else self.row.outcome
        return "duplicate" if self.duplicate_of else outcome

    @property
    def reason(self) -> str:
        """Why it was dropped, quarantined or left out."""
        return self.left_out or self.row.reason

    @cached_property
    def _numbers(self) -> dict[int, int | None]:
        """The numbers of lines and of parts of split lines, as the models saw them."""
        if self.before is None:
            return {}
        starts = line_starts(self.before, self.row.cuts)
        windows = [call.window for call in self.row.windows]
        try:
            pairs = window_lines(self.before, windows, self.format, starts)
        except ShardError:  # `notes` says so
            return {}
        return {n: lines.number(n) for _, lines in pairs for n in range(lines.start, lines.stop)}

    @cached_property
    def _parts(self) -> Sequence[int]:
        return first_parts(self.before or "", self.row.cuts)

    def number(self, line: int) -> int | None:
        """The number that the model saw in front of a line; None if no model saw one.

        Of a line that was split, that of its first part.
        """
        return self._numbers.get(self._parts[line])

    def window_numbers(self, call: Call) -> list[int]:
        """The numbers of a call's lines."""
        numbers = map(self._numbers.get, range(call.start, call.stop))
        return [number for number in numbers if number is not None]

    def _program(self, call: Call) -> InspectedProgram:
        first, last = (bisect_right(self._parts, line) for line in (call.start, call.stop - 1))
        return InspectedProgram(
            lines=(first - 1, last),
            program=call.program,
            finish=call.finish,
            prompt_tokens=call.prompt,
            cached_tokens=call.cached,
            new_tokens=call.new,
            from_memo=call.from_memo,
        )

    def to_output(self) -> InspectedDocument:
        """What `--json` prints: keys of its row, and those that the merge may have changed."""
        row = self.row
        same = {
            name: getattr(source, name)
            for source in (row, self)
            for name in InspectedDocument.model_fields
            if hasattr(source, name)
        }
        programs = {
            "doc_program": self._program(row.doc) if row.doc else None,
            "chunk_programs": tuple(map(self._program, row.windows)),
            "merge_program": self.merge_program or None,
        }
        unreadable = row.head.decode("utf-8", "replace") if self.before is None else None
        return InspectedDocument(**same | programs, unreadable=unreadable)


def inspect_documents(run: RunDir, query: str) -> list[Inspection]:
    """Every document with this id, or the one at `<input name>:<position>`.

    UserError with similar ids when there is none.
    """
    plan = Plan.load(run)
    effects = MergeEffects(run, plan)
    items = [examine_document(plan, hit, effects) for hit in find_rows(run, plan, query)]
    if not items:
        raise not_found(run, plan, query)
    return items


def sample_documents(
    run: RunDir, number: int, outcome: str = "", seed: int = 0
) -> list[Inspection]:
    """Documents chosen at random, of one outcome if given."""
    plan = Plan.load(run)
    effects = MergeEffects(run, plan)
    rows = sample_rows(run, plan, effects, number, outcome, seed)
    return [examine_document(plan, hit, effects) for hit in rows]


def examine_document(plan: Plan, hit: FoundRow, effects: MergeEffects | None = None) -> Inspection:
    """Read the raw record of a row again and execute its programs.

    Without `effects`, the inspection is of what the refiner did.

    StopError when the input has changed since it was refined.
    """
    row = hit.row
    document = _read(plan, row)
    result: ReplayResult | None = None
    survivor: Survivor | None = None
    program, left_out, notes = "", "", list[str]()
    item: BenchmarkItem | None = None
    if document is not None and row.outcome != "quarantined":
        result = _replay(plan, row, document.text, notes)
    if effects and hit.published and row.outcome in ("kept", "edited"):
        try:
            survivor = effects.survivor(hit.shard, hit.number)
        except FileNotFoundError as error:
            notes.append(
                "the merge left it out as a duplicate, but the file that names the document in its"
                f" place is gone: {error.filename}"
            )
        source = record_source(plan, row)
        left_out = effects.left_out_reason(hit.shard, hit.number, source)
        item = effects.benchmark_item(hit.shard, source)
        program = effects.line_program(hit.shard, hit.number)
        if program and result:
            from proxhpc.assemble.line_edits import remove_repeated_lines  # numpy: see effects

            result = result._replace(text=remove_repeated_lines(result.text, program).text)
    return Inspection(
        source=record_source(plan, row),
        shard=hit.shard,
        published=hit.published,
        row=row,
        format=plan.manifest.program_format,
        token_unit=plan.token_unit,
        document=document,
        after=result.text if result else None,
        removed=result.removed if result else (),
        notes=tuple(notes),
        duplicate_of=survivor,
        merge_program=program,
        left_out=left_out,
        benchmark_item=item,
    )


def _read(plan: Plan, row: Row) -> Document | None:
    """The document of a row; None for a record that cannot be read."""
    plan.check_input(row.file)
    span = Span(row.file, row.position, row.position + 1)
    item = next((i for i in plan.read(span) if isinstance(i, Document | BadRecord)), None)
    if isinstance(item, Document):
        if item.id == row.id and text_digest(item.text) == row.digest:
            return item
    elif item is not None and row.outcome == "quarantined" and not row.digest:
        return None
    raise StopError(
        f"input {plan.inputs[row.file].path} has changed since it was refined: there is another"
        f" record at {row.position}",
        hint="restore the old input, or start a new run with this one",
    )


def _replay(plan: Plan, row: Row, text: str, notes: list[str]) -> ReplayResult | None:
    """What a row's programs make of the text, None if it does not reach the merge.

    Anything unexpected is added to `notes`.
    """
    try:
        result = row.replay(text, plan.manifest.policy, plan.manifest.program_format)
    except ShardError as error:
        notes.append(error.message)
        return None
    if (result.outcome, result.reason) != (row.outcome, row.reason):
        now = f"{result.outcome} {result.reason}".strip()
        notes.append(
            f"its programs now give outcome {now}: another version of proxhpc wrote the ledger"
        )
    return result if result.outcome in ("kept", "edited") else None

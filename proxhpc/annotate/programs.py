"""The teachers of a run: rules or models, whose programs its ledgers hold.

An answer teaches only if it was understood whole and its effect believed: one with a rejected
statement, or which was cut, says nothing; nor do any of a document's where the run's policy kept
the original or dropped the document for what they would have done to it.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial

from proxhpc.annotate.labels import Edit, SourceDocument, TeacherLabels
from proxhpc.assemble.replay import ReplayedRecord, SpanStats, replay_shard
from proxhpc.corpus.document import Bad
from proxhpc.corpus.hosts import host_of
from proxhpc.corpus.records import lookup
from proxhpc.errors import UserError
from proxhpc.evaluate.gold import GoldFields
from proxhpc.program.edits import WindowEdits
from proxhpc.program.execute import SpanChange, execute
from proxhpc.program.policy import Policy
from proxhpc.program.replay import ProgramFormat, doc_verdict, read_placed
from proxhpc.run.ledger import Call, Row
from proxhpc.run.models import short_name
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan

LIMITS = ("removed_share", "short")
"""Limits of a policy on what programs may do to a document as a whole."""


class RunSource:
    """A refined run as a source: its documents, taught by the programs in its ledgers."""

    def __init__(self, run: RunDir, names: GoldFields) -> None:
        """UserError where shards are still to be refined, or programs run as the public code."""
        self.run, self.names, self.plan = run, names, Plan.load(run)
        manifest = self.plan.manifest
        shards = range(len(self.plan.shards))
        if missing := sum(not run.ledger(shard).exists() for shard in shards):
            raise UserError(
                f"{run.root}: {missing} of {len(shards)} shards are not refined yet",
                hint=f"go on with: proxhpc launch {run.root}",
            )
        if not isinstance(manifest.policy, Policy):
            raise UserError(
                f"{run.root}: policy: reference has effects that no program can be checked by",
                hint="teach with a run under proxhpc's own policy",
            )
        self.policy, self.style = manifest.policy, manifest.chunk_style
        models = [short_name(ref.name) for ref in self.plan.models.values()]
        self.teacher = " + ".join(dict.fromkeys(models)) or manifest.engine.name

    def subjects(self) -> Iterator[SourceDocument | Bad]:
        """Every record of the run; StopError where its input has changed since."""
        for shard in range(len(self.plan.shards)):
            for item in replay_shard(self.run, self.plan, shard):
                if not isinstance(item, SpanStats):
                    yield self._subject(item)

    def _subject(self, refined: ReplayedRecord) -> SourceDocument | Bad:
        row, document = refined.row, refined.document
        if document is None or row.outcome == "quarantined":
            return Bad(row.reason, row.file, row.position, row.bytes_in)
        source = lookup(document.fields, self.names.source)
        named = self.plan.inputs[document.file].name
        return SourceDocument(
            id=document.id,
            text=document.text,
            source=source if isinstance(source, str) and source else named,
            host=host_of(document.fields, self.names.host, self.names.url),
            teacher=self.teacher,
            teach=partial(program_labels, document.text, row, self.policy, self.style),
        )


def program_labels(text: str, row: Row, policy: Policy, style: ProgramFormat) -> TeacherLabels:
    """What a row's programs say of its document."""
    aside: Counter[tuple[str, str]] = Counter()
    keep = None
    if row.doc is not None:
        keep = keeps_document(row.doc)
        aside["doc", "bad_answer"] += keep is None
    windows = [read_placed(call.window, style) for call in row.windows]
    limit = next((name for name in LIMITS if name == row.reason or name in row.rejected), "")
    if limit:
        aside["chunk", limit] += len(windows)
    if limit or not windows:
        return TeacherLabels(keep, aside=+aside)
    edits: list[Edit] = []
    known: set[int] = set()
    total = text.count("\n") + 1
    starts: list[int] | None = None
    executed = execute(text, total, windows, policy)
    for call, window, (changes, _) in zip(row.windows, windows, executed, strict=True):
        if window.rejected or call.finish != "stop":
            aside["chunk", "bad_answer"] += 1
            continue
        known.update(range(window.start, window.stop))
        edits += [Edit(a, b) for a, b in window.removed]
        if window.strings:
            starts = starts or _line_starts(text)
            edits += _string_edits(text, starts, window, changes)
    unknown = frozenset(range(total)) - known
    return TeacherLabels(keep, tuple(sorted(edits, key=lambda edit: edit.start)), unknown, +aside)


def keeps_document(call: Call) -> bool | None:
    """Whether a doc program keeps; None where it does not say so, or says more."""
    found = doc_verdict(call.emitted, Policy())
    return None if found.rejected or call.finish != "stop" else found.action == "keep"


def _line_starts(text: str) -> list[int]:
    """Where each line starts, and behind the last its end with a newline."""
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    return starts


def _string_edits(
    text: str, starts: list[int], window: WindowEdits, changes: list[SpanChange]
) -> Iterator[Edit]:
    """Edits of the lines that stay, from changes of characters; those that share a line are one."""
    gone = {starts[a] for a, _ in window.removed}
    strings = [change for change in changes if change[0] not in gone]
    spans: list[tuple[int, int, list[SpanChange]]] = []
    line = window.start
    for change in strings:
        while starts[line + 1] <= change[0]:
            line += 1
        stop = line + 1
        while starts[stop] <= change[1]:  # the newline before that line goes too
            stop += 1
        if spans and spans[-1][1] > line:
            first, _, own = spans[-1]
            spans[-1] = (first, max(stop, spans[-1][1]), [*own, change])
        else:
            spans.append((line, stop, [change]))
    for first, stop, own in spans:
        at = starts[first]
        pieces: list[str] = []
        for start, end, target in own:
            pieces += text[at:start], target
            at = end
        yield Edit(first, stop, "".join([*pieces, text[at : starts[stop] - 1]]))

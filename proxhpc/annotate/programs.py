"""Labels from a run: the programs of rules or of a model, as its ledgers hold them.

An answer counts only if all of it is valid and the run executed it. So an answer that is truncated
or has a rejected statement gives no labels, and no answer of a document does if the run's policy
kept the original or dropped the document because of what they would have removed.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

from proxhpc.account.quantity import quantity
from proxhpc.annotate.labels import Edit, SourceDocument, TeacherLabels
from proxhpc.assemble.replay import ReplayedRecord, SpanStats, replay_shard
from proxhpc.corpus.document import BadRecord
from proxhpc.corpus.hosts import host_of
from proxhpc.corpus.records import get_field
from proxhpc.errors import UserError
from proxhpc.evaluate.gold import GoldFields
from proxhpc.program.edits import WindowEdits
from proxhpc.program.execute import apply_changes, execute
from proxhpc.program.layout import change_groups
from proxhpc.program.lines import line_starts
from proxhpc.program.match import SpanChange
from proxhpc.program.policy import Policy
from proxhpc.program.replay import ProgramFormat, doc_verdict, read_windows
from proxhpc.run.ledger import Row
from proxhpc.run.models import short_name
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan

DOCUMENT_LIMITS = ("emptied", "removed_share", "short")
"""Limits of a policy on what all programs of a document do together."""


class RunSource:
    """The documents of a refined run, with the labels in its ledgers."""

    def __init__(self, run: RunDir, fields: GoldFields) -> None:
        """UserError if shards are not refined yet, or the policy is `reference`."""
        self.run, self.fields, self.plan = run, fields, Plan.load(run)
        manifest = self.plan.manifest
        shards = range(len(self.plan.shards))
        if missing := sum(not run.ledger(shard).exists() for shard in shards):
            raise UserError(
                f"{run.root}: not refined yet: {missing} of {quantity(len(shards), 'shard')}",
                hint=f"continue with: proxhpc launch {run.root}",
            )
        if not isinstance(manifest.policy, Policy):
            raise UserError(
                f"{run.root}: cannot make examples from a run with policy: reference",
                hint="refine with proxhpc's own policy",
            )
        self.policy, self.format = manifest.policy, manifest.program_format
        models = [short_name(ref.name) for ref in self.plan.models.values()]
        self.teacher = " + ".join(dict.fromkeys(models)) or manifest.engine.name

    def documents(self) -> Iterator[SourceDocument | BadRecord]:
        """Every record of the run. StopError if its input has changed since."""
        for shard in range(len(self.plan.shards)):
            for item in replay_shard(self.run, self.plan, shard):
                if not isinstance(item, SpanStats):
                    yield self._document(item)

    def _document(self, replayed: ReplayedRecord) -> SourceDocument | BadRecord:
        row, document = replayed.row, replayed.document
        if document is None or row.outcome == "quarantined":
            return BadRecord(row.reason, row.file, row.position, row.bytes_in)
        source = get_field(document.fields, self.fields.source)
        input_name = self.plan.inputs[document.file].name
        return SourceDocument(
            id=document.id,
            text=document.text,
            source=source if isinstance(source, str) and source else input_name,
            host=host_of(document.fields, self.fields.host, self.fields.url),
            teacher=self.teacher,
            read_labels=partial(program_labels, document.text, row, self.policy, self.format),
        )


def program_labels(
    text: str, row: Row, policy: Policy, program_format: ProgramFormat
) -> TeacherLabels:
    """The labels that a ledger row's programs give to its document."""
    discarded: Counter[tuple[str, str]] = Counter()
    keep = None
    if row.doc is not None:
        verdict = doc_verdict(row.doc.output, policy)
        is_exact = row.doc.finish == "stop" and not verdict.rejected
        keep = verdict.action == "keep" if is_exact else None
        discarded["doc", "bad_answer"] += keep is None
    windows = read_windows(
        text,
        [call.window for call in row.windows],
        program_format,
        line_starts(text, row.cuts),
        strict=policy.strict,
    )
    limits = (name for name in DOCUMENT_LIMITS if name == row.reason or name in row.rejected)
    # A line that was split is longer than a window, so it is in no example.
    limit = "split_lines" if row.cuts else next(limits, None)
    if limit is not None:
        discarded["chunk", limit] += len(windows)
    if limit is not None or not windows:
        return TeacherLabels(keep, discarded=+discarded)
    edits: list[Edit] = []
    known: set[int] = set()
    starts = line_starts(text)
    total = len(starts) - 1
    executed = execute(text, starts, windows, policy)
    for call, window, result in zip(row.windows, windows, executed, strict=True):
        if window.rejected.keys() - {"other_window"} or window.rewrites or call.finish != "stop":
            discarded["chunk", "bad_answer"] += 1
            continue
        known.update(range(window.start, window.stop))
        if window.inserted:
            edits.append(_edit(text, starts, window.start, window.stop, result[0]))
            continue
        edits += [Edit(start, stop) for start, stop in window.removed]
        if window.strings:
            edits += _string_edits(text, starts, window, result[0])
    unknown = frozenset(range(total)) - known
    edits.sort(key=lambda edit: edit.start)
    return TeacherLabels(keep, tuple(edits), unknown, +discarded)


def _edit(
    text: str, starts: Sequence[int], first: int, stop: int, changes: Sequence[SpanChange]
) -> Edit:
    """Changes within the lines [first, stop) as one edit; `starts` are the offsets of lines."""
    low, high = starts[first], starts[stop] - 1
    moved = [(start - low, end - low, target) for start, end, target in changes]
    return Edit(first, stop, apply_changes(text[low:high], [(moved, len(moved))]))


def _string_edits(
    text: str, starts: Sequence[int], window: WindowEdits, changes: list[SpanChange]
) -> Iterator[Edit]:
    """Changes of characters as edits of the remaining lines; changes that share a line are one."""
    removed = {starts[start] for start, _ in window.removed}
    strings = [change for change in changes if change[0] not in removed]

    def share_a_line(end: int, start: int) -> bool:
        return bisect_right(starts, end) >= bisect_right(starts, start)

    for group in change_groups(strings, share_a_line):
        first = bisect_right(starts, group[0][0]) - 1
        stop = bisect_right(starts, group[-1][1])  # one line further if a newline is removed
        yield _edit(text, starts, first, stop, group)

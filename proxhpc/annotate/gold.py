"""Labels from gold records: line labels, pairs of a noisy and a gold text, verdicts.

If lines have labels, these count. Otherwise, or if a label says that a line is edited, the two
texts are aligned and their differences are edits.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from proxhpc.annotate.labels import Edit, SourceDocument, TeacherLabels
from proxhpc.corpus.inputs import printable_path
from proxhpc.evaluate.gold import BOILERPLATE, CONTENT, EDITED, GoldFields, GoldRecord, iter_records
from proxhpc.program.align import EditCosts, align_lines
from proxhpc.program.derive import EDIT_COSTS
from proxhpc.program.syntax import Dialect


@dataclass(frozen=True, slots=True)
class GoldSource:
    """A file of gold records; texts are aligned at the costs of edits in `dialect`."""

    path: Path
    fields: GoldFields = field(default_factory=GoldFields)
    dialect: Dialect = "prox"

    def documents(self) -> Iterator[SourceDocument]:
        """Every record of the file. UserError at the first invalid one."""
        for record in iter_records(self.path, self.fields):
            yield SourceDocument(
                id=record.id,
                text=record.text,
                source=record.source or printable_path(Path(self.path.name)),
                host=record.host,
                teacher="gold",
                read_labels=partial(gold_labels, record, EDIT_COSTS[self.dialect]),
            )


def gold_labels(record: GoldRecord, costs: EditCosts) -> TeacherLabels:
    """The labels of a gold record."""
    of_lines = labels_of_lines(record.labels)
    if record.labels and EDITED not in record.labels:
        return replace(of_lines, keep=record.keep)
    if record.gold_text is None:
        return TeacherLabels(record.keep)
    labels = labels_of_pair(record.text, record.gold_text, costs)
    if isinstance(labels, str):
        return TeacherLabels(record.keep, discarded=Counter({("chunk", labels): 1}))
    return replace(labels, keep=record.keep, unknown=of_lines.unknown)


def labels_of_lines(labels: str) -> TeacherLabels:
    """The labels given by a letter for each line."""
    edits = tuple(Edit(n, n + 1) for n, label in enumerate(labels) if label == BOILERPLATE)
    known = (CONTENT, BOILERPLATE, EDITED)
    unknown = frozenset(n for n, label in enumerate(labels) if label not in known)
    return TeacherLabels(edits=edits, unknown=unknown)


def labels_of_pair(text: str, gold_text: str, costs: EditCosts) -> TeacherLabels | str:
    """The edits, line by line, that turn a text into another; or the reason if there are none."""
    lines, gold_lines = text.split("\n"), gold_text.split("\n")
    if text == gold_text:
        return TeacherLabels(edits=())
    if not gold_text:
        return TeacherLabels(edits=(Edit(0, len(lines)),))
    pairs = align_lines(lines, gold_lines, costs)
    if pairs is None:
        return "too_large_to_align"
    if not pairs:
        return "no_line_stays"
    # Inserted lines belong to the line before them, those at the start to the first line.
    starts = [0, *(gold_line for _, gold_line in pairs[1:]), len(gold_lines)]
    new = {
        line: "\n".join(gold_lines[start:stop])
        for (line, _), (start, stop) in zip(pairs, pairwise(starts), strict=True)
    }
    edits = (Edit(n, n + 1, new.get(n)) for n, line in enumerate(lines) if new.get(n) != line)
    return TeacherLabels(edits=tuple(edits))

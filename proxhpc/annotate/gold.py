"""The teacher `gold`: pairs of a noisy text and what it should be, labels of lines, verdicts.

Where lines have labels, these decide; else the two texts are aligned and what differs is edited.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from proxhpc.annotate.labels import Edit, Subject, TeacherLabels
from proxhpc.corpus.inputs import shown
from proxhpc.evaluate.gold import BOILERPLATE, CONTENT, GoldFields, records
from proxhpc.evaluate.gold import GoldRecord as Record
from proxhpc.program.align import Prices, align
from proxhpc.program.derive import PRICES
from proxhpc.program.syntax import Dialect


@dataclass(frozen=True, slots=True)
class GoldSource:
    """A file of gold records; `dialect` is that of the programs to be made: what edits cost."""

    path: Path
    fields: GoldFields = field(default_factory=GoldFields)
    dialect: Dialect = "prox"

    def subjects(self) -> Iterator[Subject]:
        """Every record of the file; UserError at the first that is none."""
        for record in records(self.path, self.fields):
            yield Subject(
                id=record.id,
                text=record.text,
                source=record.source or shown(Path(self.path.name)),
                host=record.host,
                teacher="gold",
                teach=partial(gold_labels, record, PRICES[self.dialect]),
            )


def gold_labels(record: Record, prices: Prices) -> TeacherLabels:
    """What a gold record says of its text."""
    if record.labels:
        return replace(labelled(record.labels), keep=record.keep)
    if record.wanted is None:
        return TeacherLabels(record.keep)
    found = aligned(record.text, record.wanted, prices)
    if isinstance(found, str):
        return TeacherLabels(record.keep, aside=Counter({("chunk", found): 1}))
    return replace(found, keep=record.keep)


def labelled(labels: str) -> TeacherLabels:
    """What labels, a letter for each line, say."""
    edits = tuple(Edit(n, n + 1) for n, label in enumerate(labels) if label == BOILERPLATE)
    known = (CONTENT, BOILERPLATE)
    unknown = frozenset(n for n, label in enumerate(labels) if label not in known)
    return TeacherLabels(edits=edits, unknown=unknown)


def aligned(text: str, gold: str, prices: Prices) -> TeacherLabels | str:
    """The edits that turn a text into another, line by line, or why there are none."""
    lines, wanted = text.split("\n"), gold.split("\n")
    if text == gold:
        return TeacherLabels(edits=())
    if not gold:
        return TeacherLabels(edits=(Edit(0, len(lines)),))
    pairs = align(lines, wanted, prices)
    if pairs is None:
        return "too_large_to_align"
    if not pairs:
        return "no_line_stays"
    edits: list[Edit] = []
    at = 0
    for number, (place, goal) in enumerate(pairs):
        edits += [Edit(line, line + 1) for line in range(at, place)]
        # Lines put in belong to the line before them, those at the head to the first.
        stop = pairs[number + 1][1] if number + 1 < len(pairs) else len(wanted)
        new = "\n".join(wanted[goal if number else 0 : stop])
        if new != lines[place]:
            edits.append(Edit(place, place + 1, new))
        at = place + 1
    edits += [Edit(line, line + 1) for line in range(at, len(lines))]
    return TeacherLabels(edits=tuple(edits))

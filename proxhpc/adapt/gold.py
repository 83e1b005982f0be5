"""The teacher `gold`: pairs of a noisy text and what it should be, or labels of its lines.

Where lines have labels, these decide; else the two texts are aligned and what differs is edited.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from proxhpc.adapt.teachers import Edit, Lesson, Names, Subject
from proxhpc.corpus.document import Bad, Document, End, Span
from proxhpc.corpus.readers import Fields, read_span
from proxhpc.corpus.records import lookup
from proxhpc.errors import UserError
from proxhpc.program.align import Prices, align
from proxhpc.program.derive import PRICES
from proxhpc.program.syntax import Dialect

MAX_RECORD_BYTES = 64 << 20
_LABELS = {"G": "good: it stays", "B": "bad: it goes"}  # any other letter: nobody knows
_VERDICTS: dict[Any, bool] = {"keep": True, "drop": False, 1: True, 0: False}


@dataclass(frozen=True, slots=True)
class GoldFields(Names):
    """Fields of a pair. `noisy` may name several: the first that a file has; empty is none."""

    noisy: str = "text_noisy,text"
    gold: str = "text_gold"
    labels: str = "line_labels"
    keep: str = "keep"


def gold_fields(settings: list[str]) -> GoldFields:
    """The fields that `KEY=FIELD` settings name; UserError for a key that there is not."""
    names = [item.name for item in fields(GoldFields)]
    out = GoldFields()
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key not in names or not equals:
            raise UserError(
                f"--field {setting}: it must be KEY=FIELD", hint=f"keys are {', '.join(names)}"
            )
        out = replace(out, **{key: value})
    return out


@dataclass(frozen=True, slots=True)
class Gold:
    """A file of pairs; `dialect` is that of the programs to be made, it prices the alignment."""

    path: Path
    fields: GoldFields = GoldFields()
    dialect: Dialect = "prox"

    def subjects(self) -> Iterator[Subject | Bad]:
        """Every record of the file; UserError or RetryError where it cannot be read."""
        for item in records(self.path, self.fields):
            yield item if isinstance(item, Bad) else self._subject(item)

    def _subject(self, document: Document) -> Subject:
        return Subject(
            id=document.id,
            text=document.text,
            source=self.fields.source_of(document.fields, self.path.name),
            host=self.fields.host_of(document.fields),
            teacher="gold",
            teach=lambda: self._teach(document),
        )

    def _teach(self, document: Document) -> Lesson:
        aside: Counter[tuple[str, str]] = Counter()
        verdict, labels, gold = (
            lookup(document.fields, name) if name else None
            for name in (self.fields.keep, self.fields.labels, self.fields.gold)
        )
        keep = _VERDICTS.get(verdict) if isinstance(verdict, str | int) else None
        if verdict is not None and keep is None:
            aside["doc", "label_unknown"] += 1
        lesson: Lesson | str | None = None
        if labels is not None:
            lesson = labelled(document.text, labels)
        elif isinstance(gold, str):
            lesson = aligned(document.text, gold, PRICES[self.dialect])
        if isinstance(lesson, str):
            aside["chunk", lesson] += 1
        if not isinstance(lesson, Lesson):
            return Lesson(keep, aside=aside)
        return replace(lesson, keep=keep, aside=aside)


def labelled(text: str, labels: object) -> Lesson | str:
    """What labels of the text's lines, a letter each, say, or why they say nothing."""
    if isinstance(labels, list) and all(isinstance(label, str) for label in labels):
        labels = [label[:1] for label in labels]
    elif not isinstance(labels, str):
        return "labels_unreadable"
    if len(labels) != text.count("\n") + 1:
        return "labels_do_not_fit"
    edits = [Edit(n, n + 1) for n, label in enumerate(labels) if label == "B"]
    unknown = frozenset(n for n, label in enumerate(labels) if label not in _LABELS)
    return Lesson(edits=tuple(edits), unknown=unknown)


def aligned(text: str, gold: str, prices: Prices) -> Lesson | str:
    """The edits that turn a text into another, line by line, or why there are none."""
    lines, wanted = text.split("\n"), gold.split("\n")
    if text == gold:
        return Lesson(edits=())
    if not gold:
        return Lesson(edits=(Edit(0, len(lines)),))
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
    return Lesson(edits=tuple(edits))


def records(path: Path, names: GoldFields) -> Iterator[Document | Bad]:
    """Documents of a file, the text taken from the first of the fields that its records have."""
    for item in _read(path, _text_field(path, names), names.id):
        if not isinstance(item, End):
            yield item


def _text_field(path: Path, names: GoldFields) -> str:
    candidates = [name.strip() for name in names.noisy.split(",") if name.strip()]
    if not candidates:
        raise UserError("--field noisy= names no field", hint="give one, as noisy=text")
    for name in candidates:
        first = next(_read(path, name, names.id))
        if not (isinstance(first, Bad) and first.reason == "missing_text"):
            return name
    return candidates[0]


def _read(path: Path, text: str, name: str) -> Iterator[Document | Bad | End]:
    return read_span(path, "auto", Span(0), Fields(text, name or None), MAX_RECORD_BYTES)

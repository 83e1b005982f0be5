"""Gold records: texts with what people decided to keep of them.

A chunk-level record holds a noisy text and the gold text for it, and may have a label for each
line. A doc-level record holds a text and whether to keep it. A record may be both. Refiners are
evaluated on such records (`read_gold`) and trained on them (`proxhpc.annotate.gold`).
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import orjson

from proxhpc.account.quantity import quantity
from proxhpc.corpus.hosts import Split, host_of, split_of
from proxhpc.corpus.inputs import detect_format, printable_path, read_error
from proxhpc.corpus.jsonl import split_lines
from proxhpc.corpus.records import get_field
from proxhpc.corpus.streams import detect_compression, read_chunks
from proxhpc.errors import UserError
from proxhpc.program.align import EditCosts, align_lines
from proxhpc.spec.sections import Level

MAX_RECORD_BYTES = 64 << 20
CONTENT, BOILERPLATE, EDITED = "G", "B", "E"
"""Labels of lines to keep, to remove, and to keep as the gold text has them; lines with any other
label are not counted."""


@dataclass(frozen=True, slots=True)
class GoldRecord:
    """One gold record, at `location`, as in `file:line`.

    At chunk level `gold_text` is not None; `labels` has a letter for each line of `text`, or is
    empty. At doc level `keep` is not None; `unanimous` says that all annotators agreed. `host` and
    `source` may be empty.
    """

    id: str
    location: str
    source: str
    text: str
    gold_text: str | None = None
    labels: str = ""
    keep: bool | None = None
    unanimous: bool = False
    host: str = ""


def records_by_level(records: Sequence[GoldRecord]) -> dict[Level, list[GoldRecord]]:
    """The records of each level that has any; a record may be of both levels."""
    levels: dict[Level, list[GoldRecord]] = {
        "chunk": [gold for gold in records if gold.gold_text is not None],
        "doc": [gold for gold in records if gold.keep is not None],
    }
    return {level: of_level for level, of_level in levels.items() if of_level}


@dataclass(frozen=True, slots=True)
class GoldFields:
    """The key, or dotted path, of each field in a record; an empty one has no key."""

    noisy: str = "text_noisy"
    gold: str = "text_gold"
    labels: str = "line_labels"
    text: str = "text"
    keep: str = "keep"
    unanimous: str = "unanimous"
    id: str = "id"
    source: str = "source"
    host: str = "host"
    url: str = "url"

    @classmethod
    def parse(cls, option: str) -> "GoldFields":
        """Read `noisy=KEY,gold=KEY,…`; other fields keep their defaults. UserError."""
        names = [field.name for field in fields(cls)]
        keys = cls()
        for part in filter(None, option.split(",")):
            name, equals, key = part.partition("=")
            if name not in names or not equals:
                raise UserError(
                    f"--fields {option}: {part!r} is not NAME=KEY",
                    hint=f"write NAME=KEY, where NAME is one of {', '.join(names)}",
                )
            keys = replace(keys, **{name: key})
        return keys


_CHANGED_CHARS = EditCosts(remove=1, replace=1, insert=1)
# A line stays if less of it changes than the gold text would gain by a new line.

Condition = tuple[str, str]
"""A field and its value, as in `source=dragnet`."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Selects records of `split` that meet `where` and no condition of `exclude`.

    Conditions of `where` on the same field are alternatives; those on different fields must all
    hold. `limit` is the number of records to take at random.
    """

    where: tuple[Condition, ...] = ()
    exclude: tuple[Condition, ...] = ()
    limit: int | None = None
    seed: int = 0
    split: Split | None = None

    def selects(self, record: dict[str, Any], gold: GoldRecord) -> bool:
        """Whether a record, read as `gold`, meets the conditions and is of the split."""
        if self.split not in (None, split_of(gold.host, gold.text)):
            return False
        values = {key: _scalar(get_field(record, key)) for key, _ in (*self.where, *self.exclude)}
        met = {key for key, value in self.where if values[key] == value}
        return met == {key for key, _ in self.where} and not any(
            values[key] == value for key, value in self.exclude
        )

    def sample(self, records: Iterable[GoldRecord]) -> list[GoldRecord]:
        """The records, or `limit` of them at random, in their order (reservoir sampling)."""
        if self.limit is None:
            return list(records)
        rng = random.Random(self.seed)  # noqa: S311
        reservoir: list[tuple[int, GoldRecord]] = []
        for number, record in enumerate(records):
            if number < self.limit:
                reservoir.append((number, record))
            elif (slot := rng.randint(0, number)) < self.limit:
                reservoir[slot] = (number, record)
        return [record for _, record in sorted(reservoir, key=lambda item: item[0])]


def parse_condition(option: str) -> Condition:
    """Read `KEY=VALUE`. UserError."""
    key, equals, value = option.partition("=")
    if not key or not equals:
        raise UserError(
            f"{option!r} is not a condition", hint="write KEY=VALUE, as in source=dragnet"
        )
    return key, value


def read_gold(
    paths: Sequence[Path],
    keys: GoldFields = GoldFields(),
    selection: Selection = Selection(),
) -> list[GoldRecord]:
    """The selected gold records of JSON-lines files, in order.

    Pairs of texts without labels get those of their alignment. UserError naming file and line for
    the first invalid record, and if no record is selected.
    """
    selected = selection.sample(_iter_selected(paths, keys, selection))
    if not selected:
        is_filtered = selection.where or selection.exclude or selection.split
        raise UserError(
            f"no gold record in {', '.join(map(str, paths))}",
            hint="no record meets --where, --exclude and --split" if is_filtered else "",
        )
    return [
        gold
        if gold.gold_text is None or gold.labels
        else replace(gold, labels=aligned_labels(gold.text, gold.gold_text))
        for gold in selected
    ]


def aligned_labels(text: str, gold_text: str) -> str:
    """A label for each line of a text, from its alignment with the gold text.

    Lines that stay are CONTENT, or EDITED if words within differ; the others are BOILERPLATE.
    Empty if the texts are too large to align.
    """
    lines, gold_lines = (
        [" ".join(line.split()) for line in part.split("\n")] if part else []
        for part in (text, gold_text)
    )
    pairs = align_lines(lines, gold_lines, _CHANGED_CHARS)
    if pairs is None:
        return ""
    labels = [BOILERPLATE] * (text.count("\n") + 1)
    for line, gold_line in pairs:
        labels[line] = CONTENT if lines[line] == gold_lines[gold_line] else EDITED
    return "".join(labels)


def iter_records(path: Path, keys: GoldFields = GoldFields()) -> Iterator[GoldRecord]:
    """Every record of a JSON-lines file, also those with a text only.

    UserError naming file and line for the first invalid record.
    """
    for location, record in iter_objects(path):
        yield _parse_record(record, keys, location)


def _iter_selected(
    paths: Sequence[Path], keys: GoldFields, selection: Selection
) -> Iterator[GoldRecord]:
    for path in paths:
        for location, record in iter_objects(path):
            gold = _parse_record(record, keys, location)
            if gold.gold_text is None and gold.keep is None:
                raise _not_gold(record, keys, location)
            if selection.selects(record, gold):
                yield gold


def iter_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every JSON object of a JSON-lines file, with its location. UserError names a bad line."""
    if detect_format(path, "auto") != "jsonl":
        raise UserError(
            f"{path}: not JSON lines", hint="write one record on each line, in a file *.jsonl"
        )
    try:
        lines = split_lines(read_chunks(path, detect_compression(path)), 0, MAX_RECORD_BYTES)
        for number, line in enumerate(lines, 1):
            location = f"{printable_path(path)}:{number}"
            if line.damage:
                raise _invalid(location, f"the file is damaged here: {line.damage.detail}")
            if line.size > MAX_RECORD_BYTES:
                raise _invalid(location, f"longer than {MAX_RECORD_BYTES:,} bytes")
            data = line.data.removeprefix(b"\xef\xbb\xbf")
            if not data.strip():
                continue
            try:
                record = orjson.loads(data)
            except orjson.JSONDecodeError as error:
                raise _invalid(location, f"not JSON: {error}") from None
            if not isinstance(record, dict):
                raise _invalid(location, "not a JSON object")
            yield location, record
    except OSError as error:
        raise read_error(path, error) from error


def _parse_record(record: dict[str, Any], keys: GoldFields, location: str) -> GoldRecord:
    noisy, gold_text, labels = (
        _text(record, key, location) for key in (keys.noisy, keys.gold, keys.labels)
    )
    keep = _flag(record, keys.keep, location)
    text = noisy if noisy is not None else _text(record, keys.text, location)
    if text is None or (gold_text is not None and noisy is None):
        if gold_text is None and keep is None:
            raise _not_gold(record, keys, location)
        missing = keys.noisy if gold_text is not None else keys.text
        raise _invalid(location, f"no field {missing!r}, the text to refine")
    lines = text.count("\n") + 1
    if labels is not None and len(labels) != lines:
        counts = f"{quantity(len(labels), 'label')} for {quantity(lines, 'line')} of text"
        problem = f"{keys.labels!r} has {counts}"
        raise _invalid(location, problem)
    return GoldRecord(
        id=_scalar(get_field(record, keys.id)) or location,
        location=location,
        source=_scalar(get_field(record, keys.source)),
        text=text,
        gold_text=gold_text,
        labels=labels or "",
        keep=keep,
        unanimous=bool(_flag(record, keys.unanimous, location)),
        host=host_of(record, keys.host, keys.url),
    )


def _not_gold(record: dict[str, Any], keys: GoldFields, location: str) -> UserError:
    present = ", ".join(key[:40] for key in list(record)[:12]) or "no fields"
    return UserError(
        f"{location}: not a gold record: it has {present}",
        hint=f"a chunk-level record has {keys.noisy!r} and {keys.gold!r}, a doc-level one "
        f"{keys.text!r} and {keys.keep!r}; --fields sets other names",
    )


def _text(record: dict[str, Any], key: str, location: str) -> str | None:
    value = get_field(record, key)
    if value is not None and not isinstance(value, str):
        raise _invalid(location, f"{key!r} is not a string")
    return value


def _flag(record: dict[str, Any], key: str, location: str) -> bool | None:
    value = get_field(record, key)
    if value is not None and value not in (0, 1):
        raise _invalid(location, f"{key!r} is {value!r:.40}, neither 0 nor 1, true nor false")
    return None if value is None else bool(value)


def _scalar(value: Any) -> str:
    """A value as in JSON, strings without quotes; empty for null."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _invalid(location: str, problem: str) -> UserError:
    return UserError(f"{location}: {problem}")

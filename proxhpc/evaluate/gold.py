"""Gold records: texts with what people would have kept of them.

A chunk-level record holds a noisy text and the text wanted in its place, and may label each line;
a doc-level record holds a text and whether to keep it. A record may be both. Refiners are judged
by such records (`read_gold`), and taught (`proxhpc.annotate.gold`).
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import orjson

from proxhpc.corpus.hosts import Split, host_of, split_of
from proxhpc.corpus.inputs import resolve, shown, unreadable
from proxhpc.corpus.jsonl import split_lines
from proxhpc.corpus.records import lookup
from proxhpc.corpus.streams import chunks, sniff
from proxhpc.errors import UserError

MAX_RECORD_BYTES = 64 << 20
CONTENT, BOILERPLATE = "G", "B"
"""The letters of lines to keep and of lines to remove; lines with any other are not counted."""


@dataclass(frozen=True, slots=True)
class GoldRecord:
    """One gold record; `place` says where it stands, as `file:line`.

    Chunk-level where `wanted`, the text that should have come out, is not None; `labels` is a
    letter for each line of `text`, or empty where nobody labelled lines. Doc-level where `keep`
    is not None; `unanimous` says that all who judged it agreed. `host` and `source` may be empty.
    """

    id: str
    place: str
    source: str
    text: str
    wanted: str | None = None
    labels: str = ""
    keep: bool | None = None
    unanimous: bool = False
    host: str = ""


@dataclass(frozen=True, slots=True)
class GoldFields:
    """Where a record holds what: a key, or a dotted path into nested objects; empty: nowhere."""

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
    def parse(cls, given: str) -> "GoldFields":
        """Read `noisy=KEY,gold=KEY,…`; what is not named keeps its default. UserError."""
        known = [field.name for field in fields(cls)]
        found = cls()
        for part in filter(None, given.split(",")):
            name, equals, key = part.partition("=")
            if name not in known or not equals:
                raise UserError(
                    f"--fields {given}: {part!r} names no field",
                    hint=f"write NAME=KEY with a NAME of {', '.join(known)}",
                )
            found = replace(found, **{name: key})
        return found


Condition = tuple[str, str]
"""A field and its value, as in `source=dragnet`."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records: those of `split` that meet `where`, and no condition of `exclude`.

    `limit` of them, at random.
    Conditions of `where` on one field are alternatives; those on several must all hold.
    """

    where: tuple[Condition, ...] = ()
    exclude: tuple[Condition, ...] = ()
    limit: int | None = None
    seed: int = 0
    split: Split | None = None

    def takes(self, record: dict[str, Any], gold: GoldRecord) -> bool:
        """Whether a record, read as `gold`, meets the conditions and is of the split."""
        if self.split not in (None, split_of(gold.host, gold.text)):
            return False
        has = {key: _scalar(lookup(record, key)) for key, _ in (*self.where, *self.exclude)}
        wanted = {key for key, value in self.where if has[key] == value}
        return wanted == {key for key, _ in self.where} and not any(
            has[key] == value for key, value in self.exclude
        )

    def sample(self, records: Iterable[GoldRecord]) -> list[GoldRecord]:
        """The records, or `limit` of them at random, in their order."""
        if self.limit is None:
            return list(records)
        chance = random.Random(self.seed)  # noqa: S311
        taken: list[tuple[int, GoldRecord]] = []
        for number, record in enumerate(records):
            if number < self.limit:
                taken.append((number, record))
            elif (place := chance.randint(0, number)) < self.limit:
                taken[place] = (number, record)
        return [record for _, record in sorted(taken, key=lambda item: item[0])]


def condition(given: str) -> Condition:
    """Read `KEY=VALUE`. UserError where it is none."""
    key, equals, value = given.partition("=")
    if not key or not equals:
        raise UserError(f"{given!r} is no condition", hint="write KEY=VALUE, as in source=dragnet")
    return key, value


def read_gold(
    paths: Sequence[Path],
    where: GoldFields = GoldFields(),
    selection: Selection = Selection(),
) -> list[GoldRecord]:
    """The gold records of JSON-lines files, in order.

    UserError naming file and line for the first record that is none, or that contradicts itself,
    and where no record is selected.
    """
    found = selection.sample(_selected(paths, where, selection))
    if not found:
        asked = selection.where or selection.exclude or selection.split
        raise UserError(
            f"no gold record in {', '.join(map(str, paths))}",
            hint="no record meets --where, --exclude and --split" if asked else "",
        )
    return found


def records(path: Path, names: GoldFields = GoldFields()) -> Iterator[GoldRecord]:
    """Every record of a JSON-lines file, also those that nobody judged: they need have a text only.

    UserError naming file and line for the first that has none, or that contradicts itself.
    """
    for place, record in _objects(path):
        yield _gold(record, names, place)


def _selected(
    paths: Sequence[Path], names: GoldFields, selection: Selection
) -> Iterator[GoldRecord]:
    for path in paths:
        for place, record in _objects(path):
            gold = _gold(record, names, place)
            if gold.wanted is None and gold.keep is None:
                raise _unjudged(record, names, place)
            if selection.takes(record, gold):
                yield gold


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every JSON object of a file, with its place."""
    if resolve(path, "auto") != "jsonl":
        raise UserError(f"{path}: gold records are read from JSON lines only")
    try:
        lines = split_lines(chunks(path, sniff(path)), 0, MAX_RECORD_BYTES)
        for number, line in enumerate(lines, 1):
            place = f"{shown(path)}:{number}"
            if line.damage:
                raise _refused(place, f"the file is damaged here: {line.damage.detail}")
            if line.size > MAX_RECORD_BYTES:
                raise _refused(place, f"longer than {MAX_RECORD_BYTES:,} bytes")
            data = line.data.removeprefix(b"\xef\xbb\xbf")
            if not data.strip():
                continue
            try:
                record = orjson.loads(data)
            except orjson.JSONDecodeError as error:
                raise _refused(place, f"no JSON: {error}") from None
            if not isinstance(record, dict):
                raise _refused(place, "no JSON object")
            yield place, record
    except OSError as error:
        raise unreadable(path, error) from error


def _gold(record: dict[str, Any], names: GoldFields, place: str) -> GoldRecord:
    noisy, wanted, labels = (
        _text(record, key, place) for key in (names.noisy, names.gold, names.labels)
    )
    keep = _flag(record, names.keep, place)
    text = noisy if noisy is not None else _text(record, names.text, place)
    if text is None or (wanted is not None and noisy is None):
        if wanted is None and keep is None:
            raise _unjudged(record, names, place)
        missing = names.noisy if wanted is not None else names.text
        raise _refused(place, f"no field {missing!r}, the text that was judged")
    if labels is not None and len(labels) != text.count("\n") + 1:
        said = f"{len(labels)} labels for {text.count(chr(10)) + 1} lines of its text"
        raise _refused(place, f"{names.labels!r} has {said}")
    return GoldRecord(
        id=_scalar(lookup(record, names.id)) or place,
        place=place,
        source=_scalar(lookup(record, names.source)),
        text=text,
        wanted=wanted,
        labels=labels or "",
        keep=keep,
        unanimous=bool(_flag(record, names.unanimous, place)),
        host=host_of(record, names.host, names.url),
    )


def _unjudged(record: dict[str, Any], names: GoldFields, place: str) -> UserError:
    has = ", ".join(key[:40] for key in list(record)[:12]) or "no fields"
    return UserError(
        f"{place}: no gold record: it has {has}",
        hint=f"a chunk-level record has {names.noisy!r} and {names.gold!r}, a doc-level one "
        f"{names.text!r} and {names.keep!r}; --fields gives them other names",
    )


def _text(record: dict[str, Any], key: str, place: str) -> str | None:
    value = lookup(record, key)
    if value is not None and not isinstance(value, str):
        raise _refused(place, f"{key!r} is no string")
    return value


def _flag(record: dict[str, Any], key: str, place: str) -> bool | None:
    value = lookup(record, key)
    if value is not None and value not in (0, 1):
        raise _refused(place, f"{key!r} is {value!r:.40}, neither 0 nor 1, true nor false")
    return None if value is None else bool(value)


def _scalar(value: Any) -> str:
    """A value as it is written in JSON, strings without quotes; nothing for null."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _refused(place: str, why: str) -> UserError:
    return UserError(f"{place}: {why}")

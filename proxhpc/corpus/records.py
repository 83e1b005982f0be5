"""Converts records to documents: finds the text and the id."""

from dataclasses import dataclass
from typing import Any

from proxhpc.corpus.document import Document

BAD_RECORD_BYTES = 1024  # the head of a bad record that is kept


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a record's text and id: a key, or a dotted path into nested objects.

    A key that contains the dots itself has priority over a path. The text is in the first of its
    fields that a record has.
    """

    text: tuple[str, ...] = ("text",)
    id: str | None = None


@dataclass(frozen=True, slots=True)
class RecordSource:
    """The file of records: its number in the plan and its display name."""

    file: int
    name: str


@dataclass(frozen=True, slots=True)
class RecordProblem:
    """Why a record is not a document."""

    reason: str
    detail: str = ""


def to_document(
    record: Any, position: int, fields: Fields, source: RecordSource, line: bytes = b""
) -> Document | RecordProblem:
    """Return the record as a document, or the reason why it is not one.

    `record` is modified: without its text it becomes the document's `fields`. If the id is missing,
    null or "", it is "<name>:<position>". `line` is the record in bytes, if it was read so.
    """
    if not isinstance(record, dict):
        return RecordProblem("not_an_object", f"a JSON {_json_type(record)}")
    for name in fields.text:
        holder, leaf = (record, name) if name in record else _find(record, name)
        if holder is not None:
            break
    else:
        wanted = " or ".join(map(repr, fields.text))
        return RecordProblem("missing_text", f"no field {wanted}; it has: {_names(record)}")
    text = holder[leaf]
    if text is None:
        return RecordProblem("null_text", f"field {name!r} is null")
    if not isinstance(text, str):
        return RecordProblem("text_not_string", f"field {name!r} is a JSON {_json_type(text)}")
    identifier = _identifier(record, fields.id) if fields.id else ""
    if identifier is None:
        return RecordProblem("id_not_scalar", f"field {fields.id!r} is not a string or number")
    del holder[leaf]
    identifier = identifier or f"{source.name}:{position}"
    return Document(identifier, text, source.file, position, record, line)


def get_field(record: dict[str, Any], path: str) -> Any:
    """Return the value of a key or dotted path in a record, or None."""
    if path in record:
        return record[path]
    holder, leaf = _find(record, path)
    return None if holder is None else holder[leaf]


def _find(record: dict[str, Any], path: str) -> tuple[dict[str, Any] | None, str]:
    holder: Any = record
    *parents, leaf = path.split(".")
    for key in parents:
        holder = holder.get(key) if isinstance(holder, dict) else None
    return (holder, leaf) if isinstance(holder, dict) and leaf in holder else (None, leaf)


def _identifier(record: dict[str, Any], path: str) -> str | None:
    value = get_field(record, path)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value)


def _names(record: dict[str, Any]) -> str:
    names = ", ".join(key[:40] for key in list(record)[:12])
    return f"{names}, …" if len(record) > 12 else names or "no fields"


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")

"""What makes a record a document: its text, its id, and everything else it carries."""

import json
from dataclasses import dataclass
from typing import Any

from proxhpc.corpus.document import Document

BAD_RECORD_BYTES = 1024  # how much of a bad record is kept

_EXACT = 2**63  # orjson reads integers of more than 64 bits as floats


@dataclass(frozen=True, slots=True)
class Fields:
    """Where a record's text and id are: a key, or a dotted path into nested objects.

    A key which contains dots itself wins over the path.
    """

    text: str = "text"
    id: str | None = None


@dataclass(frozen=True, slots=True)
class RecordSource:
    """Where records come from: the file's number in the plan and its display name."""

    file: int
    name: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a record is no document."""

    reason: str
    detail: str = ""


def to_document(
    record: Any, position: int, fields: Fields, source: RecordSource, raw: bytes = b""
) -> Document | Refusal:
    """Return the record as a document, taking the text out of it, or why it is none.

    `record` is consumed: it becomes the document's `fields`. `raw` is its JSON, where it came
    from JSON. A record without an id, or with null or "" for one, is called "<name>:<position>".
    """
    if not isinstance(record, dict):
        return Refusal("not_an_object", f"a JSON {_json_type(record)}")
    holder, leaf = _find(record, fields.text)
    if holder is None:
        return Refusal("missing_text", f"no field {fields.text!r}; it has: {_names(record)}")
    text = holder[leaf]
    if text is None:
        return Refusal("null_text", f"field {fields.text!r} is null")
    if not isinstance(text, str):
        return Refusal("text_not_string", f"field {fields.text!r} is a {_json_type(text)}")
    name = _identify(record, fields.id, raw) if fields.id else ""
    if name is None:
        return Refusal("id_not_scalar", f"field {fields.id!r} is no string or number")
    del holder[leaf]
    return Document(name or f"{source.name}:{position}", text, source.file, position, record)


def lookup(record: dict[str, Any], path: str) -> Any:
    """What a record has under a key or a dotted path; None for nothing."""
    holder, leaf = _find(record, path)
    return None if holder is None else holder[leaf]


def _find(record: dict[str, Any], path: str) -> tuple[dict[str, Any] | None, str]:
    if path in record:
        return record, path
    holder: Any = record
    *parents, leaf = path.split(".")
    for key in parents:
        holder = holder.get(key) if isinstance(holder, dict) else None
    return (holder, leaf) if isinstance(holder, dict) and leaf in holder else (None, leaf)


def _identify(record: dict[str, Any], path: str, raw: bytes) -> str | None:
    holder, leaf = _find(record, path)
    value = holder[leaf] if holder is not None else None
    if value is None:
        return ""
    if isinstance(value, float) and abs(value) >= _EXACT and raw:
        again, leaf = _find(json.loads(raw), path)  # two long ids must not become one float
        value = again[leaf] if again is not None else value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value)


def _names(record: dict[str, Any]) -> str:
    names = ", ".join(key[:40] for key in list(record)[:12])
    return f"{names}, …" if len(record) > 12 else names or "no fields"


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")

"""The rows of the refined corpus, and of the listings beside it.

A row of the corpus is

    {"id": string, "text": string, …every other field of the record…, "proxhpc": {…}}

with `original_text`, the raw text, behind `text` where the manifest asks for it.

Nothing of a record is lost. A field of its own that is called `id`, `text`, `original_text` or
`proxhpc` and is not the one that the row shows under this name goes by `original_id` and so on
(with a further `original_` where that is taken too). Values are written as JSON has them: NaN and
infinities, which parquet may hold, become null.
"""

import base64
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
import xxhash

from proxhpc.assemble.replay import ReplayedRecord
from proxhpc.corpus.document import Document
from proxhpc.run.ledger import QUARANTINE_BYTES, Row
from proxhpc.run.plan import Plan

ORIGINAL_PREFIX = "original_"
_LEVELS = 100  # of nesting in one piece; orjson writes 254, but reads 1024


def corpus_row(plan: Plan, refined: ReplayedRecord) -> dict[str, Any]:
    """The row of a document that reaches the corpus."""
    document = refined.document
    if document is None or refined.text is None:
        raise ValueError(f"record {refined.number} is not for the corpus")
    output = plan.manifest.output
    more = {"proxhpc": _provenance(plan, refined.row)} if output.provenance else {}
    original = {"original_text": document.text} if output.original else {}
    return build_row(document, refined.text, original, more)


def build_row(
    document: Document, text: str | None, front: Mapping[str, Any], back: Mapping[str, Any]
) -> dict[str, Any]:
    """A document's record with its refined text, and fields of ours before and behind its own."""
    row: dict[str, Any] = {"id": document.id, "text": text, **front}
    reserved = {*row, *back}
    for name, value in document.fields.items():
        if name == "id" and _is_id(value, document):
            continue
        free = name
        while free in reserved or (free != name and (free in document.fields or free in row)):
            free = ORIGINAL_PREFIX + free
        row[free] = _writable(value) if isinstance(value, dict | list) else value
    return {**row, **back}


def decode_row(line: bytes) -> dict[str, Any]:
    """A row that was written as JSON, ready to be written again."""
    row: dict[str, Any] = orjson.loads(line)
    nested = {name: value for name, value in row.items() if isinstance(value, dict | list)}
    return row | {name: _writable(value) for name, value in nested.items()}


def quarantine_row(plan: Plan, refined: ReplayedRecord) -> dict[str, Any]:
    """The row of a record that was set aside; `head` is its beginning, base64."""
    row, document = refined.row, refined.document
    head = row.head
    if document is not None and not head:
        head = document.text[:QUARANTINE_BYTES].encode("utf-8", "surrogatepass")[:QUARANTINE_BYTES]
    return {
        "id": row.id,
        "source": record_source(plan, row),
        "reason": row.reason,
        "detail": row.detail,
        "bytes": row.bytes_in,
        "head": base64.b64encode(head).decode("ascii"),
    }


def record_source(plan: Plan, row: Row) -> str:
    """Where a record stands in the input: the file's name and the record's position."""
    return f"{plan.inputs[row.file].name}:{row.position}"


def sort_key(plan: Plan, row: Row) -> int:
    """Where a document stands in a shuffled corpus, 64 bits; 0 where the input's order stays.

    It depends on the seed and the document's source alone, so of two corpora of one input with
    the same seed the documents that both have are in the same order.
    """
    manifest = plan.manifest
    if not manifest.output.shuffle:
        return 0
    return xxhash.xxh3_64_intdigest(f"{manifest.seed} {record_source(plan, row)}".encode())


def _provenance(plan: Plan, row: Row) -> dict[str, Any]:
    """Where the text is from and the programs that made it; the same keys in every row of a run."""
    out: dict[str, Any] = {"source": record_source(plan, row), "outcome": row.outcome}
    for stage in plan.manifest.stages:
        if stage.level == "doc":
            out["doc"] = row.doc.program if row.doc else None
        else:
            out["chunk"] = [call.program for call in row.windows]
    return out


def _is_id(value: Any, document: Document) -> bool:
    """Whether a field holds no more than the row's id does."""
    scalar = isinstance(value, str | int | float) and not isinstance(value, bool)
    return scalar and str(value) == document.id


def _writable(value: Any) -> Any:
    """Return `value`, which orjson may have read but cannot write: the inner levels as JSON."""
    try:
        orjson.dumps([value])
    except orjson.JSONEncodeError:
        pieces = [piece for piece in _walk(value) if piece[0] % _LEVELS == 0]
        for _, holder, key in sorted(pieces, key=lambda piece: -piece[0]):
            holder[key] = orjson.Fragment(orjson.dumps(holder[key]))
    return value


def _walk(value: Any) -> Iterator[tuple[int, Any, Any]]:
    """Yield every container below `value`: its depth, what holds it, and under which key."""
    todo = [(1, value)]
    while todo:
        depth, holder = todo.pop()
        entries = holder.items() if isinstance(holder, dict) else enumerate(holder)
        for key, inner in entries:
            if isinstance(inner, dict | list):
                yield depth, holder, key
                todo.append((depth + 1, inner))

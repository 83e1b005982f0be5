"""Rows of the refined corpus and of the quarantine listing.

A row of the corpus is

    {"id": string, "text": string, …every other field of the record…, "proxhpc": {…}}

with the raw text as `original_text` after `text` if the manifest asks for it.

No field of a record is lost. If a record has a field `id`, `text`, `original_text` or `proxhpc`
that is not the row's field of this name, it is renamed to `original_id` and so on, with a further
`original_` if that name is taken. Values are written as JSON allows: NaN and infinities, which
parquet may hold, become null.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson
import xxhash

from proxhpc.assemble.replay import ReplayedRecord
from proxhpc.corpus.document import Document
from proxhpc.run.ledger import QUARANTINE_BYTES, Row
from proxhpc.run.plan import Plan

ORIGINAL_PREFIX = "original_"
_CLUSTER = b'"cluster_id":"'
_MAX_LEVELS = 100  # of nesting in one piece; orjson writes 254 levels, but reads 1024


def corpus_row(
    plan: Plan, record: ReplayedRecord, cluster: Sequence[int] = (0, 0)
) -> dict[str, Any]:
    """The row of a document that reaches the corpus.

    `cluster` has size and id of its duplicate set; a document without one is a cluster of its own.
    """
    document = record.document
    if document is None or record.text is None:
        raise ValueError(f"record {record.number} does not reach the corpus")
    output = plan.manifest.output
    own = _provenance(plan, record) if output.provenance else {}
    if output.cluster_size:
        size, number = cluster if cluster[0] else (1, cluster_id(record_source(plan, record.row)))
        own |= {"cluster_id": f"{number & (1 << 64) - 1:016x}", "cluster_size": size}
    last = {"proxhpc": own} if own else {}
    first = {"original_text": document.text} if output.original else {}
    return build_row(document, record.text, first, last)


def with_cluster(line: bytes, cluster: Sequence[int]) -> bytes:
    """The line of a row that was made without a cluster, with this one."""
    size, number = cluster
    start = line.rindex(_CLUSTER)
    return b'%b%b%016x","cluster_size":%d}}\n' % (
        line[:start],
        _CLUSTER,
        number & (1 << 64) - 1,
        size,
    )


def build_row(
    document: Document, text: str | None, first: Mapping[str, Any], last: Mapping[str, Any]
) -> dict[str, Any]:
    """A document's fields with its refined text, and with added fields before and after them."""
    row: dict[str, Any] = {"id": document.id, "text": text, **first}
    reserved = {*row, *last}
    for name, value in document.fields.items():
        if name == "id" and _is_id(value, document):
            continue
        free = name
        while free in reserved or (free != name and (free in document.fields or free in row)):
            free = ORIGINAL_PREFIX + free
        row[free] = _writable(value) if isinstance(value, dict | list) else value
    return {**row, **last}


def decode_row(line: bytes) -> dict[str, Any]:
    """Parse a row that was written as JSON, so that it can be written again."""
    row: dict[str, Any] = orjson.loads(line)
    nested = {name: value for name, value in row.items() if isinstance(value, dict | list)}
    return row | {name: _writable(value) for name, value in nested.items()}


def quarantine_row(plan: Plan, record: ReplayedRecord) -> dict[str, Any]:
    """The row of a quarantined record; `head` is the beginning of its text, in base64."""
    row, document = record.row, record.document
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
    """A record's input file and its position there, as FILE:POSITION."""
    return f"{plan.inputs[row.file].name}:{row.position}"


def cluster_id(source: str) -> int:
    """The id of the duplicate set whose survivor has this source, 64 bits."""
    return xxhash.xxh3_64_intdigest(source.encode("utf-8", "surrogatepass"))


def sort_key(plan: Plan, row: Row) -> int:
    """A document's sort key in a shuffled corpus, 64 bits; 0 without shuffling.

    It depends only on the seed and the document's source, so documents that two corpora of the
    same input and seed share are in the same order in both.
    """
    manifest = plan.manifest
    if not manifest.output.shuffle:
        return 0
    return xxhash.xxh3_64_intdigest(f"{manifest.seed} {record_source(plan, row)}".encode())


def _provenance(plan: Plan, record: ReplayedRecord) -> dict[str, Any]:
    """A text's source and the programs that made it; all rows of a run have the same keys."""
    row = record.row
    out: dict[str, Any] = {"source": record_source(plan, row), "outcome": row.outcome}
    for stage in plan.manifest.stages:
        if stage.level == "doc":
            out["doc"] = row.doc.program if row.doc else None
        else:
            out["chunk"] = [call.program for call in row.windows]
    if plan.manifest.dedup.lines:
        out["merge"] = record.merge_program or None
    return out


def _is_id(value: Any, document: Document) -> bool:
    """Whether a field holds no more than the row's id."""
    scalar = isinstance(value, str | int | float) and not isinstance(value, bool)
    return scalar and str(value) == document.id


def _writable(value: Any) -> Any:
    """Return `value` so that orjson can write it: deep levels become pieces of JSON."""
    try:
        orjson.dumps([value])
    except orjson.JSONEncodeError:
        pieces = [piece for piece in _walk(value) if piece[0] % _MAX_LEVELS == 0]
        for _, holder, key in sorted(pieces, key=lambda piece: -piece[0]):
            holder[key] = orjson.Fragment(orjson.dumps(holder[key]))
    return value


def _walk(value: Any) -> Iterator[tuple[int, Any, Any]]:
    """Yield every container within `value`: its depth, its holder, and its key there."""
    stack = [(1, value)]
    while stack:
        depth, holder = stack.pop()
        entries = holder.items() if isinstance(holder, dict) else enumerate(holder)
        for key, inner in entries:
            if isinstance(inner, dict | list):
                yield depth, holder, key
                stack.append((depth + 1, inner))

"""Small corpus files in every compression, and a function that reads them."""

import gzip
from pathlib import Path

import orjson
import zstandard

from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.readers import Fields, read_span

FIELDS = Fields(("text",), "id")
LIMIT = 1 << 20


def rows(count: int, size: int = 20) -> list[bytes]:
    return [orjson.dumps({"id": f"d{i}", "text": f"{i} " * size, "n": i}) for i in range(count)]


def pack(data: bytes, compression: str, pieces: int = 1) -> bytes:
    """Compress `data` in `pieces` frames or members."""
    step = -(-len(data) // pieces) or 1
    parts = [data[at : at + step] for at in range(0, len(data), step)] or [b""]
    if compression == "zstd":
        return b"".join(zstandard.ZstdCompressor(write_checksum=True).compress(p) for p in parts)
    if compression == "gzip":
        return b"".join(gzip.compress(part, mtime=0) for part in parts)
    return data


def read(
    path: Path,
    start: int = 0,
    stop: int | None = None,
    fields: Fields = FIELDS,
    limit: int = LIMIT,
) -> tuple[list[Document | BadRecord], SpanEnd]:
    """Return the records of one span, and its SpanEnd."""
    *items, end = read_span(path, "auto", Span(0, start, stop), fields, limit)
    assert isinstance(end, SpanEnd)
    assert not any(isinstance(item, SpanEnd) for item in items)
    return items, end


def ids(items: list[Document | BadRecord]) -> list[str]:
    """Return the ids of documents and the reasons of bad records."""
    return [item.id if isinstance(item, Document) else item.reason for item in items]

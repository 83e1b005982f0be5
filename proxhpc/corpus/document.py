"""What a corpus file yields: documents, bad records, and the end of a span."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """A range of records of one input file.

    A record belongs to the span that contains its position. The position is the offset of the
    record's first byte in the decompressed stream for JSON lines, and the row number for parquet.
    The last span of a file has `stop` None, because the file's length may be unknown.
    """

    file: int
    start: int = 0
    stop: int | None = None


@dataclass(slots=True)  # not frozen, which would take three times as long to make
class Document:
    """One document. `fields` holds all other fields of the record in their order.

    `line` is the record in bytes, b"" if it was not read from a stream of bytes.
    """

    id: str
    text: str
    file: int
    position: int
    fields: dict[str, Any] = field(default_factory=dict)
    line: bytes = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that is not a document: the reason, and the record's first bytes in `head`."""

    reason: str
    file: int
    position: int
    size: int
    head: bytes = b""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SpanEnd:
    """The end of a span; the next span's first record starts at `position`.

    `at_eof` means that no record starts at or after `position`. `blank` counts the lines of
    white space that were skipped.
    """

    file: int
    position: int
    at_eof: bool
    blank: int = 0

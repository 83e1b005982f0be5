"""What comes out of a corpus file: documents, records that are none, and the end of a range."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """A range of records of one input file.

    A record belongs to the span that holds its position: the offset of its first byte in the
    decompressed stream for JSON lines, its row number for parquet. `stop` is None for the last
    span of a file, so that spans tile a file whose length nobody has counted.
    """

    file: int
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """One document. `fields` holds every field of the record but the text, in its order."""

    id: str
    text: str
    file: int
    position: int
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bad:
    """A record that is no document, with the reason and the first bytes of it, verbatim."""

    reason: str
    file: int
    position: int
    size: int
    head: bytes = b""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """The end of a span: `position` is where the next span's first record starts.

    `at_eof` says that the file holds no record at or behind `position`; `blank` counts the
    white-space lines passed over.
    """

    file: int
    position: int
    at_eof: bool
    blank: int = 0

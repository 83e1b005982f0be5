"""A text file as one document."""

from collections.abc import Iterator

from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.records import BAD_RECORD_BYTES


def read_text(
    chunks: Iterator[bytes], span: Span, name: str, max_record_bytes: int
) -> Iterator[Document | BadRecord | SpanEnd]:
    """Yield the text as one document whose id is the file's name, and then one SpanEnd.

    Positions are row numbers, and the file has one row. A blank file yields no document.
    """
    data = b""
    for chunk in chunks:
        data += chunk
        if len(data) > max_record_bytes:
            detail = f"more than {max_record_bytes:,} bytes"
            yield _bad("record_too_long", span, data, detail)
            break
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            yield _bad("invalid_utf8", span, data, f"{error.reason} at byte {error.start}")
        else:
            if text.strip():
                yield Document(name, text, span.file, 0)
    yield SpanEnd(span.file, 1, at_eof=True)


def _bad(reason: str, span: Span, data: bytes, detail: str) -> BadRecord:
    return BadRecord(reason, span.file, 0, len(data), data[:BAD_RECORD_BYTES], detail)

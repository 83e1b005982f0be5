"""Documents of a parquet file, with values converted to JSON types."""

import base64
import datetime
from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import takewhile
from pathlib import Path
from typing import Any

import orjson

from proxhpc.corpus.blocks import DamageError
from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.records import (
    BAD_RECORD_BYTES,
    Fields,
    RecordProblem,
    RecordSource,
    to_document,
)
from proxhpc.errors import ShardError
from proxhpc.extras import require_package

_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 4096


def open_parquet(path: Path) -> Any:
    """Return the file as a `pyarrow.parquet.ParquetFile`.

    DamageError if its footer cannot be read, UserError if pyarrow is not installed.
    """
    require_pyarrow(f"reading {path}")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)
    except (pa.ArrowException, ValueError, EOFError, OSError) as error:
        if _is_io_error(error):
            raise
        raise DamageError("corrupt_input", _one_line(error)) from error


def _is_io_error(error: Exception) -> bool:
    """Return False for the OSError without errno that pyarrow raises for damaged content."""
    return isinstance(error, OSError) and error.errno is not None


def require_pyarrow(purpose: str) -> None:
    """Raise UserError unless pyarrow, which `purpose` needs, is installed."""
    require_package("pyarrow", "parquet", purpose)


def count_rows(path: Path) -> int:
    """Return the number of rows in a parquet file's footer. ShardError if it cannot be read."""
    try:
        with open_parquet(path) as file:
            return int(file.metadata.num_rows)
    except DamageError as error:
        raise ShardError(f"{path}: {error.detail}") from error


def has_column(path: Path, names: Sequence[str]) -> bool:
    """Return whether a file has the column of one of these fields, or of its outermost part.

    Also true for a damaged file, whose rows will be quarantined.
    """
    try:
        with open_parquet(path) as file:
            columns = file.schema_arrow.names
    except DamageError:
        return True
    return any(name in columns or name.partition(".")[0] in columns for name in names)


def first_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of the first row group, up to the first that cannot be read."""
    with open_parquet(path) as file:
        if file.metadata.num_row_groups:
            rows = (row for _, row in _group(file, 0, 0, 0))
            yield from takewhile(lambda row: isinstance(row, dict), rows)


def read_parquet(
    path: Path, span: Span, fields: Fields, name: str, max_record_bytes: int
) -> Iterator[Document | BadRecord | SpanEnd]:
    """Yield the span's rows in order and then one SpanEnd; positions are row numbers.

    A row group that is damaged from row r on yields one BadRecord at r; the next group is read.
    """
    source = RecordSource(span.file, name)
    if path.stat().st_size == 0:
        yield SpanEnd(span.file, span.start, at_eof=True)
        return
    try:
        file = open_parquet(path)
    except DamageError as error:
        if span.start == 0:
            yield BadRecord(error.reason, span.file, 0, path.stat().st_size, b"", error.detail)
        yield SpanEnd(span.file, span.start, at_eof=True)
        return
    with file:
        first, rows = 0, file.metadata.num_rows
        stop = rows if span.stop is None else min(span.stop, rows)
        for group in range(file.metadata.num_row_groups):
            after = first + file.metadata.row_group(group).num_rows
            if after > span.start and first < stop:
                for position, row in _group(file, group, first, span.start):
                    if position >= stop:
                        break
                    if position >= span.start:
                        yield _item(row, position, fields, source, max_record_bytes)
            first = after
    end = max(span.start, stop)
    yield SpanEnd(span.file, end, at_eof=end >= rows)


def _group(file: Any, group: int, first: int, start: int) -> Iterator[tuple[int, Any]]:
    """Yield the numbers and rows of one row group, or a RecordProblem in place of a row.

    Batches always start at the group's first row, so damage shows at the same row in every span.
    """
    import pyarrow as pa

    metadata = file.metadata.row_group(group)
    average = max(metadata.total_byte_size // max(metadata.num_rows, 1), 1)
    size = min(max(_BATCH_BYTES // average, 1), _BATCH_ROWS)
    position = first
    try:
        for batch in file.iter_batches(size, row_groups=[group], use_threads=False):
            if position + batch.num_rows > start:
                yield from enumerate(_rows(batch), position)
            position += batch.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        if _is_io_error(error):
            raise
        lost = f"rows {position} to {first + metadata.num_rows - 1} of row group {group} are lost"
        yield position, RecordProblem("corrupt_input", f"{lost}: {_one_line(error)}")


def _rows(batch: Any) -> Iterator[Any]:
    import pyarrow as pa

    schema = pa.schema([(field.name, _python_type(field.type)) for field in batch.schema])
    converted = pa.RecordBatch.from_arrays(
        [
            column if column.type == field.type else column.cast(field.type, safe=False)
            for column, field in zip(batch.columns, schema, strict=True)
        ],
        schema=schema,
    )
    try:
        rows = converted.to_pylist()
    except (ValueError, OverflowError):
        rows = [_row(converted, index) for index in range(converted.num_rows)]
    for row in rows:
        yield row if isinstance(row, RecordProblem) else {key: _json_value(row[key]) for key in row}


def _row(batch: Any, index: int) -> Any:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return RecordProblem("invalid_utf8", f"{error.reason} at byte {error.start} of a string")
    except (ValueError, OverflowError) as error:
        return RecordProblem("unreadable_row", _one_line(error))


def _python_type(kind: Any) -> Any:
    """Return the Arrow type to convert a column to.

    Times become microseconds, the precision of Python; times with a zone become UTC.
    """
    import pyarrow as pa

    types = pa.types
    if types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if types.is_time(kind):
        return pa.time64("us")
    if types.is_duration(kind):
        return pa.duration("us")
    if types.is_float16(kind):
        return pa.float32()
    if types.is_dictionary(kind):
        return _python_type(kind.value_type)
    if types.is_struct(kind):
        return pa.struct([(field.name, _python_type(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(_python_type(kind.key_type), _python_type(kind.item_type))
    if types.is_fixed_size_list(kind):
        return pa.list_(_python_type(kind.value_type), kind.list_size)
    if types.is_large_list(kind):
        return pa.large_list(_python_type(kind.value_type))
    if types.is_list(kind):
        return pa.list_(_python_type(kind.value_type))
    return kind


def _json_value(value: Any) -> Any:
    """Return a value as JSON types.

    Dates and times become ISO 8601, durations seconds, decimals strings, maps lists of pairs, and
    bytes text if they are UTF-8 or else base64.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode("ascii")
    return str(value)


def _item(
    row: Any, position: int, fields: Fields, source: RecordSource, limit: int
) -> Document | BadRecord:
    if isinstance(row, RecordProblem):
        return BadRecord(row.reason, source.file, position, 0, b"", row.detail)
    item = to_document(row, position, fields, source)
    if isinstance(item, RecordProblem):
        head = orjson.dumps(row)
        return BadRecord(
            item.reason, source.file, position, len(head), head[:BAD_RECORD_BYTES], item.detail
        )
    if len(item.text) > limit // 4 and (size := len(item.text.encode())) > limit:
        detail = f"longer than the limit of {limit} bytes"
        head = item.text[:BAD_RECORD_BYTES].encode()[:BAD_RECORD_BYTES]
        return BadRecord("record_too_long", source.file, position, size, head, detail)
    return item


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

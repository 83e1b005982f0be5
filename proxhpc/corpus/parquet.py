"""The documents of a parquet file, row group by row group, with values that JSON can hold."""

import base64
import datetime
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from proxhpc.corpus.document import Bad, Document, End, Span
from proxhpc.corpus.records import BAD_RECORD_BYTES, Fields, RecordSource, Refusal, to_document
from proxhpc.errors import ShardError, UserError

_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 4096


def open_parquet(path: Path) -> Any:
    """Return the file as a `pyarrow.parquet.ParquetFile`, or why its footer cannot be read.

    Raises UserError where pyarrow is not installed.
    """
    need_pyarrow(f"reading {path}")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)
    except (pa.ArrowException, ValueError, EOFError) as error:
        return BrokenParquet(_short(error))
    except OSError as error:
        if error.errno is not None:
            raise
        return BrokenParquet(_short(error))  # pyarrow says OSError for damaged thrift, too


def need_pyarrow(what: str) -> None:
    """Raise UserError unless there is pyarrow, which `what` needs."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{what} needs pyarrow, which is not installed",
            hint="pip install 'proxhpc[parquet]'",
        ) from error


class BrokenParquet:
    """Why a parquet file's footer cannot be read."""

    def __init__(self, detail: str) -> None:
        self.detail = detail


def count_rows(path: Path) -> int:
    """Rows of a parquet file, as its footer has them. ShardError where that cannot be read."""
    file = open_parquet(path)
    if isinstance(file, BrokenParquet):
        raise ShardError(f"{path}: {file.detail}")
    with file:
        return int(file.metadata.num_rows)


def read_parquet(
    path: Path, span: Span, fields: Fields, name: str, max_record_bytes: int
) -> Iterator[Document | Bad | End]:
    """Yield the span's rows in order and one End, last; positions are row numbers.

    A row group that is damaged from row r on gives one Bad at r, and reading goes on behind it.
    """
    source = RecordSource(span.file, name)
    if path.stat().st_size == 0:
        yield End(span.file, span.start, at_eof=True)
        return
    file = open_parquet(path)
    if isinstance(file, BrokenParquet):
        if span.start == 0:
            yield Bad("corrupt_input", span.file, 0, path.stat().st_size, b"", file.detail)
        yield End(span.file, span.start, at_eof=True)
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
    yield End(span.file, end, at_eof=end >= rows)


def _group(file: Any, group: int, first: int, start: int) -> Iterator[tuple[int, Any]]:
    """Yield row number and row, or a Refusal in a row's place, of one row group.

    Batches always begin at the group's first row, so that damage is met at the same row
    whatever the span.
    """
    import pyarrow as pa

    about = file.metadata.row_group(group)
    average = max(about.total_byte_size // max(about.num_rows, 1), 1)
    size = min(max(_BATCH_BYTES // average, 1), _BATCH_ROWS)
    position = first
    try:
        for batch in file.iter_batches(size, row_groups=[group], use_threads=False):
            if position + batch.num_rows > start:
                yield from enumerate(_rows(batch), position)
            position += batch.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        lost = f"rows {position} to {first + about.num_rows - 1} of row group {group} are lost"
        yield position, Refusal("corrupt_input", f"{lost}: {_short(error)}")


def _rows(batch: Any) -> Iterator[Any]:
    import pyarrow as pa

    schema = pa.schema([(field.name, _target(field.type)) for field in batch.schema])
    plain = pa.RecordBatch.from_arrays(
        [
            column if column.type == field.type else column.cast(field.type, safe=False)
            for column, field in zip(batch.columns, schema, strict=True)
        ],
        schema=schema,
    )
    try:
        rows = plain.to_pylist()
    except (ValueError, OverflowError):
        rows = [_row(plain, index) for index in range(plain.num_rows)]
    for row in rows:
        yield row if isinstance(row, Refusal) else {key: _plain(row[key]) for key in row}


def _row(batch: Any, index: int) -> Any:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return Refusal("invalid_utf8", f"{error.reason} at byte {error.start} of a string")
    except (ValueError, OverflowError) as error:
        return Refusal("unreadable_row", _short(error))


def _target(kind: Any) -> Any:
    """Return the Arrow type to read a column as.

    Times are read as microseconds, the finest that Python holds; zoned ones as UTC.
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
        return _target(kind.value_type)
    if types.is_struct(kind):
        return pa.struct([(field.name, _target(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(_target(kind.key_type), _target(kind.item_type))
    if types.is_fixed_size_list(kind):
        return pa.list_(_target(kind.value_type), kind.list_size)
    if types.is_large_list(kind):
        return pa.large_list(_target(kind.value_type))
    if types.is_list(kind):
        return pa.list_(_target(kind.value_type))
    return kind


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it.

    Dates and times are ISO 8601, durations seconds, decimals strings, bytes UTF-8 where they
    are that and base64 where not, maps lists of pairs.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
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
) -> Document | Bad:
    if isinstance(row, Refusal):
        return Bad(row.reason, source.file, position, 0, b"", row.detail)
    item = to_document(row, position, fields, source)
    if isinstance(item, Refusal):
        head = orjson.dumps(row)
        return Bad(
            item.reason, source.file, position, len(head), head[:BAD_RECORD_BYTES], item.detail
        )
    if len(item.text) > limit // 4 and (size := len(item.text.encode())) > limit:
        detail = f"longer than the limit of {limit} bytes"
        head = item.text[:BAD_RECORD_BYTES].encode()[:BAD_RECORD_BYTES]
        return Bad("record_too_long", source.file, position, size, head, detail)
    return item


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

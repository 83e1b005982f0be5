"""Documents of parquet and Arrow files, with values converted to JSON types."""

import base64
import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import lru_cache
from itertools import repeat, takewhile
from pathlib import Path
from typing import Any, Literal

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

TableFormat = Literal["parquet", "arrow"]

_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 128  # more would be little faster; a value of a dictionary may be in all of them
_MAX_BATCH_BYTES = 64 << 20  # decoded; after a larger batch smaller ones are read
_FEWER = 8  # divides the rows of a batch that is too large or cannot be read


@contextmanager
def _damage() -> Iterator[None]:
    """Turn pyarrow's errors about damaged content into a DamageError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, ValueError, EOFError, OSError) as error:
        if _is_io_error(error):
            raise
        raise DamageError("corrupt_input", _one_line(error)) from error


def _is_io_error(error: Exception) -> bool:
    """Return False for the OSError without errno that pyarrow raises for damaged content."""
    return isinstance(error, OSError) and error.errno is not None


def open_parquet(path: Path) -> Any:
    """Return the file as a `pyarrow.parquet.ParquetFile`.

    DamageError if its footer cannot be read, UserError if pyarrow is not installed.
    """
    require_pyarrow(f"reading {path}")
    import pyarrow.parquet as pq

    with _damage():
        return pq.ParquetFile(
            path,
            pre_buffer=False,
            page_checksum_verification=True,
            coerce_int96_timestamp_unit="us",  # by default, years before 1678 become others
        )


class Table:
    """An open parquet or Arrow file: groups of rows, of which an Arrow file has one."""

    def __init__(self, path: Path, kind: TableFormat) -> None:
        require_pyarrow(f"reading {path}")
        self._parquet = open_parquet(path) if kind == "parquet" else None
        self._path = path
        if self._parquet is not None:
            metadata = self._parquet.metadata
            groups = range(metadata.num_row_groups)
            self.names: list[str] = self._parquet.schema_arrow.names
            self.group_rows: list[int] = [metadata.row_group(group).num_rows for group in groups]
            self.bytes: int = sum(metadata.row_group(group).total_byte_size for group in groups)
            if (rows := sum(self.group_rows)) != metadata.num_rows:
                detail = f"the footer counts {metadata.num_rows} rows, its row groups {rows}"
                raise DamageError("corrupt_input", detail)
            return
        with _damage(), self._open_arrow() as (reader, batches):
            self.names = reader.schema.names
            self.group_rows = [sum(batch.num_rows for batch in batches)]
            self.bytes = path.stat().st_size

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *_: object) -> None:
        if self._parquet is not None:
            self._parquet.close()

    def batches(self, group: int, size: int, skip: int) -> Iterator[Any]:
        """Yield the rows of a group without the first `skip`, in batches of up to `size`.

        Batches always start at the group's first row, so damage shows at the same row in every
        span.
        """
        if self._parquet is not None:
            batches = self._parquet.iter_batches(size, row_groups=[group], use_threads=False)
            yield from _without_first(batches, skip)
            return
        with self._open_arrow() as (_, batches):
            for batch in _without_first(batches, skip):
                batch.validate(full=True)
                for at in range(0, batch.num_rows, size):
                    yield batch.slice(at, size)

    def batch_rows(self, group: int) -> int:
        """Return how many rows of a group have about _BATCH_BYTES, as they are encoded."""
        size = self.bytes
        if self._parquet is not None:
            size = self._parquet.metadata.row_group(group).total_byte_size
        per_row = max(size // max(self.group_rows[group], 1), 1)
        return min(max(_BATCH_BYTES // per_row, 1), _BATCH_ROWS)

    @contextmanager
    def _open_arrow(self) -> Iterator[tuple[Any, Iterator[Any]]]:
        """Yield the reader of an Arrow file or stream, and its batches."""
        import pyarrow as pa

        with pa.memory_map(str(self._path)) as file:
            if file.read(6) == b"ARROW1":
                reader = pa.ipc.open_file(file)
                numbers = range(reader.num_record_batches)
                yield reader, (reader.get_batch(number) for number in numbers)
                return
            file.seek(0)
            with pa.ipc.open_stream(file) as reader:
                yield reader, iter(reader)


def _without_first(batches: Iterator[Any], skip: int) -> Iterator[Any]:
    for batch in batches:
        if batch.num_rows > skip:
            yield batch.slice(skip)
        skip = max(0, skip - batch.num_rows)


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
    """Return whether a parquet file has the column of a field, or of its outermost part.

    Also true for a damaged file, whose rows will be quarantined.
    """
    try:
        with open_parquet(path) as file:
            columns = file.schema_arrow.names
    except DamageError:
        return True
    return any(name in columns or name.partition(".")[0] in columns for name in names)


def first_rows(path: Path, kind: TableFormat) -> Iterator[dict[str, Any]]:
    """Yield the rows of the first group, up to the first that cannot be read."""
    with Table(path, kind) as table:
        if table.group_rows:
            rows = (row for _, row in _group(table, 0, 0, 0))
            yield from takewhile(lambda row: isinstance(row, dict), rows)


def read_table(
    path: Path,
    kind: TableFormat,
    span: Span,
    fields: Fields,
    name: str,
    max_record_bytes: int,
    wanted: Callable[[int], bool] | None = None,
) -> Iterator[Document | BadRecord | SpanEnd]:
    """Yield the span's rows in order and then one SpanEnd; positions are row numbers.

    A row group that is damaged from row r on yields one BadRecord at r; the next group is read.
    Rows that are not `wanted` are passed over.
    """
    source = RecordSource(span.file, name)
    if path.stat().st_size == 0:
        yield SpanEnd(span.file, span.start, at_eof=True)
        return
    try:
        table = Table(path, kind)
    except DamageError as error:
        if span.start == 0:
            with path.open("rb") as raw:
                head = raw.read(BAD_RECORD_BYTES)
            size = path.stat().st_size
            yield BadRecord(error.reason, span.file, 0, size, head, error.detail)
        yield SpanEnd(span.file, span.start, at_eof=True)
        return
    with table:
        first, rows = 0, sum(table.group_rows)
        stop = rows if span.stop is None else min(span.stop, rows)
        for group, count in enumerate(table.group_rows):
            if first + count > span.start and first < stop:
                for position, row in _group(table, group, first, span.start):
                    if position >= stop:
                        break
                    if position >= span.start and (wanted is None or wanted(position)):
                        yield _item(row, position, fields, source, max_record_bytes)
            first += count
    end = max(span.start, stop)
    yield SpanEnd(span.file, end, at_eof=end >= rows)


def _group(table: Table, group: int, first: int, start: int) -> Iterator[tuple[int, Any]]:
    """Yield the numbers and rows of one group, or a RecordProblem in place of a row.

    Rows that need much more memory than their encoding says are read again in smaller batches.
    """
    import pyarrow as pa

    size, position = table.batch_rows(group), first
    after = first + table.group_rows[group]

    def lost(reason: str) -> RecordProblem:
        rows = f"rows {position} to {after - 1} of row group {group} are lost"
        return RecordProblem("corrupt_input", f"{rows}: {reason}")

    while position < after:
        try:
            for batch in table.batches(group, size, position - first):
                if position + batch.num_rows > start:
                    yield from enumerate(_rows(batch), position)
                position += batch.num_rows
                if batch.nbytes > _MAX_BATCH_BYTES and size > 1:
                    size = max(1, min(size // _FEWER, _BATCH_BYTES * size // batch.nbytes))
                    break
            else:
                if position < after:
                    yield position, lost("it has fewer rows than its header says")
                return
        except (pa.ArrowException, OSError, ValueError) as error:
            if _is_io_error(error):
                raise
            if size == 1:
                yield position, lost(_one_line(error))
                return
            size = max(1, size // _FEWER)


def _rows(batch: Any) -> Iterator[Any]:
    """Yield the rows of a batch as dictionaries."""
    import pyarrow as pa

    schema = _python_schema(batch.schema)
    columns = [
        column if column.type == field.type else column.cast(field.type, safe=False)
        for column, field in zip(batch.columns, schema, strict=True)
    ]
    try:
        values = [_json_values(column) for column in columns]
    except (ValueError, OverflowError):
        batch = pa.RecordBatch.from_arrays(columns, schema=schema)
        yield from (_row(batch, index) for index in range(batch.num_rows))
        return
    for row in zip(*values, strict=True) if values else repeat((), batch.num_rows):
        yield dict(zip(schema.names, row, strict=True))


def unique_names(names: Sequence[str]) -> list[str]:
    """Return the names with a number at every later one that is equal: `url`, `url_2`."""
    unique: dict[str, None] = {}
    for name in names:
        number, free = 1, name
        while free in unique or (number > 1 and free in names):
            number += 1
            free = f"{name}_{number}"
        unique[free] = None
    return [*unique]


def _json_values(column: Any) -> list[Any]:
    import pyarrow as pa

    values: list[Any] = column.to_pylist()
    if column.type in (pa.string(), pa.int64(), pa.int32(), pa.float64(), pa.large_string()):
        return values
    return [_json_value(value) for value in values]


def _row(batch: Any, index: int) -> Any:
    try:
        [row] = batch.slice(index, 1).to_pylist()
        return {name: _json_value(value) for name, value in row.items()}
    except UnicodeDecodeError as error:
        return RecordProblem("invalid_utf8", f"{error.reason} at byte {error.start} of a string")
    except (ValueError, OverflowError) as error:
        return RecordProblem("unreadable_row", _one_line(error))


@lru_cache(maxsize=8)
def _python_schema(schema: Any) -> Any:
    """Return the names and types of the columns to convert columns of a schema to."""
    import pyarrow as pa

    types = [_python_type(field.type) for field in schema]
    return pa.schema([*zip(unique_names(schema.names), types, strict=True)])


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


class Base64(str):
    """Bytes that are not text."""

    __slots__ = ()


def _json_value(value: Any) -> Any:
    """Return a value as JSON types.

    Dates and times become ISO 8601, durations seconds, decimals strings, maps lists of pairs, and
    bytes text if they are UTF-8 or else `Base64`.
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
            return Base64(base64.b64encode(value).decode("ascii"))
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
    if isinstance(item.text, Base64):
        head = base64.b64decode(item.text)
        detail = "the text is bytes that are not UTF-8"
        return BadRecord(
            "invalid_utf8", source.file, position, len(head), head[:BAD_RECORD_BYTES], detail
        )
    if len(item.text) > limit // 4 and (size := len(item.text.encode())) > limit:
        detail = f"longer than the limit of {limit} bytes"
        head = item.text[:BAD_RECORD_BYTES].encode()[:BAD_RECORD_BYTES]
        return BadRecord("record_too_long", source.file, position, size, head, detail)
    return item


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

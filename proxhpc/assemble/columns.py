"""Rows of the corpus as parquet files, all with one schema.

Records differ in their fields, and a field's type may differ from record to record, so a column for
each field would give files with different schemas. Fields that not every row has are therefore in
one column, `metadata`, as a JSON object. `proxhpc` is JSON too.
"""

import io
from collections.abc import Sequence
from typing import Any

import orjson

from proxhpc.assemble.rows import decode_row
from proxhpc.assemble.shape import column_names
from proxhpc.corpus.parquet import require_pyarrow
from proxhpc.corpus.writer import Encoder, JsonLines
from proxhpc.spec.sections import Output

GROUP_ROWS = 1 << 16
GROUP_BYTES = 32 << 20  # as JSON lines; a row group is held in memory


def make_encoder(output: Output) -> Encoder:
    """Return the encoder of a corpus's parts."""
    if output.format == "parquet":
        return ParquetEncoder(output)
    names = column_names(output)

    def convert(line: bytes) -> bytes:
        """Return a row as text."""
        return orjson.dumps(as_text(line, names), option=orjson.OPT_APPEND_NEWLINE)

    return JsonLines(output.level, output.format, convert if output.metadata == "json" else None)


def as_text(line: bytes, names: Sequence[str]) -> dict[str, str]:
    """Return a row with these fields, all of them text; `metadata` and `proxhpc` are JSON."""
    row = decode_row(line)
    cells: dict[str, Any] = {name: row[name] for name in names if name != "metadata"}
    metadata = {name: value for name, value in row.items() if name not in cells}
    cells |= {name: orjson.dumps(cells[name]).decode() for name in ("proxhpc",) if name in cells}
    return {
        name: orjson.dumps(metadata).decode() if name == "metadata" else cells[name]
        for name in names
    }


class ParquetEncoder:
    """Encodes rows as a parquet file: zstd, no dictionaries, no time stamps."""

    def __init__(self, output: Output) -> None:
        require_pyarrow("output.format: parquet")
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._names = column_names(output)
        self._schema = pa.schema([pa.field(name, pa.string(), False) for name in self._names])
        self._sink = _Sink()
        self._file = pq.ParquetWriter(
            pa.PythonFile(self._sink, "w"),
            self._schema,
            compression="zstd",
            compression_level=output.level,
            use_dictionary=False,
            write_statistics=["id"],
            write_page_checksum=True,
            write_page_index=True,
        )
        self._rows: list[list[str]] = []
        self._bytes = 0

    def add(self, line: bytes) -> bytes:
        """Add a row; a full row group is encoded and returned."""
        full = len(self._rows) == GROUP_ROWS or self._bytes + len(line) > GROUP_BYTES
        encoded = self._encode_group() if full else b""
        self._rows.append([*as_text(line, self._names).values()])
        self._bytes += len(line)
        return encoded

    def end(self) -> bytes:
        """Return the last row group and the footer."""
        last_group = self._encode_group()
        self._file.close()
        return last_group + self._sink.take()

    def _encode_group(self) -> bytes:
        import pyarrow as pa

        if not self._rows:
            return b""
        columns = [pa.array(column, pa.string()) for column in zip(*self._rows, strict=True)]
        self._rows, self._bytes = [], 0
        self._file.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        return self._sink.take()


class _Sink(io.RawIOBase):
    """A file object for pyarrow that collects bytes; we write them, so write errors name a path."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._offset = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._data += data
        return len(data)

    def tell(self) -> int:
        return self._offset + len(self._data)

    def take(self) -> bytes:
        """Remove and return the bytes written since the last call."""
        data, self._data = self._data, bytearray()
        self._offset += len(data)
        return bytes(data)

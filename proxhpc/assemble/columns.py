"""Rows of the corpus in columns: parquet files that all have one schema.

Records differ in their fields, and fields in their types from record to record, so a column for
each would make files that do not fit together. All but the fields that every row has are one
column `metadata`, an object as JSON; `proxhpc` is JSON, too.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from proxhpc.corpus.parquet import need_pyarrow
from proxhpc.spec.sections import Output

GROUP_ROWS = 1 << 16
GROUP_BYTES = 32 << 20  # as JSON lines; a row group is what is held in memory


def column_names(output: Output) -> list[str]:
    """The columns, all of strings that are never null."""
    asked = {"proxhpc": output.provenance, "original_text": output.original}
    return ["id", "text", "metadata", *(name for name, wanted in asked.items() if wanted)]


class ParquetEncoder:
    """A parquet file: row groups by rows and bytes, zstd, no dictionaries, no time stamps."""

    def __init__(self, output: Output) -> None:
        need_pyarrow("output.format: parquet")
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
        )
        self._rows: list[tuple[str, ...]] = []
        self._held = 0

    def add(self, row: Mapping[str, Any], line: bytes) -> bytes:
        """Take a row; encoded are those of a row group together."""
        full = len(self._rows) == GROUP_ROWS or self._held + len(line) > GROUP_BYTES
        ready = self._group() if full else b""
        self._rows.append(tuple(map(self._cells(row).__getitem__, self._names)))
        self._held += len(line)
        return ready

    def end(self) -> bytes:
        """Return the last row group and the footer."""
        last = self._group()
        self._file.close()
        return last + self._sink.take()

    def _cells(self, row: Mapping[str, Any]) -> dict[str, str]:
        fixed = {name: row[name] for name in self._names if name != "metadata"}
        cells = {name: value for name, value in fixed.items() if name != "proxhpc"}
        others = {name: value for name, value in row.items() if name not in fixed}
        cells["metadata"] = orjson.dumps(others).decode()
        if "proxhpc" in fixed:
            cells["proxhpc"] = orjson.dumps(fixed["proxhpc"]).decode()
        return cells

    def _group(self) -> bytes:
        import pyarrow as pa

        if not self._rows:
            return b""
        columns = [pa.array(column, pa.string()) for column in zip(*self._rows, strict=True)]
        self._rows, self._held = [], 0
        self._file.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        return self._sink.take()


class _Sink:
    """What pyarrow takes for a file; its bytes are ours to write, so that errors are, too."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, data: Any) -> int:
        """Hold what comes."""
        piece = bytes(data)
        self._pieces.append(piece)
        self._size += len(piece)
        return len(piece)

    def tell(self) -> int:
        """The length of the file so far."""
        return self._size

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing to close."""

    def take(self) -> bytes:
        """What came since the last time."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)

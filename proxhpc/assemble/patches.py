"""Rows of the corpus from the lines of their records, without parsing or replaying them again.

The sketch phase replays each document, so it has the record's line and the corpus's row. Where
rows are made of ranges of lines, and little else, it stores these as patches. Other groups are
replayed once more when their rows are needed.

A file holds the patches of a group, in input order, as zstd frames with JSON; then, for each frame,
the key of its first document and where it begins; then a footer.
"""

import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import orjson
import xxhash
import zstandard

from proxhpc.assemble.replay import FAR, ReplayedRecord, holds, input_differs
from proxhpc.assemble.shape import RowShape, Shapes
from proxhpc.corpus.disk import replacing
from proxhpc.corpus.document import Document, Span
from proxhpc.corpus.jsonl import RawLine
from proxhpc.dedup.arrays import damaged_file, read_footer
from proxhpc.dedup.hashes import Sketch
from proxhpc.program.match import SpanChange
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.spec.manifest import Manifest

_BLOCK_DOCUMENTS, _BLOCK_BYTES = 1024, 1 << 20  # of a frame: as many, or of literals
_FEW = 4  # literals may have one of so many bytes of rows
_SAMPLE = 4 << 20  # bytes of rows after which it is decided whether patches are large
_PREFIX = 32  # characters by which a text is found in its line
_NEWLINE = b"\\n"  # in JSON
_ENTRY = struct.Struct("<QQ")  # key of a frame's first document, where the frame begins
_FOOTER = struct.Struct("<8s16sQ")  # magic, what the file was made from, number of frames
_MAGIC = b"PXPATCH\x01"


class CorpusRow(NamedTuple):
    """A row of the corpus as a line of JSON, with what a part counts.

    `file` is the number of the input file; `text_bytes` and `tokens` are of the text.
    `removed_tokens` were removed with repeated lines.
    """

    line: bytes
    sort_key: int
    file: int
    text_bytes: int
    tokens: int
    removed_tokens: int
    shape: RowShape


class _Patch(NamedTuple):
    """How a row is made: `literals` alternate with ranges of the record's line.

    `ranges` has start and stop of each; there is one literal more, or only the first and the last
    if all others are empty. `digest` is that of the line, `shape` the number of the row's shape in
    the frame.
    """

    key: int
    file: int
    position: int
    text_bytes: int
    tokens: int
    shape: int
    digest: int
    ranges: Sequence[int]
    literals: Sequence[str]

    def apply(self, line: bytes) -> bytes:
        """Return the row."""
        return _join(line, self.ranges, [*map(str.encode, self.literals)])


class PatchWriter:
    """Writes the patches of a group, in a `with` statement, or none if they would be large."""

    def __init__(self, path: Path, source: str, manifest: Manifest) -> None:
        """`source` identifies what the group is made from.

        There are no patches with `dedup.lines`, which changes texts after the sketch phase.
        """
        self._path, self._source = path, xxhash.xxh3_128_digest(source.encode())
        self._wanted, self._stack = manifest.dedup.lines is None, ExitStack()
        self._frames: list[tuple[int, int]] = []
        self._end = self._held = self._literals = self._rows = 0
        self._shapes, self._numbers = Shapes(manifest.output), dict[int, int]()
        self._used: list[RowShape] = []
        self._block: list[tuple[Any, ...]] = []

    def __enter__(self) -> Self:
        self._file = self._stack.enter_context(replacing(self._path))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._flush()
            if self._is_large:
                self._file.truncate(0)
                self._file.seek(0)
                self._frames.clear()
            table = b"".join(_ENTRY.pack(*entry) for entry in self._frames)
            self._file.write(table + _FOOTER.pack(_MAGIC, self._source, len(self._frames)))
        self._stack.__exit__(kind, error, trace)

    def add(self, shard: int, record: ReplayedRecord, row: dict[str, Any], line: bytes) -> None:
        """Add the next document of the corpus with its row, which is encoded in `line`."""
        if not self._wanted or (self._is_large and self._rows > _SAMPLE):
            return
        shape = self._shapes.of(row)
        number = self._numbers.setdefault(id(shape), len(self._used))
        if number == len(self._used):
            self._used.append(shape)
        digest, ranges, literals = make_patch(record, line)
        size, kept, key = sum(map(len, literals)), record.row, shard << 32 | record.number
        counts = kept.file, kept.position, kept.bytes_out, kept.tokens_out
        self._block.append((key, *counts, number, digest, ranges, literals))
        self._rows += len(line)
        self._literals += size
        self._held += size
        if len(self._block) == _BLOCK_DOCUMENTS or self._held >= _BLOCK_BYTES:
            self._flush()

    @property
    def _is_large(self) -> bool:
        return _FEW * self._literals > self._rows

    def _flush(self) -> None:
        if self._block:
            self._frames.append((self._block[0][0], self._end))
            data = orjson.dumps([self._used, self._block])
            compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)
            self._end += self._file.write(compressor.compress(data))
        self._block, self._used, self._held = [], [], 0
        self._numbers.clear()


def patched_rows(
    run: RunDir, plan: Plan, group: int, source: str, documents: Sketch
) -> Iterator[CorpusRow] | None:
    """The rows of some of a group's documents, in input order; None if the group has no patches.

    `source` is that of the group's `PatchWriter`. StopError names the input or file of the merge
    that is not as it was.
    """
    keys = (documents["shard"].astype(np.uint64) << np.uint64(32) | documents["record"]).tolist()
    path = run.patches(group)
    entries = _read_table(path, source)
    if not entries:
        return None
    places = zip(keys, documents["sort_key"].tolist(), strict=True)
    return _apply_patches(plan, path, places, _read_patches(path, entries, keys))


def _apply_patches(
    plan: Plan,
    path: Path,
    places: Iterable[tuple[int, int]],
    patches: Iterator[tuple[_Patch, RowShape]],
) -> Iterator[CorpusRow]:
    lines = _LineReader(plan)
    for key, sort_key in places:
        patch, shape = next(patches, (None, ""))
        if patch is None or patch.key != key:
            raise damaged_file(path)
        line = patch.apply(lines.read(patch) if patch.ranges else b"")
        yield CorpusRow(line, sort_key, patch.file, patch.text_bytes, patch.tokens, 0, shape)


class _LineReader:
    """Reads the lines of records in ascending order."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._span = Span(-1)
        self._next = 0
        self._lines: Iterator[RawLine] = iter(())

    def read(self, patch: _Patch) -> bytes:
        """The line of a patch's record. StopError if it is not the one that was replayed."""
        position = patch.position
        if not holds(self._span, patch.file, position) or position - self._next > FAR:
            self._open(patch)
        for line in self._lines:
            self._next = line.next
            if line.position < position:
                continue
            if (line.position, xxhash.xxh3_64_intdigest(line.data)) == (position, patch.digest):
                return line.data
            break
        raise input_differs(self._plan, patch.file, position, "it is another record now")

    def _open(self, patch: _Patch) -> None:
        """Read the span of a record from there on."""
        self._plan.check_input(patch.file)
        spans = self._plan.shards[patch.key >> 32].spans
        stop = next(span.stop for span in spans if holds(span, patch.file, patch.position))
        del self._lines  # its file stays open for the next one
        self._span = Span(patch.file, patch.position, stop)
        self._lines = self._plan.read_lines(self._span)


def make_patch(record: ReplayedRecord, row: bytes) -> tuple[int, list[int], list[str]]:
    """Digest of a record's line, and the ranges and literals that make the row from it."""
    document, text = record.document, record.text
    if document is None or text is None:
        raise ValueError(f"record {record.number} does not reach the corpus")
    line = document.line
    fields = _without_brace(line)
    if fields and row.startswith(fields):
        ranges, literals = [0, len(fields)], [b"", row[len(fields) :]]
    else:
        changes = record.result.changes if record.result else ()
        ranges, literals = _find_pieces(document, changes, row)
        if _join(line, ranges, literals) != row:
            ranges, literals = [], [row]
    digest = xxhash.xxh3_64_intdigest(line) if ranges else 0
    return digest, ranges, [literal.decode() for literal in literals]


def _find_pieces(
    document: Document, changes: Sequence[SpanChange], row: bytes
) -> tuple[list[int], list[bytes]]:
    """The ranges and literals that probably make the row of a document."""
    line, text = document.line, document.text
    at = line.find(orjson.dumps(text[:_PREFIX])[:-1]) if line else -1
    if at < 0:
        return [], [row]
    size = len(b'{"id":,"text":') + len(orjson.dumps(document.id))  # of the row so far
    ranges: list[int] = []
    start, literals = (0, [b""]) if line[:at] == row[:size] else (at, [row[:size]])
    size -= at - start
    position, char, dumps = at + 1, 0, orjson.dumps
    for first, last, target in changes:
        position += len(dumps(text[char:first])) - 2
        ranges += start, position
        size += position - start
        if target:
            literals.append(dumps(target)[1:-1])
            size += len(literals[-1])
        else:
            literals.append(b"")
        start = position = position + len(dumps(text[first:last])) - 2
        char = last
    if char > len(text):  # the last line was removed: the one before it ends the text
        size -= _drop_newline(line, ranges, literals)
    stop = position + len(dumps(text[char:])) - 1
    fields, tail = _without_brace(line[stop:]), row[size + stop - start :]  # after the text
    if fields and tail.startswith(fields):
        stop, tail = stop + len(fields), tail[len(fields) :]
    literals = [*literals, tail] if any(literals[1:]) else [literals[0], tail]
    return [*ranges, start, stop], literals


def _drop_newline(line: bytes, ranges: list[int], literals: list[bytes]) -> int:
    """Remove a newline at the end of the last piece that is not empty; return its size."""
    for number in range(len(literals) - 1, 0, -1):
        start, stop = ranges[2 * number - 2 : 2 * number]
        if literals[number]:
            before = len(literals[number])
            literals[number] = literals[number].removesuffix(_NEWLINE)
            return before - len(literals[number])
        if start < stop:
            size = len(_NEWLINE) if line.endswith(_NEWLINE, start, stop) else 0
            ranges[2 * number - 1] -= size
            return size
    return 0


def _without_brace(line: bytes) -> bytes:
    return line.rstrip().removesuffix(b"}")


def _join(line: bytes, ranges: Sequence[int], literals: Sequence[bytes]) -> bytes:
    """The row that ranges of a line and literals make; see `_Patch`."""
    edges = iter(ranges)
    pieces = [line[start:stop] for start, stop in zip(edges, edges, strict=True)]
    if len(literals) > 2:
        pieces = [*chain.from_iterable(zip(pieces, literals[1:], strict=True))]
        return b"".join([literals[0], *pieces])
    return b"".join([literals[0], *pieces, *literals[1:]])


def _read_table(path: Path, source: str) -> list[tuple[int, int]]:
    """Keys and starts of all frames, and where the last one ends."""
    with _damage_named(path), path.open("rb") as file:
        (digest, frames), start = read_footer(file, path, _FOOTER, _MAGIC)
        table = start - frames * _ENTRY.size
        if digest != xxhash.xxh3_128_digest(source.encode()) or table < 0:
            raise damaged_file(path)
        file.seek(table)
        entries = [*_ENTRY.iter_unpack(file.read(frames * _ENTRY.size))]
    return [*entries, (1 << 64, table)] if entries else []


def _read_patches(
    path: Path, entries: Sequence[tuple[int, int]], keys: Sequence[int]
) -> Iterator[tuple[_Patch, RowShape]]:
    """Yield the patches with these ascending keys, and their shapes."""
    with _damage_named(path), path.open("rb") as file:
        for (first, start), (stop_key, stop) in pairwise(entries):
            if chosen := {*keys[bisect_left(keys, first) : bisect_left(keys, stop_key)]}:
                file.seek(start)
                data = zstandard.ZstdDecompressor().decompress(file.read(stop - start))
                shapes, rows = orjson.loads(data)
                for row in rows:
                    if row[0] in chosen:
                        yield _Patch(*row), shapes[row[5]]


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise damaged_file(path) from None
    except (struct.error, zstandard.ZstdError, ValueError, TypeError, IndexError) as error:
        raise damaged_file(path) from error

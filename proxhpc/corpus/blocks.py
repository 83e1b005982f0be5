"""Decodes zstd frames block by block, in bounded memory, and detects truncated files.

`zstandard.stream_reader` ends a truncated file without an error, and `decompressobj` inflates
all of its input at once. The structure of a frame is simple (RFC 8878, 3.1.1): this module walks
it and decodes one block of at most 128 KiB at a time.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import zstandard

from proxhpc.corpus.restarts import FILE_START, Restart, RestartLog

MAX_WINDOW = 128 << 20  # as for `zstd --long=27`, the default limit of the zstd tool
MAGIC = b"\x28\xb5\x2f\xfd"

_SKIPPABLE = b"\x2a\x4d\x18"  # magic 0x184D2A5?, where ? is any half-byte
_MAX_BLOCK = 128 << 10
_STEP = 1 << 20
_RAW, _RLE, _COMPRESSED = 0, 1, 2


class DamageError(Exception):
    """A compressed stream cannot be decoded further; readers turn this into a `BadRecord`.

    `raw` are bytes of the file where decoding stopped.
    """

    def __init__(self, reason: str, detail: str, raw: bytes = b"") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.raw = raw

    def unverified(self, start: int, stop: int) -> "DamageError":
        """Return the error with the positions between which no checksum confirms what was read."""
        if start == stop:
            return self
        detail = f"{self.detail}; records from position {start} on are unverified"
        return DamageError(self.reason, detail, self.raw)


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The header of a frame; `content_size` is None if it does not give one."""

    raw: bytes
    start: int
    content_size: int | None
    has_checksum: bool


class FrameReader:
    """Reads the frames of a file in order: call `header()`, read all of `blocks()`, repeat."""

    def __init__(
        self, file: BinaryIO, *, skippable: bool = True, max_window: int = MAX_WINDOW
    ) -> None:
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=max_window)
        self._skippable = skippable
        self._max_window = max_window

    @property
    def offset(self) -> int:
        """The compressed bytes consumed."""
        return self._file.tell()

    def chunks(
        self, point: Restart = FILE_START, restarts: RestartLog | None = None
    ) -> Iterator[bytes]:
        """Yield the content of the frames from a point on in blocks of at most 128 KiB.

        Notes in `restarts` where frames begin.
        """
        self._file.seek(point.offset)
        position = point.position
        while header := self.header():
            start = position
            if restarts and restarts.wants(start):
                restarts.add(Restart(start, header.start, member=start))
            try:
                for block in self.blocks(header):
                    position += len(block)
                    yield block
            except DamageError as error:
                raise error.unverified(start, position) from error

    def header(self) -> FrameHeader | None:
        """Return the next frame's header, or None at the end of the file. Raises DamageError."""
        while True:
            start = self.offset
            magic = self._file.read(4)
            if not magic:
                return None
            if self._skippable and magic[0] & 0xF0 == 0x50 and magic[1:] == _SKIPPABLE:
                left = int.from_bytes(self._read(4), "little")
                while left > 0:
                    left -= len(self._read(min(left, _STEP)))
                continue
            if magic != MAGIC:
                if MAGIC.startswith(magic):
                    raise self._truncated()
                raise DamageError("corrupt_input", f"no zstd frame begins at byte {start}")
            return self._parse(start)

    def blocks(self, header: FrameHeader) -> Iterator[bytes]:
        """Yield the frame's content block by block. DamageError unless the frame is intact."""
        decoder = self._decompressor.decompressobj()
        try:
            decoder.decompress(header.raw)
            last = False
            while not last:
                last, block = self._block()
                data = decoder.decompress(block)
                if data:
                    yield data
            if header.has_checksum:
                decoder.decompress(self._read(4))
        except zstandard.ZstdError as error:
            raise self._corrupt(header.start, str(error)) from error
        if not decoder.eof:
            raise self._corrupt(header.start, "the frame does not end where its last block ends")

    def skip(self, header: FrameHeader) -> Iterator[None]:
        """Pass over the frame without decoding it; yield before each block. Raises DamageError."""
        last = False
        while not last:
            yield
            last, _ = self._block(skip=True)
        self._file.seek(4 * header.has_checksum, os.SEEK_CUR)

    def _corrupt(self, start: int, detail: str) -> DamageError:
        where = f"zstd frame at byte {start}, near byte {self.offset}"
        return DamageError("corrupt_input", f"{where}: {detail}")

    def _truncated(self) -> DamageError:
        return DamageError(
            "truncated_input", f"the file ends inside a zstd frame, at byte {self.offset}"
        )

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise self._truncated()
        return data

    def _parse(self, start: int) -> FrameHeader:
        raw = MAGIC + self._read(1)
        raw += self._read(zstandard.frame_header_size(raw) - len(raw))
        try:
            frame = zstandard.get_frame_parameters(raw)
        except zstandard.ZstdError as error:
            raise self._corrupt(start, str(error)) from error
        if frame.dict_id:
            raise DamageError("corrupt_input", f"the zstd frame at byte {start} needs a dictionary")
        if frame.window_size > self._max_window:
            raise DamageError(
                "zstd_window_too_large",
                f"the zstd frame at byte {start} needs a window of {frame.window_size >> 20} MiB, "
                f"above {self._max_window >> 20} MiB: raise corpus.zstd_window",
            )
        unknown = frame.content_size == zstandard.CONTENTSIZE_UNKNOWN
        size = None if unknown else frame.content_size
        return FrameHeader(raw, start, size, frame.has_checksum)

    def _block(self, *, skip: bool = False) -> tuple[bool, bytes]:
        head = self._read(3)
        word = int.from_bytes(head, "little")
        kind, size = word >> 1 & 3, word >> 3
        if kind not in (_RAW, _RLE, _COMPRESSED) or size > _MAX_BLOCK:
            raise DamageError(
                "corrupt_input", f"no zstd block begins at byte {self.offset - len(head)}"
            )
        size = 1 if kind == _RLE else size
        if skip:
            self._file.seek(size, os.SEEK_CUR)
            return bool(word & 1), b""
        return bool(word & 1), head + self._read(size)

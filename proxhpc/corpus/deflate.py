"""Finds places within a gzip member from which it can be decompressed, and decompresses from there.

A deflate block (RFC 1951) begins at any bit and refers to the 32 KiB of content before it. zlib
does not say where; this module looks for headers of blocks and confirms one by decompressing from
it: the content must be what it is without the restart.
"""

import copy
import zlib
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from proxhpc.corpus.restarts import Restart

if TYPE_CHECKING:
    import numpy as np

WINDOW = 32 << 10
SCANNED = 128 << 10  # compressed bytes that are enough to find a block in most files
_CONFIRMING = 16 << 10  # compressed bytes, at the least, that confirm a block
_PIECE = 16 << 10  # in which headers are looked for at a time
_MAX_CONTENT = 32 << 20  # of the bytes that are scanned
_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1)


def find_block(data: bytes, member: Any, before: Restart) -> Restart | None:
    """Return a point soon after `before`, where `data` begins; None if there is none.

    `member` is the decompressor there, which is not changed; `before` has the content before it.
    """
    follow = member.copy()
    try:
        content = follow.decompress(data, _MAX_CONTENT)
    except zlib.error:
        return None
    if follow.eof or follow.unconsumed_tail:
        return None
    for at, bits in block_starts(data):
        length = len(inflate(data[at:], bits, bytes(WINDOW)) or b"")
        if not 0 < length <= len(content):
            continue
        start = len(content) - length
        window = (before.window + content[:start])[-WINDOW:]
        if inflate(data[at:], bits, window) == content[start:]:
            position, offset = before.position + start, before.offset + at
            crc = zlib.crc32(content[:start], before.crc)
            return Restart(position, offset, bits, window, crc, before.member)
    return None


def content_ratio(data: bytes) -> float | None:
    """Return how many bytes of content a byte has in this part of a gzip file; None if unknown."""
    for at, bits in block_starts(data):
        if content := inflate(data[at:], bits, bytes(WINDOW)):
            return len(content) / (len(data) - at)
    return None


def block_starts(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the bytes, and the bits in them, at which a block may begin."""
    for piece in range(0, len(data) - _CONFIRMING, _PIECE):
        for bit in _headers(data[piece : piece + _PIECE]):
            yield piece + bit // 8, bit % 8


def _headers(data: bytes) -> list[int]:
    """Return the bits at which a block with its own codes may begin.

    Its header says that more blocks follow, and its code of code lengths is complete.
    """
    import numpy as np

    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").astype(np.int32)
    last = max(len(bits) - 17 - 3 * 19, 0)
    at = np.flatnonzero((bits[:last] == 0) & (bits[1 : last + 1] == 0) & (bits[2 : last + 2] == 1))
    at = at[(_number(bits, at + 3, 5) <= 29) & (_number(bits, at + 8, 5) <= 29)]
    lengths = bits[:-2] + 2 * bits[1:-1] + 4 * bits[2:]
    weights = np.array([0, 64, 32, 16, 8, 4, 2, 1])[lengths]
    sums = np.zeros(len(weights) + 3, np.int64)  # of every third weight
    for phase in range(3):
        sums[3 + phase :: 3] = np.cumsum(weights[phase::3])
    codes = 4 + _number(bits, at + 13, 4)
    found: list[int] = at[sums[at + 17 + 3 * codes] - sums[at + 17] == 128].tolist()
    return found


def _number(bits: "np.ndarray", at: "np.ndarray", width: int) -> "np.ndarray":
    value: np.ndarray = bits[at]
    for bit in range(1, width):
        value = value + (bits[at + bit] << bit)
    return value


def inflate(data: bytes, bits: int, window: bytes) -> bytes | None:
    """Return the content from a block on, after `window`; None if no block begins there."""
    decoder = zlib.decompressobj(-15, zdict=window)
    try:
        content = decoder.decompress(_aligned(data, bits), _MAX_CONTENT)
    except zlib.error:
        return None
    return None if decoder.eof else content


def _aligned(data: bytes, bits: int) -> bytes:
    """Return data that a decompressor can read from its first bit: the first `bits` are replaced.

    They become the end of blocks without content.
    """
    if not bits:
        return data
    filler = _filler(bits)
    size = -(-filler.bit_length() // 8)
    length = size * 8 - (8 - bits)
    value = (filler & ((1 << length) - 1)) | (data[0] >> bits << length)
    return value.to_bytes(size, "little") + data[1:]


@cache
def _filler(bits: int) -> int:
    """Return blocks without content of `bits` bits modulo 8, below a bit that marks their end.

    A block with fixed codes has 10 bits; one with its own codes, as below, has 93.
    """
    value = length = 0

    def put(number: int, width: int) -> None:
        nonlocal value, length
        value |= number << length
        length += width

    if bits % 2:
        put(0b100, 3)  # not the last block, with its own codes
        put(0, 10)  # 257 codes of bytes and the end, one of distances
        put(len(_ORDER) - 4, 4)
        for code in _ORDER:
            put({1: 1, 0: 2, 18: 2}.get(code, 0), 3)
        for zeros in (138, 118):  # no byte has a code
            put(0b11, 2)
            put(zeros - 11, 7)
        put(0b0, 1)  # the code of the end has one bit
        put(0b01, 2)  # there are no distances
        put(0b0, 1)  # the end
    while length % 8 != bits:
        put(0b010, 3)  # not the last block, with fixed codes
        put(0, 7)  # the end
    return value | 1 << length


class ResumedMember:
    """Decompresses a gzip member from a restart point on, with the interface of zlib's object."""

    def __init__(self, point: Restart) -> None:
        self._raw = zlib.decompressobj(-15, zdict=point.window)
        self._bits = point.bits
        self._crc = point.crc
        self._size = point.position - point.member
        self._trailer = b""
        self.eof = False
        self.unused_data = self.unconsumed_tail = b""

    def copy(self) -> "ResumedMember":
        """Return an independent copy."""
        other = copy.copy(self)
        other._raw = self._raw.copy()
        return other

    def decompress(self, data: bytes, limit: int) -> bytes:
        """Return up to `limit` bytes of content. zlib.error if the member is damaged."""
        content = b""
        if not self._raw.eof:
            if data:
                data, self._bits = _aligned(data, self._bits), 0
            content = self._raw.decompress(data, limit)
            self._crc = zlib.crc32(content, self._crc)
            self._size += len(content)
            self.unconsumed_tail = self._raw.unconsumed_tail
            if not self._raw.eof:
                return content
            data = self._raw.unused_data
        self._trailer += data
        crc, size = self._trailer[:4], self._trailer[4:8]
        if len(crc) == 4 and crc != self._crc.to_bytes(4, "little"):
            raise zlib.error("Error -3 while decompressing data: incorrect data check")
        if len(size) == 4:
            if size != (self._size & 0xFFFFFFFF).to_bytes(4, "little"):
                raise zlib.error("Error -3 while decompressing data: incorrect length check")
            self.eof, self.unused_data = True, self._trailer[8:]
        return content

"""Lines of documents as hashes, by which lines that occur several times are found."""

import struct
import unicodedata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from proxhpc.dedup.arrays import ArrayWriter

LINE_DTYPE = np.dtype(
    [
        ("hash", "<u8"),  # XXH3-64 of the line, folded
        ("document", "<u4"),  # number of its document in the group
        ("line", "<u4"),  # number in the refined text, from 0
        ("chars", "<u4"),  # of the line, folded
        ("tokens", "<u4"),  # of the refined document
    ]
)
Lines = npt.NDArray[np.void]  # of LINE_DTYPE

_PACK = struct.Struct("<QIIII")
_FLUSHED = 1 << 14  # lines


class LineWriter(ArrayWriter):
    """Writes the lines of a group's documents that have at least `min_chars` characters.

    Lines are compared, and measured, in NFC and lower case, with white space collapsed.
    """

    def __init__(self, path: Path, min_chars: int) -> None:
        super().__init__(path, LINE_DTYPE)
        self._min_chars = min_chars
        self._packed = bytearray()

    def add(self, document: int, text: str, tokens: int, within: int) -> None:
        """Add the next document; its lines are compared with those of an equal `within` only."""
        text = text if text.isascii() else unicodedata.normalize("NFC", text)
        for number, line in enumerate(text.lower().split("\n")):
            if len(line) < self._min_chars:
                continue
            folded = " ".join(line.split())
            if len(folded) >= self._min_chars:
                content = xxhash.xxh3_64_intdigest(folded.encode("utf-8", "surrogatepass"))
                self._packed += _PACK.pack(content ^ within, document, number, len(folded), tokens)
        if len(self._packed) >= _FLUSHED * LINE_DTYPE.itemsize:
            self.flush()

    def flush(self) -> None:
        """Write the lines that are in memory."""
        self.write(np.frombuffer(bytes(self._packed), LINE_DTYPE))
        self._packed.clear()

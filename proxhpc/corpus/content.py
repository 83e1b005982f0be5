"""Estimates the content of a compressed file from its headers and samples."""

import os
from pathlib import Path
from typing import NamedTuple

from proxhpc.corpus.blocks import DamageError, FrameReader
from proxhpc.corpus.deflate import content_ratio
from proxhpc.corpus.streams import PlainReader, Stream

_MAX_BLOCKS = 256  # of zstd, whose headers are looked at where that is enough
_MANY_BLOCKS = 4096  # where it is not
_CONTRADICTION = 3  # sizes that differ by this factor cannot both be right
_GZIP_MODULUS = 1 << 32
_SAMPLES, _SAMPLE = 16, 96 << 10  # of a gzip file, where its start and its end disagree


class Content(NamedTuple):
    """The decompressed bytes of a file, and whether it can be entered behind its start."""

    size: int
    enterable: bool


def estimate_content(path: Path, stream: Stream, read: int, chunks: int) -> Content:
    """Return the content of a file, of which `stream` has read this many bytes and chunks.

    A zstd frame may name its size. A gzip file ends with the size of its last member, modulo 4 GiB.
    """
    size = path.stat().st_size
    guess = round(size * read / max(stream.offset, 1))
    if isinstance(stream, PlainReader):
        return Content(size, True)
    if isinstance(stream, FrameReader):
        return _zstd_content(path, size, guess, read // chunks)
    if stream.is_first_gzip_member:
        return Content(_gzip_content(path, stream.offset, read), True)
    return Content(guess, stream.members > 0)


def _zstd_content(path: Path, size: int, guess: int, block: int) -> Content:
    """Estimate from the headers of frames, and of blocks, which have about `block` bytes each."""
    content = blocks = end = first = 0  # up to the end of a frame; the end of the first one
    limit = _MAX_BLOCKS
    with path.open("rb", buffering=0) as file:
        frames = FrameReader(file, max_window=1 << 31)
        try:
            while header := frames.header():
                known, before = header.content_size, blocks
                if known is None or (known * _CONTRADICTION < guess and not end):
                    limit = _MANY_BLOCKS
                for _ in frames.skip(header):
                    blocks += 1
                    if blocks > limit and end:  # the other frames are like the first ones
                        return Content(content * size // end, True)
                    if blocks > limit:
                        seen = blocks * block * size // frames.offset
                        return Content(seen if known is None else known, False)
                content += (blocks - before) * block if known is None else known
                end = frames.offset
                first = first or end
        except DamageError:
            return Content(guess, first > 0)
    return Content(content, first < size)


def _gzip_content(path: Path, offset: int, read: int) -> int:
    """Estimate from the trailer, and from samples if it contradicts the start of the file."""
    size = path.stat().st_size
    guess = round(size * read / offset)
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        low = int.from_bytes(file.read(4), "little")
        whole = _of_one_member(low, guess)
        if guess < _GZIP_MODULUS // 2 and _agree(whole, guess):
            return whole
        ratios = []
        for number in range(_SAMPLES):
            file.seek(offset + (size - offset) * number // _SAMPLES)
            if ratio := content_ratio(file.read(_SAMPLE)):
                ratios.append(ratio)
    if ratios:
        guess = round(read + (size - offset) * sum(ratios) / len(ratios))
    whole = _of_one_member(low, guess)
    return whole if _agree(whole, guess) else guess


def _of_one_member(low: int, guess: int) -> int:
    return low + max(0, round((guess - low) / _GZIP_MODULUS)) * _GZIP_MODULUS


def _agree(one: int, other: int) -> bool:
    return max(one, other) < _CONTRADICTION * min(one, other)

"""Enters a large compressed file near a place, without decompressing all that is before it."""

import io
import re
import zlib
from pathlib import Path

from proxhpc.corpus.blocks import MAGIC, DamageError, FrameReader
from proxhpc.corpus.deflate import SCANNED, WINDOW, block_starts, inflate
from proxhpc.corpus.inputs import InputInfo
from proxhpc.corpus.restarts import Restart, RestartLog

_LARGE = 64 << 20  # bytes of content: less is decompressed from its start
_STEP = 2 << 20  # compressed bytes
_FRAME_STEPS = 32  # in which the start of a zstd frame is looked for
_MEMBER = re.compile(rb"\x1f\x8b\x08[\0-\x1f]")


def enter(info: InputInfo, position: int) -> tuple[RestartLog, int] | None:
    """Return how to begin reading near a position of the content, and where; None if unknown.

    Positions are as if all parts of the file were compressed equally well. Records that begin there
    or later are read unchanged.
    """
    if info.format != "jsonl" or not info.enterable or info.estimated_bytes < _LARGE:
        return None
    ratio = info.estimated_bytes / info.size
    find = {"zstd": _frame, "gzip": _member_or_block}.get(info.compression)
    found = find(info.path, round(position / ratio)) if find else None
    if found is None:
        return None
    point, unknown = found
    begin = round(point.offset * ratio)
    log = RestartLog(Path("/dev/null"), info.fingerprint, writable=False)
    log.add(Restart(begin, point.offset, point.bits, point.window, member=begin))
    return log, max(position, begin + unknown + 1)


def _frame(path: Path, offset: int) -> tuple[Restart, int] | None:
    """Return the last start of a zstd frame before an offset."""
    with path.open("rb") as file:
        for step in range(_FRAME_STEPS):
            stop = offset - step * _STEP
            start = max(0, stop - _STEP)
            file.seek(start)
            data = file.read(stop - start + SCANNED)
            at = data.rfind(MAGIC, 0, stop - start + len(MAGIC))
            while at >= 0:
                if _is_frame(data[at:]):
                    return Restart(offset=start + at), 0
                at = data.rfind(MAGIC, 0, at)
            if not start:
                return Restart(), 0
    return None


def _is_frame(data: bytes) -> bool:
    frames = FrameReader(io.BytesIO(data), max_window=1 << 31)
    try:
        header = frames.header()
        return header is not None and next(frames.blocks(header), None) is not None
    except DamageError:
        return False


def _member_or_block(path: Path, offset: int) -> tuple[Restart, int] | None:
    """Return the start of a gzip member or of a block before an offset.

    A block refers to 32 KiB of content before it, which is not known: a NUL, which no JSON has,
    stands for each of its bytes and for all copies of it. What follows 32 KiB without one is right.
    """
    start = max(0, offset - _STEP)
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(2 * _STEP)
    for member in _MEMBER.finditer(data[:_STEP]):
        try:
            if zlib.decompressobj(wbits=31).decompress(data[member.start() :], WINDOW):
                return Restart(offset=start + member.start()), 0
        except zlib.error:
            continue
    for at, bits in block_starts(data[:SCANNED]):
        if not inflate(data[at : at + WINDOW], bits, bytes(WINDOW)):
            continue
        content = inflate(data[at:], bits, bytes(WINDOW))
        if content and (known := re.search(rb"[^\0]{%d}" % WINDOW, content)):
            return Restart(0, start + at, bits, bytes(WINDOW)), known.end()
    return None

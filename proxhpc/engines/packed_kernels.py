"""What PackedLlama does beside matrix products: in C where it compiles, otherwise with torch."""

import ctypes
import logging
import math
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

TILE, KEYS = 8, 32  # rows of a span and slots of a sequence come in multiples
_BLOCK = 128  # queries that torch scores against the keys at once
SOURCE = Path(__file__).with_suffix(".c")
_log = logging.getLogger(__name__)

Cache = tuple[Any, Any]
"""Keys and values of a layer."""


def align(number: int, unit: int) -> int:
    """Round up to a multiple of `unit`."""
    return -(-number // unit) * unit


class RowSpan(NamedTuple):
    """Rows [row, row + rows) of a pass, which read one sequence from `position` on.

    The sequence has the slots [slot, slot + size) of the cache.
    """

    row: int
    rows: int
    position: int
    slot: int
    size: int


class Heads(NamedTuple):
    """The heads of a model: how many, the size of one, and angles [position, size / 2]."""

    number: int
    size: int
    angles: Any


class Kernels(Protocol):
    """Operations on [rows, numbers]. In a head, numbers that are rotated together are adjacent."""

    def norm(self, x: Any, eps: float) -> Any:
        """RMS norm without a weight."""
        ...

    def gated(self, x: Any) -> Any:
        """`silu(gate) * up` of rows that hold both."""
        ...

    def new_cache(self, slots: int) -> Cache:
        """Zeros for this many slots."""
        ...

    def put(self, cache: Cache, x: Any, positions: Any, slots: Any) -> None:
        """Store the keys, rotated, and values of rows that hold both."""
        ...

    def attend(self, x: Any, positions: Any, cache: Cache, spans: Sequence[RowSpan]) -> Any:
        """Causal attention of the queries of each span to its own sequence."""
        ...


class TorchKernels:
    """The operations with torch, in any precision."""

    def __init__(self, heads: Heads, dtype: Any) -> None:
        import torch

        self._heads, self._dtype = heads, dtype
        self._turns = torch.polar(torch.ones_like(heads.angles), heads.angles)[:, None]
        self._future = torch.full((_BLOCK, _BLOCK + KEYS), -math.inf).triu(1).to(dtype)

    def norm(self, x: Any, eps: float) -> Any:
        """RMS norm without a weight."""
        import torch

        return torch.nn.functional.rms_norm(x, x.shape[1:], None, eps)

    def gated(self, x: Any) -> Any:
        """`silu(gate) * up` of rows that hold both."""
        import torch

        gate, up = x.chunk(2, dim=1)
        return torch.nn.functional.silu(gate) * up

    def new_cache(self, slots: int) -> Cache:
        """Keys and values [heads, slots, size of a head]."""
        import torch

        shape = self._heads.number, slots, self._heads.size
        return torch.zeros(shape, dtype=self._dtype), torch.zeros(shape, dtype=self._dtype)

    def put(self, cache: Cache, x: Any, positions: Any, slots: Any) -> None:
        """Store the keys, rotated, and values of rows that hold both."""
        keys, values = x.chunk(2, dim=1)
        cache[0].index_copy_(1, slots, self._rotate(keys, positions))
        cache[1].index_copy_(1, slots, self._split(values))

    def attend(self, x: Any, positions: Any, cache: Cache, spans: Sequence[RowSpan]) -> Any:
        """Causal attention of the queries of each span to its own sequence."""
        keys, values = cache
        queries = self._rotate(x, positions)
        mixed = x.new_zeros((len(x), self._heads.number, self._heads.size)).transpose(0, 1)
        for span in spans:
            for start in range(0, span.rows, _BLOCK):
                stop = min(span.rows, start + _BLOCK)
                at = span.position + start
                seen = slice(span.slot, span.slot + min(span.size, align(at + stop - start, KEYS)))
                block = slice(span.row + start, span.row + stop)
                scores = queries[:, block] @ keys[:, seen].transpose(1, 2)
                scores[:, :, at:] += self._future[: stop - start, : scores.shape[2] - at]
                mixed[:, block] = scores.softmax(-1) @ values[:, seen]
        return mixed.transpose(0, 1).reshape(len(x), -1)

    def _split(self, x: Any) -> Any:
        """[rows, heads * size] as [heads, rows, size]."""
        return x.reshape(len(x), -1, self._heads.size).transpose(0, 1)

    def _rotate(self, x: Any, positions: Any) -> Any:
        import torch

        pairs = x.float().reshape(len(x), self._heads.number, -1, 2)
        turned = torch.view_as_complex(pairs) * self._turns[positions]
        return self._split(torch.view_as_real(turned)).to(self._dtype).contiguous()


class CompiledKernels:
    """The operations in C, in bfloat16; they take a tenth of the time."""

    def __init__(self, library: ctypes.CDLL, heads: Heads) -> None:
        import torch

        self._library, self._heads = library, heads
        cosines = heads.angles.cos().repeat_interleave(2, dim=1)
        sines = torch.stack([-heads.angles.sin(), heads.angles.sin()], dim=2).flatten(1)
        self._turns = torch.cat([cosines, sines], dim=1).contiguous()

    def norm(self, x: Any, eps: float) -> Any:
        """RMS norm without a weight."""
        import torch

        out = torch.empty_like(x)
        self._call("norm", x, *x.shape, ctypes.c_float(eps), out)
        return out

    def gated(self, x: Any) -> Any:
        """`silu(gate) * up` of rows that hold both."""
        rows, width = x.shape
        out = x.new_empty((rows, width // 2))
        self._call("gated", x, rows, width // 2, out)
        return out

    def new_cache(self, slots: int) -> Cache:
        """Keys and values in the order that packed_kernels.c describes."""
        import torch

        numbers = self._heads.number * slots * self._heads.size
        return torch.zeros(numbers, dtype=torch.bfloat16), torch.zeros(
            numbers, dtype=torch.bfloat16
        )

    def put(self, cache: Cache, x: Any, positions: Any, slots: Any) -> None:
        """Store the keys, rotated, and values of rows that hold both."""
        keys, values = x.chunk(2, dim=1)
        shape = x.stride(0), len(x), self._heads.number
        at = positions, self._turns, slots, self._slots(cache)
        self._call("put", keys, values, *shape, *at, *cache)

    def attend(self, x: Any, positions: Any, cache: Cache, spans: Sequence[RowSpan]) -> Any:
        """Causal attention of the queries of each span to its own sequence."""
        out = x.new_zeros(x.shape)
        for span in spans:
            rows = slice(span.row, span.row + span.rows)
            shape = x.stride(0), span.rows, self._heads.number
            at = positions[rows], self._turns, *span[2:], self._slots(cache)
            self._call("attend", x[rows], *shape, *at, *cache, out[rows])
        return out

    def _slots(self, cache: Cache) -> int:
        return len(cache[0]) // (self._heads.number * self._heads.size)

    def _call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library: tensors as pointers, integers as long."""
        getattr(self._library, name)(
            *(
                ctypes.c_void_p(value.data_ptr())
                if hasattr(value, "data_ptr")
                else ctypes.c_long(value)
                if isinstance(value, int)
                else value
                for value in arguments
            )
        )


def make_kernels(heads: Heads, sizes: Sequence[int], dtype: Any) -> Kernels:
    """The fastest kernels for a precision; `sizes` are the widths of rows."""
    import torch

    fits = heads.size % 32 == 0 and all(size % 16 == 0 for size in sizes)
    if dtype == torch.bfloat16 and fits and (library := compile_library(heads.size)):
        return CompiledKernels(library, heads)
    return TorchKernels(heads, dtype)


def compile_library(
    head: int, find: Callable[[str], str | None] = shutil.which
) -> ctypes.CDLL | None:
    """Compile the C file for heads of a size and this processor; None where that is impossible."""
    compiler = find("cc") or find("gcc") or find("clang")
    if compiler is None or "avx512_bf16" not in _processor_flags():
        return None
    with TemporaryDirectory(prefix="proxhpc-") as folder:
        file = Path(folder) / "kernels.so"
        flags = ("-O3", "-march=native", "-shared", "-fPIC", f"-DDIM={head}")
        try:
            subprocess.run(
                [compiler, *flags, str(SOURCE), "-o", str(file), "-lm"],
                check=True,
                capture_output=True,
                timeout=60,
            )
            return ctypes.CDLL(str(file))
        except (OSError, subprocess.SubprocessError) as error:
            _log.debug("%s does not compile the kernels: %s", compiler, error)
            return None


def has_bfloat16() -> bool:
    """Return True if the processor multiplies bfloat16, several times as fast as float32."""
    return not _processor_flags().isdisjoint(("avx512_bf16", "amx_bf16", "bf16"))  # bf16: ARM


def _processor_flags() -> frozenset[str]:
    try:
        return frozenset(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return frozenset()

"""What PackedLlama computes: in C where it compiles, otherwise with torch."""

import ctypes
import logging
import math
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

TILE, KEYS = 8, 32  # rows of a span and slots of a sequence come in multiples
_BLOCK = 128  # queries that torch scores against the keys at once
_PANEL = 32  # columns of a matrix that are stored together
MAX_WIDTH = 16_384  # of rows: C has 64 of them on the stack
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


class Buffers(threading.local):
    """Memory of a thread that passes use again: fresh pages take a tenth of a pass."""

    def __init__(self) -> None:
        self._held: dict[str, Any] = {}

    def tensor(self, name: str, shape: Sequence[int], dtype: Any) -> Any:
        """A tensor of a name, with any content; it replaces the last one of the name."""
        import torch

        held, size = self._held.get(name), math.prod(shape)
        if held is None or len(held) < size:
            held = self._held[name] = torch.empty(size, dtype=dtype)
        return held[:size].view(*shape)


class TorchKernels:
    """Operations on [rows, numbers] with torch, in any precision.

    In a head, numbers that are rotated together are adjacent.
    """

    def __init__(self, heads: Heads, dtype: Any) -> None:
        import torch

        self._heads, self.dtype, self._scratch = heads, dtype, Buffers()
        self._turns = torch.polar(torch.ones_like(heads.angles), heads.angles)[:, None]
        self._future = torch.full((_BLOCK, _BLOCK + KEYS), -math.inf).triu(1).to(dtype)

    def matrix(self, weight: Any) -> Any:
        """A matrix [outputs, inputs] in the form that these kernels read."""
        return weight.to(self.dtype)

    def gate_up(self, gate: Any, up: Any) -> Any:
        """The matrix that `feed` reads first."""
        import torch

        return self.matrix(torch.cat([gate, up]))

    def project(self, x: Any, eps: float, matrix: Any) -> Any:
        """The normed rows times a matrix."""
        import torch

        return torch.nn.functional.linear(self.norm(x, eps), matrix)

    def add(self, x: Any, rows: Any, matrix: Any) -> Any:
        """`x` plus other rows times a matrix; `x` may change."""
        return x.addmm(rows, matrix.t())

    def feed(self, x: Any, eps: float, gate_up: Any, down: Any) -> Any:
        """`x` plus what the layer's feed-forward network makes of it; `x` may change."""
        return self.add(x, self.gated(self.project(x, eps, gate_up)), down)

    def norm(self, x: Any, eps: float) -> Any:
        """RMS norm without a weight."""
        import torch

        return torch.nn.functional.rms_norm(x, x.shape[1:], None, eps)

    def gated(self, x: Any) -> Any:
        """`silu(gate) * up` of rows that hold both."""
        import torch

        gate, up = x.chunk(2, dim=1)
        return torch.nn.functional.silu(gate) * up

    def rows(self, table: Any, ids: Any, name: str) -> Any:
        """Rows of a table, in the scratch memory of a name."""
        import torch

        out = self._scratch.tensor(name, (len(ids), table.shape[1]), self.dtype)
        return torch.index_select(table, 0, ids, out=out)

    def new_cache(self, layer: int, slots: int) -> Cache:
        """Zeros for a layer's keys and values; the thread's cache of that layer ends."""
        shape = self._cache_shape(slots)
        names = f"keys {layer}", f"values {layer}"
        keys, values = (self._scratch.tensor(name, shape, self.dtype).zero_() for name in names)
        return keys, values

    def _cache_shape(self, slots: int) -> tuple[int, ...]:
        return self._heads.number, slots, self._heads.size

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
        return self._split(torch.view_as_real(turned)).to(self.dtype).contiguous()


class CompiledKernels(TorchKernels):
    """The operations in C, in bfloat16, but matrix products with torch."""

    def __init__(self, library: ctypes.CDLL, heads: Heads) -> None:
        import torch

        self._library, self._heads = library, heads
        self.dtype, self._scratch = torch.bfloat16, Buffers()
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

    def _cache_shape(self, slots: int) -> tuple[int, ...]:
        """One row of numbers, in the order that packed_kernels.c describes."""
        return (self._heads.number * slots * self._heads.size,)

    def put(self, cache: Cache, x: Any, positions: Any, slots: Any) -> None:
        """Store the keys, rotated, and values of rows that hold both."""
        keys, values = x.chunk(2, dim=1)
        shape = x.stride(0), len(x), self._heads.number
        at = positions, self._turns, slots, self._slots(cache)
        self._call("put", keys, values, *shape, *at, *cache)

    def attend(self, x: Any, positions: Any, cache: Cache, spans: Sequence[RowSpan]) -> Any:
        """Causal attention of the queries of each span to its own sequence."""
        out = self._scratch.tensor("attended", x.shape, self.dtype)
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


class IntegerKernels(CompiledKernels):
    """Matrix products in C, too: of weights in 8 bits, one scale a row, and rows rounded likewise.

    Sums of integers are exact, so that a row has the same products in every batch.
    """

    def matrix(self, weight: Any) -> Any:
        """Panels of 32 outputs, as packed_kernels.c describes them."""
        import torch

        scale = weight.abs().amax(1) / 127
        whole = (weight / scale.clamp(min=1e-30)[:, None]).round().to(torch.int8)
        start = whole.sum(1, dtype=torch.int32) * -128  # since the bytes of rows are around 128
        columns = [
            values.contiguous().view(-1, _PANEL).view(torch.int8)
            for values in (scale.float(), start)
        ]
        panels = whole.view(-1, _PANEL, weight.shape[1] // 4, 4).transpose(1, 2)
        return torch.cat([*columns, panels.flatten(1)], dim=1).contiguous()

    def gate_up(self, gate: Any, up: Any) -> Any:
        """The matrix that `feed` reads first: half of a panel is gates."""
        import torch

        halves = [weight.unflatten(0, (-1, _PANEL // 2)) for weight in (gate, up)]
        return self.matrix(torch.stack(halves, dim=1).flatten(0, 2))

    def project(self, x: Any, eps: float, matrix: Any) -> Any:
        """The normed rows times a matrix."""
        width = len(matrix) * _PANEL
        out = self._scratch.tensor("projected", (len(x), width), self.dtype)
        self._call("project", x, *x.shape, ctypes.c_float(eps), matrix, width, out)
        return out

    def add(self, x: Any, rows: Any, matrix: Any) -> Any:
        """`x` plus other rows times a matrix; `x` may change."""
        self._call("add", rows, *rows.shape, matrix, x.shape[1], x)
        return x

    def feed(self, x: Any, eps: float, gate_up: Any, down: Any) -> Any:
        """`x` plus what the layer's feed-forward network makes of it; `x` may change."""
        inner = len(gate_up) * _PANEL // 2
        self._call("feed", x, *x.shape, ctypes.c_float(eps), gate_up, inner, down)
        return x


def make_kernels(heads: Heads, sizes: Sequence[int], dtype: Any) -> TorchKernels:
    """The fastest kernels for a precision, or of all if it is None; `sizes` are widths of rows."""
    import torch

    flags, compiled = _processor_flags(), torch.bfloat16 if has_bfloat16() else torch.float32
    fits = heads.size % 32 == 0 and all(size % _PANEL == 0 and size <= MAX_WIDTH for size in sizes)
    if (dtype or compiled) == torch.bfloat16 and fits and (library := compile_library(heads.size)):
        integers = dtype is None and "avx512_vnni" in flags and "amx_bf16" not in flags
        return (IntegerKernels if integers else CompiledKernels)(library, heads)
    return TorchKernels(heads, dtype or compiled)


@cache  # it takes half a second
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

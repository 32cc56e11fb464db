"""Rows: a tensor [b, g, n, ...] that grows along n, the one kind of memory a store is made of."""

from __future__ import annotations

import contextlib
import math
import mmap

import torch
from torch import Tensor

_MAPPED = 1 << 15  # bytes from which on memory comes from the system instead of the heap
_LARGE = 4 << 20  # bytes from which on memory is asked for in huge pages, mostly of 2 MB


class Rows:
    """n rows per batch and head in a buffer that grows by an eighth, so appending costs little.

    Memory past the rows is reserved, not written, hence not resident; but in buffers of 4 MB and
    more, which are huge pages and grow by a sixteenth.
    """

    __slots__ = ("_view", "buffer", "count")

    def __init__(self, x: Tensor) -> None:
        self.buffer = x.contiguous()
        self.count = x.shape[2]
        self._view: tuple[Tensor, int, Tensor] | None = None  # of this buffer and count

    @classmethod
    def copy_of(cls, x: Tensor) -> Rows:
        """Holds a copy, in memory that goes back to the system when it is outgrown."""
        made = cls(reserve(x, tuple(x.shape)))
        made.buffer.copy_(x)
        return made

    @property
    def view(self) -> Tensor:
        """The rows, [b, g, count, ...]."""
        last = self._view
        if last is None or last[0] is not self.buffer or last[1] != self.count:
            last = self._view = self.buffer, self.count, self.buffer.narrow(2, 0, self.count)
        return last[2]

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self.view.numel() * self.buffer.element_size()

    @property
    def reserved_nbytes(self) -> int:
        """Bytes of the buffer past the rows."""
        return self.buffer.numel() * self.buffer.element_size() - self.nbytes

    def _memory(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A buffer to grow into."""
        return reserve(like, shape)

    def extend(self, more: int) -> Tensor:
        """``more`` new rows, to be written."""
        need = self.count + more
        if need > self.buffer.shape[2]:
            b, g, _, *rest = self.buffer.shape
            row = b * g * math.prod(rest) * self.buffer.element_size()
            room = need + need // (16 if need * row >= _LARGE else 8) + 8
            step = page_rows(row // (b * g)) if room * row >= _MAPPED else 1
            grown = self._memory(self.buffer, (b, g, -(-room // step) * step, *rest))
            grown.narrow(2, 0, self.count).copy_(self.view)
            self.buffer, self._view = grown, None  # the old memory goes back at once
        self.count = need
        return self.buffer.narrow(2, need - more, more)

    def append(self, x: Tensor) -> None:
        """Adds copies of x [b, g, more, ...]."""
        self.extend(x.shape[2]).copy_(x)

    def drop_first(self, n: int) -> None:
        """Keeps all but the first n rows, in a buffer of their size."""
        self._become(self.view[:, :, n:].clone())

    def crop(self, n: int) -> None:
        """Keeps the first n rows."""
        self.count = min(self.count, n)

    def keep(self, index: Tensor) -> None:
        """Keeps rows ``index`` [b, g, k] of each head, in that order."""
        index = index.view(*index.shape, *[1] * (self.buffer.dim() - 3))
        index = index.expand(*index.shape[:3], *self.buffer.shape[3:])
        self._become(self.view.gather(2, index))

    def take_batches(self, index: Tensor) -> None:
        """Sequence i becomes a copy of what sequence ``index[i]`` was."""
        self._become(self.view.index_select(0, index.to(self.buffer.device)))

    def _become(self, x: Tensor) -> None:
        """Holds x instead."""
        self.buffer, self.count, self._view = x.contiguous(), x.shape[2], None

    def move(self, device: torch.device) -> None:
        """Holds the same on another device."""
        if self.buffer.device != device:
            self._become(self.view.to(device))

    def clone(self) -> Rows:
        """An independent copy."""
        return Rows(self.view.clone())


def reserve(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Memory straight from the system where it is large: the heap would keep what is given back.

    Huge pages where it is larger still: fetching ahead does not wait for walks of the page tables,
    which a virtual machine makes long (bench/results/kv.md).
    """
    nbytes = math.prod(shape) * like.element_size()
    if nbytes < _MAPPED or not like.is_cpu:
        return like.new_empty(shape)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if nbytes >= _LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)


def page_rows(nbytes: int) -> int:
    """How many rows of so many bytes fill whole pages of memory, of which no head then shares one."""
    return mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, nbytes)


def indices(x: Tensor) -> Tensor:
    """A list as the kernels take it: int32."""
    return x.to(torch.int32)

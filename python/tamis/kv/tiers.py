"""Tiers: all keys and values far away, those lately read in a pool, the next ones on their way.

For methods that read few of the tokens at a step. Near the kernels lie what they choose by (labels, page
bounds) and a pool of fixed size. The rest lies in a file, mapped but never left resident, or, where the
kernels are a CUDA device's, in host memory that it reaches.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from tamis.errors import TamisFileError, TamisTypeError, TamisUnsupported, TamisValueError
from tamis.kv.host import HostRows
from tamis.kv.rows import Rows, indices, page_rows, reserve
from tamis.ops import cuda
from tamis.ops.attention import DenseSegment, Lists, Segment, merge_lse, sparse_attention
from tamis.ops.kv_fetch import Fetched, Pool, kv_fetch
from tamis.policy.kv_recipe import KvRecipe, Pages

_ROUND = 64  # rows of a file, so that pages of 2, 4, ... 64 tokens fit


@dataclass(frozen=True)
class Tiers:
    """Where the tokens of a Cache lie.

    Attributes:
        folder: For a file that holds every key and value and goes with the cache; None: host memory.
        memory: Bytes of the pool of tokens lately read, all layers together.
        device: Where the pool lies, as the model does: "cpu", or "cuda" for the memory of the GPU.
    """

    folder: str | os.PathLike[str] | None = None
    memory: int = 0
    device: str | torch.device = "cpu"

    def __post_init__(self) -> None:
        kind = str(self.device).split(":")[0]
        if kind not in ("cpu", "cuda"):
            raise TamisValueError(f"kv.Tiers: device: got {self.device}, wanted cpu or cuda.")
        if kind == "cuda" and (reason := cuda.why_off()):
            raise TamisUnsupported(
                f"kv.Tiers: device: got {self.device}, but CUDA is off: {reason}; wanted device='cpu' "
                "with a folder on this machine."
            )
        if not isinstance(self.folder, str | os.PathLike | None):
            raise TamisTypeError(
                f"kv.Tiers: folder: got {type(self.folder).__name__}, wanted a path or None."
            )
        if self.folder is not None and not Path(self.folder).is_dir():
            raise TamisFileError(
                f"kv.Tiers: folder: got {self.folder}, wanted a folder for the file; make it first."
            )
        if not isinstance(self.memory, int) or self.memory < 1:
            raise TamisValueError(
                f"kv.Tiers: memory: got {self.memory!r}, wanted bytes for the tokens lately read."
            )

    def of_layer(self, recipe: KvRecipe, layers: list[int]) -> Tier:
        """The tier of one layer, with its part of the memory.

        Args:
            recipe: Of the cache.
            layers: Places of all layers that have a store.

        Raises:
            TamisValueError: The recipe reads every token.
        """
        how = recipe.select
        if how is None:
            raise TamisValueError(
                "kv.Cache: tiers: got some, wanted none: this method reads every token at every step."
            )
        sharing = max(1, sum(layer >= how.skip_layers for layer in layers))
        unit = how.by.page if isinstance(how.by, Pages) else 1
        return Tier(self, self.memory // sharing, unit)


class FileRows(Rows):
    """Rows in a mapped file without a name; ``drop`` takes the pages out of this process's memory."""

    __slots__ = ("folder", "map")

    def __init__(self, x: Tensor, folder: str | os.PathLike[str]) -> None:
        self.folder = folder
        self.count, self._view = 0, None
        self.buffer = x.narrow(2, 0, 0)
        self._reserve(x, x.shape[2])
        self.append(x)

    def _reserve(self, like: Tensor, rows: int) -> None:
        b, g, _, *rest = like.shape
        rows = -(-(rows + rows // 4) // _ROUND) * _ROUND
        shape = (b, g, rows, *rest)
        size = max(1, torch.Size(shape).numel() * like.element_size())
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                os.posix_fallocate(
                    file.fileno(), 0, size
                )  # a full disk fails here, not when written
                made = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise TamisFileError(
                f"kv.Tiers: folder: got {self.folder} ({error.strerror}), wanted {size} bytes there; "
                "free some or name another."
            ) from error
        old = self.view
        self.map = made
        self.buffer = torch.frombuffer(made, dtype=like.dtype).view(shape)
        self.buffer.narrow(2, 0, self.count).copy_(old)
        self._view = None

    def extend(self, more: int) -> Tensor:
        """``more`` new rows, to be written."""
        if self.count + more > self.buffer.shape[2]:
            self._reserve(self.buffer, self.count + more)
        self.count += more
        return self.buffer.narrow(2, self.count - more, more)

    def move(self, device: torch.device) -> None:
        """A file stays where it is."""

    def drop(self) -> None:
        """Nothing of the file stays in this process's memory; the system keeps what it likes."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED)

    def _become(self, x: Tensor) -> None:
        self.__init__(x, self.folder)  # type: ignore[misc]

    def clone(self) -> FileRows:
        """An independent copy, in a file of its own."""
        return FileRows(self.view, self.folder)

    def __deepcopy__(self, memo: dict[int, object]) -> FileRows:
        return self.clone()


class Tier:
    """One layer's pool over its file or host memory: tokens come in when read, those read longest ago leave.

    Args:
        tiers: Of the cache.
        memory: Bytes of the pool.
        unit: Tokens that move together: a page where pages are chosen, else 1.
    """

    def __init__(self, tiers: Tiers, memory: int, unit: int) -> None:
        self.tiers, self.memory, self.unit = tiers, memory, unit
        self.pool: Pool | None = None
        self.ahead: Future[None] | None = None
        self.ready: torch.cuda.Event | None = None  # when what was read ahead has come
        self.first: Tensor | None = None  # of the last step: padding, for reading ahead
        self.forgotten = (0, 0)  # what pools before this one found

    def __deepcopy__(self, memo: dict[int, object]) -> Tier:
        return Tier(self.tiers, self.memory, self.unit)

    @property
    def on_device(self) -> bool:
        """Whether the pool is a GPU's."""
        return str(self.tiers.device).startswith("cuda")

    def rows(self, x: Tensor) -> Rows:
        """Where keys or values x [b, g, n, d] are to lie, with a copy of them."""
        if self.tiers.folder is not None:
            return FileRows(x, self.tiers.folder)
        return HostRows(x) if x.is_cuda else Rows.copy_of(x)

    def check(self, x: Tensor) -> None:
        """Whether keys come from the pool's kind of device.

        Raises:
            TamisValueError: They do not.
        """
        wanted = "cuda" if self.on_device else "cpu"
        if x.device.type != wanted:
            raise TamisValueError(
                f"kv.Cache: tiers: got a pool on {wanted} and a model on {x.device}, wanted one device; "
                f"pass kv.Tiers(..., device={x.device.type!r})."
            )

    @property
    def found(self) -> tuple[int, int]:
        """Units that steps read, and those of them that were in the pool."""
        if self.pool is None:
            return self.forgotten
        reads, hits = self.pool.reads.sum((0, 1)).tolist()
        return self.forgotten[0] + reads, self.forgotten[1] + hits

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes of the units in the ``pool``, and of the ``pool_map`` that says where they are.

        In host memory the pool grows as units come: what is reserved beyond is not the process's. On a
        device all of it counts.
        """
        if self.pool is None:
            return {"pool": 0, "pool_map": 0}
        held = self.pool.unit_in
        units = held.numel() if held.is_cuda else int((held >= 0).sum())
        each = 2 * self.unit * self.pool.keys.shape[3] * self.pool.keys.element_size()
        return {"pool": units * each, "pool_map": self.pool.map_bytes}

    def start(self, fetch: Callable[[], None], used: Iterable[Tensor]) -> None:
        """Runs ``fetch`` beside what computes now: in a thread, or on a stream of its own.

        Args:
            fetch: Brings units into the pool.
            used: Tensors that it reads or replaces and that may be freed meanwhile.
        """
        self.wait()
        if self.pool is None:
            return
        device = self.pool.keys.device
        if device.type != "cuda":
            self.ahead = reader().submit(fetch)
            return
        side = _stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        for x in (*used, self.pool.slot_of):
            if x.is_cuda:
                x.record_stream(side)

        def run() -> None:
            with torch.cuda.device(device), torch.cuda.stream(side):
                fetch()
                self.ready = side.record_event()

        if self.tiers.folder is None:
            run()  # nothing in it waits
        else:
            self.ahead = reader().submit(run)

    def wait(self) -> None:
        """Until nothing is on its way (on a device: its kernels wait); before anything changes."""
        if self.ahead is not None:
            ahead, self.ahead = self.ahead, None
            ahead.result()
        if self.ready is not None and self.pool is not None:
            torch.cuda.current_stream(self.pool.keys.device).wait_event(self.ready)
            self.ready = None

    def forget(self) -> None:
        """Empties the pool, as rows of the file have changed."""
        self.wait()
        self.forgotten, self.pool = self.found, None

    def attend(
        self, q: Tensor, segments: list[Segment], scale: float | None, softcap: float
    ) -> tuple[Tensor, Tensor]:
        """``sparse_attention`` over segments that lie far away, within the memory given."""
        self.wait()
        near = [self.bring(s, q.device) or s for s in segments]
        if all(_reached(s, q.device) for s in near):
            return sparse_attention(q, near, scale=scale, softcap=softcap)
        return merge_lse(
            [
                sparse_attention(q, [piece], scale=scale, softcap=softcap)
                for segment in near
                for piece in self._pieces(segment, q.device)
            ]
        )

    def _pieces(self, s: Segment, device: torch.device) -> Iterable[Segment]:
        """A segment on the device; where it lies in a file, in pieces as large as the pool."""
        if not isinstance(s, DenseSegment) or _reached(s, device):
            yield s
            return
        if s.lists.index is not None:
            yield _gathered(s, device)
            return
        b, g, tokens, d = s.keys.shape
        step = max(64, self.memory // (2 * b * g * d * s.keys.element_size()))
        for at in range(0, tokens, step):
            lists = s.lists
            if lists.begin is not None:
                lists = replace(lists, begin=(lists.begin - at).clamp(min=0))
            k, v = (x[:, :, at : at + step].to(device) for x in (s.keys, s.values))
            yield DenseSegment(k, v, lists)

    def bring_ahead(self, segments: list[Segment], device: torch.device) -> None:
        """``bring`` before a step asks: it counts as neither read nor hit."""
        if self.pool is None:
            return
        counts = self.pool.reads
        self.pool.reads = torch.zeros_like(counts)
        for segment in segments:
            self.bring(segment, device)
        self.pool.reads = counts

    def bring(self, segment: Segment, device: torch.device) -> Segment | None:
        """The chosen tokens of a segment as a segment of the pool, on ``device``; None if too many.

        The same tokens in the same order, so attention to them is the same bit for bit.
        """
        if not isinstance(segment, DenseSegment):
            return None
        keys, values, lists = segment.keys, segment.values, segment.lists
        if lists.index is None or lists.count is None:
            if keys.shape[2] > self.unit:
                return None
            # The latest, which fill no page yet.
            return DenseSegment(keys.to(device), values.to(device), lists)
        index = lists.index
        if index.is_cpu:  # which may have room for more than it lists
            index = index[:, :, : int(lists.count.max())].contiguous()
            lists = replace(lists, index=index)
        pool = self._pool(keys, device)
        if pool is None or index.shape[2] > pool.slots * self.unit:
            return None
        reached = _reached(segment, device)
        found = kv_fetch(pool, lists, keys, values, copies=reached)
        if not reached:
            _copy(found, pool, keys, values)
        return DenseSegment(pool.keys, pool.values, found.lists)

    def _pool(self, keys: Tensor, device: torch.device) -> Pool | None:
        """The pool, made at its first use; None where the memory holds no unit."""
        b, g, _, d = keys.shape
        slots = self.memory // (2 * b * g * self.unit * d * keys.element_size())
        if self.pool is None and slots > 0:
            step = page_rows(self.unit * d * keys.element_size())
            slots = slots // step * step or slots
            shape = (b, g, min(slots, (2**31 - 1) // self.unit) * self.unit, d)
            like = keys.new_empty(0, device=device)
            self.pool = Pool(reserve(like, shape), reserve(like, shape), self.unit)
        return self.pool


def _reached(s: Segment, device: torch.device) -> bool:
    """Whether kernels of the device read a segment where it lies."""
    return not isinstance(s, DenseSegment) or s.keys.device == device


def _copy(found: Fetched, pool: Pool, keys: Tensor, values: Tensor) -> None:
    """Rows that the device cannot reach, as the host reads them, into the pool."""
    lacking, todo = found.lacking.flatten().cpu(), found.todo.flatten(0, 1).cpu().long()
    head, place = (torch.arange(todo.shape[1]) < lacking.unsqueeze(1)).nonzero(as_tuple=True)
    if not head.numel():
        return
    unit, slot = todo[head, place].unbind(1)
    batch, kv_head = head // keys.shape[1], head % keys.shape[1]
    to = (head.to(pool.keys.device), slot.to(pool.keys.device))
    for near, far in ((pool.keys, keys), (pool.values, values)):
        b, g, tokens, d = far.shape
        pages = far[:, :, : tokens // pool.unit * pool.unit].view(b, g, -1, pool.unit, d)
        rows = pages[batch, kv_head, unit].to(near.device)
        near.view(b * g, -1, pool.unit, d)[to] = rows


def _gathered(s: DenseSegment, device: torch.device) -> DenseSegment:
    """The listed tokens of a segment of the host, copied to a device, without a list."""
    if s.lists.index is None or s.lists.count is None:
        raise AssertionError("only listed tokens are gathered")
    index = s.lists.index.cpu().long()
    there = torch.arange(index.shape[2]) < s.lists.count.cpu().unsqueeze(-1)
    index = index.masked_fill(~there, 0)
    wide = index.unsqueeze(-1).expand(*index.shape, s.keys.shape[3])
    k, v = (x.gather(2, wide).to(device) for x in (s.keys, s.values))
    lists = Lists(end=s.lists.count)
    if s.lists.begin is not None:  # the list ascends
        before = (index < s.lists.begin.cpu().unsqueeze(-1)) & there
        lists = replace(lists, begin=indices(before.sum(-1)).to(device))
    return DenseSegment(k, v, lists)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which units come ahead of what computes."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@cache
def reader() -> ThreadPoolExecutor:
    """The one thread that fetches ahead."""
    return ThreadPoolExecutor(1, thread_name_prefix="tamis-kv")

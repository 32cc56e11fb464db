"""Tiers: all keys and values in a file, those lately read in memory, the next ones on their way.

For methods that read few of the tokens at a step. Memory then holds what they choose by (labels, page
bounds) and a pool of fixed size; the file holds the rest, mapped but never left resident.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from tamis.errors import TamisFileError, TamisValueError
from tamis.kv.rows import Rows, reserve
from tamis.ops.attention import DenseSegment, Lists, Segment, sparse_attention
from tamis.policy.kv_recipe import KvRecipe, Pages

_ROUND = 64  # rows of a file, so that pages of 2, 4, ... 64 tokens fit


@dataclass(frozen=True)
class Tiers:
    """Where the tokens of a Cache lie.

    Attributes:
        folder: For a file that holds every key and value and goes with the cache.
        memory: Bytes of the pool of tokens lately read, all layers together.
    """

    folder: str | os.PathLike[str]
    memory: int

    def __post_init__(self) -> None:
        if not Path(self.folder).is_dir():
            raise TamisFileError(
                f"kv.Tiers: folder: got {self.folder}, wanted a folder for the file; make it first."
            )
        if self.memory < 1:
            raise TamisValueError(
                f"kv.Tiers: memory: got {self.memory}, wanted bytes for the tokens lately read."
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
        return Tier(self.folder, self.memory // sharing, unit)


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
    """One layer's pool over its file: tokens come in when read, those read longest ago leave.

    Args:
        folder: For the file.
        memory: Bytes of the pool.
        unit: Tokens that move together: a page where pages are chosen, else 1.
    """

    def __init__(self, folder: str | os.PathLike[str], memory: int, unit: int) -> None:
        self.folder, self.memory, self.unit = folder, memory, unit
        self.reads = self.hits = 0  # units that steps read, and those of them found in memory
        self.ahead: Future[None] | None = None
        self.first: Tensor | None = None  # of the last step: padding, for reading ahead
        self._empty()

    def _empty(self) -> None:
        self.pool: tuple[Tensor, Tensor] | None = None  # keys and values [b, g, slots * unit, d]
        self.slot_of = self.unit_in = self.stamp = torch.empty(0, 0, dtype=torch.int32)
        self.clock = 0

    def __deepcopy__(self, memo: dict[int, object]) -> Tier:
        return Tier(self.folder, self.memory, self.unit)

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes of the units in the ``pool``, and of the ``pool_map`` that says where they are.

        The pool takes memory as units come: what is reserved beyond is not the process's.
        """
        if self.pool is None:
            return {"pool": 0, "pool_map": 0}
        units = int((self.unit_in >= 0).sum())
        each = sum(x.shape[3] * x.element_size() for x in self.pool) * self.unit
        maps = (self.slot_of, self.unit_in, self.stamp)
        return {"pool": units * each, "pool_map": sum(4 * x.numel() for x in maps)}

    def wait(self) -> None:
        """Until nothing is on its way; called before anything changes."""
        if self.ahead is not None:
            ahead, self.ahead = self.ahead, None
            ahead.result()

    def forget(self) -> None:
        """Empties the pool, as rows of the file have changed."""
        self.wait()
        self._empty()

    def attend(
        self, q: Tensor, segments: list[Segment], scale: float | None, softcap: float
    ) -> tuple[Tensor, Tensor]:
        """``sparse_attention`` over segments of the file, within the memory given."""
        near = [self.bring(s) for s in segments]
        if all(s is not None for s in near):
            return sparse_attention(
                q, [s for s in near if s is not None], scale=scale, softcap=softcap
            )
        parts = []
        for segment in segments:
            for piece in self._pieces(segment):
                parts.append(sparse_attention(q, [piece], scale=scale, softcap=softcap))
        lse = torch.stack([each for _, each in parts])
        total = lse.logsumexp(0)
        weight = (lse - total).exp().nan_to_num_(0.0).unsqueeze(-1)
        out = (weight * torch.stack([x.float() for x, _ in parts])).sum(0)
        return out.to(q.dtype), total

    def _pieces(self, s: Segment) -> list[Segment]:
        """A segment without an index in pieces as large as the pool."""
        if not isinstance(s, DenseSegment) or s.lists.index is not None:
            return [s]
        b, g, tokens, d = s.keys.shape
        step = max(64, self.memory // (2 * b * g * d * s.keys.element_size()))
        found: list[Segment] = []
        for at in range(0, tokens, step):
            lists = s.lists
            if lists.begin is not None:
                lists = replace(lists, begin=(lists.begin - at).clamp(min=0))
            found.append(
                DenseSegment(s.keys[:, :, at : at + step], s.values[:, :, at : at + step], lists)
            )
        return found

    def bring_ahead(self, segments: list[Segment]) -> None:
        """``bring`` before a step asks: it counts as neither read nor hit."""
        reads, hits = self.reads, self.hits
        for segment in segments:
            self.bring(segment)
        self.reads, self.hits = reads, hits

    def bring(self, segment: Segment) -> Segment | None:
        """The chosen tokens of a segment of the file as a segment of the pool; None if too many.

        The same tokens in the same order, so attention to them is the same bit for bit (where a page
        has padding in it, to rounding).
        """
        if not isinstance(segment, DenseSegment):
            return None
        lists, unit = segment.lists, self.unit
        if lists.index is None or lists.count is None:
            few = segment.keys.shape[2] <= unit  # the latest, which fill no page yet
            return (
                DenseSegment(segment.keys.clone(), segment.values.clone(), lists) if few else None
            )
        b, g, k = lists.index.shape
        index, count = lists.index.view(b * g, k).long(), lists.count.view(b * g, 1)
        valid = torch.arange(k) < count
        units = index.masked_fill(~valid, 0)[:, ::unit] // unit
        if lists.begin is not None:  # slots have no order, so padding is taken out here
            valid &= index >= lists.begin.view(b * g, 1)
        used = valid.view(b * g, k // unit, unit).any(-1)
        slots = self._slots(segment, units, used)
        if slots is None:
            return None
        near = (slots.unsqueeze(-1) * unit + torch.arange(unit)).view(b * g, k)
        if lists.begin is not None:
            order = (~valid).to(torch.uint8).sort(dim=1, stable=True).indices
            near, count = near.gather(1, order), valid.sum(1, keepdim=True)
        if self.pool is None:
            raise AssertionError("_slots makes the pool")
        found = Lists(
            index=near.view(b, g, k).to(torch.int32), count=count.view(b, g).to(torch.int32)
        )
        return DenseSegment(*self.pool, found)

    def _slots(self, segment: DenseSegment, units: Tensor, used: Tensor) -> Tensor | None:
        """Place in the pool of each unit [b * g, n], fetched where it was not there."""
        heads, n = units.shape
        self._make(segment)
        room = self.unit_in.shape[1]
        if n > room or self.pool is None:
            return None
        self.clock += 1
        slots = self.slot_of.gather(1, units).long()
        there = (slots >= 0) & used
        self.stamp.scatter_(1, slots.masked_fill(~there, room), self.clock)
        missing = used & ~there
        self.reads += int(used.sum())
        lacking = int(missing.sum())
        self.hits += int(used.sum()) - lacking
        if lacking:
            self._fetch(segment, units, missing)
            slots = self.slot_of.gather(1, units).long()
        return slots.clamp(min=0)

    def _fetch(self, segment: DenseSegment, units: Tensor, missing: Tensor) -> None:
        if self.pool is None:
            return
        rank = missing.cumsum(1) - 1
        most = int(rank[:, -1].max()) + 1
        oldest = self.stamp[:, :-1].topk(most, dim=1, largest=False).indices
        head, place = missing.nonzero(as_tuple=True)
        slot, unit = oldest[head, rank[head, place]], units[head, place]
        before = self.unit_in[head, slot].long()
        gone = before >= 0
        self.slot_of[head[gone], before[gone]] = -1
        self.slot_of[head, unit] = slot.to(torch.int32)
        self.unit_in[head, slot] = unit.to(torch.int32)
        self.stamp[head, slot] = self.clock
        batch, kv_head = head // segment.keys.shape[1], head % segment.keys.shape[1]
        for near, far in zip(self.pool, (segment.keys, segment.values), strict=True):
            b, g, tokens, d = far.shape
            whole = tokens // self.unit * self.unit
            pages = far[:, :, :whole].view(b, g, -1, self.unit, d)
            near.view(b * g, -1, self.unit, d)[head, slot] = pages[batch, kv_head, unit]

    def _make(self, segment: DenseSegment) -> None:
        """The pool at its first use, and a longer map as the file grows."""
        b, g, tokens, d = segment.keys.shape
        if self.pool is None:
            record = 2 * b * g * self.unit * d * segment.keys.element_size()
            slots = min(self.memory // record, 2**31 - 1)
            if slots < 1:
                return
            shape = (b, g, slots * self.unit, d)
            self.pool = reserve(segment.keys, shape), reserve(segment.values, shape)
            self.unit_in = torch.full((b * g, slots), -1, dtype=torch.int32)
            self.stamp = torch.zeros(b * g, slots + 1, dtype=torch.int32)
            self.slot_of = torch.empty(b * g, 0, dtype=torch.int32)
        more = -(-tokens // self.unit) - self.slot_of.shape[1]
        if more > 0:
            grown = torch.full((b * g, more + more // 4 + 64), -1, dtype=torch.int32)
            self.slot_of = torch.cat([self.slot_of, grown], 1)


@cache
def reader() -> ThreadPoolExecutor:
    """The one thread that fetches ahead."""
    return ThreadPoolExecutor(1, thread_name_prefix="tamis-kv")

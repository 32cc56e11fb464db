"""kv_fetch: a pool of fixed size over keys and values that lie farther away, in a file or in host memory.

The units (tokens or pages) that a step lists and the pool lacks take the places of those read longest
ago; ``sparse_attention`` then reads the pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tamis import _C
from tamis.errors import TamisValueError
from tamis.ops import cuda_kv
from tamis.ops.attention import Lists
from tamis.ops.handle import core_errors

__all__ = ["Fetched", "Pool", "kv_fetch"]

_EMPTY = -1024  # kFetchEmpty
_MAP_ROOM = 64  # units by which the map grows at least


class Pool:
    """Slots for units of ``unit`` tokens of each KV head, and the maps that say what is in them.

    Attributes:
        keys: [b, g, slots * unit, d].
        values: Like the keys.
        unit: Tokens of a unit.
        slot_of: Where each unit is, [b, g, units] int32; -1: not here.
        unit_in: What each slot holds, [b, g, slots] int32; -1: nothing.
        stamp: When each slot was read last, [b, g, slots] int32.
        clock: Steps so far, [b, g] int32.
        reads: Units that steps asked for and those found here, [b, g, 2] int64.
    """

    def __init__(self, keys: Tensor, values: Tensor, unit: int) -> None:
        """Empty, over memory that ``keys`` and ``values`` give."""
        self.keys, self.values, self.unit = keys, values, unit
        b, g, tokens, _ = keys.shape
        slots, device = tokens // unit, keys.device
        self.slot_of = torch.empty(b, g, 0, dtype=torch.int32, device=device)
        self.unit_in = torch.full((b, g, slots), -1, dtype=torch.int32, device=device)
        self.stamp = torch.full((b, g, slots), _EMPTY, dtype=torch.int32, device=device)
        self.clock = torch.zeros(b, g, dtype=torch.int32, device=device)
        self.reads = torch.zeros(b, g, 2, dtype=torch.int64, device=device)

    @property
    def slots(self) -> int:
        """Units of a head that have room."""
        return self.unit_in.shape[2]

    @property
    def map_bytes(self) -> int:
        """Bytes of the maps."""
        maps = (self.slot_of, self.unit_in, self.stamp, self.clock, self.reads)
        return sum(x.numel() * x.element_size() for x in maps)

    def grow(self, units: int) -> None:
        """Lets the map name ``units`` units."""
        more = units - self.slot_of.shape[2]
        if more > 0:
            shape = (*self.slot_of.shape[:2], more + more // 4 + _MAP_ROOM)
            self.slot_of = torch.cat([self.slot_of, self.slot_of.new_full(shape, -1)], 2)


@dataclass(frozen=True)
class Fetched:
    """What ``kv_fetch`` found.

    Attributes:
        lists: The same tokens as places in the pool, in order; those before ``begin`` left out.
        todo: Unit and slot of each that was missing, [b, g, listed units, 2] int32.
        lacking: How many of them, [b, g] int32.
    """

    lists: Lists
    todo: Tensor
    lacking: Tensor


def kv_fetch(
    pool: Pool, lists: Lists, keys: Tensor, values: Tensor, *, copies: bool = True
) -> Fetched:
    """Brings what ``lists`` names into the pool, whose maps change.

    On a CUDA device nothing waits: what is missing is counted, placed and copied there.

    Args:
        pool: On the device of the lists, with at least as many slots as a list has units.
        lists: ``index`` [b, g, k] of whole units in ascending order, ``count``, and ``begin`` or none.
        keys: Everything, [b, g, tokens, d], on the pool's device; on CUDA that may be host memory which
            the device reaches.
        values: Like the keys.
        copies: False leaves the rows of ``todo`` to the caller.

    Raises:
        TamisValueError: Shapes or devices disagree, the pool is too small, or an index lies outside
            (on a CUDA device the nearest unit is taken).
    """
    index, count = lists.index, lists.count
    if index is None or count is None:
        raise TamisValueError("kv_fetch: lists: got none, wanted an index and a count.")
    b, g, tokens, d = keys.shape
    pool.grow(tokens // pool.unit)
    device = pool.keys.device
    alike = pool.keys.shape == (b, g, pool.slots * pool.unit, d) and values.shape == keys.shape
    if not alike or not keys.dtype == values.dtype == pool.keys.dtype:
        raise TamisValueError(
            f"kv_fetch: keys, values: got {keys.dtype} {list(keys.shape)} and {values.dtype} "
            f"{list(values.shape)}, wanted rows like the pool's {pool.keys.dtype} "
            f"{list(pool.keys.shape)}."
        )
    near = torch.empty_like(index)
    near_count = torch.empty_like(count)
    width = index.shape[2]
    todo = torch.empty(b, g, width // pool.unit, 2, dtype=torch.int32, device=device)
    lacking = torch.empty(b, g, dtype=torch.int32, device=device)
    for name, x in (("index", index), ("count", count), ("begin", lists.begin)):
        if x is not None and (x.dtype != torch.int32 or x.device != device or not _dense(x)):
            raise TamisValueError(
                f"kv_fetch: {name}: got {x.dtype} on {x.device}, wanted contiguous torch.int32 on "
                f"{device}."
            )
    size = keys.element_size()
    far = (0, (0, 0, 0), 0, (0, 0, 0))
    if copies:
        k, v = ((x.data_ptr(), _strides(x)) for x in (keys, values))
        far = (*k, *v)
    arguments = (
        (b, g, pool.slot_of.shape[2], pool.slots, pool.unit),
        (index.data_ptr(), width, count.data_ptr(), 0 if lists.begin is None else lists.begin.data_ptr()),
        tuple(x.data_ptr() for x in (pool.slot_of, pool.unit_in, pool.stamp, pool.clock, pool.reads)),
        tuple(x.data_ptr() for x in (near, near_count, todo, lacking)),
        (d * size, *far, pool.keys.data_ptr(), pool.values.data_ptr()),
    )  # fmt: skip
    if device.type == "cuda":
        cuda_kv.kv_fetch(index, *arguments)
    else:
        with core_errors():
            _C.kv_fetch(*arguments)
    return Fetched(Lists(index=near, count=near_count), todo, lacking)


def _dense(x: Tensor) -> bool:
    return x.is_contiguous()


def _strides(x: Tensor) -> tuple[int, int, int]:
    step, size = x.stride(), x.element_size()
    return step[0] * size, step[1] * size, step[2] * size

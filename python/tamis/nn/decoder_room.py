"""Room: keys and values of one layer of a transformers cache, with room behind them.

``DynamicLayer`` copies all it holds for each new token. Here the new token is written behind the last
and the layer gets longer views of the same memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Room", "rooms_of"]

_AT_LEAST = 64  # tokens of new room; otherwise an eighth of what is there


class Room:
    """Memory [2, m, g, capacity, d] of which a layer's ``keys`` and ``values`` are the start.

    Nobody but the layer was handed the newest views, so what lies behind them is free: it is written
    only while the layer still holds those very tensors. A cropped, reordered or copied cache holds
    others and gets a room of its own.
    """

    __slots__ = ("addresses", "capacity", "keys", "memory", "tokens", "values")

    def __init__(self, layer: Any) -> None:
        self.tokens: int = layer.keys.shape[2]
        self._copy(layer.keys, layer.values)
        self._hand_out(layer)

    def holds(self, layer: Any) -> bool:
        """Whether the layer still has what it was given last."""
        return layer.keys is self.keys and layer.values is self.values

    def fits(self, shape: tuple[int, int, int], dtype: torch.dtype) -> bool:
        """Whether keys and values are of m, g, d and dtype."""
        _, m, g, _, d = self.memory.shape
        return (m, g, d) == shape and self.memory.dtype is dtype

    def grow(self) -> None:
        """Makes room for more tokens."""
        self._copy(self.keys, self.values)

    def advance(self, layer: Any) -> None:
        """Hands out the token that was written behind the last."""
        self.tokens += 1
        self._hand_out(layer)

    def _copy(self, keys: Tensor, values: Tensor) -> None:
        m, g, tokens, d = keys.shape
        self.capacity = tokens + max(_AT_LEAST, tokens // 8)
        self.memory = keys.new_empty(2, m, g, self.capacity, d)
        self.memory[0, :, :, :tokens] = keys
        self.memory[1, :, :, :tokens] = values
        first = self.memory.data_ptr()
        half = self.memory.stride(0) * self.memory.element_size()
        self.addresses = first, first + half, self.capacity

    def _hand_out(self, layer: Any) -> None:
        self.keys, self.values = self.memory.narrow(3, 0, self.tokens).unbind(0)
        layer.keys, layer.values = self.keys, self.values


_rooms: weakref.WeakKeyDictionary[Any, dict[int, Room]] = weakref.WeakKeyDictionary()


def rooms_of(
    cache: Any, indices: Iterable[int], shape: tuple[int, int, int], dtype: torch.dtype
) -> list[Room] | None:
    """A room with place for a token for each layer; None where a cache is not plain.

    Plain is a DynamicCache that keeps every layer on the CPU in ``dtype``, the same number of
    tokens, at least one, in each.

    Args:
        cache: Of transformers.
        indices: Its layers.
        shape: m, g, d.
        dtype: Of keys and values.
    """
    if type(cache).__name__ != "DynamicCache" or cache.offloading or "update" in cache.__dict__:
        return None
    known = _rooms.get(cache)
    if known is None:
        known = _rooms.setdefault(cache, {})
    found: list[Room] = []
    for index in indices:
        room = _room_of(known, cache.layers, index, shape, dtype)
        if room is None or (found and room.tokens != found[0].tokens):
            return None
        found.append(room)
    return found


def _room_of(
    known: dict[int, Room], layers: Any, index: int, shape: tuple[int, int, int], dtype: torch.dtype
) -> Room | None:
    if index >= len(layers):
        return None
    layer, room = layers[index], known.get(index)
    if room is None or not room.holds(layer):
        if not _is_plain(layer, shape, dtype):
            return None
        room = known[index] = Room(layer)
    elif room.tokens == room.capacity:
        room.grow()
    return room if room.fits(shape, dtype) else None


def _is_plain(layer: Any, shape: tuple[int, int, int], dtype: torch.dtype) -> bool:
    """Whether a cache's layer holds at least one token as ``DynamicLayer`` does."""
    if type(layer).__name__ != "DynamicLayer" or layer.keys is None or layer.keys.dim() != 4:
        return False
    keys, values = layer.keys, layer.values
    m, g, tokens, d = keys.shape
    return (
        (m, g, d) == shape
        and tokens > 0
        and values.shape == keys.shape
        and all(t.dtype is dtype and t.is_cpu and not t.requires_grad for t in (keys, values))
    )

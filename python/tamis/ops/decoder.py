"""decoder: layers of Llama's form on one new token a sequence, in one call.

The formula is in csrc/ops/decoder/decoder.h. No operator of torch's: a model calls this where nobody
records what it does, and its own modules everywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tamis import _C
from tamis.ops.handle import CODE
from tamis.ops.tensors import DTYPE_NAME

__all__ = ["Cache", "Layer", "decode", "unchanged"]

Layer = _C.DecoderLayer
unchanged = _C.unchanged

Cache = tuple[int, int, int]
"""Addresses of keys and values [m, g, room, d] of a layer, and room."""


def decode(
    layers: Sequence[Layer],
    caches: Sequence[Cache],
    x: Tensor,
    turns: tuple[int, int, int],
    *,
    head_dim: int,
    tokens: int,
    last: tuple[int, float] = (0, 0.0),
) -> Tensor:
    """Y [m, 1, hidden] of x through the layers; every cache gains a token at place ``tokens``.

    Args:
        layers: Alike in shape.
        caches: Of each layer.
        x: [m, 1, hidden], contiguous.
        turns: Addresses of cos and sin [m or 1, d], and how many positions they hold.
        head_dim: d.
        tokens: In the caches, fewer than their room.
        last: Address of the weight of a norm after all layers, 0 for none, and its eps.
    """
    m = x.shape[0]
    y = x.new_empty(x.shape)
    workspace = x.new_empty(_C.decoder_workspace(layers[:1], m))
    _C.decoder(
        layers,
        caches,
        CODE[DTYPE_NAME[x.dtype]],
        m,
        head_dim,
        tokens,
        x.data_ptr(),
        turns,
        last,
        y.data_ptr(),
        workspace.data_ptr(),
    )
    return y

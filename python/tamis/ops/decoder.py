"""decoder: both halves of a decoder layer on one new token a sequence, each in one call.

The formula is in csrc/ops/decoder/decoder.h. No operator of torch's: a layer calls this where nobody
records what it does, and its own modules everywhere else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tamis import _C
from tamis.ops.entry import entry_of
from tamis.ops.tensors import Rest

__all__ = ["Norm", "Weight", "inputs", "outputs", "weight_of"]

Weight = tuple[_C.Matrix, int, int]
"""A checked matrix, the address of its bias (0: none), and the kernels' code for x's dtype."""

Norm = tuple[Tensor, float]
"""RMS normalization: weight [hidden], eps."""


def weight_of(
    token: str, values: Tensor, rest: Rest, bias: Tensor | None, dtype: torch.dtype, m: int
) -> Weight | None:
    """What the core reads; None where ``m`` tokens of ``dtype`` would not go to a kernel directly."""
    entry = entry_of(token, values, rest)
    code, limit = entry.direct.get(dtype, (0, -1))
    if m > limit:
        return None
    if bias is None:
        return entry.matrix, 0, code
    if bias.dtype is not dtype or not bias.is_contiguous():
        return None
    return entry.matrix, bias.data_ptr(), code


def inputs(
    x: Tensor,
    norm: Norm,
    weights: tuple[Weight, Weight, Weight],
    turns: tuple[Tensor, Tensor],
    head_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [m, h, 1, d], keys and values [m, g, 1, d] of normalized x [m, 1, hidden].

    Args:
        x: [m, 1, hidden], contiguous.
        norm: Of x's dtype, as are biases and turns.
        weights: Of q, k and v.
        turns: cos and sin, [m, 1, d] or [1, 1, d], contiguous.
        head_dim: d.
    """
    m, (q, k, v), (cos, sin) = x.shape[0], weights, turns
    queries = x.new_empty(m, q[0].rows // head_dim, 1, head_dim)
    kv_heads = k[0].rows // head_dim
    keys = x.new_empty(m, kv_heads, 1, head_dim)
    values = x.new_empty(m, kv_heads, 1, head_dim)
    workspace = torch.empty_like(x)
    _C.decoder_inputs(
        q[0],
        k[0],
        v[0],
        (q[1], k[1], v[1]),
        q[2],
        m,
        head_dim,
        x.data_ptr(),
        norm[0].data_ptr(),
        norm[1],
        cos.data_ptr(),
        sin.data_ptr(),
        cos.shape[0],
        queries.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        workspace.data_ptr(),
    )
    return queries, keys, values


def outputs(
    x: Tensor,
    attended: tuple[Tensor, Tensor, Tensor, float],
    norm: Norm,
    weights: tuple[Weight, Weight, Weight, Weight],
) -> Tensor:
    """The layer's y [m, 1, hidden]: attention, its output, norm and gated MLP, both residuals.

    Args:
        x: What the layer was given, [m, 1, hidden], contiguous.
        attended: Queries [m, h, 1, d], contiguous; keys and values [m, g, s, d], d contiguous; scale.
        norm: The second one.
        weights: Of o, gate, up and down.
    """
    queries, keys, values, scale = attended
    (o, gate, up, down), m = weights, x.shape[0]
    kv_heads, tokens, head_dim = keys.shape[1:]
    y = torch.empty_like(x)
    hidden, width, inner = o[0].rows, o[0].cols, gate[0].rows
    workspace = x.new_empty(m * (max(width, hidden) + hidden + 2 * inner))
    _C.decoder_outputs(
        o[0],
        gate[0],
        up[0],
        down[0],
        (o[1], gate[1], up[1], down[1]),
        o[2],
        m,
        head_dim,
        kv_heads,
        tokens,
        x.data_ptr(),
        queries.data_ptr(),
        keys.data_ptr(),
        keys.stride()[:3],
        values.data_ptr(),
        values.stride()[:3],
        scale,
        norm[0].data_ptr(),
        norm[1],
        y.data_ptr(),
        workspace.data_ptr(),
    )
    return y

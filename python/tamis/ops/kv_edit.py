"""kv_edit: tokens of a KV cache that stay, close up, or merge with those that are dropped.

Every list of tokens is per KV head, ascending; heads may keep different numbers of them. On a CUDA
device nothing waits for it, so lists are not checked there: the nearest token is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tamis import _C
from tamis.errors import TamisValueError
from tamis.ops import cuda_kv
from tamis.ops.handle import core_errors
from tamis.ops.kv_quantize import float_code, rows_of
from tamis.ops.tensors import by_16_bytes

__all__ = ["Merged", "Similar", "Tokens", "compact_", "gather_rows", "merge_tokens"]


@dataclass(frozen=True)
class Tokens:
    """Tokens of each head.

    Attributes:
        index: [b, g, width] int32, ascending in each head.
        count: How many of them count, [b, g] int32; all by default.
    """

    index: Tensor
    count: Tensor | None = None


@dataclass(frozen=True)
class Similar:
    """When a dropped token joins a kept one: if the largest similarity exceeds ``tau``.

    Attributes:
        tau: At 1 or above nothing merges, which is eviction.
        values: Similarity is cos(k, k') * cos(v, v') where both are above 0, instead of cos(k, k').
        merge_keys: Keys become means too; rotated keys err by it, so they stay by default.
    """

    tau: float = 0.0
    values: bool = True
    merge_keys: bool = False


@dataclass(frozen=True)
class Merged:
    """What ``merge_tokens`` returns, in the order of the kept tokens; rows past a count are 0.

    Attributes:
        keys: [b, g, width, d], the kept ones or means.
        values: [b, g, width, d], means.
        mass: How many tokens each stands for, [b, g, width] f32; its logarithm is what
            ``sparse_attention`` adds to the scores.
        joined: Place that each dropped token joined, or -1, [b, g, dropped width] int32.
    """

    keys: Tensor
    values: Tensor
    mass: Tensor
    joined: Tensor


def gather_rows(x: Tensor, tokens: Tokens) -> Tensor:
    """Rows of x [b, g, s, ...] that each head keeps, [b, g, width, ...]; rows past a count are 0.

    Raises:
        TamisUnsupported: x lies on a CUDA device, and the CUDA library is off.
        TamisValueError: A token is out of range or order, or a list on another device than x.
    """
    width = tokens.index.shape[-1]
    make = torch.empty if tokens.count is None else torch.zeros
    out = make(*x.shape[:2], width, *x.shape[3:], dtype=x.dtype, device=x.device)
    _gather("gather_rows", _rows(x), tokens, out)
    return out


def compact_(x: Tensor, tokens: Tokens) -> None:
    """Moves the rows that each head keeps to its start, in place; what follows them is not defined.

    Args:
        x: [b, g, s, ...], rows contiguous; a slice of a longer buffer will do.
        tokens: What stays.

    Raises:
        TamisUnsupported: x lies on a CUDA device, and the CUDA library is off.
        TamisValueError: A token is out of range or order, a list on another device than x, or rows of
            x are not contiguous.
    """
    if x.shape[:3].numel() and not x[0, 0, 0].is_contiguous():
        raise TamisValueError(
            f"compact_: x: got strides {list(x.stride())}, wanted rows that are contiguous."
        )
    _gather("compact_", x, tokens, x)


def merge_tokens(
    keys: Tensor,
    values: Tensor,
    kept: Tokens,
    dropped: Tokens,
    rule: Similar,
    *,
    weight: Tensor | None = None,
    mass: Tensor | None = None,
) -> Merged:
    """Kept tokens, each the weighted mean of itself and of the dropped tokens most like it.

    A dropped token that resembles no kept one enough is evicted (EMS, arXiv:2412.08521, sec. 3.3). On
    CUDA similarities are added up in another order, so of two tokens alike in all but the last bits
    the other may be taken; two calls give the same bits.

    Args:
        keys: [b, g, s, d] float32, float16 or bfloat16 on the CPU or a CUDA device; float32 there up
            to d = 128.
        values: The same dtype and shape.
        kept: Tokens that stay.
        dropped: Tokens that may join them.
        rule: Which do.
        weight: Of each token in a mean, [b, g, s] f32, 0 or more; 1 by default.
        mass: How many tokens each token stands for, [b, g, s] f32; 1 by default.

    Raises:
        TamisTypeError: A dtype or device has no kernel.
        TamisUnsupported: On a CUDA device, and the CUDA library is off or has no kernel.
        TamisValueError: Shapes disagree, or a token is out of range or order.
    """
    code = float_code("merge_tokens", keys, cuda=True)
    b, g, s, d = keys.shape
    if values.shape != keys.shape or values.dtype != keys.dtype:
        raise TamisValueError(
            f"merge_tokens: values: got {values.dtype} of shape {list(values.shape)}, wanted "
            f"{keys.dtype} of shape {list(keys.shape)}."
        )
    if values.device != keys.device:
        raise TamisValueError(
            f"merge_tokens: values: got {values.device}, wanted the device of keys, {keys.device}."
        )
    held: list[Tensor] = []  # alive until the call is over
    device, width = keys.device, kept.index.shape[-1]
    out_values = keys.new_zeros(b, g, width, d)
    out_keys = torch.zeros_like(out_values) if rule.merge_keys else gather_rows(keys, kept)
    out_mass = torch.zeros(b, g, width, device=device)
    joined = keys.new_full((b, g, dropped.index.shape[-1]), -1, dtype=torch.int32)
    k, v = _flat(keys), _flat(values)
    arguments = (
        code,
        (b * g, s, d),
        (k.data_ptr(), k.stride(0), k.stride(1)),
        (v.data_ptr(), v.stride(0), v.stride(1)),
        (
            _address("weight", weight, (torch.float32, device), b * g * s, held),
            _address("mass", mass, (torch.float32, device), b * g * s, held),
        ),
        _tokens("merge_tokens: kept", kept, b * g, device, held),
        _tokens("merge_tokens: dropped", dropped, b * g, device, held),
        rule.values,
        rule.tau,
        (
            out_keys.data_ptr() if rule.merge_keys else 0,
            out_values.data_ptr(),
            out_mass.data_ptr(),
            joined.data_ptr(),
        ),
    )
    if keys.is_cuda:
        cuda_kv.kv_merge(keys, *arguments)
    else:
        with core_errors():
            _C.kv_merge(*arguments)
    return Merged(out_keys, out_values, out_mass, joined)


def _rows(x: Tensor) -> Tensor:
    """The tensor itself if its rows [b, g, s, ...] are contiguous, else a copy."""
    return x if not x.numel() or x[0, 0, 0].is_contiguous() else x.contiguous()


def _flat(x: Tensor) -> Tensor:
    """Keys or values as [b * g, s, d]; a copy where the heads of batches do not lie evenly.

    On a device also where rows do not start at multiples of 16 bytes.
    """
    flat = rows_of(x).flatten(0, 1)
    return by_16_bytes(flat) if x.is_cuda else flat


def _gather(function: str, x: Tensor, tokens: Tokens, out: Tensor) -> None:
    b, g, s = x.shape[:3]
    size = x.element_size()
    row_bytes = size * x.shape[3:].numel()
    on_device = cuda_kv.on_device(function, x)
    held: list[Tensor] = []
    for i in range(b):  # heads of a batch lie evenly apart, batches need not
        count = None if tokens.count is None else tokens.count[i]
        arguments = (
            (g, s, row_bytes),
            (x[i].data_ptr(), size * x.stride(1), size * x.stride(2)),
            _tokens(function, Tokens(tokens.index[i], count), g, x.device, held),
            (out[i].data_ptr(), size * out.stride(1), size * out.stride(2)),
        )
        if on_device:
            cuda_kv.kv_gather(x, *arguments)
        else:
            with core_errors():
                _C.kv_gather(*arguments)


def _tokens(
    name: str, tokens: Tokens, heads: int, device: torch.device, held: list[Tensor]
) -> tuple[int, int, int]:
    width, of = tokens.index.shape[-1], (torch.int32, device)
    return (
        _address(f"{name}: index", tokens.index, of, heads * width, held),
        width,
        _address(f"{name}: count", tokens.count, of, heads, held),
    )


def _address(
    name: str,
    x: Tensor | None,
    of: tuple[torch.dtype, torch.device],
    size: int,
    held: list[Tensor],
) -> int:
    """Address of a tensor of that dtype, device and size, or 0."""
    if x is None:
        return 0
    if (x.dtype, x.device) != of or x.numel() != size:
        raise TamisValueError(
            f"{name}: got {x.dtype} of shape {list(x.shape)} on {x.device}, wanted {of[0]} with "
            f"{size} elements on {of[1]}."
        )
    held.append(x.contiguous())
    return held[-1].data_ptr()

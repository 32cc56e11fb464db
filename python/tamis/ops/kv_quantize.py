"""kv_quantize: keys and values of whole pages to ``kv_page`` records, and back.

A record holds the codes, scales and minima of ``tokens`` tokens of one KV head: keys per channel over
the page, values per token over groups of channels. Its bytes are the same on every backend.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from tamis import _C
from tamis.errors import TamisTypeError, TamisValueError
from tamis.ops import cuda_kv
from tamis.ops.handle import CODE
from tamis.ops.tensors import DTYPE_NAME

__all__ = ["kv_quantize", "kv_unpack", "page_layout"]

GROUP = 32


@cache
def page_layout(
    head_dim: int, key_bits: int, value_bits: int, tokens: int = 32, group: int | None = None
) -> _C.KvPageLayout:
    """The layout of records of ``tokens`` tokens; values share a scale over 32 channels, or 16.

    Raises:
        TamisValueError: The format has no such sizes.
    """
    if group is None:
        group = GROUP if head_dim % GROUP == 0 else 16
    try:
        return _C.KvPageLayout(head_dim, tokens, key_bits, value_bits, group)
    except ValueError as error:
        raise TamisValueError(f"{error}; choose other sizes or a cache without pages.") from None


def kv_quantize(keys: Tensor, values: Tensor, layout: _C.KvPageLayout, out: Tensor) -> None:
    """Writes the records ``out`` [b, g, pages, nbytes] of keys, values [b, g, pages * tokens, d].

    Args:
        keys: float32, float16 or bfloat16 on the CPU or a CUDA device, channels contiguous; finite.
        values: The same dtype and shape.
        layout: Sizes of a record.
        out: uint8, records contiguous; may be a slice of a longer store.

    Raises:
        TamisTypeError: A dtype or device has no kernel.
        TamisValueError: Shapes disagree.
    """
    b, g, tokens, d = keys.shape
    pages = tokens // layout.tokens
    wanted = (b, g, pages, layout.nbytes)
    if values.shape != keys.shape or d != layout.head_dim or out.shape != wanted:
        raise TamisValueError(
            f"kv_quantize: keys, values, out: got shapes {list(keys.shape)}, {list(values.shape)}, "
            f"{list(out.shape)}, wanted [b, g, pages * {layout.tokens}, {layout.head_dim}] twice "
            f"and [b, g, pages, {layout.nbytes}]."
        )
    code = float_code("kv_quantize", keys, cuda=True)
    if values.device != keys.device or out.device != keys.device:
        raise TamisValueError(
            f"kv_quantize: values, out: got {values.device} and {out.device}, wanted the device of "
            f"keys, {keys.device}."
        )
    if values.dtype != keys.dtype:
        raise TamisTypeError(
            f"kv_quantize: values: got {values.dtype}, wanted the dtype of keys, {keys.dtype}."
        )
    for i in range(b):  # heads of a batch lie evenly apart, batches need not
        k, v, o = rows_of(keys[i]), rows_of(values[i]), out[i]
        if keys.is_cuda:
            cuda_kv.kv_quantize(layout, code, (g, pages), k, v, o)
            continue
        _C.kv_quantize(
            layout,
            code,
            g,
            pages,
            k.data_ptr(),
            (k.stride(0), k.stride(1)),
            v.data_ptr(),
            (v.stride(0), v.stride(1)),
            o.data_ptr(),
            o.stride(0),
        )


def kv_unpack(records: Tensor, layout: _C.KvPageLayout) -> tuple[Tensor, Tensor]:
    """Keys and values [b, g, pages * tokens, d] f32 of records [b, g, pages, nbytes]."""
    b, g, pages, _ = records.shape
    device = records.device
    records = records.cpu().contiguous()
    keys = torch.empty(b, g, pages * layout.tokens, layout.head_dim)
    values = torch.empty_like(keys)
    _C.kv_unpack(layout, records.data_ptr(), b * g * pages, keys.data_ptr(), values.data_ptr())
    return keys.to(device), values.to(device)


def float_code(function: str, x: Tensor, *, cuda: bool = False) -> int:
    """The core's code of a float dtype.

    Raises:
        TamisTypeError: Not float32, float16 or bfloat16, or not on the CPU (nor, with ``cuda``, on
            a CUDA device).
        TamisUnsupported: On a CUDA device, and the CUDA library is off.
    """
    name = DTYPE_NAME.get(x.dtype)
    if name not in CODE or not (x.is_cpu or (cuda and cuda_kv.on_device(function, x))):
        raise TamisTypeError(
            f"{function}: got {x.dtype} on {x.device}, wanted float32, float16 or bfloat16 on cpu"
            f"{' or cuda' if cuda else ''}; convert it."
        )
    return CODE[name]


def rows_of(x: Tensor) -> Tensor:
    """The tensor itself if its last dimension is contiguous, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()

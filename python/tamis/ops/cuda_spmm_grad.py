"""Gradients of products on CUDA devices: what unpacks w or gathers dw round a dense product.

A mask is looked at once on the host, before a kernel follows it; then no call waits for the device.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tamis import _C
from tamis.layout import Layout
from tamis.ops import cuda
from tamis.ops.cuda_activation import aligned
from tamis.ops.cuda_memory import raw_stream, refuse_in_capture
from tamis.ops.handle import NUMPY_VALUES, core_errors, make_matrix
from tamis.ops.tensors import as_numpy

Mask = tuple[str, str, tuple[int, int, int], tuple[int, int], int, int]
"""Format, dtype, (rows, cols, nnz), (keep, of), addresses of mask and row_offsets."""


def unpack(mask: Mask, values: Tensor) -> Tensor:
    """Dense w [rows, cols]."""
    rows, cols, _ = mask[2]
    dense, values = values.new_empty(rows, cols), values.contiguous()
    device, first, out = dense.get_device(), values.data_ptr(), dense.data_ptr()
    with torch.cuda.device(device), core_errors():
        _C.cuda_unpack_mask(device, raw_stream(device), mask, first, out)
    return dense


def gather(mask: Mask, dense: Tensor) -> Tensor:
    """Values [nnz] of ``dense`` [rows, cols] under the mask."""
    dense = aligned(dense.contiguous())
    values = dense.new_empty(mask[2][2])
    device, first, out = dense.get_device(), dense.data_ptr(), values.data_ptr()
    with torch.cuda.device(device), core_errors():
        _C.cuda_gather_mask(device, raw_stream(device), mask, first, out)
    return values


def mask_of(
    layout: Layout,
    values: Tensor,
    mask: Tensor | None,
    row_offsets: Tensor | None,
    dtype: torch.dtype,
) -> Mask | None:
    """What the kernels take as structure; None where they take none of this.

    Raises:
        TamisValueError: The mask disagrees with its offsets or with the number of values.
    """
    if (
        mask is None
        or layout.format not in ("bitmap", "nm")
        or dtype not in (torch.float16, torch.bfloat16)
        or values.dtype != dtype
        or layout.rows % 8
        or layout.cols % 8
        or values.numel() == 0
        or cuda.why_off()
    ):
        return None
    check_structure(layout, values, mask, row_offsets)
    offsets = 0 if row_offsets is None else row_offsets.data_ptr()
    shape = layout.rows, layout.cols, values.numel()
    groups = layout.keep, layout.of
    return layout.format, layout.dtype, shape, groups, mask.data_ptr(), offsets


_Seen = tuple["weakref.ref[Tensor]", "weakref.ref[Tensor] | None", tuple[int, ...]]
_seen: dict[int, _Seen] = {}


def check_structure(
    layout: Layout, values: Tensor, mask: Tensor, row_offsets: Tensor | None
) -> None:
    """Looks at a mask on the host, once as long as nobody writes it.

    Raises:
        TamisValueError: The mask disagrees with its offsets or with the number of values.
    """
    offsets = [] if row_offsets is None else [row_offsets]
    countable = not any(t.is_inference() for t in (mask, *offsets))
    facts: tuple[int, ...] = (values.numel(), hash(layout.token))
    if countable:
        facts += tuple(number for t in (mask, *offsets) for number in (t._version, t.data_ptr()))
        found = _seen.get(id(mask))
        if (
            found is not None
            and found[0]() is mask
            and (found[1] is None or found[1]() is row_offsets)
            and found[2] == facts
        ):
            return
    if mask.is_cuda:
        refuse_in_capture(f"mask of {layout.label}")
    arrays = {"mask": as_numpy(mask.cpu())}
    if row_offsets is not None:
        arrays["row_offsets"] = as_numpy(row_offsets.cpu())
    arrays["values"] = np.zeros(values.numel(), dtype=NUMPY_VALUES[layout.dtype])
    make_matrix(layout, arrays)
    if countable:
        second = None if row_offsets is None else weakref.ref(row_offsets)
        _seen[id(mask)] = weakref.ref(mask, _forgetter(id(mask))), second, facts


def _forgetter(key: int) -> Any:
    def forget(owner: Any) -> None:
        found = _seen.get(key)
        if found is not None and found[0] is owner:
            del _seen[key]

    return forget

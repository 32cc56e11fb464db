"""Torch names of the core's element types, and tensors as the arrays that the core borrows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

TORCH_DTYPE = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i8": torch.int8,
    "u4": torch.uint8,
    "u8": torch.uint8,
}
DTYPE_NAME = {TORCH_DTYPE[name]: name for name in ("f32", "f16", "bf16")}
INDEX_DTYPE = {
    "i64": torch.int64,
    "i32": torch.int32,
    "u8": torch.uint8,
    "f32": torch.float32,
    "f16": torch.float16,
}

_TYPESTR = {
    torch.float32: "<f4",
    torch.float16: "<f2",
    torch.bfloat16: "<u2",  # its bits
    torch.int8: "|i1",
    torch.uint8: "|u1",
}

# The arrays after ``values``, in the operators' order: mask, row_offsets, col_indices, scales.
REST = ("mask", "row_offsets", "col_indices", "scales")
Rest = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def as_numpy(tensor: Tensor) -> Any:
    """CPU tensor as an array on the same memory; bf16 as its bits in uint16."""
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


class _Lent:
    """What NumPy makes an array of that keeps a tensor's memory, as ``Tensor.numpy`` does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.__array_interface__ = {
            "version": 3,
            "typestr": _TYPESTR[tensor.dtype],
            "shape": tuple(tensor.shape),
            "strides": tuple(step * tensor.element_size() for step in tensor.stride()),
            "data": (tensor.data_ptr(), False),
        }


def values_as_numpy(values: Tensor) -> Any:
    """``as_numpy`` of a weight's values, whose storage may still be resized.

    ``Tensor.numpy`` forbids that for good, and FSDP frees the parameters that it gathered by it. Who
    keeps the array compares addresses before its next use.
    """
    return np.asarray(_Lent(values.detach()))


def from_numpy(array: Any, dtype: str) -> Tensor:
    """Tensor on the memory of ``array``, whose uint16 are bits if ``dtype`` is "bf16"."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bf16" else tensor


def autocast(x: Tensor) -> Tensor:
    """X in the dtype that torch's autocast, where it is on, gives the inputs of products."""
    kind = x.device.type
    if kind not in ("cpu", "cuda") or x.dtype not in DTYPE_NAME:
        return x
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def transformed() -> bool:
    """Whether torch.func's transforms or derivatives in forward mode are taken of what runs now.

    Operators of torch.library have no formulas for these (torch 2.13): some raise, and derivatives in
    forward mode are zero without a word. Plain torch has them all.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def by_16_bytes(x: Tensor) -> Tensor:
    """X itself, or a copy, whose rows start at multiples of 16 bytes."""
    size = x.element_size()
    fits = x.data_ptr() % 16 == 0 and all(step * size % 16 == 0 for step in x.stride()[:-1])
    return x if fits else x.clone(memory_format=torch.contiguous_format)

"""A matrix of each format and the same weight dense, for the tests of torch's operators."""

from __future__ import annotations

from typing import Any

import torch
from references import TORCH, weight
from torch import Tensor

import tamis

PATTERN = {
    "bitmap": "any",
    "csr": "any",
    "csr8": "any",
    "nm": "2:4",
    "block": "block:4x4",
}
FORMATS = sorted(PATTERN)
ops = torch.ops.tamis


def make(
    format: str, dtype: str = "f32", rows: int = 20, cols: int = 76, requires_grad: bool = False
) -> tuple[tamis.SparseMatrix, Tensor]:
    """A matrix and the same weight dense."""
    w = torch.from_numpy(weight(rows, cols, PATTERN[format], 0.5))
    a = tamis.compress(w, format, dtype=dtype, block=(4, 4))
    if requires_grad:
        a.arrays["values"].requires_grad_()
    return a, w.to(TORCH.get(dtype, torch.float32))


def split(a: tamis.SparseMatrix) -> tuple[Tensor, tuple[Any, ...]]:
    names = ("mask", "row_offsets", "col_indices", "scales")
    return a.arrays["values"], tuple(a.arrays.get(name) for name in names)

"""The part of SparseMatrix that touches torch; imported when a tensor is met, never before."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tamis import _C
from tamis.errors import TamisTypeError, TamisValueError
from tamis.layout import Layout
from tamis.ops.dense import keep_of
from tamis.ops.handle import make_matrix
from tamis.ops.spgemm import spgemm
from tamis.ops.spmm import spmm, unpack
from tamis.ops.tensors import INDEX_DTYPE, TORCH_DTYPE, Rest, as_numpy, values_as_numpy

if TYPE_CHECKING:
    from tamis.tensor.matrix import SparseMatrix

__all__ = [
    "as_numpy",
    "check_tensors",
    "keep",
    "matrix_of",
    "product",
    "rest_of",
    "spmm",
    "to_dense",
    "to_tensors",
    "to_torch",
]


def rest_of(arrays: Mapping[str, Any]) -> Rest:
    """The arrays after ``values``, in the operators' order."""
    get = arrays.get
    return get("mask"), get("row_offsets"), get("col_indices"), get("scales")


def to_tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """``arrays`` as tensors on the same memory; NumPy's bf16 bits get their torch dtype."""
    with warnings.catch_warnings():
        # Index arrays are read-only in NumPy; nothing in tamis writes them through the tensor.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensors = {
            name: array if isinstance(array, Tensor) else torch.from_numpy(array)
            for name, array in arrays.items()
        }
    if tensors["values"].dtype == torch.uint16:
        tensors["values"] = tensors["values"].view(torch.bfloat16)
    return tensors


def check_strided(x: Tensor) -> None:
    """Refuses a sparse x.

    Raises:
        TamisTypeError: It is one.
    """
    if x.layout != torch.strided:
        raise TamisTypeError(
            f"A @ X: X: got layout {x.layout}, wanted a strided tensor; call X.to_dense(), or "
            "compress both as csr."
        )


def product(a: SparseMatrix, b: SparseMatrix) -> dict[str, Tensor]:
    """Arrays of the csr product of two csr matrices."""
    names = ("values", "row_offsets", "col_indices")
    first, second = (to_tensors(m.arrays) for m in (a, b))
    found = spgemm(
        (first[names[0]].detach(), first[names[1]], first[names[2]]),
        (second[names[0]].detach(), second[names[1]], second[names[2]]),
        (*a.shape, b.layout.cols),
    )
    return dict(zip(names, found, strict=True))


def check_tensors(layout: Layout, arrays: Mapping[str, Tensor]) -> None:
    """Names, dtypes, shapes and devices; on the CPU the contents too.

    Raises:
        TamisTypeError: A dtype or device is wrong.
        TamisValueError: A name, shape or content is wrong.
    """
    if set(arrays) != set(layout.array_names):
        raise TamisValueError(
            f"SparseMatrix: arrays: got {sorted(arrays)}, wanted {sorted(layout.array_names)} "
            f"for {layout.label}."
        )
    device = arrays["values"].device
    nnz = layout.stored(arrays["values"].numel())
    for name, shape in layout.array_shapes(nnz).items():
        tensor = arrays[name]
        own = name == "values"
        dtype = TORCH_DTYPE[layout.dtype] if own else INDEX_DTYPE[layout.index_dtype(name)]
        if tensor.dtype != dtype or tensor.device != device:
            raise TamisTypeError(
                f"SparseMatrix: {name}: got {tensor.dtype} on {tensor.device}, wanted {dtype} on "
                f"{device} for {layout.label}."
            )
        if tuple(tensor.shape) != shape or not tensor.is_contiguous():
            raise TamisValueError(
                f"SparseMatrix: {name}: got shape {list(tensor.shape)} with strides "
                f"{list(tensor.stride())}, wanted a contiguous {list(shape)} for {layout.label} "
                f"[{layout.rows}, {layout.cols}]."
            )
    if device.type == "cpu":
        make_matrix(layout, _lent(arrays))


def matrix_of(a: SparseMatrix) -> _C.Matrix:
    """Handle on CPU tensors.

    Raises:
        TamisTypeError: They are on another device.
    """
    device = a.arrays["values"].device
    if device.type != "cpu":
        raise TamisTypeError(
            f"SparseMatrix: arrays: got device {device}, wanted cpu for NumPy and scipy; call "
            '.to_tensors("cpu") first.'
        )
    return make_matrix(a.layout, _lent(a.arrays))


def _lent(arrays: Mapping[str, Tensor]) -> dict[str, Any]:
    return {n: values_as_numpy(t) if n == "values" else as_numpy(t) for n, t in arrays.items()}


def to_dense(a: SparseMatrix) -> Tensor:
    """Dense w [rows, cols]; differentiable in float values."""
    return unpack(a.layout.token, a.arrays["values"], rest_of(a.arrays))


def keep(a: SparseMatrix) -> Tensor:
    """Boolean [rows, cols], true where a value is stored."""
    return keep_of(a.layout, *rest_of(a.arrays)[:3])


def to_torch(a: SparseMatrix, layout: str) -> Tensor:
    """``a`` as a torch tensor with layout "strided", "csr" or "bsr"."""
    if layout == "strided":
        return to_dense(a)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse .* tensor support is in beta state")
        return _to_bsr(a) if layout == "bsr" else _to_csr(a)


def _to_csr(a: SparseMatrix) -> Tensor:
    if a.layout.format == "csr" and not a.layout.quantized:
        offsets, columns = a.arrays["row_offsets"], a.arrays["col_indices"].long()
        return torch.sparse_csr_tensor(
            offsets, columns, a.arrays["values"].clone(), a.shape, check_invariants=True
        )
    dense, kept = to_dense(a), keep(a)
    offsets = torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0))
    return torch.sparse_csr_tensor(
        offsets, kept.nonzero()[:, 1], dense[kept], a.shape, check_invariants=True
    )


def _to_bsr(a: SparseMatrix) -> Tensor:
    offsets, columns = a.arrays["row_offsets"], a.arrays["col_indices"].long()
    r, c = a.layout.block
    blocks = to_dense(a).view(a.shape[0] // r, r, a.shape[1] // c, c).transpose(1, 2)
    block_row = torch.arange(offsets.numel() - 1, device=offsets.device)
    block_row = block_row.repeat_interleave(offsets.diff())
    return torch.sparse_bsr_tensor(
        offsets, columns, blocks[block_row, columns], a.shape, check_invariants=True
    )

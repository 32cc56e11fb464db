"""Products by torch, scipy and tamis, in one process."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.nn import functional

from peerlib.product import Array, Product, copies_for
from tamis import _C
from tamis.ops.spmm import spmm
from tamis.tensor.compress import compress
from tamis.tensor.matrix import SparseMatrix

DTYPE = {"f32": torch.float32, "bf16": torch.bfloat16}


class InTorch(Product):
    """call(i) = multiply(x, weights[i]); x as [m,k], or as [k,m] where the library wants w @ x."""

    def __init__(self, weights: list[Any], nbytes: int, dtype: str, transposed: bool) -> None:
        super().__init__()
        self.weights, self.nbytes, self.copies = weights, nbytes, len(weights)
        self._dtype, self._transposed = DTYPE.get(dtype, torch.float32), transposed
        self._x: Any = None
        self.multiply: Callable[[Any, Any], Any] = functional.linear

    def bind(self, x: Array, threads: int) -> None:
        torch.set_num_threads(threads)
        _C.set_num_threads(threads)
        self._x = torch.from_numpy(np.ascontiguousarray(x.T) if self._transposed else x)
        self._x = self._x.to(self._dtype)

    def call(self, i: int) -> Any:
        return self.multiply(self._x, self.weights[i])

    def output(self) -> Array:
        y: Array = self.call(0).to(torch.float32).numpy()
        return y.T if self._transposed else y


class InScipy(InTorch):
    """w @ x on a scipy matrix."""

    def bind(self, x: Array, threads: int) -> None:
        self._x = np.ascontiguousarray(x.T)

    def call(self, i: int) -> Any:
        return self.weights[i] @ self._x

    def output(self) -> Array:
        y: Array = self.call(0).T
        return y


def make(name: str, w: Array, cold_bytes: int) -> Product:
    """Product of a candidate of this process for w [n,k]."""
    peer, *rest = name.split()
    if peer == "tamis":
        return _tamis(w, rest, cold_bytes)
    if peer == "scipy":
        return _scipy(w, cold_bytes)
    return _TORCH[" ".join(rest)](w, cold_bytes)


def _dense(w: Array, dtype: str, cold_bytes: int) -> Product:
    first = torch.from_numpy(w).to(DTYPE[dtype])
    nbytes = first.numel() * first.element_size()
    weights = [first.clone() for _ in range(copies_for(nbytes, cold_bytes))]
    return InTorch(weights, nbytes, dtype, transposed=False)


def _int8(w: Array, cold_bytes: int) -> Product:
    """Dynamic quantization: s8 weights per row, u8 activations per call."""
    scales = torch.from_numpy(np.abs(w).max(1) / 127).double().clamp(min=1e-12)
    zeros = torch.zeros(w.shape[0], dtype=torch.int64)
    codes = torch.quantize_per_channel(torch.from_numpy(w), scales, zeros, 0, torch.qint8)
    pack = torch.ops.quantized.linear_prepack
    weights = [pack(codes, None) for _ in range(copies_for(w.size, cold_bytes))]
    product = InTorch(weights, w.size, "i8", transposed=False)
    run = torch.ops.quantized.linear_dynamic
    product.multiply = lambda x, packed: run(x, packed, reduce_range=False)
    return product


def _sparse_tensors(first: Tensor, cold_bytes: int) -> Product:
    """Products with a CSR or BSR tensor, int32 indices (the ones MKL takes without a conversion)."""
    make_tensor = torch.sparse_csr_tensor
    if first.layout == torch.sparse_bsr:
        make_tensor = torch.sparse_bsr_tensor
    rows, columns = first.crow_indices().to(torch.int32), first.col_indices().to(torch.int32)
    values = first.values()
    nbytes = sum(part.numel() * part.element_size() for part in (rows, columns, values))
    weights = [
        make_tensor(
            rows.clone(),
            columns.clone(),
            values.clone(),
            size=first.shape,
            check_invariants=False,
        )
        for _ in range(copies_for(nbytes, cold_bytes))
    ]
    product = InTorch(weights, nbytes, "f32", transposed=True)
    product.multiply = lambda x, weight: weight @ x
    return product


def _scipy(w: Array, cold_bytes: int) -> Product:
    first = scipy.sparse.csr_array(w)
    nbytes = first.data.nbytes + first.indices.nbytes + first.indptr.nbytes
    weights = [first.copy() for _ in range(copies_for(nbytes, cold_bytes))]
    return InScipy(weights, nbytes, "f32", transposed=True)


_TORCH: Mapping[str, Callable[[Array, int], Product]] = {
    "f32": lambda w, cold_bytes: _dense(w, "f32", cold_bytes),
    "bf16": lambda w, cold_bytes: _dense(w, "bf16", cold_bytes),
    "i8": _int8,
    "csr f32": lambda w, cold: _sparse_tensors(torch.from_numpy(w).to_sparse_csr(), cold),
    "bsr f32": lambda w, cold: _sparse_tensors(torch.from_numpy(w).to_sparse_bsr((16, 16)), cold),
}
_FORMAT = {"csr": "csr", "2:4": "nm", "block": "block", "groupq": "groupq"}


def _tamis(w: Array, rest: list[str], cold_bytes: int) -> Product:
    """tamis f32: what compress chooses; tamis csr f32: that format."""
    dtype = rest[-1]
    format = _FORMAT[rest[0]] if len(rest) == 2 else "auto"
    keep = w != 0 if format == "nm" else None
    stored = "u4" if dtype == "i4" else dtype
    first = compress(torch.from_numpy(w), format=format, keep=keep, dtype=stored)
    weights = [
        SparseMatrix(first.layout, {name: a.clone() for name, a in first.arrays.items()})
        for _ in range(copies_for(first.nbytes, cold_bytes))
    ]
    x = torch.zeros(1, w.shape[1], dtype=DTYPE.get(dtype, torch.float32))
    for weight in weights:  # a model's first token, not its products, pays for checking a weight
        spmm(x, weight)
    product = InTorch(weights, first.nbytes, dtype, transposed=False)
    product.multiply = spmm
    return product


def stream_read(threads: int, nbytes: int) -> float:
    """Bytes per second that this many threads can read."""
    gigabytes: float = _C.stream_read(threads, nbytes)
    return gigabytes * 1e9

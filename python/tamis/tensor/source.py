"""What compress accepts, brought to two forms: a dense array or CSR arrays, both in NumPy.

Everything is duck-typed, so neither torch nor scipy is imported unless the caller did.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.errors import TamisTypeError, TamisValueError

Array = NDArray[Any]

_FLOATS = {"float16": "f16", "float32": "f32", "float64": "f32"}


@dataclass(frozen=True)
class Dense:
    """w [rows, cols], contiguous; bf16 as its bits in uint16. ``device`` is set by a torch source."""

    w: Array
    dtype: str
    device: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return self.w.shape[0], self.w.shape[1]


@dataclass(frozen=True)
class Rows:
    """CSR arrays, columns ascending and distinct in every row; explicit zeros stay stored."""

    row_offsets: Array
    col_indices: Array
    values: Array
    shape: tuple[int, int]
    dtype: str
    device: Any = None

    @property
    def nnz(self) -> int:
        """Stored values."""
        return int(self.values.size)

    def row_indices(self) -> Array:
        """Row of each stored value, int64."""
        rows = np.arange(self.shape[0], dtype=np.int64)
        return np.repeat(rows, np.diff(self.row_offsets))

    def dense(self) -> tuple[Dense, NDArray[np.bool_]]:
        """The same weight dense, and where a value was stored."""
        w = np.zeros(self.shape, self.values.dtype)
        keep = np.zeros(self.shape, np.bool_)
        where = self.row_indices(), self.col_indices
        w[where] = self.values
        keep[where] = True
        return Dense(w, self.dtype, self.device), keep


def read(w: Any) -> Dense | Rows:
    """``w`` as Dense or Rows; float64 is rounded to f32, every other float dtype is kept.

    Raises:
        TamisTypeError: ``w`` is no NumPy array, torch tensor or scipy.sparse matrix of floats.
        TamisValueError: ``w`` is not 2-D, is empty, or holds NaN or Inf.
    """
    if is_torch(w):
        source = _read_torch(w)
    elif hasattr(w, "tocsr") and hasattr(w, "nnz"):
        source = _read_scipy(w)
    elif isinstance(w, np.ma.MaskedArray):
        raise TamisTypeError(
            "compress: W: got a masked array, wanted a plain one; call W.filled(0)."
        )
    elif isinstance(w, np.ndarray):
        _check_shape(w.shape)
        source = Dense(*_stored(np.ascontiguousarray(w)))
    else:
        raise TamisTypeError(
            f"compress: W: got {type(w).__name__}, wanted a NumPy array, a scipy.sparse matrix or "
            "a torch tensor."
        )
    _check_finite(source)
    return source


def is_torch(value: Any) -> bool:
    """Whether ``value`` is a torch tensor; imports nothing."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def cast(values: Array, given: str, wanted: str) -> Array:
    """``values`` of dtype ``given`` rounded to nearest even in dtype ``wanted``."""
    if given == wanted:
        return values
    wide = widen(values, given)
    if wanted == "bf16":
        bits = wide.view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return (rounded >> np.uint32(16)).astype(np.uint16)
    with np.errstate(over="ignore"):
        return wide.astype(np.float16 if wanted == "f16" else np.float32)


def widen(values: Array, dtype: str) -> NDArray[np.float32]:
    """``values`` as float32, exactly; bf16 arrives as its bits."""
    if dtype == "bf16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.ascontiguousarray(values, dtype=np.float32)


def _read_torch(w: Any) -> Dense | Rows:
    torch = sys.modules["torch"]
    w = w.detach()
    _check_shape(tuple(w.shape))
    known = (torch.strided, torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr)
    if w.is_meta or w.layout not in known or w.dense_dim() != (2 if w.layout == known[0] else 0):
        got = "no memory (device meta)" if w.is_meta else f"layout {w.layout}"
        raise TamisTypeError(
            f"compress: W: got {got}, wanted a strided, coo, csr, csc or bsr tensor of numbers in "
            "memory; convert it with W.to_dense()."
        )
    if w.layout == torch.strided:
        return Dense(*_stored_torch(w), device=w.device)
    if w.layout == torch.sparse_bsr:
        return _read_bsr(w)
    if w.layout != torch.sparse_csr:
        w = w.to_sparse_csr()
    values, dtype = _stored_torch(w.values())
    offsets, columns = w.crow_indices().cpu().numpy(), w.col_indices().cpu().numpy()
    return _rows(offsets, columns, values, tuple(w.shape), dtype, w.device)


def _read_bsr(w: Any) -> Rows:
    values, dtype = _stored_torch(w.values())  # [blocks, r, c]
    offsets, columns = w.crow_indices().cpu().numpy(), w.col_indices().cpu().numpy()
    blocks, r, c = values.shape
    block_row = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    row = np.broadcast_to(block_row[:, None, None] * r + np.arange(r)[:, None], values.shape)
    col = np.broadcast_to(columns[:, None, None] * c + np.arange(c), values.shape)
    counts = np.bincount(row.reshape(-1), minlength=w.shape[0])
    order = np.argsort(row.reshape(-1), kind="stable")
    row_offsets = np.concatenate([[0], np.cumsum(counts)])
    flat = values.reshape(-1)[order]
    return _rows(row_offsets, col.reshape(-1)[order], flat, tuple(w.shape), dtype, w.device)


def _read_scipy(w: Any) -> Rows:
    if hasattr(w, "check_format"):  # scipy's own loops read what the indices say
        try:
            w.check_format(full_check=True)
        except ValueError as error:
            raise _damaged(w.format, str(error)) from error
    rows = w.tocsr(copy=True)
    _check_shape(tuple(rows.shape))
    rows.sum_duplicates()
    values, dtype = _stored(rows.data)
    return _rows(rows.indptr, rows.indices, values, tuple(rows.shape), dtype, None)


def _rows(
    offsets: Array, columns: Array, values: Array, shape: tuple[int, ...], dtype: str, device: Any
) -> Rows:
    """Rows with sorted columns and the index types of the csr format."""
    _check_indices(offsets, columns, shape)
    source = Rows(
        offsets.astype(np.int64),
        columns.astype(np.int64),
        values,
        (int(shape[0]), int(shape[1])),
        dtype,
        device,
    )
    flat = source.row_indices() * source.shape[1] + source.col_indices
    order = np.argsort(flat, kind="stable") if np.any(np.diff(flat) <= 0) else None
    if order is not None:
        flat = flat[order]
        twice = np.flatnonzero(np.diff(flat) == 0)
        if twice.size:
            row, col = divmod(int(flat[twice[0]]), source.shape[1])
            raise TamisValueError(
                f"compress: W: got two values at row {row}, column {col}, wanted one; call "
                "coalesce() or sum_duplicates() first."
            )
    columns = source.col_indices if order is None else source.col_indices[order]
    values = source.values if order is None else source.values[order]
    return Rows(source.row_offsets, columns.astype(np.int32), values, source.shape, dtype, device)


def _check_indices(offsets: Array, columns: Array, shape: tuple[int, ...]) -> None:
    """Refuses what torch makes unchecked."""
    steps = np.diff(offsets)
    if offsets[0] != 0 or offsets[-1] != columns.size or bool((steps < 0).any()):
        raise _damaged("csr", f"row offsets that do not rise from 0 to {columns.size}")
    outside = (columns < 0) | (columns >= shape[1])
    if bool(outside.any()):
        raise _damaged("csr", f"column {int(columns[outside][0])} of {shape[1]}")


def _damaged(format: str, what: str) -> TamisValueError:
    return TamisValueError(
        f"compress: W: got a damaged {format} matrix ({what}), wanted indices within its shape; "
        "make it anew."
    )


def _stored(w: Array) -> tuple[Array, str]:
    name = _FLOATS.get(w.dtype.name)
    if name is None:
        raise TamisTypeError(
            f"compress: W: got dtype {w.dtype}, wanted float16, float32 or float64; convert it "
            "with W.astype(numpy.float32)."
        )
    wanted = np.float32 if w.dtype.name == "float64" else w.dtype.newbyteorder("=")
    with np.errstate(over="ignore"):
        return w.astype(wanted, copy=False), name


def _stored_torch(w: Any) -> tuple[Array, str]:
    torch = sys.modules["torch"]
    w = w.cpu().contiguous()
    if w.dtype == torch.bfloat16:
        return w.view(torch.uint16).numpy(), "bf16"
    if not w.dtype.is_floating_point or w.dtype.itemsize < 2:
        raise TamisTypeError(
            f"compress: W: got dtype {w.dtype}, wanted float16, bfloat16, float32 or float64; "
            "convert it with W.to(torch.float32)."
        )
    return _stored(w.numpy())


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        raise TamisValueError(
            f"compress: W: got shape {list(shape)}, wanted two dimensions [rows, cols]; reshape it."
        )
    if 0 in shape:
        raise TamisValueError(
            f"compress: W: got shape {list(shape)}, wanted at least one row and one column."
        )


def _check_finite(source: Dense | Rows) -> None:
    values = source.w if isinstance(source, Dense) else source.values
    where = first_not_finite(values, source.dtype)
    if where is None:
        return
    if isinstance(source, Rows):
        row, col = int(source.row_indices()[where]), int(source.col_indices[where])
    else:
        row, col = divmod(where, source.shape[1])
    value = widen(values.reshape(-1)[where : where + 1], source.dtype)[0]
    raise TamisValueError(
        f"compress: W: got {value} at row {row}, column {col}, wanted finite weights within "
        "float32; mend the weights or set them to zero."
    )


def first_not_finite(values: Array, dtype: str) -> int | None:
    """Flat position of the first NaN or Inf: all exponent bits set."""
    exponent = {"bf16": np.uint16(0x7F80), "f16": np.uint16(0x7C00)}.get(dtype)
    flat = values.reshape(-1)
    if exponent is not None:
        flat = flat.view(np.uint16)
    block = 1 << 17  # elements whose intermediate results stay in cache
    for start in range(0, flat.size, block):
        part = flat[start : start + block]
        bad = ~np.isfinite(part) if exponent is None else (part & exponent) == exponent
        if bad.any():
            return start + int(np.argmax(bad))
    return None

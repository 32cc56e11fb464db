"""SparseMatrix: one handle over the compressed formats, NumPy or torch inside."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis import _C
from tamis.errors import TamisTypeError, TamisUnsupported, TamisValueError
from tamis.layout import Layout
from tamis.ops.handle import make_matrix, spmm_numpy
from tamis.tensor.source import is_torch, widen

Array = NDArray[Any]


class SparseMatrix:
    """A compressed weight w [rows, cols] that multiplies as it is stored: ``A @ X``.

    ``tamis.compress`` makes one. With NumPy arrays inside, bf16 values are their bits in uint16;
    with torch tensors inside, values may be a Parameter and products are differentiable.

    Args:
        layout: What the arrays mean.
        arrays: Exactly ``layout.array_names``; all NumPy or all torch. They are shared, not copied;
            NumPy index arrays become read-only views.

    Raises:
        TamisTypeError: An array has the wrong type or dtype.
        TamisValueError: An array is missing, has the wrong shape or contradicts another.
    """

    layout: Layout
    arrays: Mapping[str, Any]

    # NumPy then lets X @ A fail with Python's own TypeError instead of making an object array.
    __array_ufunc__ = None

    def __init__(self, layout: Layout, arrays: Mapping[str, Any]) -> None:
        if not isinstance(layout, Layout) or not isinstance(arrays, Mapping):
            raise TamisTypeError(
                f"SparseMatrix: got {type(layout).__name__} and {type(arrays).__name__}, wanted a "
                "Layout and a dict of arrays; tamis.compress makes both."
            )
        kinds = {is_torch(array) for array in arrays.values()}
        if len(kinds) != 1 or not all(
            is_torch(a) or isinstance(a, np.ndarray) for a in arrays.values()
        ):
            got = sorted({type(a).__name__ for a in arrays.values()})
            raise TamisTypeError(
                f"SparseMatrix: arrays: got {got}, wanted all NumPy arrays or all torch tensors."
            )
        self.layout = layout
        self._torch = kinds.pop()
        self._matrix: _C.Matrix | None = None
        if self._torch:
            self.arrays = dict(arrays)
            _torch_side().check_tensors(layout, self.arrays)
        else:
            self.arrays = {n: a if n == "values" else _read_only(a) for n, a in arrays.items()}
            self._matrix = make_matrix(layout, self.arrays)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return self.layout.rows, self.layout.cols

    @property
    def dtype(self) -> str:
        """What the stored values are: "f32", "f16", "bf16", "i8", "u4" or "u8"."""
        return self.layout.dtype

    @property
    def nnz(self) -> int:
        """Stored values; zeros that were stored (in blocks, in groups) count."""
        return self.layout.stored(int(self.arrays["values"].shape[0]))

    @property
    def sparsity(self) -> float:
        """Fraction of weights that are not stored."""
        return 1.0 - self.nnz / (self.layout.rows * self.layout.cols)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        return sum(int(array.nbytes) for array in self.arrays.values())

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the same weight stored densely in the same dtype (codes: with their scales)."""
        return self.layout.dense_nbytes

    def __matmul__(self, x: Any) -> Any:
        """Product w @ x for x [cols] or [cols, m]: [rows] or [rows, m] in x's dtype.

        float32, float16 and (torch) bfloat16; NumPy in, NumPy out; torch in, torch out.
        Accumulates in float32. For x a SparseMatrix, both csr f32: their product, csr f32, with the
        columns of a row in order and every place stored on which a product falls.

        Raises:
            TamisTypeError: ``x`` is no array, or has another dtype or device.
            TamisValueError: ``x`` has the wrong shape.
        """
        if isinstance(x, SparseMatrix):
            return self._times(x)
        if not (is_torch(x) or isinstance(x, np.ndarray)):
            raise TamisTypeError(
                f"A @ X: X: got {type(x).__name__}, wanted a NumPy array or a torch tensor."
            )
        if x.ndim not in (1, 2) or x.shape[0] != self.layout.cols:
            raise TamisValueError(
                f"A @ X: X: got shape {list(x.shape)}, wanted [{self.layout.cols}] or "
                f"[{self.layout.cols}, m] for a weight of shape {list(self.shape)}."
            )
        if is_torch(x):
            _torch_side().check_strided(x)
            rows = x.unsqueeze(0) if x.ndim == 1 else x.T
            y = _torch_side().spmm(rows, self.to_tensors())
        else:
            y = spmm_numpy(self._handle(), x[None, :] if x.ndim == 1 else x.T)
        return y[0] if x.ndim == 1 else y.T

    def __rmatmul__(self, x: Any) -> Any:
        """Refused: the matrix stands on the left.

        Raises:
            TamisTypeError: Always.
        """
        raise TamisTypeError(
            f"X @ A: X: got {type(x).__name__} on the left, wanted A @ X; for X @ W write "
            "(tamis.compress(W.T) @ X.T).T."
        )

    def _times(self, other: SparseMatrix) -> SparseMatrix:
        for name, a in (("A", self), ("B", other)):
            if a.layout.format != "csr" or a.layout.dtype != "f32":
                raise TamisTypeError(
                    f"A @ B: {name}: got {a.layout.label}, wanted csr f32; make it by "
                    'tamis.compress(..., format="csr", dtype="f32").'
                )
        if self.layout.cols != other.layout.rows:
            raise TamisValueError(
                f"A @ B: B: got shape {list(other.shape)}, wanted [{self.layout.cols}, n] for A of "
                f"shape {list(self.shape)}."
            )
        layout = Layout("csr", self.layout.rows, other.layout.cols, "f32")
        if self._torch or other._torch:
            return SparseMatrix(layout, _torch_side().product(self, other))
        return SparseMatrix(layout, _C.spgemm(self._handle(), other._handle()))

    def to_dense(self) -> Any:
        """Dense w [rows, cols], NumPy or torch as inside; codes and NumPy's bf16 become float32."""
        if self._torch:
            return _torch_side().to_dense(self)
        dense = self._handle().unpack()
        return widen(dense, "bf16") if self.layout.dtype == "bf16" else dense

    def keep(self) -> Any:
        """Boolean [rows, cols], true where a value is stored; NumPy or torch as inside."""
        if self._torch:
            return _torch_side().keep(self)
        return self._handle().unpack_keep()

    def to_scipy(self) -> Any:
        """scipy.sparse.csr_array of float32 values; stored zeros stay stored.

        Raises:
            TamisUnsupported: scipy is not installed.
        """
        try:
            sparse = importlib.import_module("scipy.sparse")
        except ImportError as err:
            raise TamisUnsupported(
                "to_scipy: scipy: got no such package, wanted it installed; pip install scipy."
            ) from err
        offsets, columns, values = self._csr()
        return sparse.csr_array((values, columns, offsets), shape=self.shape)

    def to_torch(self, layout: str = "csr") -> Any:
        """Torch tensor [rows, cols] with layout "strided", "csr" or "bsr" (block only).

        Values keep their dtype, codes become float32; stored zeros stay stored.

        Raises:
            TamisValueError: ``layout`` is none of these, or "bsr" of another format than block.
        """
        if layout not in ("strided", "csr", "bsr"):
            raise TamisValueError(
                f"to_torch: layout: got {layout!r}, wanted one of ['strided', 'csr', 'bsr']."
            )
        if layout == "bsr" and self.layout.format != "block":
            raise TamisValueError(
                f"to_torch: layout: got 'bsr' of a {self.layout.label} matrix, wanted 'csr' or "
                "'strided'; only block matrices have blocks."
            )
        return _torch_side().to_torch(self.to_tensors(), layout)

    def to_tensors(self, device: Any = None) -> SparseMatrix:
        """This matrix with torch tensors inside, on ``device`` if given, else sharing memory."""
        if self._torch and device is None:
            return self
        tensors = _torch_side().to_tensors(self.arrays)
        return SparseMatrix(self.layout, {name: t.to(device) for name, t in tensors.items()})

    def __repr__(self) -> str:
        saved = self.nbytes / self.dense_nbytes
        kind = "torch" if self._torch else "numpy"
        return (
            f"SparseMatrix({self.layout.label}, shape={list(self.shape)}, "
            f"sparsity={self.sparsity:.1%}, nbytes={self.nbytes:,} = {saved:.0%} of dense, {kind})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"layout": self.layout, "arrays": self.arrays}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["layout"], state["arrays"])  # type: ignore[misc]

    def _handle(self) -> _C.Matrix:
        if self._matrix is not None:
            return self._matrix
        matrix: _C.Matrix = _torch_side().matrix_of(self)
        return matrix

    def _csr(self) -> tuple[Array, Array, Array]:
        """row_offsets, col_indices and float32 values, in NumPy."""
        matrix = self._handle()
        if self.layout.format == "csr" and not self.layout.quantized:
            names = ("row_offsets", "col_indices", "values")
            offsets, columns, values = (_numpy(self.arrays[name]) for name in names)
            return offsets, columns, widen(values, self.layout.dtype)
        dense, keep = matrix.unpack(), matrix.unpack_keep()
        offsets = np.concatenate([[0], np.cumsum(keep.sum(1))])
        values = widen(dense[keep], "bf16" if self.layout.dtype == "bf16" else "f32")
        return offsets, np.nonzero(keep)[1], values


def _torch_side() -> Any:
    return importlib.import_module("tamis.tensor.torch_side")


def _numpy(array: Any) -> Array:
    out: Array = _torch_side().as_numpy(array) if is_torch(array) else array
    return out


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view

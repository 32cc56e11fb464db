"""Matrix handles over NumPy arrays, and spmm on them; nothing here knows torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis import _C
from tamis.errors import TamisError, TamisTypeError, TamisUnsupported, TamisValueError
from tamis.layout import Layout
from tamis.ops import machine

Array = NDArray[Any]

# DType enum of the core, by name.
CODE = {"f32": 0, "f16": 1, "bf16": 2}
# NumPy has no bf16: its bits travel as uint16.
NUMPY_VALUES: dict[str, type[np.generic]] = {
    "f32": np.float32,
    "f16": np.float16,
    "bf16": np.uint16,
    "i8": np.int8,
    "u4": np.uint8,
    "u8": np.uint8,
}
NUMPY_INDEX: dict[str, type[np.generic]] = {
    "i64": np.int64,
    "i32": np.int32,
    "u8": np.uint8,
    "f32": np.float32,
    "f16": np.float16,
}


@contextmanager
def core_errors() -> Iterator[None]:
    """The core raises builtins; users catch tamis' own classes, which also are those builtins."""
    try:
        yield
    except TamisError:
        raise
    except NotImplementedError as err:
        raise TamisUnsupported(f"{err}.") from None
    except TypeError as err:
        raise TamisTypeError(f"{err}.") from None
    except ValueError as err:
        raise TamisValueError(f"{err}.") from None


CODE_LIMIT = {"i8": 127, "i4": 7}
"""Largest magnitude of the codes that a layout of i8 stores."""


def pack(
    layout: Layout,
    w: Array,
    w_dtype: str,
    keep: NDArray[np.bool_] | None,
    codes: str = "i8",
) -> dict[str, Array]:
    """Arrays of ``w`` [rows, cols] in ``layout``; ``keep`` None keeps what is not zero.

    ``codes`` says which codes a layout of i8 gets, see ``CODE_LIMIT``.

    Raises:
        TamisValueError: ``w`` does not satisfy the pattern of ``layout``.
    """
    with core_errors():
        return _C.pack(
            layout.format,
            w,
            w_dtype,
            keep,
            layout.dtype,
            keep_n=layout.keep,
            of=layout.of,
            block_rows=layout.block[0],
            block_cols=layout.block[1],
            group_size=layout.group_size,
            code_limit=CODE_LIMIT[codes],
        )


def make_matrix(layout: Layout, arrays: Mapping[str, Array], *, check: bool = True) -> _C.Matrix:
    """Checked handle that keeps ``arrays`` alive.

    Raises:
        TamisTypeError: An array has the wrong dtype.
        TamisValueError: An array is missing, has the wrong shape or contradicts another.
    """
    if check:
        check_arrays(layout, arrays)
    with core_errors():
        return _C.Matrix(
            layout.format,
            dict(arrays),
            layout.rows,
            layout.cols,
            layout.dtype,
            keep=layout.keep,
            of=layout.of,
            block_rows=layout.block[0],
            block_cols=layout.block[1],
            group_size=layout.group_size,
            check=check,
        )


def check_arrays(layout: Layout, arrays: Mapping[str, Array]) -> None:
    """Names, dtypes, shapes and contiguity; the core checks the contents.

    Raises:
        TamisTypeError: An array has another dtype.
        TamisValueError: Arrays are missing or too many, of another shape, or not contiguous.
    """
    if set(arrays) != set(layout.array_names):
        raise TamisValueError(
            f"SparseMatrix: arrays: got {sorted(arrays)}, wanted {sorted(layout.array_names)} "
            f"for {layout.label}."
        )
    shapes = layout.array_shapes(layout.stored(int(arrays["values"].size)))
    for name, shape in shapes.items():
        array = arrays[name]
        wanted = np.dtype(
            NUMPY_VALUES[layout.dtype]
            if name == "values"
            else NUMPY_INDEX[layout.index_dtype(name)]
        )
        if array.dtype != wanted:
            raise TamisTypeError(
                f"SparseMatrix: {name}: got dtype {array.dtype}, wanted {wanted} "
                f"for {layout.label}."
            )
        if array.shape != shape:
            raise TamisValueError(
                f"SparseMatrix: {name}: got shape {list(array.shape)}, wanted {list(shape)} "
                f"for {layout.label} [{layout.rows}, {layout.cols}]."
            )
        if not array.flags.c_contiguous:
            raise TamisValueError(
                f"SparseMatrix: {name}: got strides {array.strides}, wanted a contiguous array; "
                "pass numpy.ascontiguousarray of it."
            )


def compute_dtype(matrix: _C.Matrix, x_dtype: str) -> str | None:
    """Dtype a product with ``x_dtype`` inputs is computed in; None where no kernel fits.

    The input's own, unless only f32 has a vector kernel: every other dtype widens to it exactly.
    """
    own, wide = _kernel(matrix, x_dtype), _kernel(matrix, "f32")
    if own and not own.endswith("_scalar"):
        return x_dtype
    if wide and not (own and wide.endswith("_scalar")):
        return "f32"
    return x_dtype if own else None


def _kernel(matrix: _C.Matrix, x_dtype: str) -> str:
    try:
        return matrix.kernel(1, x_dtype)
    except NotImplementedError:
        return ""


def dense_limit(matrix: _C.Matrix, x_dtype: str) -> int:
    """Tokens above which expanding the weight and multiplying densely is predicted faster."""
    machine.load()
    return matrix.dense_above(x_dtype)


def spmm_numpy(matrix: _C.Matrix, x: Array) -> Array:
    """Product y [m, rows] = x [m, cols] @ w.T in x's dtype, float32 or float16.

    Raises:
        TamisTypeError: ``x`` has another dtype.
        TamisValueError: ``x`` has the wrong shape.
        TamisUnsupported: No kernel on this host multiplies these dtypes.
    """
    names = {np.dtype(np.float32): "f32", np.dtype(np.float16): "f16"}
    if x.dtype not in names:
        raise TamisTypeError(
            f"spmm: x: got dtype {x.dtype}, wanted float32 or float16; convert it with "
            "x.astype(numpy.float32)."
        )
    if x.ndim != 2 or x.shape[1] != matrix.cols:
        raise TamisValueError(
            f"spmm: x: got shape {list(x.shape)}, wanted [tokens, {matrix.cols}] for a weight of "
            f"shape [{matrix.rows}, {matrix.cols}]."
        )
    name = compute_dtype(matrix, names[x.dtype])
    if name is None:
        raise TamisUnsupported(
            f"spmm: x: got {names[x.dtype]} with a {matrix.format} {matrix.dtype} weight, wanted "
            "a pair that tamis.kernels() lists for this host."
        )
    given = x.dtype
    x = np.ascontiguousarray(x, dtype=NUMPY_VALUES[name])
    y = np.empty((x.shape[0], matrix.rows), dtype=x.dtype)
    if len(x) > dense_limit(matrix, name) and name == matrix.dtype == "f32":
        return (x @ matrix.unpack().T).astype(given, copy=False)
    if len(x):
        _C.spmm(
            matrix, x.ctypes.data, CODE[name], len(x), matrix.cols, 0, y.ctypes.data, matrix.rows
        )
    return y.astype(given, copy=False)

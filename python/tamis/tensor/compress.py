"""compress: any 2-D weight to a SparseMatrix, in the format that suits it unless one is named."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.errors import TamisTypeError, TamisValueError
from tamis.layout import CODES, DTYPES, FORMATS, Layout
from tamis.ops.cost import fastest
from tamis.ops.handle import CODE_LIMIT, pack
from tamis.tensor.matrix import SparseMatrix
from tamis.tensor.source import Dense, Rows, cast, first_not_finite, is_torch, read, widen

Keep = NDArray[np.bool_]

# On a tie the earlier wins: fixed counts and bit masks are read faster than indices.
_PREFERENCE = ("nm", "bitmap", "block", "csr8", "csr")


def compress(
    W: Any,
    format: str = "auto",
    keep: Any = None,
    dtype: str | None = None,
    n_m: tuple[int, int] = (2, 4),
    block: tuple[int, int] = (16, 16),
    group_size: int = 0,
) -> SparseMatrix:
    """SparseMatrix with the weights of ``W`` [rows, cols] that ``keep`` selects.

    ``format="auto"`` compares nm (if every group of ``n_m`` fits), bitmap, block
    (if ``block`` divides the shape), csr8 and csr. Of those smaller than dense storage it takes the
    one expected to be fastest for one token (``tamis info`` says by which figures), the smallest
    of those alike. If none is smaller the result is a bitmap, with ``nbytes`` above ``dense_nbytes``.

    Args:
        W: NumPy array, scipy.sparse matrix or torch tensor (strided or any sparse layout). A torch
            source gives torch arrays on its device, any other gives NumPy arrays. Non-contiguous
            input is copied. Values stored by a sparse source stay stored, zeros included.
        format: "auto", "bitmap", "csr", "csr8", "nm", "block" or "groupq".
        keep: Boolean [rows, cols], true stays; None keeps what is not zero. nm with None fills up
            a group that has too few; with a mask every group must keep exactly N.
        dtype: "f32", "f16", "bf16", "i8" or "i4"; None keeps the dtype of ``W``, float64 becoming f32.
            "i4" is i8 with codes from -7 to 7: a byte each, which the CUDA form of 2:4 weights halves.
            groupq has codes of 4 or 8 bits, "u4" (what None means) or "u8".
            Casts round to nearest even; a weight that overflows is an error. Products with i8 bitmap
            and nm, and with groupq, may round x to 8 bits too: see SparseLinear.
        n_m: nm: N kept of every M columns.
        block: block: rows and columns of a block, stored where any weight of it is kept.
        group_size: i8: columns that share a scale; 0 is one scale per row. groupq: columns kept or
            dropped together, with a scale and a zero point, 16 (what 0 means) or 32.

    Raises:
        TamisTypeError: ``W``, its dtype or ``keep`` has an unfit type.
        TamisValueError: A shape, a NaN or Inf weight, or a pattern that ``W`` does not satisfy.
    """
    _check_choice("format", format, ("auto", *FORMATS))
    _check_choice("dtype", dtype, (None, "i4", *DTYPES))
    source = read(W)
    if format == "groupq" or (format == "auto" and dtype in ("u4", "u8")):
        format, dtype, group_size = "groupq", dtype or "u4", group_size or 16
    request = _Request(source.shape, dtype or source.dtype, n_m, block, group_size)
    _check_codes(request, format)
    if isinstance(source, Rows):
        if keep is not None:
            raise TamisValueError(
                "compress: keep: got a mask with a sparse W, wanted None; what a sparse W stores "
                "is its mask."
            )
        return _compress_rows(source, format, request)
    source = _cast_dense(source, request.dtype)
    return _compress_dense(source, _read_keep(keep, source.shape), format, request)


class _Request:
    """Layouts that one call may produce."""

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: str,
        n_m: tuple[int, int],
        block: tuple[int, int],
        group_size: int,
    ) -> None:
        self.shape, self.group_size = shape, group_size
        self.asked = dtype
        self.codes = dtype if dtype in CODE_LIMIT else "i8"
        self.dtype = "i8" if dtype in CODE_LIMIT else dtype
        self.n_m = _pair("n_m", n_m)
        self.block = _pair("block", block)
        if not 1 <= self.n_m[0] <= self.n_m[1] <= 32:
            raise TamisValueError(
                "compress: n_m: got {}:{}, wanted 1 <= keep <= of <= 32.".format(*self.n_m)
            )
        if min(self.block) < 1:
            raise TamisValueError(
                f"compress: block: got {block}, wanted at least one row and column."
            )

    def layout(self, format: str) -> Layout:
        n, m = self.n_m if format == "nm" else (0, 0)
        block = self.block if format == "block" else (0, 0)
        rows, cols = self.shape
        return Layout(format, rows, cols, self.dtype, n, m, block, self.group_size)

    def candidates(self) -> list[Layout]:
        """Layouts whose pattern divides the shape, preferred first."""
        rows, cols = self.shape
        m = self.n_m[1]
        r, c = self.block
        fits = {
            "nm": cols % m == 0,
            "block": rows % r == 0 and cols % c == 0,
        }
        return [self.layout(name) for name in _PREFERENCE if fits.get(name, True)]


def _compress_dense(
    source: Dense, keep: Keep | None, format: str, request: _Request
) -> SparseMatrix:
    if format == "auto":
        kept = widen(source.w, source.dtype) != 0 if keep is None else keep
        layout = _best(request, int(kept.sum()), lambda a: _nnz_of(a, kept, keep is not None))
    else:
        layout = request.layout(format)
    return _wrap(layout, pack(layout, source.w, source.dtype, keep, request.codes), source.device)


def _compress_rows(source: Rows, format: str, request: _Request) -> SparseMatrix:
    if format == "auto":
        layout = _best(request, source.nnz, lambda a: _nnz_of_rows(a, source))
    else:
        layout = request.layout(format)
    if layout.format == "csr" and not layout.quantized:
        values = _checked_cast(source.values, source.dtype, layout.dtype)
        arrays = {
            "values": values,
            "row_offsets": source.row_offsets,
            "col_indices": source.col_indices,
        }
        return _wrap(layout, arrays, source.device)
    dense, keep = source.dense()
    # nm fills up groups that store too few, as it does for a dense source without a mask.
    short = layout.format == "nm" and _nnz_of(layout, keep, True) is None
    return _compress_dense(
        _cast_dense(dense, layout.dtype), None if short else keep, layout.format, request
    )


def _best(request: _Request, kept: int, nnz_of: Any) -> Layout:
    """Layout expected to be fastest; the bitmap if none is smaller than dense storage."""
    held = []
    for layout in request.candidates():
        nnz = kept if layout.format in ("bitmap", "csr", "csr8") else nnz_of(layout)
        if nnz is not None and layout.nbytes(nnz) < layout.dense_nbytes:
            held.append((layout, nnz))
    best = fastest(held)
    return request.layout("bitmap") if best is None else best[0]


def _nnz_of(layout: Layout, kept: Keep, exact: bool) -> int | None:
    """Values that nm or block stores for this mask; None where it cannot."""
    rows, cols = kept.shape
    if layout.format == "nm":
        counts = kept.reshape(rows, cols // layout.of, layout.of).sum(-1)
        fits = (counts == layout.keep) if exact else (counts <= layout.keep)
        return counts.size * layout.keep if bool(fits.all()) else None
    r, c = layout.block
    return int(kept.reshape(rows // r, r, cols // c, c).any((1, 3)).sum()) * r * c


def _nnz_of_rows(layout: Layout, source: Rows) -> int | None:
    rows, cols = source.shape
    row, col = source.row_indices(), source.col_indices.astype(np.int64)
    if layout.format == "block":
        r, c = layout.block
        return int(np.unique(row // r * (cols // c) + col // c).size) * r * c
    _, counts = np.unique(row * (cols // layout.of) + col // layout.of, return_counts=True)
    fits = counts.size == 0 or int(counts.max()) <= layout.keep
    return rows * cols // layout.of * layout.keep if fits else None


def _cast_dense(source: Dense, wanted: str) -> Dense:
    if wanted in (*CODES, source.dtype):
        return source
    return Dense(_checked_cast(source.w, source.dtype, wanted), wanted, source.device)


def _checked_cast(values: NDArray[Any], given: str, wanted: str) -> NDArray[Any]:
    out = cast(values, given, wanted)
    where = None if given == wanted else first_not_finite(out, wanted)
    if where is not None:
        value = widen(values.reshape(-1)[where : where + 1], given)[0]
        raise TamisValueError(
            f"compress: dtype: got {wanted} for a weight of {value:g}, which overflows it, wanted "
            'a dtype that holds it; use "bf16" or "f32".'
        )
    return out


def _read_keep(keep: Any, shape: tuple[int, int]) -> Keep | None:
    if keep is None:
        return None
    if is_torch(keep):
        keep = keep.detach().cpu().numpy()
    if not isinstance(keep, np.ndarray) or keep.dtype != np.bool_:
        got = getattr(keep, "dtype", type(keep).__name__)
        raise TamisTypeError(
            f"compress: keep: got {got}, wanted a boolean array; true stays, so write W != 0."
        )
    if keep.shape != shape:
        raise TamisValueError(
            f"compress: keep: got shape {list(keep.shape)}, wanted {list(shape)}, that of W."
        )
    return np.ascontiguousarray(keep)


def _wrap(layout: Layout, arrays: dict[str, NDArray[Any]], device: Any) -> SparseMatrix:
    if device is None:
        return SparseMatrix(layout, arrays)
    return SparseMatrix(layout, arrays).to_tensors(device)


def _check_choice(name: str, got: object, known: tuple[object, ...]) -> None:
    if got not in known:
        raise TamisValueError(f"compress: {name}: got {got!r}, wanted one of {list(known)}.")


def _check_codes(request: _Request, format: str) -> None:
    """Refuses codes that the format does not store, or that nobody halves there."""
    if (format == "groupq") != (request.dtype in ("u4", "u8")):
        raise TamisValueError(
            f"compress: dtype: got {request.asked!r} with format {format!r}, wanted 'u4' or 'u8' with "
            "'groupq' and with no other format; leave one of them out."
        )
    if request.asked == "i4" and (format, request.n_m) != ("nm", (2, 4)):
        of = " of {}:{}".format(*request.n_m) if format == "nm" else ""
        raise TamisValueError(
            f"compress: dtype: got 'i4' with format {format!r}{of}, wanted 'nm' of 2:4, whose CUDA "
            "form alone halves such codes; take 'i8' here."
        )


def _pair(name: str, value: Any) -> tuple[int, int]:
    if isinstance(value, (tuple, list)) and len(value) == 2:
        first, second = value
        if all(isinstance(v, (int, np.integer)) for v in (first, second)):
            return int(first), int(second)
    raise TamisTypeError(f"compress: {name}: got {value!r}, wanted a pair of integers.")

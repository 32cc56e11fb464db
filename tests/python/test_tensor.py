"""compress and SparseMatrix against float64 NumPy, over formats, dtypes and input kinds."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from host import WIDE
from hypothesis import given
from hypothesis import strategies as st
from references import TORCH, Array, bound, product, rounded, weight

import tamis
from tamis.errors import TamisTypeError, TamisValueError

PATTERN = {
    "bitmap": "any",
    "csr": "any",
    "csr8": "any",
    "nm": "2:4",
    "block": "block:4x4",
}
FORMATS = sorted(PATTERN)
FLOATS = ("f32", "f16", "bf16")


def make(
    format: str, rows: int = 24, cols: int = 72, sparsity: float = 0.5, seed: int = 0
) -> Array:
    return weight(rows, cols, PATTERN[format], sparsity, seed)


def stored_bytes(a: tamis.SparseMatrix) -> int:
    """Bytes by the formulas of the layout comments, from shape and counts alone."""
    rows, cols = a.shape
    size = {"f32": 4, "f16": 2, "bf16": 2, "i8": 1}[a.dtype]
    n = a.nnz
    words = math.ceil(cols / 64)
    r, c = a.layout.block
    index = {
        "bitmap": 8 * rows * words + 8 * (rows + 1),
        "csr": 8 * (rows + 1) + 4 * n,
        "csr8": 8 * (rows + 1) + rows * words + n,
        "nm": 8 * rows * words,
        "block": 8 * (rows // max(r, 1) + 1) + 4 * (n // max(r * c, 1)),
    }[a.layout.format]
    groups = math.ceil(cols / (a.layout.group_size or cols)) if a.dtype == "i8" else 0
    return n * size + index + 4 * rows * groups


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("format", FORMATS)
def test_round_trip_is_exact(format: str, dtype: str) -> None:
    w = make(format)
    a = tamis.compress(w, format, dtype=dtype, block=(4, 4))
    assert a.layout.format == format
    assert a.shape == w.shape
    np.testing.assert_array_equal(a.to_dense().astype(np.float32), rounded(w, dtype))
    kept = a.keep()
    assert kept.dtype == np.bool_
    np.testing.assert_array_equal(kept, w != 0)
    assert a.nnz == np.count_nonzero(w)
    assert a.sparsity == pytest.approx(1 - np.count_nonzero(w) / w.size)
    assert a.nbytes == stored_bytes(a) == sum(v.nbytes for v in a.arrays.values())
    assert a.dense_nbytes == w.size * (4 if dtype == "f32" else 2)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("group_size", [0, 16])
def test_int8_is_within_half_a_step(format: str, group_size: int) -> None:
    w = make(format)
    a = tamis.compress(w, format, dtype="i8", block=(4, 4), group_size=group_size)
    assert a.nbytes == stored_bytes(a)
    group = group_size or w.shape[1]
    dense = a.to_dense()
    for begin in range(0, w.shape[1], group):
        part = slice(begin, begin + group)
        step = np.abs(w[:, part]).max(1, keepdims=True) / 127
        assert (np.abs(dense[:, part] - w[:, part]) <= 0.501 * step).all()
    assert (dense[w == 0] == 0).all()


@given(
    rows=st.integers(1, 9),
    cols=st.integers(1, 130),
    sparsity=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    format=st.sampled_from(["auto", "bitmap", "csr", "csr8", "nm", "block"]),
    dtype=st.sampled_from(FLOATS),
    m=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_compress_laws(
    rows: int, cols: int, sparsity: float, format: str, dtype: str, m: int, seed: int
) -> None:
    rows, cols = (4 * rows, 4 * cols) if format in ("nm", "block") else (rows, cols)
    w = weight(rows, cols, PATTERN.get(format, "any"), sparsity, seed)
    a = tamis.compress(w, format, dtype=dtype, block=(4, 4))
    wide = rounded(w, dtype)
    np.testing.assert_array_equal(a.to_dense().astype(np.float32), wide)
    assert a.nbytes == stored_bytes(a)
    x = np.random.default_rng(seed).standard_normal((cols, m)).astype(np.float32)
    y = a @ x
    assert y.shape == (rows, m)
    assert y.dtype == np.float32
    assert (np.abs(y - product(x.T, wide).T) <= bound(x.T, wide, "f32").T).all()


@pytest.mark.parametrize("x_dtype", FLOATS)
@pytest.mark.parametrize("dtype", [*FLOATS, "i8"])
@pytest.mark.parametrize("format", FORMATS)
def test_product_keeps_the_dtype_of_x(format: str, dtype: str, x_dtype: str) -> None:
    w = make(format)
    a = tamis.compress(w, format, dtype=dtype, block=(4, 4))
    wide = a.to_dense().astype(np.float32)
    x = rounded(np.random.default_rng(1).standard_normal((72, 5)).astype(np.float32), x_dtype)
    wanted, error = product(x.T, wide).T, bound(x.T, wide, x_dtype, stored=dtype).T
    y = a @ torch.from_numpy(x).to(TORCH[x_dtype])
    assert y.dtype == TORCH[x_dtype]
    assert (np.abs(y.double().numpy() - wanted) <= error).all()
    vector = a @ torch.from_numpy(x[:, 0].copy()).to(TORCH[x_dtype])
    assert (np.abs(vector.double().numpy() - wanted[:, 0]) <= error[:, 0]).all()
    if x_dtype != "bf16":
        y = a @ x.astype({"f32": np.float32, "f16": np.float16}[x_dtype])
        assert y.dtype.name == {"f32": "float32", "f16": "float16"}[x_dtype]
        assert (np.abs(y.astype(np.float64) - wanted) <= error).all()


def test_float64_becomes_float32_and_other_floats_stay() -> None:
    w = make("bitmap")
    assert tamis.compress(w.astype(np.float64)).dtype == "f32"
    assert tamis.compress(w.astype(np.float16)).dtype == "f16"
    assert tamis.compress(torch.from_numpy(w).double()).dtype == "f32"
    assert tamis.compress(torch.from_numpy(w).bfloat16()).dtype == "bf16"


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_casts_round_to_nearest_even(dtype: str) -> None:
    low = np.arange(1 << 16, dtype=np.uint32)  # every pattern that bf16 drops, ties among them
    bits = np.stack([low | high << 16 for high in (0x3F80, 0x3F81, 0xC12A, 0x0001, 0x3880)])
    w = bits.astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(
        tamis.compress(w, dtype=dtype).to_dense().astype(np.float32), rounded(w, dtype)
    )


def test_non_contiguous_input_is_copied() -> None:
    w = make("bitmap", 30, 66)
    np.testing.assert_array_equal(tamis.compress(w.T).to_dense(), w.T)
    np.testing.assert_array_equal(tamis.compress(w[::-2, ::3]).to_dense(), w[::-2, ::3])
    x = np.random.default_rng(0).standard_normal((7, 132)).astype(np.float32).T[::2]
    a = tamis.compress(w)
    assert (np.abs(a @ x - product(x.T, w).T) <= bound(x.T, w, "f32").T).all()
    np.testing.assert_array_equal(a @ torch.from_numpy(x), a @ x)


def test_keep_mask_selects_and_keeps_zeros() -> None:
    w = make("bitmap")
    keep = np.random.default_rng(3).random(w.shape) < 0.4
    for mask in (keep, torch.from_numpy(keep)):
        a = tamis.compress(w, "bitmap", mask)
        np.testing.assert_array_equal(a.keep(), keep)
        np.testing.assert_array_equal(a.to_dense(), w * keep)
        assert a.nnz == keep.sum()


def test_auto_takes_the_fewest_bytes() -> None:
    rare, sparse = weight(256, 512, "any", 0.999), weight(64, 256, "any", 0.95)
    half = weight(64, 256, "any", 0.5)
    pattern = weight(64, 256, "2:4", 0.5)
    blocks = np.kron(weight(4, 16, "any", 0.5), np.ones((16, 16), np.float32))
    wanted_formats = ("csr", "csr8", "bitmap", "nm", "block")
    for w, wanted in zip((rare, sparse, half, pattern, blocks), wanted_formats, strict=True):
        a = tamis.compress(w)
        if wanted == "nm" and not WIDE:  # whose AVX2 kernels are a bitmap's
            continue
        assert a.layout.format == wanted
        sizes = [a.nbytes]
        for format in ("bitmap", "csr", "csr8", "block"):
            sizes.append(tamis.compress(w, format).nbytes)
        assert a.nbytes == min(sizes)
        assert a.nbytes < a.dense_nbytes


def test_auto_on_a_dense_weight_is_an_honest_bitmap() -> None:
    a = tamis.compress(weight(32, 64, "any", 0.0))
    assert a.layout.format == "bitmap"
    assert a.nbytes > a.dense_nbytes
    assert "of dense" in repr(a)


def test_nm_fills_groups_that_have_too_few() -> None:
    w = np.zeros((2, 8), np.float32)
    w[0, 3] = 5
    a = tamis.compress(w, "nm", n_m=(1, 4))
    assert a.nnz == 4
    np.testing.assert_array_equal(a.to_dense(), w)


# Other sources.


@pytest.mark.parametrize("format", ["auto", *FORMATS])
@pytest.mark.parametrize("kind", ["csr", "coo", "bsr", "csc"])
def test_scipy_in_and_out(kind: str, format: str) -> None:
    w = make(format if format != "auto" else "bitmap")
    source = getattr(scipy.sparse, f"{kind}_array")(w)
    a = tamis.compress(source, format, block=(4, 4))
    np.testing.assert_array_equal(a.to_dense(), w)
    back = a.to_scipy()
    assert back.format == "csr"
    np.testing.assert_array_equal(back.toarray(), w)
    back.check_format(full_check=True)


def test_scipy_unsorted_and_duplicate_entries_are_summed() -> None:
    rows, cols, values = [0, 0, 0, 1], [3, 1, 3, 0], np.array([1.0, 2.0, 4.0, 8.0], np.float32)
    source = scipy.sparse.coo_array((values, (rows, cols)), shape=(2, 5))
    csr = scipy.sparse.csr_array((values[:2], np.array([3, 1]), np.array([0, 2, 2])), shape=(2, 5))
    np.testing.assert_array_equal(tamis.compress(source, "csr").to_dense(), source.toarray())
    np.testing.assert_array_equal(tamis.compress(csr, "csr").to_dense(), csr.toarray())
    assert not csr.has_sorted_indices  # the source was not touched
    twice = scipy.sparse.csr_array(
        (values[:2], np.array([3, 3]), np.array([0, 2, 2])), shape=(2, 5)
    )
    np.testing.assert_array_equal(tamis.compress(twice).to_dense(), twice.toarray())
    assert twice.nnz == 2


def test_stored_zeros_of_a_sparse_source_stay() -> None:
    source = scipy.sparse.csr_array(
        (np.array([0.0, 2.0], np.float32), np.array([1, 2]), np.array([0, 1, 2])), shape=(2, 4)
    )
    for format in ("csr", "bitmap"):
        a = tamis.compress(source, format)
        assert a.nnz == 2
        assert a.keep().sum() == 2


def test_a_huge_sparse_source_is_never_made_dense() -> None:
    n = 1_000_000
    diagonal = scipy.sparse.eye_array(n, format="csr", dtype=np.float32)
    a = tamis.compress(diagonal, "csr")
    assert a.nnz == n
    x = np.arange(n, dtype=np.float32)
    np.testing.assert_array_equal(a @ x, x)
    np.testing.assert_array_equal(a.to_scipy().data, diagonal.data)
    assert tamis.compress(diagonal).layout.format == "csr"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("kind", ["strided", "csr", "bsr", "coo", "csc"])
def test_torch_in(kind: str, dtype: str) -> None:
    w = torch.from_numpy(make("block")).to(TORCH[dtype])
    source = {
        "strided": lambda: w,
        "csr": w.to_sparse_csr,
        "bsr": lambda: w.to_sparse_bsr((4, 4)),
        "coo": w.to_sparse,
        "csc": w.to_sparse_csc,
    }[kind]()
    a = tamis.compress(source, block=(4, 4))
    assert a.dtype == dtype
    assert all(isinstance(array, torch.Tensor) for array in a.arrays.values())
    assert torch.equal(a.to_dense(), w)
    assert torch.equal(a.keep(), w != 0)


@pytest.mark.parametrize("inside", ["numpy", "torch"])
@pytest.mark.parametrize("format", FORMATS)
def test_torch_out(format: str, inside: str) -> None:
    w = make(format)
    a = tamis.compress(w if inside == "numpy" else torch.from_numpy(w), format, block=(4, 4))
    assert torch.equal(a.to_torch("strided"), torch.from_numpy(w))
    csr = a.to_torch("csr")
    assert csr.layout == torch.sparse_csr
    assert torch.equal(csr.to_dense(), torch.from_numpy(w))
    if format == "block":
        bsr = a.to_torch("bsr")
        assert bsr.layout == torch.sparse_bsr
        assert torch.equal(bsr.to_dense(), torch.from_numpy(w))
    else:
        with pytest.raises(TamisValueError, match="only block matrices have blocks"):
            a.to_torch("bsr")


def test_numpy_and_torch_meet() -> None:
    w = make("bitmap")
    x = np.random.default_rng(0).standard_normal((72, 3)).astype(np.float32)
    ours, theirs = tamis.compress(w), tamis.compress(torch.from_numpy(w))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = ours @ torch.from_numpy(x)
    assert isinstance(y, torch.Tensor)
    np.testing.assert_array_equal(y, ours @ x)
    assert isinstance(theirs @ x, np.ndarray)
    np.testing.assert_array_equal(theirs @ x, ours @ x)


def test_gradients_reach_values_inside_a_matrix() -> None:
    w = torch.from_numpy(make("csr"))
    a = tamis.compress(w, "csr")
    a.arrays["values"].requires_grad_()
    (a @ torch.ones(72)).sum().backward()
    assert torch.equal(a.arrays["values"].grad, torch.ones(a.nnz))


@pytest.mark.parametrize("inside", ["numpy", "torch"])
@pytest.mark.parametrize("format", FORMATS)
def test_pickle_and_deepcopy(format: str, inside: str) -> None:
    w = make(format)
    a = tamis.compress(w if inside == "numpy" else torch.from_numpy(w), format, block=(4, 4))
    for b in (pickle.loads(pickle.dumps(a)), copy.deepcopy(a)):
        assert b.layout == a.layout
        np.testing.assert_array_equal(np.asarray(b.to_dense()), w)
        assert b.arrays["values"] is not a.arrays["values"]


def test_repr_says_what_and_how_much() -> None:
    a = tamis.compress(make("nm"), "nm", dtype="bf16")
    assert repr(a).startswith("SparseMatrix(2:4 bf16, shape=[24, 72], sparsity=50.0%, nbytes=2,112")


def test_index_arrays_cannot_be_written() -> None:
    a = tamis.compress(make("bitmap"), "bitmap")
    with pytest.raises(ValueError, match="read-only"):
        a.arrays["mask"][0] = 0


# Bad input: the right class, and a sentence with argument, got and wanted.

W = make("bitmap")


def with_nan(value: float, dtype: str = "f32") -> Any:
    w = W.copy()
    w[3, 17] = value
    w[5, 2] = value
    return torch.from_numpy(w).to(TORCH[dtype]) if dtype != "f32" else w


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tamis.compress(W[0]), ValueError, r"W: got shape \[72\], wanted two dim"),
        (lambda: tamis.compress(W[:0]), ValueError, r"W: got shape \[0, 72\], wanted at least one"),
        (
            lambda: tamis.compress(W.astype(np.int32)),
            TypeError,
            r"W: got dtype int32, wanted float",
        ),
        (lambda: tamis.compress([[1.0]]), TypeError, r"W: got list, wanted a NumPy array"),
        (lambda: tamis.compress(torch.ones(2, 2).int()), TypeError, r"W: got dtype torch.int32"),
        (lambda: tamis.compress(with_nan(np.nan)), ValueError, r"W: got nan at row 3, column 17"),
        (lambda: tamis.compress(with_nan(-np.inf)), ValueError, r"W: got -inf at row 3, column 17"),
        (lambda: tamis.compress(with_nan(np.nan, "bf16")), ValueError, r"nan at row 3, column 17"),
        (
            lambda: tamis.compress(scipy.sparse.csr_array(with_nan(np.nan))),
            ValueError,
            r"W: got nan at row 3, column 17",
        ),
        (lambda: tamis.compress(W * 1e6, dtype="f16"), ValueError, r"dtype: got f16 .* overflows"),
        (lambda: tamis.compress(W, "ellpack"), ValueError, r"format: got 'ellpack', wanted one of"),
        (lambda: tamis.compress(W, dtype="i5"), ValueError, r"dtype: got 'i5', wanted one of"),
        (lambda: tamis.compress(W, dtype="i4"), ValueError, r"'i4' with format 'auto', .* of 2:4"),
        (
            lambda: tamis.compress(W, "nm", dtype="i4", n_m=(1, 4)),
            ValueError,
            r"dtype: got 'i4' with format 'nm' of 1:4, wanted 'nm' of 2:4",
        ),
        (
            lambda: tamis.compress(W, "nm", dtype="i4", n_m=5),
            TypeError,
            r"n_m: got 5, wanted a pair",
        ),
        (
            lambda: tamis.compress(W, "groupq", dtype="i4"),
            ValueError,
            r"dtype: got 'i4' with format 'groupq', wanted 'u4' or 'u8' with 'groupq'",
        ),
        (
            lambda: tamis.compress(W, "bitmap", dtype="u4"),
            ValueError,
            r"dtype: got 'u4' with format 'bitmap', wanted 'u4' or 'u8' with 'groupq'",
        ),
        (lambda: tamis.compress(W, "nm", n_m=(2, 5)), ValueError, r"cols: got 72, wanted a mult"),
        (lambda: tamis.compress(W, "nm", n_m=(5, 4)), ValueError, r"got 5:4, wanted 1 <= keep"),
        (lambda: tamis.compress(W, "nm", n_m=2), TypeError, r"n_m: got 2, wanted a pair"),
        (lambda: tamis.compress(W, "nm"), ValueError, r"got \d kept weights in row \d+, columns"),
        (
            lambda: tamis.compress(W, "nm", np.ones(W.shape, bool)),
            ValueError,
            r"keep: got 4 kept weights in row 0, columns 0 to 3, wanted 2 of every 4",
        ),
        (lambda: tamis.compress(W, "block", block=(5, 4)), ValueError, r"block: got 5x4 for shape"),
        (lambda: tamis.compress(W, keep=W), TypeError, r"keep: got float32, wanted a boolean"),
        (lambda: tamis.compress(W, keep=W[:2] != 0), ValueError, r"keep: got shape \[2, 72\]"),
        (
            lambda: tamis.compress(scipy.sparse.csr_array(W), keep=W != 0),
            ValueError,
            r"keep: got a mask with a sparse W, wanted None",
        ),
        (lambda: tamis.compress(W, group_size=8), ValueError, r"group_size: got 8 with dtype f32"),
        (lambda: tamis.compress(W) @ W, ValueError, r"X: got shape \[24, 72\], wanted \[72\] or"),
        (lambda: tamis.compress(W) @ [1.0], TypeError, r"X: got list, wanted a NumPy array"),
        (
            lambda: tamis.compress(W) @ np.ones(72),
            TypeError,
            r"x: got dtype float64, wanted float32",
        ),
        (
            lambda: tamis.compress(W) @ torch.ones(72, dtype=torch.float64),
            TypeError,
            r"x: got dtype torch.float64, wanted torch.float32",
        ),
        (
            lambda: tamis.compress(W).to_torch("coo"),
            ValueError,
            r"layout: got 'coo', wanted one of",
        ),
        (lambda: W.T @ tamis.compress(W), TypeError, r"X @ A: X: got ndarray on the left"),
    ],
)
def test_bad_input_is_one_sentence(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert isinstance(caught.value, tamis.TamisError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inside", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: a.pop("mask"), r"arrays: got \['row_offsets', 'values'\], wanted"),
        (lambda a: a.update(mask=a["mask"][:-1]), r"mask: got shape \[23, 2\]"),
        (lambda a: a.update(values=a["values"][:-1]), r"row_offsets|mask|values"),
        (lambda a: a.update(row_offsets=a["row_offsets"] + 1), r"row_offsets"),
        (lambda a: a.update(mask=a["mask"] ^ 1), r"mask|row_offsets"),
        (lambda a: a.update(mask=a["mask"] | -(2**63)), r"mask"),
    ],
)
def test_contradicting_arrays_are_refused(damage: Any, message: str, inside: str) -> None:
    a = tamis.compress(W if inside == "numpy" else torch.from_numpy(W), "bitmap")
    arrays = dict(a.arrays)
    damage(arrays)
    with pytest.raises(TamisValueError, match=message):
        tamis.SparseMatrix(a.layout, arrays)


def test_wrong_array_types_are_refused() -> None:
    a = tamis.compress(W, "csr")
    wrong = {**a.arrays, "col_indices": a.arrays["col_indices"].astype(np.int64)}
    with pytest.raises(TamisTypeError, match="col_indices: got dtype int64, wanted int32"):
        tamis.SparseMatrix(a.layout, wrong)
    mixed = {**a.arrays, "values": torch.from_numpy(a.arrays["values"])}
    with pytest.raises(TamisTypeError, match="wanted all NumPy arrays or all torch tensors"):
        tamis.SparseMatrix(a.layout, mixed)

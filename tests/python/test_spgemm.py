"""Products of two csr matrices: NumPy, torch and CUDA against scipy and dense ones."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from host import needs_device

import tamis
from tamis.errors import TamisTypeError, TamisValueError
from tamis.layout import Layout
from tamis.ops.spgemm import spgemm


def matrix(kind: str, rows: int, cols: int, seed: int) -> sp.csr_array:
    """A random matrix with sorted columns; "skewed" as R-MAT makes them."""
    rng = np.random.default_rng(seed)
    count = 6 * rows
    i, j = rng.integers(0, rows, count), rng.integers(0, cols, count)
    if kind == "banded":
        j = (i * cols // rows + j % 5) % cols
    if kind == "skewed":
        i, j = i * i // rows, (j * j // cols) * j // cols
    found = sp.coo_array(
        (rng.standard_normal(count).astype(np.float32), (i, j)), (rows, cols)
    ).tocsr()
    found.sum_duplicates()
    return found


def wrapped(m: sp.csr_array, device: str | None) -> tamis.SparseMatrix:
    arrays = {
        "values": m.data.astype(np.float32),
        "row_offsets": m.indptr.astype(np.int64),
        "col_indices": m.indices.astype(np.int32),
    }
    if device is not None:
        arrays = {name: torch.from_numpy(a).to(device) for name, a in arrays.items()}
    return tamis.SparseMatrix(Layout("csr", *m.shape, "f32"), arrays)


def check(kind: str, shape: tuple[int, int, int], device: str | None) -> None:
    m, p, n = shape
    a, b = matrix(kind, m, p, 1), matrix(kind, p, n, 2)
    c = wrapped(a, device) @ wrapped(b, device)
    arrays = {name: np.asarray(t if device is None else t.cpu()) for name, t in c.arrays.items()}
    ones = [x.astype(bool).astype(np.int64) for x in (a, b)]
    places = (ones[0] @ ones[1]).tocsr()
    places.sort_indices()
    np.testing.assert_array_equal(arrays["row_offsets"], places.indptr)
    np.testing.assert_array_equal(arrays["col_indices"], places.indices)
    want = (a.astype(np.float64) @ b.astype(np.float64)).toarray()
    got = sp.csr_array((arrays["values"], places.indices, places.indptr), (m, n)).toarray()
    size = (abs(a).astype(np.float64) @ abs(b).astype(np.float64)).toarray()
    assert (np.abs(got - want) <= 2.0**-20 * size).all()


SHAPES = [(1, 1, 1), (40, 70, 33), (300, 200, 5000), (64, 3000, 20000)]


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("kind", ["random", "banded", "skewed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_products(kind: str, shape: tuple[int, int, int], device: str | None) -> None:
    check(kind, shape, device)


@needs_device
@pytest.mark.parametrize("kind", ["random", "banded", "skewed"])
@pytest.mark.parametrize("shape", [*SHAPES, (20000, 20000, 20000)])
def test_products_on_cuda_have_the_processors_bits(kind: str, shape: tuple[int, int, int]) -> None:
    if shape[0] < 20000:
        check(kind, shape, "cuda")
    m, p, n = shape
    sides = [matrix(kind, m, p, 3), matrix(kind, p, n, 4)]
    first, second = (wrapped(s, None) for s in sides)
    want = first @ second
    for _ in range(2):
        first, second = (wrapped(s, "cuda") for s in sides)
        got = first @ second
        for name, array in want.arrays.items():
            assert np.array_equal(got.arrays[name].cpu().numpy(), array), name


def test_sums_that_are_zero_stay_stored() -> None:
    a = wrapped(sp.csr_array(np.array([[1, 1]], np.float32)), None)
    b = wrapped(sp.csr_array(np.array([[2, 0], [-2, 3]], np.float32)), None)
    c = a @ b
    assert c.arrays["values"].tolist() == [0.0, 3.0]


def test_what_is_wrong_is_said() -> None:
    a = wrapped(matrix("random", 8, 16, 1), None)
    with pytest.raises(TamisValueError, match=r"A @ B: B: got shape \[8, 16\], wanted \[16, n\]"):
        a @ a
    b = tamis.compress(np.eye(16, dtype=np.float32), format="bitmap")
    with pytest.raises(TamisTypeError, match="A @ B: B: got bitmap f32, wanted csr f32"):
        a @ b
    arrays = tuple(
        torch.from_numpy(np.array(a.arrays[s])) for s in ("values", "row_offsets", "col_indices")
    )
    with pytest.raises(TamisTypeError, match="spgemm: a: got torch.float64"):
        spgemm((arrays[0].double(), *arrays[1:]), arrays, (8, 16, 16))
    with pytest.raises(TamisValueError, match="spgemm: b: got shapes"):
        spgemm(arrays, arrays, (8, 16, 16))
    arrays[2][0] = 99
    with pytest.raises(TamisValueError):
        spgemm(arrays, arrays, (8, 16, 16))


@needs_device
def test_arrays_that_contradict_each_other_are_refused_on_cuda() -> None:
    a, b = (wrapped(matrix("random", 16, 16, s), "cuda") for s in (1, 2))
    for name, at, value in (
        ("col_indices", 3, 99),
        ("col_indices", 3, -1),
        ("row_offsets", 2, 9999),
    ):
        kept = a.arrays[name][at].clone()
        a.arrays[name][at] = value
        with pytest.raises(TamisValueError, match="contradict"):
            a @ b
        a.arrays[name][at] = kept
    a @ b

"""groupq against a decoder written from its layout comment; its products, files and training."""

from typing import Any

import numpy as np
import pytest
import torch
from references import TORCH, bound, product
from torch import nn

import tamis
from tamis import _C
from tamis.errors import TamisTypeError, TamisValueError
from tamis.layout import Layout
from tamis.nn import SparseLinear
from tamis.ops.dense import unpack_dense
from tamis.tensor.torch_side import rest_of

Array = np.ndarray[Any, Any]
CASES = [(dtype, size) for dtype in ("u4", "u8") for size in (16, 32)]
every_case = pytest.mark.parametrize(("dtype", "size"), CASES)


def weight(rows: int = 12, cols: int = 1056, size: int = 16, density: float = 0.5) -> Array:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((rows, cols // size, size)).astype(np.float32)
    w[rng.random(w.shape[:2]) >= density] = 0
    w[3] = 0
    return w.reshape(rows, cols)


def decode(a: tamis.SparseMatrix) -> tuple[Array, Array]:
    """Dense weights and the scale of each, group by group, from the layout comment."""
    rows, cols, size = a.layout.rows, a.layout.cols, a.layout.group_size
    dense, step = np.zeros((rows, cols)), np.zeros((rows, cols))
    arrays, group = a.arrays, 0
    for r in range(rows):
        assert arrays["row_offsets"][r] == group
        for g in range(cols // size):
            if not int(arrays["mask"][r, g // 64]) >> (g % 64) & 1:
                continue
            scale, zero = arrays["scales"][group].astype(np.float64)
            if a.dtype == "u4":
                own = arrays["values"][group * size // 2 : (group + 1) * size // 2]
                codes = np.concatenate([own & 15, own >> 4])
            else:
                codes = arrays["values"][group * size : (group + 1) * size]
            part = slice(g * size, (g + 1) * size)
            dense[r, part], step[r, part] = scale * (codes - zero), scale
            group += 1
    assert group == a.arrays["row_offsets"][-1] == len(arrays["scales"])
    return dense, step


@every_case
def test_weights_come_back_within_half_a_step(dtype: str, size: int) -> None:
    w = weight(size=size)
    a = tamis.compress(w, "groupq", dtype=dtype, group_size=size)
    dense, step = decode(a)
    assert (np.abs(dense - w) <= 0.501 * step).all()
    np.testing.assert_array_equal(a.to_dense(), dense.astype(np.float32))
    np.testing.assert_array_equal(a.keep(), w != 0)
    assert a.nnz == np.count_nonzero(w)
    stored = a.nnz // size
    bits = 4 if dtype == "u4" else 8
    assert a.nbytes == stored * (size * bits // 8 + 4) + 8 * 12 * -(-1056 // size // 64) + 8 * 13
    groups = w.size // size
    assert a.dense_nbytes == groups * (size * bits // 8 + 4)
    again = tamis.compress(torch.from_numpy(w), "groupq", dtype=dtype, group_size=size)
    for name, array in again.arrays.items():
        np.testing.assert_array_equal(array.numpy(), a.arrays[name])
    plain = unpack_dense(again.arrays["values"], again.layout, *rest_of(again.arrays))
    assert torch.equal(plain, again.to_dense())


def test_defaults_are_four_bits_and_groups_of_sixteen() -> None:
    a = tamis.compress(weight(), "groupq")
    assert (a.dtype, a.layout.group_size) == ("u4", 16)
    assert a.layout.label == "groupq u4 g16"
    assert tamis.compress(weight(), dtype="u8").layout.format == "groupq"


@every_case
@pytest.mark.parametrize("x_dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("m", [1, 2, 5, 9, 33])
def test_products(dtype: str, size: int, x_dtype: str, m: int) -> None:
    a = tamis.compress(weight(size=size), "groupq", dtype=dtype, group_size=size)
    w = a.to_dense()
    x = torch.randn(1056, m, generator=torch.Generator().manual_seed(m)).to(TORCH[x_dtype])
    rows = x.T.float().numpy()
    y = a @ x
    assert y.dtype == x.dtype
    error = bound(rows, w, x_dtype, stored="i8")
    assert (np.abs(y.double().numpy().T - product(rows, w)) <= error).all()


def test_skewed_rows_are_shared_by_their_groups() -> None:
    """One row in eight holds everything: threads still agree with one of them alone."""
    w = weight(64, 1056)
    w[np.arange(64) % 8 != 0] = 0
    a, x = tamis.compress(w, "groupq"), np.ones((1056, 3), np.float32)
    try:
        results = []
        for threads in (1, 2, 3):
            _C.set_num_threads(threads)
            results.append(a @ x)
    finally:
        _C.set_num_threads(0)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda a: a["mask"].__setitem__((0, 0), a["mask"][0, 0] ^ 1),
            r"mask: got .* bits in row 0",
        ),
        (lambda a: a["mask"].__setitem__((0, 1), 1 << 40), r"mask: got bits beyond column 66"),
        (lambda a: a["row_offsets"].__setitem__(2, 999), r"row_offsets\[2\]: got 999"),
        (
            lambda a: a["scales"].__setitem__((1, 0), np.inf),
            r"scales: got inf as the scale of group 1",
        ),
        (lambda a: a["scales"].__setitem__((2, 1), np.nan), r"scales: got -?nan as the zero point"),
        (lambda a: a.__setitem__("values", a["values"][:-1]), r"values"),
        (lambda a: a.__setitem__("scales", a["scales"][:-1]), r"scales: got shape"),
    ],
)
def test_damage_is_refused(change: Any, text: str) -> None:
    a = tamis.compress(weight(), "groupq")
    arrays = {name: array.copy() for name, array in a.arrays.items()}
    change(arrays)
    with pytest.raises((TamisValueError, TamisTypeError), match=text):
        tamis.SparseMatrix(a.layout, arrays)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dtype": "f32"}, "dtype: got 'f32' with format 'groupq', wanted 'u4' or 'u8'"),
        ({"group_size": 8}, "group_size: got 8 with format 'groupq', wanted 16 or 32"),
        ({"dtype": "u4", "group_size": 64}, "group_size: got 64"),
    ],
)
def test_options_that_do_not_fit(options: Any, text: str) -> None:
    with pytest.raises(TamisValueError, match=text):
        tamis.compress(weight(), "groupq", **options)


def test_columns_must_be_whole_groups_and_ranges_fit() -> None:
    with pytest.raises(TamisValueError, match="cols: got 40, wanted a multiple of the 16"):
        tamis.compress(np.ones((2, 40), np.float32), "groupq")
    with pytest.raises(TamisValueError, match="a group of row 1 with Inf, NaN or a range over"):
        tamis.compress(np.array([[1.0] * 16, [1e9] * 16], np.float32), "groupq")
    with pytest.raises(TamisValueError, match="dtype: got u4 with format 'bitmap'"):
        Layout("bitmap", 4, 64, "u4")


def test_layer_keeps_its_codes_through_casts_files_and_gradients(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8)).bfloat16()
    dense = model[0].weight.detach().clone()
    model[0] = SparseLinear.from_linear(model[0], format="groupq")
    layer = model[0]
    assert layer.weight_scales.dtype == torch.float16
    assert layer.nnz == 64 * 48
    step = layer.weight_scales[:, 0].float().max()
    assert (layer.weight.to_dense().float() - dense.float()).abs().max() <= 0.6 * step
    x = torch.randn(5, 64, dtype=torch.bfloat16, requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None
    tamis.save(model, tmp_path / "m")
    other = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8)).bfloat16()
    loaded = tamis.load(tmp_path / "m", model=other)
    assert torch.equal(loaded[0].weight_scales, layer.weight_scales)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    wide = model.float()
    assert wide[0].weight_scales.dtype == torch.float16
    assert wide[0].weight.dtype == torch.float32
    row = tamis.explain(wide).layers[0]
    assert row.format == "groupq u4 g16"
    assert "groupq_u4" in row.kernel

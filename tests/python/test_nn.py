"""SparseLinear as a module: state, copies, dtypes, devices, training, compile and export."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from references import TORCH, weight
from torch import Tensor, nn
from torch.nn import functional

import tamis
from tamis.errors import TamisTypeError, TamisValueError
from tamis.layout import Layout
from tamis.nn import SparseLinear

PATTERN = {
    "bitmap": "any",
    "csr": "any",
    "csr8": "any",
    "nm": "2:4",
    "block": "block:4x4",
}
FORMATS = sorted(PATTERN)
ROWS, COLS = 20, 76


def dense(format: str = "bitmap", bias: bool = True) -> nn.Linear:
    """nn.Linear whose weight ``format`` stores exactly."""
    linear = nn.Linear(COLS, ROWS, bias)
    linear.weight.data = torch.from_numpy(weight(ROWS, COLS, PATTERN[format], 0.5)) / 8
    return linear


def sparse(format: str = "bitmap", dtype: str | None = None, bias: bool = True) -> SparseLinear:
    return SparseLinear.from_linear(dense(format, bias), format=format, dtype=dtype, block=(4, 4))


def same(a: SparseLinear, b: SparseLinear) -> None:
    assert a.layout == b.layout
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name
    x = torch.randn(3, COLS)
    with torch.no_grad():
        assert torch.equal(a(x), b(x))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_from_linear_and_back(format: str, bias: bool) -> None:
    linear = dense(format, bias)
    layer = SparseLinear.from_linear(linear, format=format, block=(4, 4))
    x = torch.randn(2, 3, COLS)
    for enabled in (True, False, False):
        with torch.set_grad_enabled(enabled):
            torch.testing.assert_close(layer(x), linear(x))
    assert (layer.in_features, layer.out_features) == (COLS, ROWS)
    assert layer.layout.format == format
    assert (layer.bias is None) == (not bias)
    assert torch.equal(layer.matrix.to_dense(), linear.weight)
    back = layer.to_linear()
    assert type(back) is nn.Linear
    assert torch.equal(back.weight, linear.weight)
    assert back.bias is linear.bias
    assert layer.nbytes == layer.matrix.nbytes
    assert set(layer.state_dict()) == {
        *(f"weight_{name}" for name in layer.layout.array_names),
        *(["bias"] if bias else []),
    }


def test_auto_and_keep() -> None:
    linear = nn.Linear(64, 32)
    keep = torch.rand(32, 64) < 0.5
    layer = SparseLinear.from_linear(linear, keep=keep)
    assert layer.layout.format == "bitmap"
    assert torch.equal(layer.weight.to_dense(), linear.weight * keep)
    full = SparseLinear.from_linear(linear)  # nothing to save, and the bytes say so
    assert full.nbytes > full.layout.dense_nbytes
    assert torch.equal(full.weight.to_dense(), linear.weight)


def test_requires_grad_and_mode_follow_the_source() -> None:
    linear = dense().eval()
    linear.weight.requires_grad_(False)
    layer = SparseLinear.from_linear(linear)
    assert not layer.weight_values.requires_grad
    assert not layer.weight.requires_grad
    assert layer.bias is not None
    assert layer.bias.requires_grad
    assert not layer.training
    assert SparseLinear.from_linear(dense()).weight_values.requires_grad
    assert isinstance(layer.weight_values, nn.Parameter)


def test_int8_values_are_a_buffer() -> None:
    layer = sparse(dtype="i8")
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert layer.weight_values.dtype == torch.int8
    assert layer.weight.dtype == torch.float32
    x = torch.randn(3, COLS, requires_grad=True)
    layer(x).sum().backward()
    wanted = layer.matrix.to_dense().sum(0).expand(3, COLS)
    torch.testing.assert_close(x.grad, wanted)
    bf16 = SparseLinear.from_linear(dense().bfloat16(), format="bitmap", dtype="i8")
    assert bf16.weight.dtype == bf16.to_linear().weight.dtype == torch.bfloat16


# State.


@pytest.mark.parametrize("dtype", [None, "bf16", "i8"])
@pytest.mark.parametrize("format", FORMATS)
def test_state_dict_round_trip_into_an_empty_layer(format: str, dtype: str | None) -> None:
    layer = sparse(format, dtype)
    if dtype == "bf16":
        assert layer.bias.dtype == torch.float32  # the model's activations, not the weight, decide
        layer.bfloat16()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    empty = SparseLinear(layer.layout, layer.nnz)
    empty.load_state_dict(torch.load(file, weights_only=True))
    same(layer, empty)
    meta = SparseLinear(layer.layout, layer.nnz, device="meta")
    meta.load_state_dict(layer.state_dict(), assign=True)
    same(layer, meta)


def test_an_empty_layer_refuses_to_run() -> None:
    layer = SparseLinear(Layout("bitmap", 4, 8, "f32"), 7)
    with pytest.raises(TamisValueError, match="mask|row_offsets"):
        layer(torch.ones(8))


def test_loading_another_mask_in_place_is_seen() -> None:
    one, other = sparse(), dense()
    other.weight.data = other.weight.data.flip(1).contiguous()
    flipped = SparseLinear.from_linear(other, format="bitmap")
    x = torch.randn(2, COLS)
    with torch.no_grad():
        one(x)
        one.load_state_dict(flipped.state_dict())
        for _ in range(2):
            assert torch.equal(one(x), flipped(x))


def test_a_damaged_state_is_refused_before_a_kernel_sees_it() -> None:
    layer = sparse()
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state["weight_mask"][0, 0] ^= 1
    with torch.no_grad():
        layer(torch.ones(COLS))
        layer.load_state_dict(state)
        with pytest.raises(TamisValueError, match="mask|row_offsets"):
            layer(torch.ones(COLS))


@pytest.mark.parametrize("dtype", [None, "i8"])
@pytest.mark.parametrize("format", FORMATS)
def test_deepcopy_and_pickle_are_independent(format: str, dtype: str | None) -> None:
    layer = sparse(format, dtype)
    layer(torch.randn(1, COLS))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        same(layer, other)
        with torch.no_grad():
            before = layer(torch.ones(COLS))
            other.weight_values.zero_()
            assert torch.equal(layer(torch.ones(COLS)), before)
            assert torch.equal(other(torch.ones(COLS)), other.bias)


def test_a_failed_call_leaves_the_layer_as_it_was() -> None:
    layer, reference = sparse(), copy.deepcopy(sparse())
    reference.load_state_dict(layer.state_dict())
    with pytest.raises(TamisValueError, match=r"x: got shape \[3, 5\], wanted \[..., 76\]"):
        layer(torch.ones(3, 5))
    with pytest.raises(TamisTypeError, match="dtype: got torch.float64"):
        layer.double()
    same(layer, reference)


def test_a_state_of_another_mask_leaves_the_layer_as_it_was() -> None:
    torch.manual_seed(0)
    layers = [
        SparseLinear.from_linear(nn.Linear(64, 8), keep=torch.rand(8, 64) < p) for p in (0.5, 0.3)
    ]
    model, other = nn.Sequential(layers[0]), nn.Sequential(layers[1])
    before = copy.deepcopy(model.state_dict())
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"0\.weight_values: got .* the state is of another"):
            model.load_state_dict(other.state_dict(), strict=strict)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model(torch.ones(64))


def test_what_the_handle_of_a_weight_lacks_is_one_sentence() -> None:
    weight = sparse().weight
    assert not hasattr(weight, "div_")
    with pytest.raises(AttributeError, match="got a use of 'div_'.*take .to_dense"):
        weight.div_(2)


# dtypes and devices.


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("format", FORMATS)
def test_to_dtype_converts_values_and_nothing_else(format: str, dtype: str) -> None:
    layer = sparse(format)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer(torch.randn(1, COLS))
    assert layer.to(TORCH[dtype]) is layer
    assert layer.layout.dtype == dtype
    assert layer.weight.dtype == layer.weight_values.dtype == TORCH[dtype]
    for name, tensor in layer.state_dict().items():
        if name in ("weight_values", "bias"):
            assert torch.equal(tensor, state[name].to(TORCH[dtype]))
        else:
            assert torch.equal(tensor, state[name])
    x = torch.randn(3, COLS).to(TORCH[dtype])
    linear = layer.to_linear()
    with torch.no_grad():
        for _ in range(2):
            y = layer(x)
            torch.testing.assert_close(y, linear(x), rtol=2e-2, atol=2e-2)
            assert y.dtype == TORCH[dtype]


@pytest.mark.parametrize("convert", ["half", "bfloat16"])
def test_half_keeps_int8_codes_and_float32_scales(convert: str) -> None:
    layer = sparse(dtype="i8")
    scales, values = layer.weight_scales.clone(), layer.weight_values.clone()
    model = nn.Sequential(layer)
    getattr(model, convert)()
    assert layer.weight_scales.dtype == torch.float32
    assert torch.equal(layer.weight_scales, scales)
    assert torch.equal(layer.weight_values, values)
    assert layer.layout.dtype == "i8"
    assert layer.weight.dtype == layer.bias.dtype
    assert layer(torch.ones(2, COLS, dtype=layer.bias.dtype)).dtype == layer.bias.dtype


def test_meta_and_back() -> None:
    layer = sparse()
    state, wanted = layer.state_dict(), copy.deepcopy(layer)
    layer(torch.randn(1, COLS))
    layer.to("meta")
    assert layer.weight.is_meta
    assert layer(torch.empty(2, 3, COLS, device="meta")).shape == (2, 3, ROWS)
    layer.to_empty(device="cpu")
    layer.load_state_dict(state)
    same(layer, wanted)


def test_weight_answers_what_models_ask() -> None:
    layer = sparse("nm").bfloat16()
    w = layer.weight
    assert w.dtype == torch.bfloat16
    assert w.device == torch.device("cpu")
    assert w.shape == torch.Size((ROWS, COLS))
    assert (w.size(0), w.size(1), w.dim(), w.ndim, w.numel()) == (ROWS, COLS, 2, 2, ROWS * COLS)
    assert not w.is_cuda
    assert not w.is_meta
    assert w.requires_grad
    assert w.data.dtype == torch.bfloat16
    assert torch.equal(w.to_dense(), layer.to_linear().weight)
    assert "2:4 bf16" in repr(w)


def test_torch_functions_of_a_weight_compute_with_the_dense_one() -> None:
    layer = sparse()
    x = torch.randn(3, COLS)
    expected = functional.linear(x, layer.weight.to_dense(), layer.bias)
    assert torch.equal(functional.linear(x, layer.weight, layer.bias), expected)  # type: ignore[arg-type]
    functional.linear(input=x, weight=layer.weight).sum().backward()  # type: ignore[arg-type]
    assert layer.weight_values.grad is not None


@pytest.mark.filterwarnings("ignore:.*nested tensors")
@pytest.mark.parametrize("padded", [False, True])
def test_a_torch_encoder_calls_its_sparse_layers(padded: bool) -> None:
    # In evaluation without gradients torch hands all weights to one function of its own.
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x, padding = torch.randn(2, 5, 64), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    tamis.sparsify_(model, "magnitude", format="bitmap")
    dense = tamis.dense_(copy.deepcopy(model))
    with torch.no_grad():
        y, expected = (
            m(x, src_key_padding_mask=padding if padded else None) for m in (model, dense)
        )
    assert torch.allclose(y[~padding], expected[~padding], atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_obeyed(dtype: torch.dtype, train: bool, compiled: bool) -> None:
    layer = sparse()
    linear, x, other = layer.to_linear(), torch.randn(3, COLS), torch.randn(3, ROWS)
    layer(x)  # known to the direct path
    torch._dynamo.reset()
    call = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    with torch.autocast("cpu", dtype), torch.set_grad_enabled(train):
        y, expected = call(x), linear(x)
        gated = call(x, "silu", other)
    assert y.dtype == expected.dtype == gated.dtype == dtype
    assert torch.allclose(y, expected, atol=2e-2)
    if train:
        y.sum().backward()
        assert layer.weight_values.grad is not None
        assert layer.weight_values.grad.dtype == torch.float32
    assert layer(x).dtype == torch.float32


def test_repr_says_what_and_how_much() -> None:
    text = repr(sparse("nm"))
    assert "in_features=76, out_features=20, bias=True, 2:4 f32, sparsity=50.0%" in text
    assert "% of dense" in text


# Training.


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("format", FORMATS)
def test_training_equals_masked_dense_training(format: str, optimizer: Any) -> None:
    linear = dense(format)
    layer = SparseLinear.from_linear(copy.deepcopy(linear), format=format, block=(4, 4))
    keep = layer.matrix.keep()
    ours = optimizer(layer.parameters(), lr=1e-2, weight_decay=0.1)
    theirs = optimizer(linear.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(5):
        x, target = torch.randn(8, COLS), torch.randn(8, ROWS)
        for model, optim in ((layer, ours), (linear, theirs)):
            optim.zero_grad()
            functional.mse_loss(model(x), target).backward()
            if model is linear:
                linear.weight.grad *= keep
            optim.step()
    torch.testing.assert_close(layer.weight.to_dense(), linear.weight * keep)
    torch.testing.assert_close(layer.bias, linear.bias)
    assert (layer.weight.to_dense()[~keep] == 0).all()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), linear(x))


def test_gradient_checkpointing_and_no_grad_inside() -> None:
    from torch.utils.checkpoint import checkpoint

    layer = sparse()
    x = torch.randn(4, COLS, requires_grad=True)
    layer(x).pow(2).sum().backward()
    wanted = x.grad.clone(), layer.weight_values.grad.clone()
    x.grad = layer.weight_values.grad = None
    checkpoint(layer, x, use_reentrant=False).pow(2).sum().backward()
    torch.testing.assert_close((x.grad, layer.weight_values.grad), wanted)


# Compile and export.


@pytest.mark.parametrize("dtype", ["f32", "bf16", "i8"])
def test_compile_fullgraph_dynamic(dtype: str) -> None:
    torch._dynamo.reset()
    first = sparse(dtype=dtype, bias=False)
    model = nn.Sequential(first, nn.SiLU(), SparseLinear.from_linear(nn.Linear(ROWS, 8)))
    float_dtype = torch.bfloat16 if dtype == "bf16" else torch.float32
    model.to(float_dtype)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for shape in ((2, 3, COLS), (4, 7, COLS)):
            x = torch.randn(shape, dtype=float_dtype)
            torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(x).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=2e-2, atol=2e-2)


def test_compiled_layer_sees_training_and_conversion() -> None:
    torch._dynamo.reset()
    layer = sparse()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, COLS)
    with torch.no_grad():
        compiled(x)
        layer.weight_values.mul_(2)
        torch.testing.assert_close(compiled(x), layer.to_linear()(x))
        layer.bfloat16()
        torch.testing.assert_close(compiled(x.bfloat16()), layer(x.bfloat16()))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_export(format: str, strict: bool) -> None:
    layer = sparse(format).eval()
    x = torch.randn(2, 5, COLS)
    layer(x)
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    with torch.no_grad():
        program = torch.export.export(layer, (x,), dynamic_shapes=(dims,), strict=strict)
        targets = [node.target for node in program.graph.nodes]
        assert torch.ops.tamis.spmm.default in targets
        other = torch.randn(3, 9, COLS)
        torch.testing.assert_close(program.module()(other), layer(other))
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        torch.testing.assert_close(torch.export.load(file).module()(other), layer(other))


# Bad input.


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SparseLinear.from_linear(nn.Identity()), TamisTypeError, "linear: got Identity"),
        (lambda: SparseLinear.from_linear(sparse()), TamisTypeError, "linear: got SparseLinear"),
        (
            lambda: SparseLinear.from_linear(dense().double().requires_grad_(False), format="nm"),
            TamisValueError,
            "kept weights in row 0",
        ),
        (
            lambda: SparseLinear.from_matrix(sparse().matrix, torch.ones(3)),
            TamisValueError,
            r"bias: got shape \[3\], wanted \[20\]",
        ),
        (
            lambda: SparseLinear(Layout("nm", 4, 8, "f32", 2, 4), 7),
            TamisValueError,
            "nnz: got 7, wanted 16",
        ),
        (
            lambda: SparseLinear(Layout("csr", 4, 8, "f32"), 7, dtype=torch.float64),
            TamisTypeError,
            "dtype: got torch.float64",
        ),
        (
            lambda: SparseLinear.from_linear(dense())(np.ones((2, COLS), np.float32)),
            TamisTypeError,
            "x: got ndarray, wanted a torch.Tensor",
        ),
    ],
)
def test_bad_input_is_one_sentence(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_nan_weights_are_refused() -> None:
    linear = dense()
    linear.weight.data[3, 4] = float("nan")
    with pytest.raises(TamisValueError, match="W: got nan at row 3, column 4"):
        SparseLinear.from_linear(linear)


def test_from_matrix_shares_memory() -> None:
    a = tamis.compress(weight(ROWS, COLS, "any", 0.5), "bitmap")
    layer = SparseLinear.from_matrix(a)
    assert layer.weight_values.data_ptr() == a.arrays["values"].ctypes.data
    x = np.random.default_rng(0).standard_normal(COLS).astype(np.float32)
    with torch.no_grad():
        y: Tensor = layer(torch.from_numpy(x))
    np.testing.assert_array_equal(y.numpy(), a @ x)

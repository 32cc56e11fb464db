"""A product that ends with an activation and a multiplication, against torch's own one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tamis
from tamis.errors import TamisTypeError, TamisValueError
from tamis.ops.entry import Entry
from tamis.ops.spmm import ACTIVATIONS, spmm

ROWS, COLS = 71, 144  # rows end in the middle of a vector
NAMES = [None, *ACTIVATIONS]


def make(dtype: torch.dtype, seed: int = 0) -> tuple[tamis.SparseMatrix, Tensor]:
    w = torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(seed)) / COLS**0.5
    w = torch.where(torch.rand(ROWS, COLS) < 0.5, 0.0, w).to(dtype)
    return tamis.compress(w, "bitmap"), w


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("lead", [(1, 1), (5,), (3, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", NAMES)
def test_one_rounding_from_the_plain_product(
    activation: str | None,
    dtype: torch.dtype,
    lead: tuple[int, ...],
    gated: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(1)
    a, _ = make(dtype)
    x, bias = 3 * torch.randn(*lead, COLS).to(dtype), torch.randn(ROWS).to(dtype)
    multiplier = torch.randn(*lead, ROWS).to(dtype) if gated else None
    wanted = plain = spmm(x, a, bias).double()  # from the second call on, the kernel is direct
    results = spied(monkeypatch)
    got = spmm(x, a, bias, activation, multiplier)
    if activation is not None:
        wanted = ACTIVATIONS[activation](wanted)
    factors = torch.ones(()) if multiplier is None else multiplier.double()
    wanted = wanted * factors
    assert got.dtype == dtype
    assert got.shape == wanted.shape
    # The float32 activation is within 3e-7 of its argument, then one rounding to dtype. Where more
    # tokens are expected to be faster densely, torch ends the product: it rounds once more.
    roundings = 2 if gated and results[-1] is None else 1
    info = torch.finfo(dtype)
    unit = info.eps / 2 if roundings == 1 else info.eps * (1 + info.eps)
    allowed = wanted.abs().clamp(min=info.tiny) * unit + 3e-7 * (plain * factors).abs()
    assert ((got.double() - wanted).abs() <= allowed).all()


def spied(monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    """What direct calls of the kernel will return; None: it was left to the operator."""
    results: list[Tensor | None] = []
    run = Entry.run_direct

    def spy(*args: Any) -> Tensor | None:
        results.append(run(*args))
        return results[-1]

    monkeypatch.setattr(Entry, "run_direct", spy)
    return results


def test_the_fused_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests above would pass on torch's activations as well."""
    a, _ = make(torch.bfloat16)
    x = torch.randn(2, COLS).bfloat16()
    spmm(x, a)
    results = spied(monkeypatch)
    y = spmm(x, a, activation="silu", multiplier=torch.ones(2, ROWS).bfloat16())
    assert results[0] is y


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_saturated_and_not_finite(name: str) -> None:
    a = tamis.compress(torch.ones(1, 1), "bitmap")
    x = torch.tensor([float("nan"), float("inf"), 3e38, 200.0, 0.0, -0.0, -200.0, -3e38]).view(8, 1)
    assert torch.allclose(spmm(x, a), x, 0, 0, equal_nan=True)
    wanted = ACTIVATIONS[name](x.double()).float()
    assert torch.allclose(spmm(x, a, activation=name), wanted, 1e-6, 1e-30, equal_nan=True)


@pytest.mark.parametrize("activation", NAMES)
def test_gradients(activation: str | None) -> None:
    a, w = make(torch.float32)
    x, m = torch.randn(4, COLS, requires_grad=True), torch.randn(4, ROWS, requires_grad=True)
    spmm(x, a, None, activation, m).square().sum().backward()
    got = x.grad, m.grad
    x.grad = m.grad = None
    y = functional.linear(x, w)
    ((ACTIVATIONS[activation](y) if activation else y) * m).square().sum().backward()
    for mine, torchs in zip(got, (x.grad, m.grad), strict=True):
        assert torch.allclose(mine, torchs, 1e-4, 1e-5)


def test_only_the_multiplier_is_trained() -> None:
    a, _ = make(torch.float32)
    m = torch.randn(2, ROWS, requires_grad=True)
    x = torch.randn(2, COLS)
    spmm(x, a, None, "relu", m).sum().backward()
    assert torch.allclose(m.grad, torch.relu(spmm(x, a)))


def test_layer_compiles_and_unfused_is_the_same() -> None:
    linear = nn.Linear(COLS, ROWS)
    layer = tamis.nn.SparseLinear.from_linear(linear, keep=linear.weight.abs() > 0.02)
    x, m = torch.randn(3, COLS), torch.randn(3, ROWS)
    wanted = functional.silu(layer(x)) * m
    with torch.no_grad():
        assert torch.allclose(layer(x, "silu", m), wanted, 1e-5, 1e-6)
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        assert torch.allclose(compiled(x, "silu", m), wanted, 1e-5, 1e-6)


def test_a_strided_multiplier() -> None:
    a, _ = make(torch.float32)
    x, m = torch.randn(3, COLS), torch.randn(ROWS, 3).T
    assert torch.equal(spmm(x, a, multiplier=m), spmm(x, a, multiplier=m.contiguous()))


@pytest.mark.parametrize("warm", [False, True])
def test_bad_input(warm: bool) -> None:
    a, _ = make(torch.float32)
    x = torch.randn(3, COLS)
    if warm:
        spmm(x, a)
    with pytest.raises(
        TamisValueError, match=r"spmm: activation: got 'swish', wanted None, 'relu'"
    ):
        spmm(x, a, activation="swish")
    with pytest.raises(
        TamisValueError, match=r"spmm: multiplier: got shape \[3, 70\], wanted \[3, 71\]"
    ):
        spmm(x, a, multiplier=torch.ones(3, 70))
    with pytest.raises(
        TamisTypeError, match=r"spmm: multiplier: got torch.float64, wanted torch.float32"
    ):
        spmm(x, a, multiplier=torch.ones(3, ROWS, dtype=torch.float64))

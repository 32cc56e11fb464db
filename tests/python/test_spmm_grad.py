"""spmm_t and sddmm as torch operators: against dense products, their gradients, and which path runs."""

import pytest
import torch
from torch import Tensor

import tamis
from tamis import _C
from tamis.errors import TamisTypeError, TamisValueError
from tamis.ops import spmm_grad
from tamis.ops.spmm_grad import sddmm, spmm_t

FORMATS = ("bitmap", "nm", "csr", "csr8", "block")
HALVES = (torch.float16, torch.bfloat16)


def weight(format: str, dtype: torch.dtype = torch.float32, density: float = 0.2) -> tuple:
    """A compressed weight [48, 128], where it is kept, and the weight."""
    w = torch.randn(48, 128).to(dtype)
    keep = torch.rand(48, 128) < density
    if format == "nm":
        keep = torch.rand(48, 32, 4).argsort(-1).lt(2).view(48, 128)
    options = {"nm": {"n_m": (2, 4)}, "block": {"block": (4, 4)}}.get(format, {})
    a = tamis.compress(w, keep=keep, format=format, **options)
    stored = torch.ops.tamis.unpack(
        torch.ones_like(a.arrays["values"]), *rest_of(a), a.layout.token
    )
    return a, stored.bool(), a.to_dense()


def rest_of(a: tamis.SparseMatrix) -> tuple:
    return tuple(a.arrays.get(n) for n in ("mask", "row_offsets", "col_indices", "scales"))


def gathered(a: tamis.SparseMatrix, dense: Tensor) -> Tensor:
    return torch.ops.tamis.gather(dense, *rest_of(a)[:3], a.nnz, a.layout.token)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("format", FORMATS)
def test_products(format: str, dtype: torch.dtype) -> None:
    a, _, w = weight(format, dtype)
    for lead in ((3,), (5, 40), (2, 3, 33), (0,)):
        dy, x = torch.randn(*lead, 48).to(dtype), torch.randn(*lead, 128).to(dtype)
        rest, values = rest_of(a), a.arrays["values"]
        dx = spmm_t(dy, a.layout.token, values, rest)
        assert dx.shape == x.shape
        assert dx.dtype == dtype
        close = {
            "rtol": 2 * torch.finfo(dtype).eps,
            "atol": 1e-4 if dtype == torch.float32 else 0.2,
        }
        torch.testing.assert_close(dx.double(), dy.double() @ w.double(), **close)
        dw = sddmm(dy, x, a.layout.token, values, rest)
        full = dy.double().reshape(-1, 48).t() @ x.double().reshape(-1, 128)
        assert dw.dtype == values.dtype
        close["atol"] *= 4
        torch.testing.assert_close(dw.double(), gathered(a, full), **close)


@pytest.mark.parametrize("format", FORMATS)
def test_gradients_of_gradients(format: str) -> None:
    a, _, _ = weight(format)
    rest = tuple(None if t is None else t for t in rest_of(a))
    values = a.arrays["values"].double()
    layout = tamis.layout.Layout.from_json(a.layout.to_json()).token
    dy = torch.randn(40, 48, requires_grad=True)
    x = torch.randn(40, 128, requires_grad=True)
    kept = values.float().requires_grad_()
    cotangent = torch.randn(40, 128)
    (spmm_t(dy, layout, kept, rest) * cotangent).sum().backward()
    w = torch.ops.tamis.unpack(kept.detach(), *rest, layout)
    torch.testing.assert_close(dy.grad, cotangent @ w.t(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        kept.grad, gathered(a, dy.detach().t() @ cotangent), rtol=1e-4, atol=1e-4
    )
    dy.grad = None
    weights = torch.randn_like(kept)
    (sddmm(dy, x, layout, kept, rest) * weights).sum().backward()
    w = torch.ops.tamis.unpack(weights, *rest, layout)
    torch.testing.assert_close(dy.grad, x.detach() @ w.t(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, dy.detach() @ w, rtol=1e-4, atol=1e-4)


def test_backward_of_a_layer_runs_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    for name in ("spmm_t", "sddmm"):
        kernel = getattr(_C, name)
        monkeypatch.setattr(_C, name, lambda *a, n=name, k=kernel: (ran.append(n), k(*a))[1])
    dense = torch.nn.Linear(128, 48)
    keep = torch.rand(48, 128) < 0.2
    dense.weight.data *= keep
    layer = tamis.nn.SparseLinear.from_linear(dense, format="bitmap")
    x1 = torch.randn(64, 128, requires_grad=True)
    x2 = x1.detach().clone().requires_grad_()
    layer(x1).square().sum().backward()
    assert sorted(ran) == ["sddmm", "spmm_t"]
    dense(x2).square().sum().backward()
    torch.testing.assert_close(x1.grad, x2.grad, rtol=1e-4, atol=1e-4)
    grads = [p.grad for p in layer.parameters() if p.grad is not None and p.dim() == 1]
    wanted = dense.weight.grad[keep]
    assert any(g.shape == wanted.shape and torch.allclose(g, wanted, 1e-4, 1e-3) for g in grads)


def test_dense_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    def dense_ns(dtype: str, rows: int, cols: int, tokens: int, threads: int) -> float:
        return rows * cols * tokens * (0.01 if dtype == "f32" else 0.06)

    monkeypatch.setattr(spmm_grad.cost, "dense_ns", dense_ns)
    a, _, _ = weight("bitmap")
    every, f32 = 48 * 128, torch.float32
    assert spmm_grad._pays("spmm_t", a.layout, f32, 64, every // 10)
    assert not spmm_grad._pays("spmm_t", a.layout, f32, 64, every // 2)
    assert spmm_grad._pays("spmm_t", a.layout, torch.bfloat16, 64, every // 2)
    assert spmm_grad._pays("sddmm", a.layout, f32, 512, every // 2)
    assert not spmm_grad._pays("sddmm", a.layout, f32, 1 << 14, every // 2)
    assert not spmm_grad._pays("sddmm", weight("block")[0].layout, f32, 64, 100)


def test_what_is_wrong_is_said() -> None:
    a, _, _ = weight("bitmap")
    values, rest, token = a.arrays["values"], rest_of(a), a.layout.token
    with pytest.raises(
        TamisValueError, match=r"spmm_t: dy: got shape \[3, 47\], wanted \[\.\.\., 48\]"
    ):
        spmm_t(torch.randn(3, 47), token, values, rest)
    with pytest.raises(TamisTypeError, match="spmm_t: dy: got torch.int64"):
        spmm_t(torch.ones(3, 48, dtype=torch.int64), token, values, rest)
    with pytest.raises(TamisTypeError, match="sddmm: x: got torch.float16, wanted torch.float32"):
        sddmm(torch.randn(3, 48), torch.randn(3, 128).half(), token, values, rest)
    with pytest.raises(TamisValueError, match=r"sddmm: x: got shape \[4, 128\]"):
        sddmm(torch.randn(3, 48), torch.randn(4, 128), token, values, rest)


def test_operators_are_well_behaved() -> None:
    a, _, _ = weight("bitmap")
    values, rest = a.arrays["values"].clone().requires_grad_(), rest_of(a)
    dy = torch.randn(40, 48, requires_grad=True)
    x = torch.randn(40, 128, requires_grad=True)
    torch.library.opcheck(torch.ops.tamis.spmm_t, (dy, values, *rest, a.layout.token))
    torch.library.opcheck(torch.ops.tamis.sddmm, (dy, x, values, *rest[:3], a.layout.token))

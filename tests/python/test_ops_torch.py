"""What torch does with the operators: gradients, compiling, tracing, transforms, other devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops_cases import FORMATS, make, ops, split
from references import TORCH
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import opcheck
from torch.nn import functional

from tamis.ops.spmm import linear, spmm

# Gradients, against a dense layer whose weight is masked.


@pytest.mark.parametrize("lead", [(6,), (2, 3), ()])
@pytest.mark.parametrize("format", FORMATS)
def test_gradients_equal_the_masked_dense_layers(format: str, lead: tuple[int, ...]) -> None:
    a, w = make(format, requires_grad=True)
    keep = a.keep()
    w.requires_grad_()
    x1 = torch.randn(*lead, 76, requires_grad=True)
    x2 = x1.detach().clone().requires_grad_()
    b1 = torch.randn(20, requires_grad=True)
    b2 = b1.detach().clone().requires_grad_()
    gy = torch.randn(*lead, 20)
    spmm(x1, a, b1).backward(gy)
    functional.linear(x2, w * keep, b2).backward(gy)
    torch.testing.assert_close(x1.grad, x2.grad)
    torch.testing.assert_close(b1.grad, b2.grad)
    values, rest = split(a)
    dense_of_grad = ops.unpack(values.grad, *rest, a.layout.token)
    torch.testing.assert_close(dense_of_grad, w.grad)


def test_gradients_only_where_asked() -> None:
    a, w = make("bitmap")
    x = torch.randn(4, 76, requires_grad=True)
    y = spmm(x, a)
    y.sum().backward()
    torch.testing.assert_close(x.grad, w.sum(0).expand(4, 76))
    assert a.arrays["values"].grad is None
    a, w = make("bitmap", "i8")
    x.grad = None
    spmm(x, a).sum().backward()
    torch.testing.assert_close(x.grad, a.to_dense().sum(0).expand(4, 76))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_gradients_keep_their_dtypes(dtype: str) -> None:
    a, _ = make("bitmap", dtype, requires_grad=True)
    x = torch.randn(3, 76, dtype=TORCH[dtype], requires_grad=True)
    bias = torch.randn(20, requires_grad=True)
    spmm(x, a, bias).sum().backward()
    assert x.grad.dtype == a.arrays["values"].grad.dtype == TORCH[dtype]
    assert bias.grad.dtype == torch.float32
    wanted = x.detach().double().sum(0).expand(20, 76)[a.keep()]
    torch.testing.assert_close(a.arrays["values"].grad.double(), wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("format", FORMATS)
def test_unpack_and_gather_are_each_others_gradients(format: str) -> None:
    a, _ = make(format)
    values, rest = split(a)
    values = values.clone().requires_grad_()
    cotangent = torch.randn(20, 76)
    ops.unpack(values, *rest, a.layout.token).backward(cotangent)
    gathered = ops.gather(cotangent, *rest[:3], a.nnz, a.layout.token)
    assert torch.equal(values.grad, gathered)
    dense = torch.randn(20, 76, requires_grad=True)
    cotangent = torch.randn(a.nnz)
    ops.gather(dense, *rest[:3], a.nnz, a.layout.token).backward(cotangent)
    assert torch.equal(dense.grad, ops.unpack(cotangent, *rest, a.layout.token))
    # The law that makes them adjoint: <unpack(v), d> == <v, gather(d)>.
    left = (ops.unpack(values.detach(), *rest, a.layout.token) * dense.detach()).sum()
    right = (values.detach() * ops.gather(dense.detach(), *rest[:3], a.nnz, a.layout.token)).sum()
    torch.testing.assert_close(left, right)


def test_gradients_can_be_differentiated_again() -> None:
    a, w = make("bitmap", requires_grad=True)
    x = torch.randn(3, 76, requires_grad=True)
    (gx,) = torch.autograd.grad(spmm(x, a).pow(2).sum(), x, create_graph=True)
    gx.pow(2).sum().backward()
    x2, w2 = x.detach().clone().requires_grad_(), w.clone().requires_grad_()
    (gx2,) = torch.autograd.grad(functional.linear(x2, w2).pow(2).sum(), x2, create_graph=True)
    gx2.pow(2).sum().backward()
    torch.testing.assert_close(x.grad, x2.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(a.arrays["values"].grad, w2.grad[a.keep()], rtol=1e-4, atol=1e-3)


# Tracing.


@pytest.mark.parametrize("dtype", ["f32", "bf16", "i8"])
@pytest.mark.parametrize("format", FORMATS)
def test_opcheck(format: str, dtype: str) -> None:
    a, _ = make(format, dtype, requires_grad=dtype != "i8")
    values, rest = split(a)
    float_dtype = TORCH.get(dtype, torch.float32)
    x = torch.randn(2, 3, 76, dtype=float_dtype, requires_grad=True)
    bias = torch.randn(20, dtype=float_dtype, requires_grad=True)
    opcheck(ops.spmm.default, (x, values, *rest, bias, a.layout.token))
    opcheck(ops.spmm.default, (x, values, *rest, None, a.layout.token))
    opcheck(ops.unpack.default, (values, *rest, a.layout.token))
    dense = torch.randn(20, 76, requires_grad=True)
    opcheck(ops.gather.default, (dense, *rest[:3], a.nnz, a.layout.token))


@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_compile_fullgraph_dynamic_with_gradients(backend: str) -> None:
    a, w = make("bitmap", requires_grad=True)
    values, rest = split(a)
    bias = torch.randn(20, requires_grad=True)

    def step(x: Tensor) -> Tensor:
        return functional.silu(linear(x * 2, a.layout.token, values, rest, bias)) + 1

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    for m in (1, 8):
        x = torch.randn(2, m, 76)
        wanted = functional.silu(functional.linear(x * 2, w, bias)) + 1
        torch.testing.assert_close(compiled(x), wanted)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), wanted)
    x1 = torch.randn(4, 76, requires_grad=True)
    compiled(x1).sum().backward()
    got = x1.grad, values.grad.clone(), bias.grad.clone()
    x1.grad = values.grad = bias.grad = None
    step(x1).sum().backward()
    for ours, theirs in zip(got, (x1.grad, values.grad, bias.grad), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_modes_and_traces_see_an_operator() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._python_dispatch import TorchDispatchMode

    a, _ = make("bitmap")
    values, rest = split(a)

    class Names(TorchDispatchMode):
        seen: list[str] = []

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x = torch.randn(3, 76)
    spmm(x, a)
    with Names() as mode:
        spmm(x, a)
    assert mode.seen == ["tamis.spmm.default"]
    graph = make_fx(lambda x: linear(x, a.layout.token, values, rest, None))(x)
    assert any(node.target is ops.spmm.default for node in graph.graph.nodes)
    other = torch.randn(3, 76)
    assert torch.equal(graph(other), spmm(other, a))


@pytest.mark.parametrize("dtype", ["f32", "i8"])
@pytest.mark.parametrize("format", FORMATS)
def test_transforms_of_torch_func(format: str, dtype: str) -> None:
    """Each is that of the dense product: in x and, sample by sample too, in the kept values."""
    a, _ = make(format, dtype)
    dense, x, bias = torch.as_tensor(a.to_dense()).float(), torch.randn(5, 76), torch.randn(20)
    spmm(x, a, bias)  # next time the direct way would be taken

    def sparse(x: Tensor) -> Tensor:
        return spmm(x, a, bias).tanh()

    def wanted(x: Tensor) -> Tensor:
        return functional.linear(x, dense, bias).tanh()

    func, part = torch.func, x[:2]
    transforms: tuple[Callable[[Callable[[Tensor], Tensor]], Tensor], ...] = (
        lambda f: func.vmap(f)(x),
        lambda f: func.jacrev(f)(part),
        lambda f: func.jacfwd(f)(part),
        lambda f: func.hessian(lambda x: f(x).sum())(x[0]),
        lambda f: func.vmap(func.grad(lambda x: f(x).sum()))(x),
        lambda f: func.jvp(f, (x,), (x.cos(),))[1],
        lambda f: tangent_of(f, x, x.cos()),
    )
    for transform in transforms:
        torch.testing.assert_close(transform(sparse), transform(wanted), rtol=1e-4, atol=1e-4)
    if dtype == "i8":
        return
    values, rest = split(a)

    def loss(values: Tensor, x: Tensor) -> Tensor:
        return linear(x, a.layout.token, values, rest, None).square().sum()

    each = func.vmap(func.grad(loss), (None, 0))(values, x)
    leaf = values.clone().requires_grad_()
    for row, got in zip(x, each, strict=True):
        (single,) = torch.autograd.grad(loss(leaf, row), leaf)
        torch.testing.assert_close(got, single, rtol=1e-4, atol=1e-4)


def tangent_of(function: Callable[[Tensor], Tensor], x: Tensor, tangent: Tensor) -> Tensor:
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))).tangent
    assert found is not None
    return found


def test_subclasses_go_through_the_dispatcher() -> None:
    class Marked(Tensor):
        pass

    a, w = make("bitmap")
    x = torch.randn(3, 76)
    y = spmm(x.as_subclass(Marked), a)
    assert type(y) is Marked
    torch.testing.assert_close(y.as_subclass(Tensor), functional.linear(x, w))


def test_meta_and_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    a, _ = make("bitmap")
    meta = a.to_tensors("meta")
    assert spmm(torch.empty(2, 5, 76, device="meta"), meta).shape == (2, 5, 20)
    assert meta.to_dense().device.type == "meta"
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert spmm(torch.empty(4, 76), a).shape == (4, 20)


@pytest.mark.parametrize("dtype", ["f32", "i8"])
@pytest.mark.parametrize("format", FORMATS)
def test_the_way_of_other_devices_gives_the_same(format: str, dtype: str) -> None:
    """CUDA and the rest run the plain torch implementation; it is run here on CPU tensors."""
    from tamis.ops.dense import gather_dense, keep_of, unpack_dense

    a, _ = make(format, dtype)
    values, rest = split(a)
    assert torch.equal(unpack_dense(values, a.layout, *rest), a.to_dense())
    assert torch.equal(keep_of(a.layout, *rest[:3]), a.keep())
    dense = torch.randn(20, 76)
    assert torch.equal(
        gather_dense(dense, a.layout, *rest[:3]),
        ops.gather(dense, *rest[:3], a.nnz, a.layout.token),
    )

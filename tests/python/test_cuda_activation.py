"""Activation sparsity on CUDA devices: which calls have a kernel, and on a device every answer."""

from itertools import product

import pytest
import torch
from host import needs_device
from torch import Tensor

from tamis.activation.layers import InputSparseLinear, SparseMLP, by_column
from tamis.ops import cuda, cuda_activation
from tamis.ops.sparse_input import masked_input, sparse_input
from tamis.ops.sparse_mlp import masked_mlp, sparse_mlp

HALVES = (torch.bfloat16, torch.float16)


def test_kernels_take_what_they_can_load(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 16, dtype=torch.bfloat16)
    monkeypatch.setattr(cuda, "why_off", lambda: "")
    assert cuda_activation.takes(x, 16, 4096)
    assert not cuda_activation.takes(x, 16, 4100)
    assert not cuda_activation.takes(x, 1 << 16)
    assert not cuda_activation.takes(x.float(), 16)
    monkeypatch.setattr(cuda, "why_off", lambda: "no driver")
    assert not cuda_activation.takes(x, 16)


def unit(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


@needs_device
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", [(8, 1), (128, 600), (264, 333), (4096, 1024), (1024, 14336)])
def test_sparse_input(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    n, k = shape
    w = by_column(torch.randn(n, k, dtype=dtype, device="cuda"))
    bias = torch.randn(n, dtype=dtype, device="cuda")
    for m, bound in product((1, 3, 8, 11), (0.0, 0.7, 2.5, float("inf"))):
        x = torch.randn(m, k, dtype=dtype, device="cuda")
        threshold = bound * (0.8 + 0.4 * torch.rand(k, device="cuda"))
        y = sparse_input(x, w, threshold, bias if m % 2 else None)
        assert torch.equal(y, sparse_input(x, w, threshold, bias if m % 2 else None))
        kept = torch.where(x.float().abs() < threshold, 0, x.double())
        want = masked_input(kept, w.double(), threshold * 0, bias.double() if m % 2 else None)
        size = 1 + kept.abs() @ w.double().abs().T
        error = (y.double() - want).abs()
        assert bool((error <= unit(dtype) * want.abs() + 2.0**-22 * size).all())


def small(*shape: int, dtype: torch.dtype) -> Tensor:
    """Small integers: no activation lies near a threshold, whatever the order of sums."""
    return torch.randint(-2, 3, shape, device="cuda").to(dtype)


@needs_device
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", [(8, 1, 8), (24, 300, 136), (1040, 2000, 256), (512, 5000, 512)])
def test_sparse_mlp(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    k, n, d = shape
    gate, up = small(n, k, dtype=dtype), small(n, k, dtype=dtype)
    down = by_column(torch.randn(d, n, dtype=dtype, device="cuda") / 8)
    for m, bound, name in product((1, 2, 8, 9), (0.0, 30.53, float("inf")), ("silu", "relu")):
        x = small(m, k, dtype=dtype) / 2
        threshold = torch.full((n,), bound, device="cuda")
        y = sparse_mlp(x, gate, up, down, threshold, name)
        assert torch.equal(y, sparse_mlp(x, gate, up, down, threshold, name))
        exact = [t.double() for t in (x, gate, up, down)]
        want = masked_mlp(*exact, threshold.double(), name)
        z = torch.nn.functional.linear(exact[0], exact[1]).abs()
        z = z * torch.nn.functional.linear(exact[0], exact[2]).abs()
        size = 1 + z @ exact[3].abs().T
        error = (y.double() - want).abs()
        assert bool((error <= unit(dtype) * want.abs() + 2.0**-16 * size).all()), (m, bound, name)


@needs_device
def test_what_has_no_kernel_is_the_masked_product() -> None:
    x, w = torch.randn(2, 20, device="cuda"), by_column(torch.randn(12, 20, device="cuda"))
    threshold = torch.rand(20, device="cuda")
    for dtype in (torch.float32, torch.bfloat16):  # no kernel; 12 is no multiple of 8
        y = sparse_input(x.to(dtype), w.to(dtype), threshold)
        assert torch.equal(y, masked_input(x.to(dtype), w.to(dtype), threshold))


@needs_device
def test_misaligned_and_strided_tokens() -> None:
    k, n, d = 72, 200, 64
    gate, up = (small(n, k, dtype=torch.bfloat16) for _ in range(2))
    down, threshold = by_column(small(d, n, dtype=torch.bfloat16)), torch.full((n,), 9.53).cuda()
    wide = small(3, k + 7, dtype=torch.bfloat16)
    for begin in (0, 1, 7):
        x = wide[:, begin : begin + k]
        want = masked_mlp(x.float(), gate.float(), up.float(), down.float(), threshold, "relu")
        got = sparse_mlp(x, gate, up, down, threshold, "relu")
        torch.testing.assert_close(got.float(), want, rtol=2.0**-8, atol=1e-2)
        flat = wide.view(-1)[begin : begin + k]
        y = sparse_mlp(flat, gate, up, down, threshold, "relu")
        want = masked_mlp(flat.float(), gate.float(), up.float(), down.float(), threshold, "relu")
        torch.testing.assert_close(y.float(), want, rtol=2.0**-8, atol=1e-2)


@needs_device
def test_layers_replay_in_a_graph() -> None:
    k, n = 512, 1536
    parts = [torch.nn.Linear(a, b, bias=False).bfloat16() for a, b in ((k, n), (k, n), (n, k))]
    parts[2].weight = torch.nn.Parameter(by_column(parts[2].weight.data))
    names = ("gate_proj", "up_proj", "down_proj")
    mlp = SparseMLP(dict(zip(names, parts, strict=True)), torch.full((n,), 0.05), "silu").cuda()
    first = torch.nn.Linear(k, k).bfloat16()
    first.weight = torch.nn.Parameter(by_column(first.weight.data))
    linear = InputSparseLinear(first, torch.full((k,), 0.7)).cuda()
    assert linear.weight.t().is_contiguous()
    x = torch.randn(1, 1, k, device="cuda").bfloat16()
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            mlp(linear(x))  # makes the workspace
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            y = mlp(linear(x))
        for _ in range(3):
            x.normal_()
            graph.replay()
            torch.cuda.synchronize()
            assert torch.equal(y, mlp(linear(x)))
            hidden = masked_input(x, linear.weight, linear.threshold, linear.bias)
            want = masked_mlp(hidden, *mlp.weights(), mlp.threshold, "silu")
            torch.testing.assert_close(y.float(), want.float(), rtol=5e-2, atol=2e-2)

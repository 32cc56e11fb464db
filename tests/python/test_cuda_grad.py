"""Gradients of sparse layers on CUDA devices: which weights have a kernel, and on a device each answer."""

from itertools import product

import pytest
import torch
from host import needs_device

import tamis
from tamis.ops import cuda, cuda_spmm, cuda_spmm_grad
from tamis.ops.spmm_grad import sddmm, spmm_t

HALVES = (torch.bfloat16, torch.float16)
ARRAYS = ("values", "mask", "row_offsets", "col_indices", "scales")


def weight(n: int, k: int, dtype: torch.dtype, density: float | None) -> tuple:
    """A bitmap weight of that density, or 2:4 where it is None: its layout, and its arrays."""
    keep = torch.rand(n, k // 4, 4).argsort(-1).lt(2).view(n, k)
    if density is not None:
        keep = torch.rand(n, k) < density
    form = {"format": "nm", "n_m": (2, 4)} if density is None else {"format": "bitmap"}
    a = tamis.compress(torch.randn(n, k).to(dtype), keep=keep, **form)
    return a.layout, [a.arrays.get(name) for name in ARRAYS]


def test_kernels_take_what_they_can_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "why_off", lambda: "")

    def takes(n: int, k: int, dtype: torch.dtype, of: torch.dtype) -> bool:
        layout, (values, mask, offsets, *_) = weight(n, k, of, 0.5)
        return cuda_spmm_grad.mask_of(layout, values, mask, offsets, dtype) is not None

    assert takes(16, 24, torch.bfloat16, torch.bfloat16)
    assert not takes(12, 24, torch.bfloat16, torch.bfloat16)
    assert not takes(16, 20, torch.bfloat16, torch.bfloat16)
    assert not takes(16, 24, torch.float32, torch.float32)
    assert not takes(16, 24, torch.bfloat16, torch.float16)


def test_a_mask_that_disagrees_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "why_off", lambda: "")
    layout, (values, mask, offsets, *_) = weight(16, 64, torch.bfloat16, 0.5)
    assert cuda_spmm_grad.mask_of(layout, values, mask, offsets, values.dtype)
    mask[0, 0] ^= 1
    with pytest.raises(tamis.errors.TamisValueError):
        cuda_spmm_grad.mask_of(layout, values, mask, offsets, values.dtype)


def test_values_that_may_be_trained_are_packed_when_they_rest() -> None:
    values = torch.nn.Parameter(torch.randn(8))
    assert cuda_spmm._written_since(values)
    assert not cuda_spmm._written_since(values)
    with torch.no_grad():
        values.mul_(2)
    assert cuda_spmm._written_since(values)
    assert not cuda_spmm._written_since(values)
    key = id(values)
    del values
    assert key not in cuda_spmm._met


def near(got: torch.Tensor, a: torch.Tensor, b: torch.Tensor, at: torch.Tensor | None) -> bool:
    """Whether ``got`` is a @ b (its elements ``at``) but for the ends of 32-bit sums and one rounding.

    Tensor cores add 16 products at a time and cut off what does not fit: up to 2^-23 of the running
    sum each time (250 such ends were seen after 256 times). It stays within 4 times the root of the
    sum of its terms' squares.
    """
    want, norm = a.double() @ b.double(), (a.double().square() @ b.double().square()).sqrt()
    if at is not None:
        want, norm = want[at], norm[at]
    ends = -(-a.shape[1] // 16) * 4 * 2.0**-23 * norm
    rounding = torch.finfo(got.dtype).eps / 2 * want.abs() + 2.0**-24
    return bool(((got.double() - want).abs() <= rounding + ends).all())


@needs_device
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", [(8, 8), (40, 72), (264, 1032), (4096, 1024), (64, 14336)])
def test_both_gradients(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    n, k = shape
    for m, density in product((1, 33, 64, 200), (0.0, 0.1, 0.5, 1.0, None)):
        layout, arrays = weight(n, k, dtype, density)
        if arrays[0].numel() == 0:
            continue
        values, *rest = (None if t is None else t.cuda() for t in arrays)
        dy, x = (
            torch.randn(m, n, device="cuda").to(dtype),
            torch.randn(m, k, device="cuda").to(dtype),
        )
        assert cuda_spmm_grad.mask_of(layout, values, rest[0], rest[1], dtype) is not None
        w = torch.ops.tamis.unpack(values, *rest, layout.token)
        assert torch.equal(w.cpu(), torch.ops.tamis.unpack(*arrays, layout.token))
        dx = spmm_t(dy, layout.token, values, tuple(rest))
        assert torch.equal(dx, dy @ w)
        assert near(dx, dy, w, None)
        kept = torch.ops.tamis.unpack(torch.ones_like(values), *rest, layout.token).bool()
        dw = sddmm(dy, x, layout.token, values, tuple(rest))
        assert torch.equal(dw, (dy.t() @ x)[kept])
        assert near(dw, dy.t(), x, kept)


@needs_device
@pytest.mark.parametrize("first", range(8))
def test_values_at_any_address(first: int) -> None:
    layout, arrays = weight(40, 2120, torch.bfloat16, 0.5)
    values, *rest = (None if t is None else t.cuda() for t in arrays)
    apart = torch.full((len(values) + 16,), torch.nan, dtype=values.dtype, device="cuda")
    there = apart[first : first + len(values)].copy_(values)
    mask = cuda_spmm_grad.mask_of(layout, values, rest[0], rest[1], values.dtype)
    assert mask is not None
    w = torch.ops.tamis.unpack(*arrays, layout.token).cuda()
    assert torch.equal(cuda_spmm_grad.unpack(mask, there), w)
    assert torch.equal(cuda_spmm_grad.gather(mask, w), values)


@needs_device
def test_a_layer_trains_as_its_masked_dense_one() -> None:
    dense = torch.nn.Linear(256, 512).bfloat16()
    keep = torch.rand(512, 256) < 0.3
    dense.weight.data *= keep
    layer = tamis.nn.SparseLinear.from_linear(dense, format="bitmap").cuda()
    dense = dense.cuda()
    x = torch.randn(130, 256, device="cuda", dtype=torch.bfloat16)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(x1).float().sin().sum().backward()
    dense(x2).float().sin().sum().backward()
    torch.testing.assert_close(x1.grad, x2.grad, rtol=2e-2, atol=2e-2)
    grads = [
        p.grad for p in layer.parameters() if p.grad is not None and p.grad.numel() == keep.sum()
    ]
    torch.testing.assert_close(grads[0], dense.weight.grad[keep.cuda()], rtol=2e-2, atol=5e-2)

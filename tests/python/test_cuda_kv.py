"""Attention and records on a CUDA device: bit for bit or within rounding what the CPU computes from
the same bytes."""

from itertools import product

import pytest
import torch
from cuda_kv_helpers import B, G, on_cuda, pages
from host import needs_device
from torch import Tensor

from tamis.errors import TamisUnsupported
from tamis.ops import cuda
from tamis.ops.attention import (
    DenseSegment,
    Lists,
    LowRankSegment,
    key_turns,
    sparse_attention,
)
from tamis.ops.kv_quantize import kv_quantize, kv_unpack, page_layout


def a_choice(units: int) -> Lists:
    width = units // 2 + 1
    index = torch.stack([torch.randperm(units)[:width] for _ in range(B * G)]).view(B, G, width)
    count = torch.randint(0, width + 1, (B, G), dtype=torch.int32)
    return Lists(index=index.int(), count=count)


def check(q: Tensor, segments: list, *, rough: bool = False, **options: float) -> None:
    want, want_lse = sparse_attention(q.float(), segments, **options)
    moved_segments = [on_cuda(s) for s in segments]
    runs = [sparse_attention(q.cuda(), moved_segments, **options) for _ in range(2)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    got, lse = (x.cpu() for x in runs[0])
    assert got.dtype == q.dtype
    torch.testing.assert_close(got.float(), want, rtol=1e-2, atol=2e-2 if rough else 1e-2)
    torch.testing.assert_close(lse, want_lse, rtol=0, atol=1e-2)


def test_cuda_tensors_say_why_nothing_takes_them() -> None:
    if not cuda.why_off():
        pytest.skip("CUDA is on")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no device either")
    with pytest.raises(TamisUnsupported, match="CUDA is off"):
        sparse_attention(torch.randn(1, 1, 1, 64, device="cuda"), [])


@needs_device
@pytest.mark.parametrize(("bits", "d"), list(product((2, 4, 8), (64, 128))))
@pytest.mark.parametrize("h", [4, 16, 48])
@pytest.mark.parametrize("tokens", [32, 64])
def test_pages(bits: int, d: int, h: int, tokens: int) -> None:
    for dtype, count in product((torch.bfloat16, torch.float16), (1, 40)):
        q = torch.randn(B, h, 1, d).to(dtype)
        check(q, [pages(bits, d, count, Lists(), dtype, tokens)])
        check(q, [pages(bits, d, count, a_choice(count), dtype, tokens)])
    spans = Lists(
        begin=torch.randint(0, 300, (B, G), dtype=torch.int32),
        end=torch.randint(400, 1280, (B, G), dtype=torch.int32),
        bias=torch.randn(B, G, 1280),
    )
    q = torch.randn(B, h, 1, d).bfloat16()
    check(q, [pages(bits, d, 1280 // tokens, spans, torch.bfloat16, tokens)], softcap=5.0)


@needs_device
@pytest.mark.parametrize(("dtype", "d"), product((torch.bfloat16, torch.float16), (64, 128)))
def test_rows_and_segments(dtype: torch.dtype, d: int) -> None:
    for tokens, h in ((1, 4), (37, 16), (2000, 32)):
        k, v = torch.randn(2, B, G, tokens, d).to(dtype)
        q = torch.randn(B, h, 1, d).to(dtype)
        check(q, [DenseSegment(k, v)], rough=True)
        check(q, [DenseSegment(k, v, a_choice(tokens))], rough=True)
        check(q, [pages(4, d, 9, Lists(), dtype), DenseSegment(k, v)], rough=True)


@needs_device
@pytest.mark.parametrize(("dtype", "d"), product((torch.bfloat16, torch.float16), (64, 128)))
@pytest.mark.parametrize("rank", [5, 88])
def test_low_rank_keys(dtype: torch.dtype, d: int, rank: int) -> None:
    tokens = 1000
    coordinates = torch.randn(B, tokens, rank).to(dtype)
    basis = (torch.randn(B, G, rank, d) / rank**0.5).to(dtype)
    values = torch.randn(B, G, tokens, d).to(dtype)
    for pairs, begins in ((d // 2, False), (8, True), (0, True)):
        turns = key_turns(torch.rand(pairs), tokens)
        index = torch.stack([torch.randperm(tokens)[:200] for _ in range(B * G)]).sort(-1).values
        lists = Lists(
            index=index.view(B, G, -1).int(),
            count=torch.randint(100, 201, (B, G), dtype=torch.int32),
            begin=torch.randint(0, 300, (B, G), dtype=torch.int32) if begins else None,
        )
        q = torch.randn(B, 4 * G, 1, d).to(dtype)
        for of in (lists, Lists()):
            segment = LowRankSegment(coordinates, basis, values, turns, of)
            check(q, [segment], rough=True)
        check(q, [segment, pages(4, d, 9, Lists(), dtype)], rough=True)


@needs_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_records_are_the_cpus(dtype: torch.dtype) -> None:
    for bits, d, tokens in product((2, 4, 8), (64, 128), (32, 64)):
        layout = page_layout(d, bits, bits, tokens)
        k, v = (torch.randn(2, B, G, 3 * tokens, d) * torch.logspace(-6, 4, d)).to(dtype)
        k[:, :, 5] = 0.0
        want = torch.empty(B, G, 3, layout.nbytes, dtype=torch.uint8)
        kv_quantize(k, v, layout, want)
        got = torch.empty_like(want, device="cuda")
        kv_quantize(k.cuda(), v.cuda(), layout, got)
        assert torch.equal(got.cpu(), want)
        assert torch.equal(kv_unpack(got, layout)[0].cpu(), kv_unpack(want, layout)[0])

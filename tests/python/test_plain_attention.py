"""Attention by torch's operators: what CUDA kernels do not take, checked against the CPU's kernels."""

import pytest
import torch

from tamis.ops import attention as op
from tamis.ops.attention import DenseSegment, Lists, PageSegment, sparse_attention
from tamis.ops.kv_quantize import kv_quantize, page_layout
from tamis.ops.plain_attention import has_kernel, plain_attention, say_once

B, G, S = 2, 3, 50


def lists_of(what: str) -> Lists:
    index = torch.stack([torch.randperm(S)[:20].sort().values for _ in range(B * G)])
    count = torch.randint(1, 20, (B, G), dtype=torch.int32)
    begin = torch.randint(0, S // 2, (B, G), dtype=torch.int32)
    return {
        "all": Lists(),
        "first": Lists(count=count),
        "index": Lists(index=index.view(B, G, -1).int()),
        "counted": Lists(index=index.view(B, G, -1).int(), count=count, begin=begin),
        "span": Lists(begin=begin, end=begin + 7),
        "nothing": Lists(begin=begin, end=begin),
        "bias": Lists(index=index.view(B, G, -1).int(), bias=torch.randn(B, G, S)),
    }[what]


@pytest.mark.parametrize("what", ["all", "first", "index", "counted", "span", "nothing", "bias"])
@pytest.mark.parametrize(("dtype", "d"), [(torch.float32, 64), (torch.bfloat16, 80)])
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_it_is_what_the_kernels_compute(what, dtype, d, softcap) -> None:
    torch.manual_seed(0)
    keys, values = torch.randn(2, B, G, S, d).to(dtype)
    q = torch.randn(B, 2 * G, 3, d).to(dtype)
    lists = lists_of(what)
    want = sparse_attention(q, [DenseSegment(keys, values, lists)], scale=0.2, softcap=softcap)
    got = plain_attention(q, keys, values, lists, 0.2, softcap)
    rtol = 1e-4 if dtype == torch.float32 else 2**-7  # an ulp
    torch.testing.assert_close(
        got[0], want[0], rtol=rtol, atol=4e-3 if dtype == torch.bfloat16 else 1e-5
    )
    torch.testing.assert_close(got[1], want[1], rtol=0, atol=1e-4)


def test_segments_without_a_kernel_join_the_others(monkeypatch) -> None:
    """Pages and their tail, of which a device reads the pages, or neither."""
    torch.manual_seed(1)
    say_once.cache_clear()
    for d in (64, 80):
        k, v = torch.randn(2, B, G, 96 + 17, d)
        layout = page_layout(d, 4, 4)
        records = torch.empty(B, G, 3, layout.nbytes, dtype=torch.uint8)
        kv_quantize(k[:, :, :96], v[:, :, :96], layout, records)
        index = torch.tensor([0, 2], dtype=torch.int32).expand(B, G, -1).contiguous()
        begin = torch.full((B, G), 5, dtype=torch.int32)
        parts = [
            PageSegment(records, layout, Lists(index=index, begin=begin)),
            DenseSegment(k[:, :, 96:], v[:, :, 96:]),
        ]
        q = torch.randn(B, 2 * G, 1, d)
        want = sparse_attention(q, parts)
        lse = torch.empty(B, 2 * G, 1)
        with pytest.warns(UserWarning, match=f"not torch.float32 of {d}"):
            out = op._by_torch(q, parts, d**-0.5, 0.0, lse)
        torch.testing.assert_close(out, want[0], rtol=0, atol=1e-3)
        torch.testing.assert_close(lse, want[1], rtol=0, atol=1e-3)


def test_what_has_a_kernel() -> None:
    half, whole = torch.empty(1, 1, 1, 64, dtype=torch.float16), torch.empty(1, 1, 1, 64)
    assert has_kernel(half, half)
    assert not has_kernel(whole, whole)
    assert not has_kernel(half, whole)
    wide = torch.empty(1, 1, 1, 80, dtype=torch.float16)
    assert not has_kernel(wide, wide)

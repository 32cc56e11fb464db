"""prefill_attention against masked attention written out in torch."""

from __future__ import annotations

import pytest
import torch

from tamis.errors import TamisTypeError, TamisValueError
from tamis.ops.attention import DenseSegment, merge_lse, sparse_attention
from tamis.ops.prefill import Blocks, Pattern, Spans, Subset, prefill_attention


def expected(q, k, v, seen, softcap=0.0):
    """Output and lse where `seen` [b, h, n, s] says what each query sees."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(group, 1) for x in (k, v))
    scores = q.double() @ k.transpose(2, 3) * q.shape[3] ** -0.5
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    return scores.softmax(-1).nan_to_num(0.0) @ v, scores.logsumexp(-1)


def check(q, k, v, seen, softcap=0.0, **limits):
    out, lse = prefill_attention(q, k, v, Pattern(**limits), softcap=softcap)
    wanted, wanted_lse = expected(q, k, v, seen, softcap)
    tolerance = 2e-4 if q.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(out.double(), wanted, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=tolerance, atol=tolerance)


def made(n, s, *, b=2, h=6, g=2, d=64, dtype=torch.float32):
    torch.manual_seed(0)
    q = torch.randn(b, n, h, d).transpose(1, 2)  # as projections make it
    k, v = torch.randn(2, b, g, s, d)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def places(n, s):
    return torch.arange(s - n, s).view(1, 1, n, 1), torch.arange(s).view(1, 1, 1, s)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_with_padding_and_softcap(dtype):
    q, k, v = made(50, 70, dtype=dtype)
    p, t = places(50, 70)
    begin = torch.tensor([0, 23], dtype=torch.int32)
    check(q, k, v, (t <= p).expand(2, 6, 50, 70))
    check(q, k, v, (t <= p) & (t >= begin.view(2, 1, 1, 1)), begin=begin)
    check(q, k, v, (t <= p).expand(2, 6, 50, 70), softcap=3.0)
    check(q, k, v, torch.ones(2, 6, 50, 70, dtype=torch.bool), causal=False)


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_spans_and_blocks_of_each_head(heads):
    q, k, v = made(100, 100)
    p, t = places(100, 100)
    sink, window = torch.arange(heads).int() * 4, torch.arange(heads).int() * 16 + 8
    within = (t < sink.view(1, -1, 1, 1)) | (t > p - window.view(1, -1, 1, 1))
    within = within.repeat_interleave(6 // heads, 1).expand(2, 6, 100, 100)
    check(q, k, v, within & (t <= p), spans=Spans(sink, window))
    size, count = 16, 7
    listed = (torch.rand(heads, count, count) < 0.4).tril()
    offsets = torch.zeros(heads, count + 1, dtype=torch.int32)
    offsets[:, 1:] = listed.sum(2).cumsum(1)
    columns = torch.zeros(heads, count * count, dtype=torch.int32)
    for head in range(heads):
        ids = listed[head].nonzero()[:, 1].int()
        columns[head, : len(ids)] = ids
    each = listed[:, p.view(-1) // size][:, :, t.view(-1) // size]
    each = each.repeat_interleave(6 // heads, 0).expand(2, 6, 100, 100)
    blocks = Blocks(size, offsets, columns)
    check(q, k, v, each & (t <= p), blocks=blocks)
    check(q, k, v, each & within & (t <= p), blocks=blocks, spans=Spans(sink, window))


def test_a_subset_of_queries_and_tokens():
    q, k, v = made(90, 90)
    p, t = places(90, 90)
    chosen = torch.stack([torch.randperm(90)[:40].sort().values for _ in range(2)]).int()
    subset = Subset(chosen, torch.tensor([40, 31], dtype=torch.int32))
    kept = torch.zeros(2, 90, dtype=torch.bool)
    kept[0, chosen[0].long()] = kept[1, chosen[1, :31].long()] = True
    seen = (t <= p) & kept.view(2, 1, 1, 90) & kept.view(2, 1, 90, 1)
    check(q, k, v, seen.expand(2, 6, 90, 90), rows=subset, columns=subset)


def test_new_tokens_over_a_past_merge_by_their_sums():
    q, k, v = made(30, 75)
    p, t = places(30, 75)
    past = sparse_attention(q, [DenseSegment(k[:, :, :45], v[:, :, :45])])
    new = prefill_attention(q, k[:, :, 45:], v[:, :, 45:])
    out, lse = merge_lse([past, new])
    wanted, wanted_lse = expected(q, k, v, (t <= p).expand(2, 6, 30, 75))
    torch.testing.assert_close(out.double(), wanted, rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=2e-4, atol=2e-4)


def test_refuses_what_it_cannot_read():
    q, k, v = made(8, 8)
    zero = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(TamisValueError, match=r"q, k, v: got shapes"):
        prefill_attention(q, k, v[:, :, :4])
    with pytest.raises(TamisTypeError, match="wanted float32, float16 or bfloat16"):
        prefill_attention(q.double(), k, v)
    for pattern, message in (
        (
            Pattern(begin=torch.zeros(2, dtype=torch.int64)),
            r"begin: got torch.int64 of shape \[2\]",
        ),
        (Pattern(spans=Spans(zero, zero)), "window: got 0, wanted 1 or more"),
        (Pattern(blocks=Blocks(0, zero, zero)), "blocks.size: got 0"),
        (
            Pattern(columns=Subset(torch.tensor([[2, 1], [0, 1]]).int())),
            "columns: got 1, wanted ascending numbers",
        ),
    ):
        with pytest.raises(TamisValueError, match=message):
            prefill_attention(q, k, v, pattern)

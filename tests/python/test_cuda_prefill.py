"""Attention of prompts on a CUDA device, within rounding what the CPU computes."""

import pytest
import torch
from host import needs_device
from torch import Tensor

from tamis.errors import TamisUnsupported, TamisValueError
from tamis.ops import cuda_memory
from tamis.ops.prefill import CAUSAL, Blocks, Pattern, Spans, Subset, prefill_attention

TICKETS = 65536  # bytes at the start of a workspace that every call leaves zero


def moved(x: object) -> object:
    """The same with every tensor on the device."""
    if isinstance(x, Tensor):
        return x.cuda()
    if isinstance(x, Pattern | Spans | Blocks | Subset):
        return type(x)(**{name: moved(value) for name, value in vars(x).items()})
    return x


def some_of(b: int, n: int) -> Subset:
    width = n // 2 + 1
    index = torch.stack([torch.randperm(n)[:width].sort()[0] for _ in range(b)]).int()
    return Subset(index, torch.randint(1, width + 1, (b,), dtype=torch.int32))


def blocks(size: int, heads: int, tokens: int, share: float) -> Blocks:
    count = -(-tokens // size)
    seen = torch.rand(heads, count, count) < share
    offsets = torch.zeros(heads, count + 1, dtype=torch.int32)
    offsets[:, 1:] = seen.sum(-1).cumsum(-1)
    columns = torch.zeros(heads, int(offsets.max()), dtype=torch.int32)
    for h in range(heads):
        found = seen[h].nonzero()[:, 1].int()
        columns[h, : len(found)] = found
    return Blocks(size, offsets, columns)


def check(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, softcap: float = 0.0) -> None:
    want, want_lse = prefill_attention(q.float(), k.float(), v.float(), pattern, softcap=softcap)
    on = moved(pattern)
    assert isinstance(on, Pattern)
    runs = [prefill_attention(q.cuda(), k.cuda(), v.cuda(), on, softcap=softcap) for _ in range(2)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    torch.testing.assert_close(runs[0][0].cpu().float(), want, rtol=1e-2, atol=1.5e-2)
    torch.testing.assert_close(runs[0][1].cpu(), want_lse, rtol=1e-4, atol=1e-3)


@needs_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d", [64, 128])
def test_every_limit(dtype: torch.dtype, d: int) -> None:
    b, h, g, n, s = 2, 8, 2, 333, 700
    q = torch.randn(b, h, n, d).to(dtype)
    k, v = torch.randn(2, b, g, s, d).to(dtype)
    pads = torch.tensor([0, 450], dtype=torch.int32)
    spans = Spans(
        torch.randint(0, 90, (h,), dtype=torch.int32),
        torch.randint(1, 300, (h,), dtype=torch.int32),
    )
    for pattern in (
        CAUSAL,
        Pattern(causal=False),
        Pattern(begin=pads, spans=spans),
        Pattern(rows=some_of(b, n), columns=some_of(b, s)),
        Pattern(columns=some_of(b, s), spans=spans, begin=pads),
        Pattern(blocks=blocks(64, g, s, 0.4)),
        Pattern(blocks=blocks(128, 1, s, 0.5), begin=pads),
        Pattern(blocks=blocks(100, h, s, 0.3), spans=spans),
        Pattern(blocks=blocks(16, g, s, 0.3)),
    ):
        check(q, k, v, pattern)
    few, short = q[:, :, :200], Pattern(columns=some_of(b, 300))  # too short to be packed
    check(few, k[:, :, :300], v[:, :, :300], short)
    check(q, k, v, CAUSAL, softcap=5.0)
    check(q[:, :, :1], k, v, CAUSAL)


@needs_device
def test_strided_operands_and_long_prompts() -> None:
    x = torch.randn(1, 4000, 6, 128).bfloat16()  # tokens first, as projections leave them
    q, k, v = x[:, :, :4].transpose(1, 2), x[:, :, 4:5].transpose(1, 2), x[:, :, 5:].transpose(1, 2)
    check(q, k, v, CAUSAL)
    check(q, k, v, Pattern(rows=some_of(1, 4000), columns=some_of(1, 4000)))


@needs_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_more_works_than_blocks_by_three_warpgroups(dtype: torch.dtype) -> None:
    n = 3700  # 20 tiles of 192 queries
    q = torch.randn(1, 14, n, 64).to(dtype)
    k, v = torch.randn(2, 1, 2, n, 64).to(dtype)
    pads = torch.tensor([130], dtype=torch.int32)
    spans = Spans(torch.tensor([70], dtype=torch.int32), torch.tensor([300], dtype=torch.int32))
    for pattern in (
        CAUSAL,
        Pattern(begin=pads, spans=spans),
        Pattern(rows=Subset(torch.arange(50, n).int().view(1, -1)), columns=some_of(1, n)),
        Pattern(columns=Subset(torch.arange(0, n, 20).int().view(1, -1))),  # too few to be packed
    ):
        check(q, k, v, pattern)
    # One head of keys for all: strides of 0 have no boxes.
    q, k, v = q.cuda(), k[:, :1].cuda(), v[:, :1].cuda()
    one, two = (x.expand(-1, 2, -1, -1) for x in (k, v))
    got = prefill_attention(q, one, two)
    want = prefill_attention(q, one.contiguous(), two.contiguous())
    torch.testing.assert_close(got[0], want[0], rtol=1e-2, atol=1.5e-2)
    torch.testing.assert_close(got[1], want[1], rtol=1e-4, atol=1e-3)
    tensors = [w.tensor for w in cuda_memory.workspaces.values() if w.tensor is not None]
    assert tensors
    assert not any(bool(w[:TICKETS].any()) for w in tensors)


@needs_device
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_prompts(dtype: torch.dtype, d: int) -> None:
    most = 32768 // d
    for b, h, g, n, s in (
        (1, 4, 2, 1, 1), (2, 4, 4, 64, 64), (1, 32, 8, 65, 65), (1, 32, 8, 256, 256), (2, 3, 1, 90, 200),
        (1, 8, 2, 16, most), (1, 40, 8, most, most), (1, 32, 8, most, most), (1, 16, 16, most, most),
        (4, 32, 8, 128, 128), (3, 32, 8, most - 70, most - 70), (1, 4, 2, 200, most + 1),
    ):  # fmt: skip
        q, k, v = torch.randn(b, h, n, d), torch.randn(b, g, s, d), torch.randn(b, g, s, d)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        check(q, k, v, CAUSAL)
        check(q, k, v, Pattern(causal=False))
        pads = torch.randint(0, s + 1, (b,), dtype=torch.int32)
        check(q, k, v, Pattern(begin=pads))
    q, k, v = torch.randn(3, 1, 100, 8, d).to(dtype).transpose(2, 3)  # tokens first
    check(q, k, v, CAUSAL)
    one = k[:, :1].cuda().expand(-1, 2, -1, -1)  # no boxes
    got, want = (prefill_attention(q.cuda(), x, x) for x in (one, one.contiguous()))
    torch.testing.assert_close(got[0], want[0], rtol=1e-2, atol=1.5e-2)


@needs_device
def test_refuses_what_has_no_kernel() -> None:
    q = torch.randn(1, 2, 64, 80, device="cuda").bfloat16()
    with pytest.raises(TamisUnsupported, match="head_dim 80, wanted f16 or bf16 for both and 64"):
        prefill_attention(q, q, q)
    q = torch.randn(1, 2, 64, 64, device="cuda")
    with pytest.raises(TamisUnsupported, match="got q of f32"):
        prefill_attention(q, q, q)
    q = q.bfloat16()
    with pytest.raises(TamisValueError, match="begin: got torch.int32"):
        prefill_attention(q, q, q, Pattern(begin=torch.zeros(1, dtype=torch.int32)))


@needs_device
@pytest.mark.parametrize("n", [200, 800, 6000, 20000])  # a short one; of one work a block, of more
@pytest.mark.parametrize("before", [False, True])  # whether the stream has a ticket
def test_replays_in_a_graph(n: int, before: bool) -> None:
    q = torch.randn(1, 4, n, 64, device="cuda").bfloat16()
    k, v = torch.randn(2, 1, 2, n, 64, device="cuda").bfloat16()
    prefill_attention(q, k, v)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    if before:
        with torch.cuda.stream(stream):
            prefill_attention(q, k, v)
        torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        out, lse = prefill_attention(q, k, v)
    for _ in range(2):
        q.normal_()
        graph.replay()
        want = prefill_attention(q, k, v)
        assert torch.equal(out, want[0])
        assert torch.equal(lse, want[1])

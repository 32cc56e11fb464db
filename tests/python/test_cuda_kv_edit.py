"""Tokens that merge, move and come from afar on a CUDA device, as on the CPU."""

import pytest
import torch
from cuda_kv_helpers import B, G, cuda_, moved
from host import needs_device

from tamis.ops import kv_select
from tamis.ops.attention import (
    Lists,
)
from tamis.ops.kv_edit import Similar, Tokens, compact_, gather_rows, merge_tokens
from tamis.ops.kv_fetch import Pool, kv_fetch


def halves(tokens: int) -> tuple[Tokens, Tokens]:
    """Two lists of every head, of numbers of tokens of its own."""
    mask = torch.rand(B, G, tokens) < 0.4
    lists = []
    for of in (mask, ~mask):
        index = (~of).to(torch.uint8).argsort(dim=-1, stable=True).to(torch.int32)
        lists.append(Tokens(index, of.sum(-1).to(torch.int32)))
    return lists[0], lists[1]


@needs_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "d"), [(1, 64), (40, 48), (700, 128), (5000, 64)])
def test_merged_tokens_are_the_cpus(dtype: torch.dtype, tokens: int, d: int) -> None:
    kept, dropped = halves(tokens)
    base = torch.randn(2, B, G, max(1, tokens // 8), d)  # so that the nearest is clearly so
    near = base[:, :, :, torch.randint(0, base.shape[3], (tokens,))]
    k, v = (near + 0.2 * torch.randn_like(near)).to(dtype)
    if dtype != torch.float32:
        k = torch.cat([k, k], 3)[..., :d]  # rows apart
    weight, mass = torch.rand(B, G, tokens), torch.randint(1, 5, (B, G, tokens)).float()
    for rule, options in (
        (Similar(), {}),
        (Similar(0.3, merge_keys=True), {"weight": weight, "mass": mass}),
        (Similar(0.9, values=False, merge_keys=True), {"weight": weight}),
        (Similar(1.0), {}),
    ):
        want = merge_tokens(k, v, kept, dropped, rule, **options)
        lists = [Tokens(x.index.cuda(), cuda_(x.count)) for x in (kept, dropped)]
        on = {name: x.cuda() for name, x in options.items()}
        runs = [merge_tokens(k.cuda(), v.cuda(), *lists, rule, **on) for _ in range(2)]
        for name in ("keys", "values", "mass", "joined"):
            assert torch.equal(*(getattr(run, name) for run in runs)), name
        got = runs[0]
        same = got.joined.cpu() == want.joined
        assert same.float().mean() > 0.999  # two tokens of one base may be as near
        whole = torch.ones_like(want.mass, dtype=torch.bool)
        for joined in (got.joined.cpu(), want.joined):  # of whom the others differ
            at = torch.where(same | (joined < 0), 0, joined).long()
            hit = torch.zeros_like(want.mass).scatter_add(2, at, (~same & (joined >= 0)).float())
            whole &= hit == 0
        torch.testing.assert_close(got.mass.cpu()[whole], want.mass[whole], rtol=1e-6, atol=0)
        each = (
            {"rtol": 2e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
        )
        for name in ("keys", "values"):
            a, b = (getattr(x, name).cpu()[whole] for x in (got, want))
            torch.testing.assert_close(a, b, **each)


@needs_device
def test_tokens_merge_in_graphs() -> None:
    kept, dropped = (Tokens(x.index.cuda(), cuda_(x.count)) for x in halves(500))
    k, v = torch.randn(2, B, G, 500, 64, device="cuda").bfloat16()
    want = merge_tokens(k, v, kept, dropped, Similar(0.01))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        merge_tokens(k, v, kept, dropped, Similar(0.01))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = merge_tokens(k, v, kept, dropped, Similar(0.01))
    graph.replay()
    torch.cuda.synchronize()
    assert int((want.joined >= 0).sum()) > 0
    for name in ("keys", "values", "mass", "joined"):
        assert torch.equal(getattr(out, name), getattr(want, name)), name


@needs_device
@pytest.mark.parametrize("tail", [(128,), (64, 3), (1,), ()])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int32, torch.uint8])
def test_rows_move_as_on_the_cpu(tail: tuple[int, ...], dtype: torch.dtype) -> None:
    for tokens in (1, 77, 3000):
        kept, _ = halves(tokens)
        on = Tokens(kept.index.cuda(), cuda_(kept.count))
        x = torch.randint(0, 100, (B, G, tokens, *tail)).to(dtype)
        assert torch.equal(gather_rows(x.cuda(), on).cpu(), gather_rows(x, kept))
        held = torch.zeros(B, G, tokens + 5, *tail, dtype=dtype, device="cuda")
        held[:, :, :tokens] = x.cuda()
        compact_(held[:, :, :tokens], on)
        compact_(x, kept)
        for i, n in enumerate(kept.count.view(-1).tolist()):
            a, b = (each.flatten(0, 1)[i, :n] for each in (held.cpu(), x))
            assert torch.equal(a, b)
        assert not held[:, :, tokens:].any()


@needs_device
@pytest.mark.parametrize(("unit", "slots", "begins"), [(1, 300, False), (16, 40, True)])
def test_pools_are_the_cpus(unit: int, slots: int, begins: bool) -> None:
    from tamis.kv.host import HostRows

    tokens, d = 2000, 64
    k, v = torch.randn(2, B, G, tokens, d).bfloat16()
    far = [HostRows(x.cuda()).view for x in (k, v)]
    assert torch.equal(far[0].cpu(), k)
    cpu = Pool(*torch.zeros(2, B, G, slots * unit, d, dtype=torch.bfloat16), unit)
    gpu = Pool(*torch.zeros(2, B, G, slots * unit, d, dtype=torch.bfloat16, device="cuda"), unit)
    for step in range(12):
        scores = torch.randn(B, G, tokens // unit)
        scores[..., 3 * step : 3 * step + 30] += 3
        index, count = kv_select.kv_select(scores, slots * 2 // 3, page=unit)
        begin = torch.randint(0, 600, (B, G), dtype=torch.int32) if begins else None
        lists = Lists(index=index, count=count, begin=begin)
        want = kv_fetch(cpu, lists, k, v)
        got = kv_fetch(gpu, moved(lists), *far)
        assert want.lists.count is not None
        assert want.lists.index is not None
        for name in ("slot_of", "unit_in", "stamp", "clock", "reads", "keys", "values"):
            assert torch.equal(getattr(gpu, name).cpu(), getattr(cpu, name)), name
        assert torch.equal(got.lists.count.cpu(), want.lists.count)
        for i, n in enumerate(want.lists.count.view(-1).tolist()):
            a, b = (x.lists.index.view(B * G, -1)[i, :n].cpu() for x in (got, want))
            assert torch.equal(a, b)

"""KV caches on a CUDA device: bit for bit or within rounding what the CPU computes from the same bytes."""

from itertools import product

import pytest
import torch
from torch import Tensor

import tamis
from tamis import kv
from tamis.errors import TamisUnsupported
from tamis.evaluate import cache_argument
from tamis.kv.kv_store import KvStore
from tamis.kv.limits import Limits
from tamis.kv.methods import recipe_of
from tamis.ops import cuda, cuda_cost, kv_select
from tamis.ops.attention import (
    DenseSegment,
    Lists,
    LowRankSegment,
    PageSegment,
    Segment,
    key_turns,
    sparse_attention,
)
from tamis.ops.kv_edit import Similar, Tokens, compact_, gather_rows, merge_tokens
from tamis.ops.kv_fetch import Pool, kv_fetch
from tamis.ops.kv_quantize import kv_quantize, kv_unpack, page_layout

needs_device = pytest.mark.skipif(bool(cuda.why_off()), reason=f"CUDA is off: {cuda.why_off()}")
B, G = 2, 4


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(torch.randint(1 << 30, ()).item())


def cuda_(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.cuda()


def moved(lists: Lists) -> Lists:
    return Lists(*(cuda_(getattr(lists, n)) for n in ("index", "count", "begin", "end", "bias")))


def on_cuda(s: Segment) -> Segment:
    if isinstance(s, LowRankSegment):
        memory = (x.cuda() for x in (s.coordinates, s.basis, s.values, s.turns))
        return LowRankSegment(*memory, moved(s.lists))
    if isinstance(s, PageSegment):
        return PageSegment(s.records.cuda(), s.layout, moved(s.lists))
    return DenseSegment(s.keys.cuda(), s.values.cuda(), moved(s.lists))


def pages(
    bits: int, d: int, count: int, lists: Lists, dtype: torch.dtype, tokens: int = 32
) -> PageSegment:
    layout = page_layout(d, bits, bits, tokens, 32 if tokens == 32 else d)
    k, v = torch.randn(2, B, G, tokens * count, d).to(dtype)
    records = torch.empty(B, G, count, layout.nbytes, dtype=torch.uint8)
    kv_quantize(k, v, layout, records)
    return PageSegment(records, layout, lists)


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


@needs_device
def test_labels_are_the_cpus() -> None:
    keys = torch.randn(B, G, 777, 128).bfloat16()
    channels = torch.randint(0, 128, (G, 16), dtype=torch.int32)
    size = kv_select.label_bytes(16)
    want = torch.empty(B, G, 49, size, dtype=torch.uint8)
    got = torch.empty_like(want, device="cuda")
    for first, last in ((0, 500), (500, 501), (501, 777)):
        kv_select.append_labels(want, keys[:, :, first:last], channels, first)
        kv_select.append_labels(got, keys.cuda()[:, :, first:last], channels.cuda(), first)
    assert torch.equal(got.cpu(), want)


@needs_device
@pytest.mark.parametrize("log_weight", [True, False])
@pytest.mark.parametrize("tokens", [1, 50, 5000])
def test_estimates(tokens: int, log_weight: bool) -> None:
    keys = torch.randn(B, G, tokens, 128).bfloat16()
    q = torch.randn(B, 16, 1, 128).bfloat16()
    channels = torch.randint(0, 128, (G, 16), dtype=torch.int32)
    records = torch.empty(B, G, -(-tokens // 16), kv_select.label_bytes(16), dtype=torch.uint8)
    kv_select.append_labels(records, keys, channels, 0)
    bounds = torch.stack([keys - 0.5, keys + 0.5], 3)
    begin = torch.randint(0, tokens, (B, G), dtype=torch.int32)
    for cpu, gpu in (
        (kv_select.KeyRows(keys), kv_select.KeyRows(keys.cuda())),
        (kv_select.PageBounds(bounds), kv_select.PageBounds(bounds.cuda())),
        (
            kv_select.Labels(records, channels, tokens),
            kv_select.Labels(records.cuda(), channels.cuda(), tokens),
        ),
    ):
        want = kv_select.kv_estimate(q.float(), cpu, log_weight=log_weight, begin=begin)
        got = kv_select.kv_estimate(q.cuda(), gpu, log_weight=log_weight, begin=begin.cuda())
        torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-3)


@needs_device
@pytest.mark.parametrize("units", [1, 100, 33000, 70000])
@pytest.mark.parametrize("levels", [0, 3])
def test_selection_is_the_cpus(units: int, levels: int) -> None:
    scores = torch.randn(B, G, units)
    if levels:
        scores = (scores * levels).round()
    scores[torch.rand(scores.shape) < 0.01] = float("nan")
    begin = torch.randint(0, units, (B, G), dtype=torch.int32)
    budget = torch.randint(0, units + 1, (B, G), dtype=torch.int32)
    for k, options in (
        (max(1, units // 16), {}),
        (units // 3, {"sink": 4, "recent": 30, "begin": begin}),
        (budget, {"page": 2}),
        (None, {"top_p": 0.9}),
        (None, {"top_p": 0.3, "sink": 4, "recent": 30, "begin": begin, "page": 2}),
        (None, {"top_p": 1.0}),
    ):
        want = kv_select.kv_select(scores, k, **options)
        on = {n: x.cuda() if isinstance(x, Tensor) else x for n, x in options.items()}
        got = kv_select.kv_select(scores.cuda(), k.cuda() if isinstance(k, Tensor) else k, **on)
        assert torch.equal(got[1].cpu(), want[1])
        for i in range(B * G):
            count = int(want[1].view(-1)[i])
            mine, theirs = (x.view(B * G, -1)[i, :count] for x in (got[0].cpu(), want[0]))
            assert torch.equal(mine, theirs)


@needs_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("h", "pages"), [(4, 1), (16, 300), (32, 2049), (16, 33000)])
def test_rows_choose_what_the_cpus_do(dtype: torch.dtype, h: int, pages: int) -> None:
    q = torch.randint(-3, 4, (B, h, 1, 64)).to(dtype)  # whole numbers add up alike in any order
    bounds = torch.randint(-3, 4, (B, G, pages, 2, 64)).to(dtype).sort(3).values
    begin = torch.randint(0, pages, (B, G), dtype=torch.int32)
    budget = torch.randint(0, pages + 1, (B, G), dtype=torch.int32)
    for k, page, options in (
        (pages // 16, 16, {"sink": 1}),
        (pages // 16, 5, {"sink": 1, "recent": 2, "begin": begin}),
        (budget, 1, {}),
    ):
        want = kv_select.kv_choose(q, kv_select.PageBounds(bounds, page), k, by_row=True, **options)
        on = {n: x.cuda() if isinstance(x, Tensor) else x for n, x in options.items()}
        units = kv_select.PageBounds(bounds.cuda(), page)
        at = k.cuda() if isinstance(k, Tensor) else k
        runs = [kv_select.kv_choose(q.cuda(), units, at, by_row=True, **on) for _ in range(2)]
        for index, count in runs:
            assert torch.equal(count.cpu(), want[1])
            for i, n in enumerate(want[1].flatten().tolist()):
                mine, theirs = (x.view(B * G, -1)[i, :n] for x in (index.cpu(), want[0]))
                assert torch.equal(mine, theirs)


@needs_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("n", "s", "d"), [(1, 1, 64), (1, 5000, 128), (32, 3001, 64), (700, 700, 80)]
)
def test_attention_that_tokens_draw(dtype: torch.dtype, n: int, s: int, d: int) -> None:
    q, keys = torch.randn(B, 12, n, d).to(dtype), torch.randn(B, G, s, d).to(dtype)
    begin = torch.randint(0, s, (B, G), dtype=torch.int32)
    probes = torch.randint(0, s, (n,), dtype=torch.int32).sort()[0].contiguous()
    for options in ({}, {"begin": begin}, {"positions": probes, "scale": 0.3}):
        want = kv_select.kv_mass(q, keys, **options)
        on = {name: x.cuda() if isinstance(x, Tensor) else x for name, x in options.items()}
        runs = [kv_select.kv_mass(q.cuda(), keys.cuda(), **on) for _ in range(2)]
        assert torch.equal(*runs)
        torch.testing.assert_close(runs[0].cpu(), want, rtol=1e-3, atol=1e-6)
        more = kv_select.kv_mass(q.cuda(), keys.cuda(), out=runs[1].clone(), **on)
        torch.testing.assert_close(more, 2 * runs[0], rtol=1e-5, atol=1e-6)


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
@pytest.mark.parametrize("tokens", [1, 600, 5000, 32768, 40000])
@pytest.mark.parametrize("heads", [G, 4 * G, 8 * G])
def test_chosen_are_the_best(tokens: int, heads: int) -> None:
    keys = torch.randn(B, G, tokens, 128, device="cuda").bfloat16()
    q = torch.randn(B, heads, 1, 128, device="cuda").bfloat16()
    channels = torch.randint(0, 128, (G, 32), dtype=torch.int32, device="cuda")
    size = kv_select.label_bytes(32)
    records = torch.empty(B, G, -(-tokens // 16), size, dtype=torch.uint8, device="cuda")
    kv_select.append_labels(records, keys, channels, 0)
    labels = kv_select.Labels(records, channels, tokens)
    begin = torch.randint(0, tokens, (B, G), dtype=torch.int32, device="cuda")
    k = max(tokens // 16, 20)
    for options in ({}, {"recent": 16}, {"sink": 3, "begin": begin}):
        found = [kv_select.kv_choose(q, labels, k, **options) for _ in range(2)]
        scores = kv_select.kv_estimate(q, labels, begin=options.get("begin"))
        want = kv_select.kv_select(scores, k, **options)
        assert torch.equal(found[0][1], want[1])
        for i, count in enumerate(want[1].view(-1).tolist()):
            got, again, theirs = (
                x.view(B * G, -1)[i, :count].long() for x in (found[0][0], found[1][0], want[0])
            )
            assert torch.equal(got, again)
            assert (got.diff() > 0).all()
            # Rows are added up in another order: only tokens of almost equal scores differ.
            mine, other = (scores.view(B * G, -1)[i][x].sort()[0] for x in (got, theirs))
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


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


@needs_device
@pytest.mark.parametrize("method", ["double_sparsity", "quest"])
@pytest.mark.parametrize("far", ["host", "file", "pool too small"])
@pytest.mark.parametrize("ahead", [False, True])
def test_stores_far_from_the_device_attend_alike(method, far, ahead, tmp_path) -> None:
    k, v = torch.randn(2, 2, 2, 700, 64, device="cuda").bfloat16()
    q = torch.randn(2, 8, 1, 64, device="cuda").bfloat16()
    memory = 4 << 10 if far == "pool too small" else 1 << 20
    tiers = kv.Tiers(tmp_path if far == "file" else None, memory=memory, device="cuda")
    recipe = recipe_of(method)
    tier = tiers.of_layer(recipe, [2])
    plain, tiered = (KvStore(recipe, budget=64, layer=2, tier=t) for t in (None, tier))
    pad = torch.tensor([0, 37], device="cuda")
    for store in (plain, tiered):
        store.append(k, v)
        store.settle(q, pad=pad)
    for step in range(40):
        new = torch.randn(2, 2, 2, 1, 64, device="cuda").bfloat16()
        q = q * 0.9 + 0.4 * torch.randn_like(q)
        if ahead:
            tiered.fetch_ahead(q + 0.1 * torch.randn_like(q))
        outs = []
        for store in (plain, tiered):
            store.append(*new)
            outs.append(store.attend(q, pad=pad))
            store.settle(q, pad=pad)
        assert torch.equal(*outs), step
    reads, hits = tier.found
    assert (0 < hits < reads) == (far != "pool too small")
    saved = tiered.snapshot()
    for store in (plain, tiered):
        store.take_batches(torch.tensor([1, 1], device="cuda"))
        store.crop(650)
    assert torch.equal(plain.attend(q), tiered.attend(q))
    tiered.restore(saved)
    assert tiered.length == 740


@needs_device
@pytest.mark.parametrize("method", ["double_sparsity", "quest"])
@pytest.mark.parametrize("file", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
def test_tokens_far_from_the_device_answer_alike(method, file, ahead, tmp_path) -> None:
    model = a_model()
    name = cache_argument(model)
    tiers = kv.Tiers(tmp_path if file else None, memory=256 << 10, device="cuda")
    plain = kv.Cache(model.config, method, budget=64, fallback=False)
    tiered = kv.Cache(model.config, method, budget=64, tiers=tiers)
    ids = torch.randint(1, 250, (2, 400), device="cuda")
    mask = torch.ones_like(ids)
    mask[0, :37] = 0
    options = {"max_new_tokens": 60, "do_sample": False, "pad_token_id": 0}
    with kv.attach(model, ahead=ahead):
        want, got = (
            model.generate(ids, attention_mask=mask, **{name: cache}, **options)
            for cache in (plain, tiered)
        )
        assert torch.equal(want, got)
        report = tiered.report()
        far = 2 * 2 * 2 * 2 * 459 * 64 * 2  # two of four layers choose
        assert report["file_bytes"] == (far if file else 0)
        assert report["host_bytes"] == (0 if file else far)
        assert 0 < report["bytes"]["pool"] <= 256 << 10
        assert report["device_bytes"] == tiered.nbytes() - report["host_bytes"]
        assert 0 < report["pool_hits"] <= 1
        more = torch.randint(1, 250, (2, 5), device="cuda")  # a turn of several tokens
        mask = torch.cat([mask, mask.new_ones(2, 60 + 4)], 1)
        with torch.no_grad():
            a, b = (model(more, attention_mask=mask, **{name: c}).logits for c in (plain, tiered))
        if file:  # all tokens come in pieces, whose outputs are rounded before they are merged
            assert divergence(a, b) < 0.01
        else:
            assert torch.equal(a, b)
        tiered.save(tmp_path / "cache")
        again = kv.Cache(model.config, method, budget=64, tiers=tiers)
        again.load(tmp_path / "cache")
        mask = torch.cat([mask, mask.new_ones(2, 1)], 1)
        with torch.no_grad():
            a, b = (
                model(more[:, :1], attention_mask=mask, **{name: c}).logits for c in (tiered, again)
            )
        assert torch.equal(a, b)


@needs_device
@pytest.mark.parametrize("method", ["full", "kivi8", "kivi4", "kivi2", "streaming", "h2o", "snapkv",
                                    "tova", "key_norm", "adakv_snapkv", "quest", "double_sparsity",
                                    "alisa", "zipvl_evict", "s2", "ems", "zipvl", "zipcache",
                                    "zipvl_sparse", "shadowkv"])  # fmt: skip
def test_every_method_that_has_kernels_here_generates(method) -> None:
    model = a_model()
    recipe = recipe_of(method)
    budget = 160 if recipe.evict is not None or recipe.select is not None else None
    ids = torch.randint(1, 250, (2, 300), device="cuda")
    mask = torch.ones_like(ids)
    mask[0, :37] = 0
    logits = []
    for device in ("cuda", "cpu"):
        model.to(device)
        cache = kv.Cache(model.config, method, budget=budget, fallback=False)
        seen = mask.to(device)
        with kv.attach(model), torch.no_grad():
            name = cache_argument(model)
            out = model(ids.to(device), attention_mask=seen, **{name: cache}).logits[:, -1:]
            for step in range(5):
                seen = torch.cat([seen, seen.new_ones(2, 1)], 1)
                token = torch.full((2, 1), 7 + step, device=device)
                out = model(token, attention_mask=seen, **{name: cache}).logits
        logits.append(out.float().cpu())
        held = [sum(store.held) for store in cache.stores]
    assert sum(held) > 0
    assert divergence(*logits) < 0.05


@needs_device
@pytest.mark.parametrize("method", ["full", "kivi8", "kivi4", "kivi2", "streaming", "h2o", "snapkv",
                                    "tova", "key_norm", "adakv_snapkv", "quest", "double_sparsity",
                                    "alisa"])  # fmt: skip
def test_stores_choose_what_the_cpus_do(method: str) -> None:
    """From the same numbers, few tokens of a padded prompt; a model's own differ by rounding before."""
    recipe = recipe_of(method)
    budget = 64 if recipe.evict is not None or recipe.select is not None else None
    cpu, gpu = (KvStore(recipe, budget=budget, layer=2) for _ in range(2))
    pad = torch.tensor([37, 0])
    k, v = torch.randn(2, 2, 2, 300, 64).bfloat16()
    q = torch.randn(2, 4, 300, 64).bfloat16()
    for step in range(6):
        outs = []
        for store, device in ((cpu, "cpu"), (gpu, "cuda")):
            store.append(k.to(device), v.to(device))
            asked, first = q.to(device), pad.to(device)
            if step:
                outs.append(store.attend(asked, pad=first).cpu())
            store.settle(asked, pad=first)
        if step:
            torch.testing.assert_close(*outs, rtol=1e-2, atol=1e-2)
        k, v = torch.randn(2, 2, 2, 1, 64).bfloat16()
        q = torch.randn(2, 4, 1, 64).bfloat16()


def divergence(a: Tensor, b: Tensor) -> float:
    """The mean of KL(b || a) of next tokens, from logits."""
    a, b = (x.float().flatten(0, -2).log_softmax(-1) for x in (a, b))
    return float((b.exp() * (b - a)).sum(-1).mean())


def a_model():
    """A random one on the device, with heads of a size that its kernels take."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=257, hidden_size=256, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).bfloat16().cuda().eval()
    for p in model.parameters():
        p.data *= 2
    return model


@needs_device
@pytest.mark.parametrize("method", ["full", "kivi4", "kivi2", "quest", "double_sparsity"])
def test_stores_live_on_the_device_and_in_graphs(method: str) -> None:
    k, v = torch.randn(2, 1, 2, 1000, 64).bfloat16()
    q = torch.randn(1, 8, 1, 64).bfloat16()
    budget = 128 if method in ("quest", "double_sparsity") else None
    host = tamis.kv.store(method, k, v, budget=budget)
    want = host.attend(q)
    store = tamis.kv.store(method, k.cuda(), v.cuda(), budget=budget)
    on = q.cuda()
    torch.testing.assert_close(store.attend(on).cpu(), want, rtol=2e-2, atol=2e-2)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        store.attend(on)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = store.attend(on)
    on.copy_(torch.randn(1, 8, 1, 64))
    graph.replay()
    torch.testing.assert_close(out.cpu(), host.attend(on.cpu()), rtol=2e-2, atol=2e-2)


@needs_device
def test_lengths_measured_of_the_processor_are_not_this_devices():
    k, v = torch.randn(2, 1, 2, 64, 64, dtype=torch.bfloat16, device="cuda")
    q = torch.randn(1, 4, 1, 64, dtype=torch.bfloat16, device="cuda")
    store = kv.KvStore(recipe_of("full"), limits=Limits(1 << 30, 1 << 30, 1 << 40))
    store.append(k, v)
    store.attend(q)
    assert store.read.endswith("measured faster on CUDA")


@needs_device
@pytest.mark.parametrize("method", ["quest", "double_sparsity"])
def test_choosing_must_leave_out_what_is_measured_of_this_device(method, monkeypatch):
    k, v = torch.randn(2, 1, 2, 640, 64, dtype=torch.bfloat16, device="cuda")
    q = torch.randn(1, 4, 1, 64, dtype=torch.bfloat16, device="cuda")
    store = kv.KvStore(recipe_of(method), budget=128, layer=2, limits=Limits(0, 0, 1 << 40))
    store.append(k, v)
    left_out = 512 * 2 * 2 * 64 * 2
    monkeypatch.setattr(cuda_cost, "choose_bytes", lambda _: left_out + 1)
    whole = store.attend(q)
    assert store.read.endswith("measured faster on CUDA")
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert torch.equal(whole, want)
    monkeypatch.setattr(cuda_cost, "choose_bytes", lambda _: left_out)
    store.attend(q)
    assert store.read == "chosen tokens"

"""One layer's store: what it holds, what it answers, what it refuses; and the operators below it."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import attention

import tamis
from tamis import kv
from tamis.errors import TamisError, TamisTypeError, TamisUnsupported, TamisValueError
from tamis.kv.methods import recipe_of
from tamis.ops.attention import DenseSegment, Lists, PageSegment, merge_lse, sparse_attention
from tamis.ops.kv_quantize import kv_quantize, kv_unpack, page_layout
from tamis.policy.kv_recipe import Evict, KvRecipe, Pages, Quantize, Select
from tamis.policy.kv_score import recency

METHODS = [m for m in tamis.method.names("kv") if not recipe_of(m).needs_plan]
EVEN = [m for m in METHODS if recipe_of(m).evict is not None and not recipe_of(m).evict.uneven]


def random_kv(s, *, b=1, g=2, d=64, dtype=torch.float32):
    k, v = torch.randn(2, b, g, s, d)
    return (k * 2 + 1).to(dtype), v.to(dtype)


# The operators.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantize_round_trip_is_within_half_a_step(bits, dtype):
    k, v = random_kv(64, b=2, dtype=dtype)
    layout = page_layout(64, bits, bits)
    records = torch.empty(2, 2, 2, layout.nbytes, dtype=torch.uint8)
    kv_quantize(k, v, layout, records)
    keys, values = kv_unpack(records, layout)
    pages = k.float().view(2, 2, 2, 32, 64)
    step = (pages.amax(3) - pages.amin(3)) / (2**bits - 1) * 1.01 + 0.02 * 2**-bits
    assert bool(((keys.view_as(pages) - pages).abs() <= step.unsqueeze(3) / 2 + 1e-3).all())
    groups = v.float().unflatten(-1, (2, 32))
    step = (groups.amax(-1) - groups.amin(-1)) / (2**bits - 1) * 1.01 + 0.02 * 2**-bits
    error = (values.view_as(groups) - groups).abs()
    assert bool((error <= step.unsqueeze(-1) / 2 + 1e-3).all())


def test_records_are_the_documented_bytes():
    """Read with NumPy from the layout's own text: words, code places, scales."""
    k, v = random_kv(32, g=1)
    layout = page_layout(64, 4, 4)
    records = torch.empty(1, 1, 1, layout.nbytes, dtype=torch.uint8)
    kv_quantize(k, v, layout, records)
    raw = records.numpy().reshape(-1)
    words = raw[: 32 * 64 // 2].view("<u4").reshape(2, 8, 16)  # [tokens/16][d/8][16]
    scale = raw[layout.key_scale : layout.key_scale + 128].view("<f2").astype(np.float32)
    low = raw[layout.key_min : layout.key_min + 128].view("<f2").astype(np.float32)
    keys = np.zeros((32, 64), np.float32)
    for t in range(32):
        for c in range(64):
            j = c % 8
            code = int(words[t // 16, c // 8, t % 16]) >> (j // 2 * 4 + j % 2 * 16) & 15
            keys[t, c] = low[c] + scale[c] * code
    np.testing.assert_array_equal(keys, kv_unpack(records, layout)[0][0, 0].numpy())


@pytest.mark.parametrize("d", [48, 64, 80, 96, 128, 256])
def test_attention_matches_float64(d):
    q = torch.randn(2, 6, 1, d)
    k, v = random_kv(70, b=2, d=d)
    out, lse = sparse_attention(q, [DenseSegment(k, v)], softcap=3.0)
    wanted, wanted_lse = attention(q, k, v, softcap=3.0)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=1e-4, atol=1e-4)


@given(st.integers(0, 80), st.integers(1, 80), st.integers(1, 4), st.booleans())
def test_any_cut_into_segments_is_the_whole(cut, s, n, transposed):
    s = max(s, cut, 1)
    q = torch.randn(1, 4, n, 64)
    k, v = random_kv(s)
    if transposed:  # [b, s, g, d] memory, as projections make it
        k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v))
    parts = [DenseSegment(k[:, :, :cut], v[:, :, :cut]), DenseSegment(k[:, :, cut:], v[:, :, cut:])]
    whole, lse = sparse_attention(q, [DenseSegment(k, v)])
    both, both_lse = sparse_attention(q, parts)
    torch.testing.assert_close(both, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both_lse, lse, rtol=1e-4, atol=1e-5)
    merged, merged_lse = merge_lse([sparse_attention(q, [part]) for part in parts])
    torch.testing.assert_close(merged, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merged_lse, lse, rtol=1e-4, atol=1e-5)


def test_lists_name_what_counts():
    q = torch.randn(1, 4, 1, 64)
    k, v = random_kv(40)
    index = torch.stack([torch.randperm(40)[:9].sort().values for _ in range(2)])[None].int()
    begin, end = torch.tensor([[3, 0]]).int(), torch.tensor([[40, 35]]).int()
    count = torch.tensor([[9, 8]]).int()
    keep = torch.zeros(1, 2, 40, dtype=torch.bool)
    for g in range(2):
        chosen = index[0, g, : count[0, g]].long()
        chosen = chosen[(chosen >= begin[0, g]) & (chosen < end[0, g])]
        keep[0, g, chosen] = True
    lists = Lists(index=index, count=count, begin=begin, end=end)
    out, _ = sparse_attention(q, [DenseSegment(k, v, lists)])
    torch.testing.assert_close(out.double(), attention(q, k, v, keep=keep)[0], rtol=1e-4, atol=1e-4)


def test_operator_errors_say_what_is_wrong():
    q, (k, v) = torch.randn(1, 4, 1, 64), random_kv(8)
    with pytest.raises(TamisValueError, match="got none, wanted at least one"):
        sparse_attention(q, [])
    with pytest.raises(TamisValueError, match="got 3 heads, wanted a multiple of the 2"):
        sparse_attention(q[:, :3], [DenseSegment(k, v)])
    with pytest.raises(TamisTypeError, match="float64"):
        sparse_attention(q.double(), [DenseSegment(k, v)])
    with pytest.raises(TamisValueError, match=r"keys: got shape \[1, 2, 8, 32\]"):
        sparse_attention(q, [DenseSegment(k[..., :32], v[..., :32])])
    with pytest.raises(TamisValueError, match="begin: got torch.int64"):
        sparse_attention(q, [DenseSegment(k, v, Lists(begin=torch.zeros(1, 2).long()))])
    bad = torch.full((1, 2, 1), 8).int()
    with pytest.raises(ValueError, match="index: got 8, wanted 0 to 7"):
        sparse_attention(q, [DenseSegment(k, v, Lists(index=bad))])
    layout = page_layout(64, 4, 4)
    with pytest.raises(TamisValueError, match="records: got shape"):
        sparse_attention(q, [PageSegment(torch.zeros(1, 2, 1, 7, dtype=torch.uint8), layout)])
    with pytest.raises(TamisValueError, match="kv_quantize: keys, values, out"):
        kv_quantize(k, v, layout, torch.zeros(1, 2, 1, layout.nbytes, dtype=torch.uint8))
    with pytest.raises(TamisValueError, match="got 3 .*wanted 2, 4 or 8"):
        page_layout(64, 3, 3)


# The store.


def grown(method, k, v, *, budget=None, prompt=40):
    """A store that got a prompt and then single tokens."""
    store = kv.store(method, k[:, :, :prompt], v[:, :, :prompt], budget=budget)
    for t in range(prompt, k.shape[2]):
        store.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        store.settle()
    return store


@pytest.mark.parametrize("method", ["full", "kivi8", "kivi4", "kivi4_wide", "kivi2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attends_to_what_it_holds(method, dtype):
    k, v = random_kv(150, b=2, dtype=dtype)
    store = grown(method, k, v)
    held_k, held_v = store.dense()
    assert held_k.shape == k.shape
    assert store.tokens == store.length == 150
    q = torch.randn(2, 6, 1, 64, dtype=dtype)
    wanted = attention(q, held_k, held_v)[0]
    tolerance = 1e-4 if dtype == torch.float32 and method == "full" else 3e-2
    torch.testing.assert_close(store.attend(q).double(), wanted, rtol=0, atol=tolerance)
    exact = attention(q, k, v)[0]
    bound = {"full": 1e-2, "kivi8": 0.03, "kivi4": 0.3, "kivi4_wide": 0.3, "kivi2": 1.5}[method]
    assert float((store.attend(q).double() - exact).abs().max()) < bound


@pytest.mark.parametrize("method", ["kivi8", "kivi4", "kivi4_wide", "kivi2"])
def test_growing_is_the_same_as_starting_with_all(method):
    k, v = random_kv(150)
    a, b = grown(method, k, v), kv.store(method, k, v)
    assert torch.equal(a.rows["records"].view, b.rows["records"].view)
    assert torch.equal(a.rows["keys"].view, b.rows["keys"].view)


def test_bytes_are_the_formula():
    b, g, s, d = 1, 2, 4096, 128
    k, v = torch.randn(2, b, g, s, d).half()
    full = kv.store("full", k, v).nbytes()
    assert full == 2 * b * g * s * d * 2
    for bits, share in ((8, 9), (4, 5), (2, 3)):
        pages, tail = (s - 32) // 32, 32
        wanted = b * g * (pages * 2 * 32 * d * share // 8 + 2 * tail * d * 2)
        assert kv.store(f"kivi{bits}", k, v).nbytes() == wanted
    pages, tail = (s - 32) // 64, 64  # keys: 4 bits and 32 / 64, values: 4 and 32 / 128
    wanted = b * g * (pages * 64 * d * (4.5 + 4.25) / 8 + 2 * tail * d * 2)
    assert kv.store("kivi4_wide", k, v).nbytes() == wanted
    assert kv.store("kivi4", k, v).nbytes() <= 0.32 * full
    assert kv.store("kivi2", k, v).nbytes() <= 0.20 * full
    assert kv.store("h2o", k, v, budget=512).nbytes() < full * 1.02  # nothing observed yet


@pytest.mark.parametrize(("page", "group"), [(32, None), (16, 16), (32, 64), (64, 0), (48, 32)])
def test_sizes_of_pages_can_be_chosen(page, group):
    recipe = KvRecipe(quantize=Quantize(4, 4, page=page, group=group))
    k, v = random_kv(150)
    store = kv.store(recipe, k, v)
    record = store.rows["records"].view
    shares = 64 // {None: 32, 0: 64}.get(group, group)
    assert record.shape[-1] == 64 * page + 4 * 64 + 4 * shares * page
    q = torch.randn(1, 4, 1, 64)
    wanted = attention(q, *store.dense())[0]
    torch.testing.assert_close(store.attend(q).double(), wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("page", "group"), [(24, None), (80, None), (32, 24), (32, 48), (32, -16)])
def test_sizes_that_no_page_has_are_refused(page, group):
    k, v = random_kv(150)
    with pytest.raises(TamisValueError, match="choose other sizes"):
        kv.store(KvRecipe(quantize=Quantize(4, 4, page=page, group=group)), k, v)


@pytest.mark.parametrize("method", EVEN)
def test_a_budget_is_kept_and_positions_stay_in_order(method):
    torch.manual_seed(1)
    k, v = random_kv(90, b=2)
    q = torch.randn(2, 4, 90, 64)
    store = kv.KvStore(recipe_of(method), budget=48)
    store.append(k, v)
    store.settle(q)
    assert store.tokens == 48
    assert store.length == 90
    positions = store.rows["positions"].view
    assert bool((positions.diff(dim=-1) > 0).all())
    assert bool((positions[..., -1] == 89).all())
    at = positions.long().unsqueeze(-1).expand(-1, -1, -1, 64)
    assert torch.equal(store.rows["keys"].view, k.gather(2, at))
    assert torch.equal(store.rows["values"].view, v.gather(2, at))
    store.append(k[:, :, :1], v[:, :, :1])
    store.settle(q[:, :, :1])
    assert store.tokens == (48 if recipe_of(method).evict.always else 49)


@pytest.mark.parametrize("method", ["quest", "double_sparsity"])
def test_selecting_everything_is_attending_to_everything(method):
    k, v = random_kv(100)
    q = torch.randn(1, 4, 100, 64)
    store = kv.KvStore(recipe_of(method), budget=112, layer=2)
    store.append(k, v)
    store.settle(q)
    wanted = attention(q[:, :, -1:], k, v)[0]
    torch.testing.assert_close(store.attend(q[:, :, -1:]).double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["quest", "double_sparsity"])
def test_selection_finds_the_needle(method):
    """One key that points along q among many that do not: its value is the answer."""
    k, v = torch.randn(2, 1, 2, 512, 64)
    q = torch.randn(1, 4, 1, 64)
    q = q[:, [0, 0, 2, 2]]  # the heads of a group agree
    k[:, :, 200] = 4 * q[:, ::2, 0]
    store = kv.KvStore(recipe_of(method), budget=64, layer=2)
    store.append(k, v)
    store.settle(q)
    for t in range(5):  # summaries follow what is appended
        store.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        store.settle(q)
        torch.testing.assert_close(store.attend(q)[:, ::2, 0], v[:, :, 200], rtol=0.05, atol=0.05)
    assert 0 < store.nbytes() - 2 * 4 * 517 * 2 * 64 <= 4 * 517 * 2 * 16


@pytest.mark.parametrize("method", METHODS)
def test_a_model_s_own_scale_counts_in_choices_too(method):
    """Queries 16 times as large with a scale of 1/16, as Granite's is not 1 / sqrt(d), read the same."""
    k, v = torch.randn(2, 1, 2, 300, 64)
    q = torch.randn(1, 8, 310, 64)
    more = torch.randn(2, 1, 2, 10, 64)
    budget = 64 if recipe_of(method).budgeted else None
    stores = [kv.KvStore(method, budget=budget, layer=2) for _ in range(2)]
    for store, size in zip(stores, (1, 16), strict=True):
        store.append(k, v)
        store.settle(size * q[:, :, :300], scale=1 / (8 * size))
    for t in range(10):
        step, outs = slice(300 + t, 301 + t), []
        for store, size in zip(stores, (1, 16), strict=True):
            store.append(*more[..., t : t + 1, :])
            outs.append(store.attend(size * q[:, :, step], scale=1 / (8 * size)))
            store.settle(size * q[:, :, step], scale=1 / (8 * size))
        torch.testing.assert_close(outs[0], outs[1])


@pytest.mark.parametrize("tokens", [96, 101])
def test_quest_reads_its_first_page_and_the_latest_token(tokens):
    """Also where other pages promise more: the sink, and a last page that is full."""
    k, v = torch.randn(2, 1, 2, tokens, 64)
    q = torch.randn(1, 2, 1, 64)
    k[:, :, :16] = k[:, :, 80:] = -q[0, :, None, 0]  # as little as can be
    keep = torch.zeros(1, 2, tokens, dtype=torch.bool)
    keep[..., :16] = keep[..., tokens // 16 * 16 - (16 if tokens == 96 else 0) :] = True
    out = {b: filled_by_pages(k, v, q, b) for b in (16, 32)}
    wanted = attention(q, k, v, keep=keep)[0]
    torch.testing.assert_close(out[32 if tokens == 96 else 16].double(), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("pad", [None, 37])
def test_each_query_head_chooses_pages_and_sees_those_of_its_group(pad):
    """Against a choice by numpy: the 3 best pages of each head by their bounds, the first one included."""
    k, v = random_kv(150, b=2)
    q = torch.randn(2, 6, 1, 64)
    first = torch.tensor([0, 0 if pad is None else pad])
    store = kv.KvStore(recipe_of("quest"), budget=48, layer=2)
    store.append(k, v)
    out = store.attend(q, pad=None if pad is None else first)
    pages = k[:, :, :144].double().numpy().reshape(2, 2, 9, 16, 64)
    keep = torch.zeros(2, 2, 150, dtype=torch.bool)
    keep[..., 144:] = True  # what fills no page yet
    taken = set()
    for b, h in np.ndindex(2, 6):
        row, page = q[b, h, 0].double().numpy(), pages[b, h // 3]
        bound = np.maximum(row * page.min(1), row * page.max(1)).sum(-1)
        begin = int(first[b]) // 16
        bound[:begin], bound[begin] = -np.inf, np.inf
        for chosen in np.argsort(-bound)[:3]:
            keep[b, h // 3, chosen * 16 : chosen * 16 + 16] = True
            taken.add((b, h // 3, chosen))
    assert len(taken) > 2 * 2 * 3  # heads differ
    keep &= torch.arange(150) >= first.view(2, 1, 1)
    wanted = attention(q, k, v, keep=keep)[0]
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=1e-4)


def filled_by_pages(k, v, q, budget):
    store = kv.KvStore(recipe_of("quest"), budget=budget, layer=2)
    store.append(k, v)
    store.settle(q)
    return store.attend(q)


def test_first_layers_read_everything():
    k, v = random_kv(64)
    assert kv.KvStore(recipe_of("quest"), layer=1).selection is None
    assert kv.KvStore(recipe_of("quest"), layer=2).selection is not None
    assert kv.store("quest", k, v).attend(torch.randn(1, 4, 1, 64)).isfinite().all()


@pytest.mark.parametrize(("method", "budget"), [("full", None), ("kivi4", None), ("h2o", 40)])
def test_padding_is_not_seen(method, budget):
    k, v = random_kv(100, b=2)
    pad = torch.tensor([0, 37])
    k[1, :, :37] = 20  # what a peek would show
    q = torch.randn(2, 4, 100, 64)
    store = kv.KvStore(recipe_of(method), budget=budget)
    store.append(k, v)
    store.settle(q, pad=pad)
    alone = kv.KvStore(recipe_of(method), budget=budget)
    if method == "kivi4":  # pages of the padded sequence hold other tokens
        held_k, held_v = store.dense()
        wanted = attention(q[1:, :, -1:], held_k[1:, :, 37:], held_v[1:, :, 37:])[0].float()
    else:
        alone.append(k[1:, :, 37:], v[1:, :, 37:])
        alone.settle(q[1:, :, 37:])
        wanted = alone.attend(q[1:, :, -1:])
    out = store.attend(q[:, :, -1:], pad=pad)[1:]
    torch.testing.assert_close(out, wanted, rtol=0, atol=3e-2)


@pytest.mark.parametrize(
    ("method", "budget"), [("full", None), ("kivi2", None), ("quest", 32), ("double_sparsity", 20)]
)
@pytest.mark.parametrize("length", [149, 120, 97, 31, 0])
def test_crop_forgets_the_latest(method, budget, length):
    k, v = random_kv(150)
    q = torch.randn(1, 4, 1, 64)
    store = kv.KvStore(recipe_of(method), budget=budget, layer=2)
    store.append(k, v)
    store.settle(q.expand(-1, -1, 150, -1))
    store.attend(q)
    store.crop(length)
    assert store.tokens == store.length == length
    store.append(k[:, :, length:], v[:, :, length:])
    held_k, held_v = store.dense()
    assert held_k.shape[2] == 150
    if method != "kivi2":
        assert torch.equal(held_k, k)
        assert torch.equal(held_v, v)
    assert store.attend(q).isfinite().all()
    with pytest.raises(TamisValueError, match="got 151, wanted 0 to the 150"):
        store.crop(151)


@pytest.mark.parametrize("method", METHODS)
def test_snapshot_restores_every_bit(method):
    k, v = random_kv(100)
    q = torch.randn(1, 4, 100, 64)
    budget = 48 if recipe_of(method).evict or recipe_of(method).select else None
    store = kv.KvStore(recipe_of(method), budget=budget, layer=2)
    store.append(k, v)
    store.settle(q)
    saved, wanted = store.snapshot(), store.attend(q[:, :, -1:])
    for _ in range(2):
        store.append(k[:, :, :50], v[:, :, :50])
        store.settle(q[:, :, :50])
        assert not torch.equal(store.attend(q[:, :, -1:]), wanted)
        store.restore(saved)
        assert store.length == 100
        assert torch.equal(store.attend(q[:, :, -1:]), wanted)


@pytest.mark.parametrize("method", METHODS)
def test_batches_move_as_one(method):
    k, v = random_kv(100, b=3)
    q = torch.randn(3, 4, 100, 64)
    budget = 48 if recipe_of(method).evict or recipe_of(method).select else None
    store = kv.KvStore(recipe_of(method), budget=budget, layer=2)
    store.append(k, v)
    store.settle(q)
    before = store.attend(q[:, :, -1:])
    store.take_batches(torch.tensor([2, 0, 0, 1]))
    after = store.attend(q[[2, 0, 0, 1], :, -1:])
    torch.testing.assert_close(after, before[[2, 0, 0, 1]])


def test_bad_budgets_are_refused():
    k, v = random_kv(20)
    for method, budget, message in [
        ("kivi4", 8, "wanted none"),
        ("h2o", None, "wanted the tokens per KV head"),
        ("h2o", 0, "wanted at least 32"),
        ("streaming", 4, "4 first and 1 latest"),
        ("quest", 0, "wanted at least 2: 1 first and 1 latest"),
        ("kivi3", None, "wanted one of adakv_snapkv, alisa"),
    ]:
        with pytest.raises(TamisValueError, match=message):
            kv.store(method, k, v, budget=budget)
    both = KvRecipe(quantize=Quantize(4, 4), evict=Evict(recency))
    with pytest.raises(TamisUnsupported, match="got quantization with eviction"):
        kv.store(both, k, v, budget=8)
    with pytest.raises(TamisUnsupported, match="evicts tokens"):
        kv.store("streaming", k, v, budget=8).crop(3)
    with pytest.raises(TamisError, match="empty store"):
        kv.KvStore(recipe_of("full")).attend(torch.randn(1, 4, 1, 64))


def test_a_recipe_of_ones_own():
    k, v = random_kv(64)
    mine = KvRecipe(select=Select(Pages(8), skip_layers=0))
    out = kv.store(mine, k, v, budget=16).attend(torch.randn(1, 4, 1, 64))
    assert out.isfinite().all()
    assert copy.copy(mine) == mine


GROWTH = """
import os, torch
from tamis import kv
from tamis.kv.methods import recipe_of
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
torch.set_num_threads(1)
k, v = torch.randn(2, 1, 8, 64, 128).bfloat16()
def grow(n):
    stores = [kv.KvStore(recipe_of({method!r})) for _ in range(12)]
    for start in range(n):
        for store in stores:
            at = slice(start % 64, start % 64 + 1)
            store.append(k[:, :, at], v[:, :, at])
            store.settle()
    return stores
grow(200)
before = resident()
stores = grow(4096)
print(resident() - before, sum(store.nbytes() for store in stores))
"""


@pytest.mark.parametrize("method", ["full", "kivi4"])
def test_the_process_grows_by_what_it_says(method):
    code = GROWTH.format(method=method)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown_by, nbytes = map(int, done.stdout.split())
    assert 0.9 * nbytes <= grown_by <= 1.1 * nbytes

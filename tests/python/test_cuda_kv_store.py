"""Stores, caches and methods on a CUDA device."""

import pytest
import torch
from host import needs_device
from torch import Tensor

import tamis
from tamis import kv
from tamis.evaluate import cache_argument
from tamis.kv.kv_store import KvStore
from tamis.kv.limits import Limits
from tamis.kv.methods import recipe_of
from tamis.ops import chosen, cuda_cost


@pytest.fixture
def in_launches_apart(monkeypatch) -> None:
    """Tokens are chosen and read in two launches, as far ones are: one adds up in another order."""
    monkeypatch.setattr(chosen, "attend", lambda *_: False)


@needs_device
@pytest.mark.parametrize("method", ["double_sparsity", "quest"])
@pytest.mark.parametrize("far", ["host", "file", "pool too small"])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.usefixtures("in_launches_apart")
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
@pytest.mark.usefixtures("in_launches_apart")
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
@pytest.mark.parametrize("method", ["full", "kivi8", "kivi4", "kivi4_wide", "kivi2", "streaming",
                                    "h2o", "snapkv", "tova", "key_norm", "adakv_snapkv", "quest",
                                    "double_sparsity", "alisa", "zipvl_evict", "s2", "ems", "zipvl",
                                    "zipcache", "zipvl_sparse", "shadowkv"])  # fmt: skip
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
@pytest.mark.parametrize("method", ["full", "kivi8", "kivi4", "kivi4_wide", "kivi2", "streaming",
                                    "h2o", "snapkv", "tova", "key_norm", "adakv_snapkv", "quest",
                                    "double_sparsity", "alisa"])  # fmt: skip
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
@pytest.mark.parametrize("method", ["full", "kivi4", "kivi4_wide", "kivi2", "quest",
                                    "double_sparsity"])  # fmt: skip
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
    monkeypatch.setattr(cuda_cost, "choose_bytes", lambda _, at_once: left_out + 1)
    whole = store.attend(q)
    assert store.read.endswith("measured faster on CUDA")
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert torch.equal(whole, want)
    monkeypatch.setattr(cuda_cost, "choose_bytes", lambda _, at_once: left_out)
    store.attend(q)
    assert store.read == "chosen tokens"


@needs_device
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("heads", [2, 8, 16])
def test_labels_of_new_tokens_are_those_of_a_prompt(d, heads) -> None:
    """Written by the launch that reads them, or by one of their own."""
    budget, tokens = 64, 15 * 16 + 3
    k, v = torch.randn(2, 2, 2, tokens + 40, d, device="cuda").bfloat16()
    q = torch.randn(2, heads, 1, d, device="cuda").bfloat16()
    grown = KvStore(recipe_of("double_sparsity"), budget=budget, layer=2)
    grown.append(k[:, :, :tokens], v[:, :, :tokens])
    grown.attend(q)
    for t in range(tokens, tokens + 40):
        grown.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        if t % 7 == 0:
            with pytest.raises(tamis.errors.TamisError):
                grown.attend(q[..., :32])
        if t % 11:  # else two tokens of the next step are new
            out = grown.attend(q)
    whole = KvStore(recipe_of("double_sparsity"), budget=budget, layer=2)
    whole.append(k, v)
    whole.selection.channels = grown.selection.channels
    assert torch.equal(out, whole.attend(q))
    assert grown.selection.labelled == whole.selection.labelled == tokens + 40
    assert torch.equal(grown.selection.rows["labels"].view, whole.selection.rows["labels"].view)


@needs_device
@pytest.mark.parametrize("method", ["full", "kivi4", "streaming", "quest", "double_sparsity"])
@pytest.mark.parametrize(
    ("dtype", "d"), [(torch.float32, 64), (torch.float32, 128), (torch.bfloat16, 80)]
)
def test_stores_that_no_kernel_reads_are_read_by_torch(method, dtype, d) -> None:
    recipe = recipe_of(method)
    budget = 96 if recipe.evict is not None or recipe.select is not None else None
    k, v = torch.randn(2, 2, 2, 300, d).to(dtype)
    q = torch.randn(2, 4, 1, d).to(dtype)
    pad = torch.tensor([0, 37])
    outs = []
    for device in ("cpu", "cuda"):
        store = KvStore(recipe, budget=budget, layer=2)
        store.append(k.to(device), v.to(device))
        store.settle(q.to(device), pad=pad.to(device))
        outs.append(store.attend(q.to(device), pad=pad.to(device)).cpu())
    tolerance = 1e-3 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(*outs, rtol=tolerance, atol=tolerance)

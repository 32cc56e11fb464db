"""The life of a cache: chunks, batches, tokens kept by hand, files; hybrid models too."""

import json

import pytest
import torch

transformers = pytest.importorskip("transformers")

from kv_recipes import budget_of  # noqa: E402
from transformers import DynamicCache  # noqa: E402

import tamis  # noqa: E402
from tamis import kv  # noqa: E402
from tamis.errors import TamisError, TamisFileError, TamisUnsupported, TamisValueError  # noqa: E402
from tamis.evaluate import cache_argument  # noqa: E402
from tamis.kv.methods import recipe_of  # noqa: E402

METHODS = [m for m in tamis.method.names("kv") if not recipe_of(m).needs_plan]
GEMMA3 = {
    "vocab_size": 257,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}


@pytest.fixture(scope="module")
def models(tiny_model):
    torch.manual_seed(3)
    llama = transformers.AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    gemma = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**GEMMA3)).eval()
    for model in (llama, gemma):
        for p in model.parameters():  # sharper than freshly initialized, so tokens differ
            p.data *= 3 if model is llama else 1
    return {"llama": llama, "gemma3": gemma}


@pytest.fixture(params=["llama", "gemma3"])
def attached(models, request):
    with kv.attach(models[request.param]):
        yield models[request.param]


@pytest.fixture
def llama(models):
    with kv.attach(models["llama"]):
        yield models["llama"]


def prompt(n, b=1):
    return torch.randint(1, 250, (b, n), generator=torch.Generator().manual_seed(n + b))


def logits(model, ids, cache):
    with torch.no_grad():
        return model(ids, cache=cache).logits


def generate(model, ids, cache, **options):
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None} | options
    mask = torch.ones_like(ids)
    return model.generate(ids, attention_mask=mask, cache=cache, **options)


def cache_of(model, method):
    return kv.Cache(model.config, method, budget=budget_of(method, 48), fallback=False)


# Tokens in, tokens out.


def test_a_prompt_in_chunks_is_the_whole_prompt(attached):
    ids = prompt(90)
    wanted = generate(attached, ids, DynamicCache(config=attached.config))
    found = generate(attached, ids, cache_of(attached, "full"), prefill_chunk_size=32)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_a_prompt_in_chunks(llama, method):
    cache = cache_of(llama, method)
    assert generate(llama, prompt(90), cache, prefill_chunk_size=32).shape == (1, 102)
    assert cache.get_seq_length() == 101


@pytest.mark.parametrize("method", ["full", "kivi4", "h2o", "quest"])
def test_batch_operations_are_those_of_single_runs(attached, method):
    ids = prompt(60, b=2)
    cache = cache_of(attached, method)
    logits(attached, ids, cache)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0]))
    cache.reorder_cache(torch.tensor([1, 0]))
    step = prompt(1, b=2)
    both = logits(attached, step, cache)
    for row in range(2):
        alone = cache_of(attached, method)
        logits(attached, ids[row : row + 1], alone)
        found = logits(attached, step[row : row + 1], alone)
        torch.testing.assert_close(both[row : row + 1], found, rtol=1e-3, atol=1e-3)


def test_kept_tokens_are_all_that_is_seen(llama):
    """The tokens a caller drops have the effect of a mask over them."""
    ids = prompt(40)
    cache = kv.Cache(llama.config, "full")
    logits(llama, ids, cache)
    kept = torch.tensor([0, 1, 2, *range(9, 40, 2)])
    for store in cache.stores:
        store.keep(kept.expand(1, 2, -1))
    assert cache.report()["held_by_head"] == [[19, 19]] * 2
    mask = torch.zeros(1, 41, dtype=torch.long)
    mask[0, kept] = mask[0, 40] = 1
    plain = DynamicCache(config=llama.config)
    with torch.no_grad():
        llama(ids, cache=plain)
        place = torch.tensor([[40]])
        wanted = llama(ids[:, :1], cache=plain, attention_mask=mask, position_ids=place).logits
    assert cache.get_seq_length() == 40
    torch.testing.assert_close(logits(llama, ids[:, :1], cache), wanted, rtol=0, atol=1e-3)
    with pytest.raises(TamisUnsupported, match="some were dropped"):
        cache.crop(-1)


@pytest.mark.parametrize(
    "index", [[[[0, 41]]], [[[-1, 3]]], [[[3, 2]]], [[[1, 1]]], [[0, 1]], [[[0], [1], [2]]]]
)
def test_keep_refuses_what_is_not_there(index):
    k, v = torch.randn(2, 1, 1, 41, 16)
    store = kv.store("full", k, v)
    with pytest.raises(TamisValueError, match="ascending within the 41"):
        store.keep(torch.tensor(index))
    assert store.tokens == 41
    packed = kv.store("kivi4", torch.randn(1, 1, 96, 32), torch.randn(1, 1, 96, 32))
    with pytest.raises(TamisUnsupported, match="64 tokens in another form"):
        packed.keep(torch.tensor([[[0]]]))


@pytest.mark.parametrize("method", ["full", "kivi4", "quest", "h2o"])
def test_a_snapshot_takes_every_layer_back(attached, method):
    cache = cache_of(attached, method)
    logits(attached, prompt(80), cache)
    saved, size = cache.snapshot(), cache.nbytes()
    answers = []
    for question in (prompt(5), prompt(20), prompt(5)):
        answers.append(generate(attached, torch.cat([prompt(80), question], 1), cache))
        cache.restore(saved)
        assert (cache.nbytes(), cache.get_seq_length()) == (size, 80)
    assert torch.equal(answers[0], answers[2])


# Files.


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_cache_goes_on_bit_for_bit(attached, method, tmp_path):
    if recipe_of(method).lowrank and attached.config.model_type != "llama":
        pytest.skip("takes models that rotate all layers alike")
    cache = cache_of(attached, method)
    logits(attached, prompt(80), cache)
    logits(attached, prompt(1), cache)
    cache.save(tmp_path / "cache.safetensors")
    again = cache_of(attached, method)
    again.load(tmp_path / "cache.safetensors")
    assert again.report() == cache.report()
    for n in (1, 3, 1):
        assert torch.equal(logits(attached, prompt(n), again), logits(attached, prompt(n), cache))


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_cache_of_a_padded_batch_goes_on_bit_for_bit(llama, method, tmp_path):
    def answer(n, cache):
        ids, seen = prompt(n, 2), torch.ones(2, cache.get_seq_length() + n, dtype=torch.long)
        seen[1, :37] = 0
        with torch.no_grad():
            return llama(ids, attention_mask=seen, **{cache_argument(llama): cache}).logits

    cache, again = cache_of(llama, method), cache_of(llama, method)
    for n in (80, 1):
        answer(n, cache)
    cache.save(tmp_path / "cache.safetensors")
    again.load(tmp_path / "cache.safetensors")
    assert again.report() == cache.report()
    for n in (1, 3, 1):
        assert torch.equal(answer(n, again), answer(n, cache))


def test_an_empty_cache_is_saved_too(attached, tmp_path):
    kv.Cache(attached.config, "kivi4").save(tmp_path / "cache")
    again = kv.Cache(attached.config, "kivi4")
    logits(attached, prompt(50), again)
    again.load(tmp_path / "cache")
    assert again.get_seq_length() == 0
    logits(attached, prompt(50), again)


@pytest.fixture
def stored(llama, tmp_path):
    """A file, a cache that could load it, and what that cache is before."""
    path = tmp_path / "cache.safetensors"
    cache = kv.Cache(llama.config, "double_sparsity", budget=16, fallback=False)
    logits(llama, prompt(60), cache)
    logits(llama, prompt(1), cache)
    cache.save(path)
    return path, cache


def refused(cache, path, message):
    before = cache.report()
    with pytest.raises(TamisFileError, match=message) as found:
        cache.load(path)
    assert "\n" not in str(found.value)
    assert str(found.value).startswith("kv.Cache.load: ")
    assert cache.report() == before


def test_a_file_with_any_damaged_byte_is_refused(stored, tmp_path):
    path, cache = stored
    data = path.read_bytes()
    bad = tmp_path / "bad"
    places = [0, 8, 9, len(data) - 1, *range(10, len(data), len(data) // 61)]
    for at in places:
        bad.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        refused(cache, bad, "got")
    for size in (0, 7, 200, len(data) // 2, len(data) - 1):
        bad.write_bytes(data[:size])
        refused(cache, bad, "got")
    bad.write_bytes(data + b"x")
    refused(cache, bad, "got")
    refused(cache, tmp_path / "nothing", "no such file")


def resealed(path, change):
    """The file with changed tensors or facts and right checksums, as one with intent would make."""
    from safetensors.torch import load_file, save_file

    from tamis.kv import saved

    header = path.read_bytes()
    size = int.from_bytes(header[:8], "little")
    facts = json.loads(json.loads(header[8 : 8 + size])["__metadata__"][saved.ENTRY])
    tensors = load_file(path)
    change(tensors, facts)
    tensors = {n: x.contiguous() for n, x in tensors.items()}
    facts["crc32"] = {n: saved._crc32(n, x) for n, x in tensors.items()}
    text = json.dumps(facts)
    save_file(
        tensors, path, metadata={saved.ENTRY: text, f"{saved.ENTRY}_crc32": saved._text_crc(text)}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, f: t.pop("0.values"), "values"),
        (lambda t, f: t.update({"0.values": t["0.values"][:, :, 1:]}), "values: got"),
        (lambda t, f: t.update({"0.keys": t["0.keys"].to(torch.uint8)}), "keys: got torch.uint8"),
        (lambda t, f: t.update({"0.keys": t["0.keys"][0]}), "keys: got"),
        (lambda t, f: t.update({"0.other": t["0.keys"].clone()}), "other: got"),
        (lambda t, f: t.update({"0.positions": t["0.keys"][..., 0].int()}), "61 tokens of 61"),
        (lambda t, f: f["layers"][0].update(length=60), "61 tokens of 60"),
        (lambda t, f: f["layers"][0].update(length=-1), "length -1"),
        (lambda t, f: f["layers"][0].update(length="x"), "length 'x'"),
        (lambda t, f: f["layers"].pop(), "layers: got 1, wanted 2"),
        (lambda t, f: f.update(version=9), "version 9"),
        (lambda t, f: f.update(budget=17), "budget: got 17, wanted 16"),
        (lambda t, f: f.pop("method"), "broken facts"),
        (lambda t, f: f.update(layers=[1, 2]), "broken facts"),
    ],
)
def test_a_file_made_with_intent_is_refused(stored, change, message):
    path, cache = stored
    resealed(path, change)
    refused(cache, path, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, f: t["2.select.channels"].fill_(16), "channels: got"),
        (lambda t, f: t["2.select.channels"].fill_(-1), "channels: got"),
        (lambda t, f: t.update({"2.select.channels": t["2.select.channels"][:, :7]}), "channels"),
        (lambda t, f: f["layers"][2].update(labelled=99), "labels: got|99 labels"),
        (lambda t, f: t.update({"2.select.labels": t["2.select.labels"][:, :, 1:]}), "labels: got"),
        (lambda t, f: t.update({"2.select.bounds": t["2.keys"].clone()}), "bounds: got"),
        (lambda t, f: t.pop("2.select.labels"), "61 labels"),
    ],
)
def test_summaries_made_with_intent_are_refused(tmp_path, change, message):
    config = transformers.LlamaConfig(
        vocab_size=257, hidden_size=64, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    path = tmp_path / "cache"
    with kv.attach(model):
        cache = kv.Cache(config, "double_sparsity", budget=16, fallback=False)
        logits(model, prompt(60), cache)
        logits(model, prompt(1), cache)
    cache.save(path)
    cache.load(path)
    resealed(path, change)
    refused(cache, path, message)


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("adakv_snapkv", lambda t, f: t["0.past.end"].fill_(10**6), "ranges within the pool"),
        ("adakv_snapkv", lambda t, f: t["0.past.begin"].fill_(-1), "ranges within the pool"),
        ("adakv_snapkv", lambda t, f: t["0.past.pool_positions"].fill_(999), "ranges within"),
        ("adakv_snapkv", lambda t, f: t.pop("0.past.end"), "past.end: got no such tensor"),
        ("adakv_snapkv", lambda t, f: t.update({"0.past.x": t["0.past.end"].clone()}), "past.x"),
        ("zipcache", lambda t, f: t.pop("0.past.others"), None),
        (
            "zipcache",
            lambda t, f: t.update({"0.past.important": t["0.past.others"][..., 1:]}),
            "import",
        ),
        ("zipcache", lambda t, f: f["layers"][0].update(length=3), "at most 3 tokens"),
        ("full", lambda t, f: t.update({"0.past.others": t["0.keys"].clone()}), "others"),
    ],
)
def test_a_past_made_with_intent_is_refused(llama, tmp_path, method, change, message):
    path = tmp_path / "cache"
    cache = cache_of(llama, method)
    logits(llama, prompt(200), cache)
    cache.save(path)
    resealed(path, change)
    if message is not None:
        refused(cache, path, message)
    else:  # one class less is a cache too
        cache.load(path)
        logits(llama, prompt(1), cache)


def test_a_file_of_another_cache_is_refused(stored, llama, models, tmp_path):
    path, cache = stored
    refused(kv.Cache(llama.config, "quest", budget=16), path, "method: got")
    refused(kv.Cache(llama.config, "double_sparsity"), path, "budget: got 16, wanted None")
    gemma = models["gemma3"].config
    refused(kv.Cache(gemma, "double_sparsity", budget=16), path, "layers: got 2, wanted 4")
    other = transformers.AutoModelForCausalLM.from_config(llama.config)
    cache.load(path)
    with kv.attach(other), pytest.raises(TamisError, match="made with another model"):
        logits(other, prompt(1), cache)
    assert cache.get_seq_length() == 61
    wide = transformers.LlamaConfig(**{**llama.config.to_dict(), "head_dim": 32})
    refused(kv.Cache(wide, "double_sparsity", budget=16), path, "2 KV heads of 16 channels")
    with pytest.raises(TamisFileError, match="what was there is unchanged"):
        cache.save(tmp_path / "no" / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["cache.safetensors"]

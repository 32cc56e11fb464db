"""Short contexts: read whole, or by torch's SDPA, where that is measured faster; and said so."""

import json

import pytest
import torch
from references import attention

transformers = pytest.importorskip("transformers")

from tamis import _info, cli, kv  # noqa: E402
from tamis.kv import limits as of_machine  # noqa: E402
from tamis.kv.limits import BUILT_IN, Limits  # noqa: E402
from tamis.kv.methods import recipe_of  # noqa: E402
from tamis.ops import machine  # noqa: E402

LIMITS = Limits(sdpa_f32=100, sdpa_16=40, choose_bytes=2 * 2 * 64 * 4 * 150)  # 150 tokens left out
ALL, CHOSEN, SDPA, FEW = (
    "all tokens held",
    "chosen tokens",
    "by torch's SDPA: measured faster below",
    "choosing is measured faster from",
)


def store_of(method, tokens, *, budget=None, limits=LIMITS, dtype=torch.float32, layer=2):
    torch.manual_seed(tokens)
    k, v = torch.randn(2, 1, 2, tokens, 64).to(dtype)
    q = torch.randn(1, 6, 1, 64).to(dtype)
    store = kv.KvStore(recipe_of(method), budget=budget, layer=layer, limits=limits)
    store.append(k, v)
    store.settle(q)
    assert store.read == ""
    return store, q, k, v


@pytest.mark.parametrize(
    ("method", "tokens", "budget", "dtype", "read"),
    [
        ("full", 99, None, torch.float32, f"{SDPA} 100"),
        ("full", 100, None, torch.float32, ALL),
        ("full", 39, None, torch.bfloat16, f"{SDPA} 40"),
        ("full", 40, None, torch.bfloat16, ALL),
        ("kivi4", 40, None, torch.float32, SDPA),  # nothing packed yet
        ("kivi4", 90, None, torch.float32, ALL),
        ("quest", 90, 16, torch.float32, SDPA),
        ("quest", 120, 16, torch.float32, FEW),
        ("quest", 192, 16, torch.float32, CHOSEN),
        ("double_sparsity", 165, 16, torch.float32, FEW),
        ("double_sparsity", 166, 16, torch.float32, CHOSEN),
        ("alisa", 120, 40, torch.float32, FEW),
    ],
)
def test_what_is_faster_is_read_and_named(method, tokens, budget, dtype, read):
    store, q, k, v = store_of(method, tokens, budget=budget, dtype=dtype)
    out = store.attend(q)
    assert read in store.read
    if read == ALL:
        assert store.read == ALL
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    if read != CHOSEN and not store.paged_tokens:
        wanted = attention(q, k, v)[0]
        torch.testing.assert_close(out.double(), wanted, rtol=0, atol=tolerance)
    else:
        assert torch.equal(out, store_of(method, tokens, budget=budget, limits=None)[0].attend(q))


@pytest.mark.parametrize("method", ["quest", "double_sparsity", "alisa"])
def test_growing_past_the_limit_is_choosing_from_the_start(method):
    """Summaries that were not needed so far are made when they are."""
    budget = 32
    one, q, k, v = store_of(method, 150, budget=budget)
    other = store_of(method, 150, budget=budget, limits=None)[0]
    for t in range(60):
        for store in (one, other):
            store.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
            found = store.attend(q)
            store.settle(q)
        assert (CHOSEN in one.read) == (151 + t - budget >= 150), t
    if method != "alisa":  # whose window saw other tokens meanwhile
        assert torch.equal(found, one.attend(q))
    assert one.read == CHOSEN


def test_padding_softcap_and_several_queries_are_ours():
    store, q, k, v = store_of("full", 60)
    for n, options in ((1, {"softcap": 5.0}), (1, {"pad": torch.tensor([3])}), (2, {})):
        out = store.attend(q.expand(-1, -1, n, -1), **options)
        assert store.read == ALL
        first, cap = int(options.get("pad", 0)), options.get("softcap", 0.0)
        wanted = attention(q, k[:, :, first:], v[:, :, first:], softcap=cap)[0]
        torch.testing.assert_close(out[:, :, :1].double(), wanted, rtol=0, atol=1e-4)


def test_a_cache_explains_itself(tiny_model, folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    ids = torch.arange(1, 61).view(1, -1)
    with kv.attach(model), torch.no_grad():
        cache, plain = (kv.Cache(model.config, "full", fallback=x) for x in (True, False))
        assert cache.explain() == {}
        for each in (cache, plain):
            model(ids, cache=each)
        both = [model(ids[:, :1], cache=each).logits for each in (cache, plain)]
        torch.testing.assert_close(*both, rtol=1e-4, atol=1e-4)
        below = of_machine.limits().sdpa_f32
        assert list(cache.explain().values()) == [[0, 1]]
        assert list(cache.explain())[0].endswith(f"{SDPA} {below} tokens")
        assert plain.explain() == {ALL: [0, 1]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    of_machine.limits.cache_clear()
    yield tmp_path
    of_machine.limits.cache_clear()


def test_measured_limits_are_used_and_damaged_ones_passed_over(folder):
    assert of_machine.limits() == BUILT_IN
    mine = {"sdpa_f32": 7, "sdpa_16": 8, "choose_bytes": 9}
    for stored, wanted in (
        ({"key": machine.key(), "kv": mine}, Limits(**mine)),
        ({"key": {"cpu": "another"}, "kv": mine}, BUILT_IN),
        ({"key": machine.key(), "kv": {**mine, "sdpa_16": -1}}, BUILT_IN),
        ({"key": machine.key(), "kv": {**mine, "sdpa_16": "1"}}, BUILT_IN),
        ({"key": machine.key(), "kv": {"sdpa_16": 1}}, BUILT_IN),
        ({"key": machine.key()}, BUILT_IN),
        ([], BUILT_IN),
    ):
        machine.write(machine.file(), json.dumps(stored))
        of_machine.limits.cache_clear()
        assert of_machine.limits() == wanted
    machine.write(machine.file(), json.dumps({"key": machine.key(), "kv": mine}))
    of_machine.limits.cache_clear()
    assert "below 7 tokens in f32, 8 in 16 bits" in str(_info.info())


def test_measuring_keeps_limits_beside_the_other_figures(folder, monkeypatch):
    """Both ways run; who is faster is given: of 64 tokens SDPA and reading all, of 4096 the others."""
    asked = []

    def fastest(calls):
        shapes = {tuple(call().shape) for call in calls}
        assert len(calls) == 2
        assert len(shapes) == 1
        asked.append(calls[0].func.__self__.tokens)
        return [2.0, 1.0] if asked[-1] == 64 else [1.0, 1.0]

    monkeypatch.setattr(of_machine, "_TOKENS", (64, 4096))
    monkeypatch.setattr(of_machine, "_fastest", fastest)
    machine.write(machine.file(), json.dumps({"key": machine.key(), "figures": {"a": 1}}))
    found = of_machine.measure()
    assert found == of_machine.limits()
    assert found == Limits(sdpa_f32=65, sdpa_16=65, choose_bytes=(64 - 16) * 2 * 8 * 128 * 4)
    assert asked == 8 * [64, 4096]  # two dtypes and two methods, two shapes each
    assert json.loads(machine.file().read_text())["figures"] == {"a": 1}


def test_where_sdpa_is_faster_at_every_length_it_stays_so(folder, monkeypatch):
    monkeypatch.setattr(of_machine, "_TOKENS", (64,))
    monkeypatch.setattr(of_machine, "_fastest", lambda calls: [2.0, 1.0])
    machine.write(machine.file(), json.dumps({"key": machine.key(), "figures": {}}))
    assert of_machine.measure().sdpa_f32 == 128


def test_info_measures_them(folder, monkeypatch, capsys):
    def measured(say):
        machine.write(machine.file(), json.dumps({"key": machine.key(), "figures": {}}))

    monkeypatch.setattr(machine, "measure", measured)
    monkeypatch.setattr(of_machine, "_TOKENS", (64,))
    assert cli.main(["info", "--measure"]) == 0
    assert "KV caches" in capsys.readouterr().out
    assert "kv" in json.loads(machine.file().read_text())

"""Bad input to KV stores and caches, plans and activation sparsity: one sentence, nothing changed."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from sentences import refuses  # noqa: E402

from tamis import activation, kv  # noqa: E402
from tamis.errors import TamisFileError, TamisTypeError, TamisValueError  # noqa: E402


def keys_and_values(tokens: int = 96) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(1, 2, tokens, 64), torch.randn(1, 2, tokens, 64), torch.randn(1, 6, 1, 64)


@pytest.mark.parametrize("method", ["full", "kivi4"])
def test_keys_and_values_that_do_not_belong_together(method):
    k, v, q = keys_and_values()
    pairs = [(k, v[:, :, :-1]), (k, v[:, :1]), (k, v.bfloat16()), (k[0], v[0]), (None, v)]
    pairs += [(k.numpy(), v), (k, torch.cat([v, v]))]
    for pair in pairs:
        refuses(lambda p=pair: kv.store(method, *p), TamisValueError, "kv.store: k, v: got")
    store = kv.store(method, k, v)
    wanted = store.attend(q)
    others = [(k[..., :1], v[..., :1]), (k[:, :1], v[:, :1]), (k.bfloat16(), v.bfloat16())]
    others += [(torch.cat([k, k]), torch.cat([v, v])), (k, v[:, :, :3])]
    for pair in others:
        refuses(lambda p=pair: store.append(*p), TamisValueError, "KvStore.append")
    assert store.length == 96
    assert torch.equal(store.attend(q), wanted)
    for bad in (None, q[0]):
        refuses(lambda q=bad: store.attend(q), TamisValueError, "KvStore.attend: q: got")


def test_budgets_snapshots_and_kept_tokens():
    k, v, _ = keys_and_values()
    for budget in ("a", True, 40.0):
        refuses(lambda b=budget: kv.store("h2o", k, v, budget=b), TamisValueError, "whole number")
    four, two = kv.store("kivi4", k, v), kv.store("kivi2", k, v)
    for state in (four.snapshot(), None, {}):
        refuses(lambda s=state: two.restore(s), TamisValueError, "KvStore.restore")
    full = kv.KvStore("full")
    full.append(k, v)
    for index in ([1], torch.zeros(1, 2, 3)):
        refuses(lambda i=index: full.keep(i), TamisValueError, "KvStore.keep: index")


def test_caches_plans_and_activations(tmp_path, tiny_model):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = list(range(60))
    cases = [({"budget": "a"}, "budget"), ({"plan": "x"}, "plan"), ({"tiers": "x"}, "tiers")]
    for options, word in cases:
        refuses(
            lambda o=options: kv.Cache(model.config, "double_sparsity", **o), TamisValueError, word
        )
    refuses(lambda: kv.Tiers(tmp_path, memory="64MB"), TamisValueError, "kv.Tiers: memory")
    refuses(lambda: kv.Together(model.config, [1]), TamisValueError, "kv.Together: caches")
    refuses(lambda: kv.calibrate(model, [ids], energy=0.9), TamisValueError, "energy")
    plan = kv.calibrate(model, [ids])  # ids as a list
    missing = tmp_path / "no" / "plan.json"
    refuses(lambda: plan.save(missing), TamisFileError, "kv.Plan.save: path")
    refuses(
        lambda: activation.calibrate(None, "teal", sparsity=0.5, data=[ids]),
        TamisTypeError,
        "activation.calibrate: model",
    )
    made = activation.calibrate(model, "teal", sparsity=0.5, data=[ids])
    refuses(lambda: made.save(missing), TamisFileError, "activation.Plan.save: path")
    refuses(lambda: activation.attach(model, None), TamisTypeError, "activation.attach")
    refuses(lambda: activation.attach(None, made), TamisTypeError, "activation.attach")


def test_float64_is_refused_before_anything_is_held(tiny_model):
    from transformers import AutoModelForCausalLM

    k, v, _ = keys_and_values()
    refuses(lambda: kv.store("full", k.double(), v.double()), TamisTypeError, "kv.store: k, v: got")
    model = AutoModelForCausalLM.from_pretrained(tiny_model).double()
    cache = kv.Cache(model.config, "full")
    with kv.attach(model):
        refuses(
            lambda: model(torch.tensor([[1, 2, 3]]), cache=cache),
            TamisTypeError,
            "got torch.float64, wanted float32, float16 or bfloat16",
        )
    assert cache.get_seq_length() == 0


def test_budgets_of_numpy_and_methods_that_are_none(tmp_path, tiny_model):
    import numpy as np
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tiny_model)
    cache = kv.Cache(config, "h2o", budget=np.int64(64))
    assert type(cache.budget) is type(cache.stores[0].budget) is int
    cache.save(tmp_path / "cache")
    refuses(lambda: kv.Cache("kivi4", config), TamisValueError, "got LlamaConfig, wanted one of")

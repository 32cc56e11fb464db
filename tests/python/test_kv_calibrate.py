"""Plans: what calibration finds, how it is saved, whom it fits; and the search for windows."""

import itertools
import json

import pytest
import torch

transformers = pytest.importorskip("transformers")

from tamis import kv  # noqa: E402
from tamis.errors import (  # noqa: E402
    TamisError,
    TamisFileError,
    TamisTypeError,
    TamisUnsupported,
    TamisValueError,
)
from tamis.kv.calibration import profile_influence  # noqa: E402
from tamis.kv.rope import frequencies  # noqa: E402
from tamis.policy import kv_lowrank, kv_spans  # noqa: E402

SPANS = {"block": 16, "lengths": (64, 128)}


def tiny(seed=3, **options):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2} | options
    config = transformers.LlamaConfig(
        vocab_size=257, num_attention_heads=4, num_key_value_heads=2, **sizes
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for p in model.parameters():
        p.data *= 3
    return model


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 250, (2, 128), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def plans(model, ids):
    texts = [ids[:1], ids[1]]
    return {
        kind: kv.calibrate(model, texts, kind, **(SPANS if kind == "spans" else {}))
        for kind in ("channels", "ranks", "spans")
    }


def test_plans_come_back_from_their_files(plans, tmp_path):
    for kind, plan in plans.items():
        assert plan.kind == kind
        assert sorted(plan.layers) == [0, 1]
        plan.save(tmp_path / "plan.json")
        assert kv.Plan.load(tmp_path / "plan.json") == plan


def test_channels_are_ranked_by_what_they_carry(plans):
    for layer in plans["channels"].layers.values():
        assert [sorted(head) for head in layer.data] == [list(range(16))] * 2


def test_a_plan_chooses_the_channels(model, ids, plans):
    with kv.attach(model), torch.no_grad():
        options = {"budget": 16, "plan": plans["channels"], "fallback": False}
        cache = kv.Cache(model.config, "double_sparsity", **options)
        model(ids[:1], cache=cache)
        model(ids[:1, :1], cache=cache)
        for i, store in enumerate(cache.stores):
            selection = store.selection
            if selection is not None:
                wanted = [sorted(head[:8]) for head in plans["channels"].layers[i].data]
                assert selection.channels.tolist() == wanted


def test_ranks_hold_the_energy(model, ids, plans):
    loose = kv.calibrate(model, [ids], "ranks", energy=0.5)
    for i in (0, 1):
        assert 8 <= loose.layers[i].data <= plans["ranks"].layers[i].data <= 32


def test_rotation_is_the_model_s_and_has_an_inverse(model):
    rotary = model.model.rotary_emb
    torch.testing.assert_close(frequencies(model.config), rotary.inv_freq)
    x, places = torch.randn(1, 2, 40, 16), torch.arange(40)
    cos, sin = rotary(x, places.unsqueeze(0))
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    wanted = apply_rotary_pos_emb(x, x, cos, sin)[1]
    turned = kv_lowrank.rotate(x, places, rotary.inv_freq)
    torch.testing.assert_close(turned, wanted, rtol=0, atol=1e-5)
    back = kv_lowrank.rotate(turned, places, rotary.inv_freq, back=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)


def test_hybrid_models_turn_their_full_layers_otherwise():
    kinds = ["sliding_attention", "full_attention"]
    config = transformers.Gemma3TextConfig(
        vocab_size=257,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        layer_types=kinds,
    )
    rotary = transformers.Gemma3ForCausalLM(config).model.rotary_emb
    torch.testing.assert_close(frequencies(config), rotary.full_attention_inv_freq)
    scaled = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
    config.rope_parameters = config.rope_parameters | {"full_attention": scaled}
    rotary = transformers.Gemma3ForCausalLM(config).model.rotary_emb
    torch.testing.assert_close(frequencies(config), rotary.full_attention_inv_freq)


def test_generates_within_calibrated_windows(model, ids, plans):
    plan = plans["spans"]
    with kv.attach(model), torch.no_grad():
        cache = kv.Cache(model.config, "moa", plan=plan)
        model(ids[:1], cache=cache)
        for i, store in enumerate(cache.stores):
            for head, (alpha, beta) in enumerate(plan.layers[i].data):
                # the query to come is in block 8; its window ends with that block, still empty
                window = max(1, int((alpha + beta * 144) // 16))
                wanted = min(128, 16 + (window - 1) * 16)
                assert int(store.past.lengths[0, head]) == wanted
        for t in range(20):
            model(ids[:1, t : t + 1], cache=cache)
        assert cache.get_seq_length() == 148


def one_sentence(call, error, match):
    with pytest.raises(error, match=match) as found:
        call()
    assert isinstance(found.value, TamisError)
    assert "\n" not in str(found.value)


def test_a_plan_for_another_model_is_refused(ids, model, plans):
    other = tiny(seed=9)
    with kv.attach(other), torch.no_grad():
        cache = kv.Cache(other.config, "moa", plan=plans["spans"])
        one_sentence(
            lambda: other(ids[:1], cache=cache),
            TamisValueError,
            "plan: got one made with",
        )
        assert cache.get_seq_length() == 0
    deep = tiny(num_hidden_layers=3)
    one_sentence(
        lambda: kv.Cache(deep.config, "moa", plan=plans["spans"]),
        TamisValueError,
        "without layer 2",
    )


def test_bad_plans_are_one_sentence(model, ids, plans, tmp_path):
    config = model.config
    one_sentence(lambda: kv.Cache(config, "moa"), TamisValueError, "plan: got none, wanted one of")
    one_sentence(
        lambda: kv.Cache(config, "moa", plan=plans["ranks"]), TamisValueError, "wanted 'spans'"
    )
    one_sentence(
        lambda: kv.Cache(config, "kivi4", plan=plans["ranks"]), TamisValueError, "wanted none"
    )
    path = tmp_path / "plan.json"
    one_sentence(lambda: kv.Plan.load(path), TamisFileError, "cannot be read")
    plans["spans"].save(path)
    whole = path.read_text()
    damaged = json.loads(whole)
    damaged["layers"]["0"]["data"] = [[1.0]]
    for text in (whole[:-20], "[]", json.dumps(damaged), whole.replace("spans", "nothing")):
        path.write_text(text)
        one_sentence(lambda: kv.Plan.load(path), TamisFileError, "no whole plan")
    one_sentence(
        lambda: kv.calibrate(model, [ids], "heads"), TamisValueError, "wanted one of channels"
    )
    one_sentence(lambda: kv.calibrate(model, []), TamisValueError, "at least one text")
    one_sentence(lambda: kv.calibrate(model, "words"), TamisValueError, "without a tokenizer")
    one_sentence(lambda: kv.calibrate(model, [3.5]), TamisTypeError, "wanted strings or")
    one_sentence(
        lambda: kv.calibrate(model, [ids[:, :50]], "spans", **SPANS),
        TamisValueError,
        "of 64 tokens",
    )
    one_sentence(
        lambda: kv.calibrate(model, [ids], "spans", lengths=(50,)),
        TamisValueError,
        "multiples of 64",
    )
    one_sentence(
        lambda: kv.calibrate(torch.nn.Linear(2, 2), [ids]),
        TamisUnsupported,
        "does not take attention",
    )


# Influence and the search.


def test_influence_is_the_change_of_loss():
    """Masks one pair of tokens, brings its row to sum 1 again and looks at a loss: within 5 %."""
    torch.manual_seed(2)
    n, d = 12, 8
    q, k, v = (0.3 * torch.randn(1, 1, n, d, dtype=torch.float64) for _ in range(3))
    aim = torch.randn(1, 1, n, d, dtype=torch.float64)
    scores = (q @ k.transpose(-1, -2)).masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)

    def loss(scores):  # linear in the output, so that first order is all there is
        return ((scores.softmax(-1) @ v) * aim).sum()

    found = kv_spans.influence(q, k, v, aim, scale=1.0, block=1)[0]
    for i, j in ((3, 1), (7, 7), (11, 0), (5, 2)):
        masked = scores.clone()
        masked[0, 0, i, j] = -torch.inf
        change = float((loss(masked) - loss(scores)).abs())
        assert float(found[i, j]) == pytest.approx(change, rel=0.05, abs=1e-5)
    blocks = kv_spans.influence(q, k, v, aim, scale=1.0, block=4)[0]
    torch.testing.assert_close(blocks, found.view(3, 4, 3, 4).sum((1, 3)), rtol=1e-4, atol=1e-6)


def test_profiles_leave_the_model_as_it_was(model, ids):
    before = [p.clone() for p in model.parameters()]
    found = profile_influence(model, [ids[:1]], 16)
    assert sorted(found) == [0, 1]
    assert all(x.shape == (2, 8, 8) and bool((x >= 0).all()) for x in found.values())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.config._attn_implementation == "sdpa"


def random_influence(layers=2, g=3):
    made = torch.Generator().manual_seed(4)
    return {
        n: {
            i: torch.rand(g, n // 16, n // 16, generator=made).tril()
            * torch.rand(g, 1, 1, generator=made)
            for i in range(layers)
        }
        for n in (64, 128)
    }


@pytest.mark.parametrize("density", [0.5, 0.6, 0.8])
@pytest.mark.parametrize("solver", ["milp", "multiplier"])
def test_windows_obey_the_bound(density, solver, monkeypatch):
    if solver == "multiplier":
        monkeypatch.setattr(kv_spans, "_by_milp", lambda *given: None)
    else:
        pytest.importorskip("scipy")
    spans = kv_spans.search_spans(random_influence(), block=16, sink=1, density=density)
    for n in (64, 128):
        used = [
            min(1.0, (int((alpha + beta * n) // 16) + 1) * 16 / n)
            for layer in spans.values()
            for alpha, beta in layer
        ]
        assert sum(used) / len(used) <= density + 1e-9
    for layer in spans.values():
        assert len({tuple(head) for head in layer}) <= 2


def test_an_impossible_bound_is_refused():
    one_sentence(
        lambda: kv_spans.search_spans(random_influence(), block=16, sink=1, density=0.3),
        TamisValueError,
        "density: got 0.3, wanted 0.5",
    )


def test_the_program_is_exact():
    """Two layers of two heads: as good as every choice tried."""
    pytest.importorskip("scipy")
    made = torch.Generator().manual_seed(6)
    loss = torch.rand(2, 2, 5, generator=made, dtype=torch.float64)
    loss = loss.sort(-1, descending=True).values
    cost = torch.tensor([[0.1, 0.3, 0.5, 0.7, 0.9], [0.2, 0.2, 0.4, 0.8, 1.0]], dtype=torch.float64)
    chosen = kv_spans._by_milp(loss, cost, 0.5)
    heads = loss.view(4, 5)
    best = min(
        sum(float(heads[i, r]) for i, r in enumerate(rules))
        for rules in itertools.product(range(5), repeat=4)
        if all(float(row[list(rules)].mean()) <= 0.5 + 1e-9 for row in cost)
    )
    got = float(heads.gather(1, chosen.view(4, 1)).sum())
    assert got == pytest.approx(best, rel=0.006)
    other = kv_spans._by_multiplier(loss, cost, 0.5)
    assert float(heads.gather(1, other.view(4, 1)).sum()) >= got - 1e-9


def test_one_layer_takes_its_part_of_a_plan(plans):
    k, v = torch.randn(2, 1, 2, 200, 16)
    store = kv.store("moa", k, v, plan=plans["spans"].of_layer(1))
    assert store.tokens < 200
    q = torch.randn(1, 4, 1, 16)
    assert store.attend(q).shape == q.shape
    plain = kv.store("double_sparsity", k, v, budget=64, plan=plans["channels"].of_layer(0))
    assert plain.attend(q).shape == q.shape
    for wrong, message in [
        (lambda: kv.store("moa", k, v), "plan: got none, wanted one of kind 'spans'"),
        (lambda: kv.store("moa", k, v, plan=plans["spans"]), r"pass plan\.of_layer\(i\)"),
        (
            lambda: kv.store("moa", *k.new_ones(2, 1, 3, 200, 16), plan=plans["spans"].of_layer(0)),
            "got one of 2 KV heads, wanted the 3 of the keys",
        ),
        (
            lambda: kv.store("moa", k, v, budget=64, plan=plans["spans"].of_layer(0)),
            "wanted none: this method goes by its pattern or plan",
        ),
    ]:
        one_sentence(wrong, TamisValueError, message)


def test_lengths_that_texts_do_not_reach_say_where_they_were_cut(model):
    long = torch.randint(1, 250, (1, 700))
    message = "got none of 640 tokens once cut to max_length=512"
    one_sentence(
        lambda: kv.calibrate(model, [long], "spans", lengths=(320, 640)), TamisValueError, message
    )
    message = "density: got 0.2, .*longer lengths= allow less"
    one_sentence(
        lambda: kv.calibrate(model, [long], "spans", density=0.2), TamisValueError, message
    )


def test_sliding_layers_take_no_share_of_the_density(ids):
    config = transformers.Gemma3TextConfig(
        vocab_size=257,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    )
    gemma = transformers.AutoModelForCausalLM.from_config(config).eval()
    plan = kv.calibrate(gemma, [ids[:1]], "spans", **SPANS)
    assert sorted(plan.layers) == [1]
    with kv.attach(gemma), torch.no_grad():
        gemma(ids[:1], cache=kv.Cache(config, "moa", plan=plan))

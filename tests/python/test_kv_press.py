"""Scorers written for kvpress evict from our caches, which then hold what is left."""

from dataclasses import dataclass

import pytest
import torch

transformers = pytest.importorskip("transformers")

from tamis import kv  # noqa: E402
from tamis.errors import TamisTypeError, TamisUnsupported, TamisValueError  # noqa: E402


@dataclass
class Scorer:
    """The shape of a kvpress ScorerPress."""

    compression_ratio: float = 0.0
    seen = None

    def post_init_from_model(self, model):
        self.model = model

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        self.seen = (module.layer_idx, hidden_states.shape, values.shape, attentions, set(kwargs))
        return -keys.norm(dim=-1)


@pytest.fixture(scope="module")
def model(tiny_model):
    torch.manual_seed(3)
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_model).eval()


def prompt(n, b=1):
    return torch.randint(1, 250, (b, n), generator=torch.Generator().manual_seed(n + b))


def generate(model, ids, cache, **options):
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None} | options
    mask = options.pop("attention_mask", torch.ones_like(ids))
    return model.generate(ids, attention_mask=mask, cache=cache, **options)


def test_a_share_of_the_prompt_leaves(model):
    scorer = Scorer(0.6)
    ids = prompt(81)
    with kv.press(model, scorer):
        cache = kv.Cache(model.config, "full")
        generate(model, ids, cache)
    report = cache.report()
    assert report["held"] == [int(81 * 0.4) + 5] * 2
    assert report["tokens"] == 86
    assert report["bytes"]["keys"] == 2 * 2 * 37 * 16 * 4
    layer, hidden, values, weights, names = scorer.seen
    assert (layer, hidden, values, weights) == (1, (1, 81, 64), (1, 2, 81, 16), None)
    assert scorer.model is model
    assert "position_embeddings" in names
    size = cache.nbytes()
    assert model.config._attn_implementation == "sdpa"
    with kv.attach(model):  # the hooks are gone
        again = kv.Cache(model.config, "full")
        generate(model, ids, again)
    assert again.report()["held"] == [86, 86]
    assert cache.nbytes() == size


def test_a_scorer_keeps_what_our_own_method_keeps(model):
    ids = prompt(90)
    with kv.press(model, Scorer(), budget=40):
        theirs = kv.Cache(model.config, "full")
        with torch.no_grad():
            model(ids, cache=theirs)
    with kv.attach(model), torch.no_grad():
        ours = kv.Cache(model.config, "key_norm", budget=40)
        model(ids, cache=ours)
    for a, b in zip(theirs.stores, ours.stores, strict=True):
        kept = [set(s.rows["positions"].view[0, 0].tolist()) for s in (a, b)]
        assert len(kept[0] - kept[1]) <= 1  # ours always keeps the latest


def test_a_budget_holds_over_turns_and_padding(model):
    ids, mask = prompt(60, b=2), torch.ones(2, 60, dtype=torch.long)
    mask[0, :45] = 0
    with kv.press(model, Scorer(0.9), budget=30), torch.no_grad():
        cache = kv.Cache(model.config, "quest", budget=16)
        model(ids, cache=cache, attention_mask=mask)
        assert cache.report()["held"] == [30, 30]
        real = (cache.stores[0].rows["positions"].view[0] >= 45).sum(-1)
        assert real.tolist() == [15, 15]  # padding leaves first
        mask = torch.cat([mask, torch.ones(2, 8, dtype=torch.long)], 1)
        model(prompt(8, 2), cache=cache, attention_mask=mask)
    assert cache.report()["held"] == [30, 30]


def test_a_ratio_of_nothing_changes_no_token(model):
    ids = prompt(50)
    wanted = generate(model, ids, transformers.DynamicCache(config=model.config))
    with kv.press(model, Scorer(0.0)):
        assert torch.equal(generate(model, ids, kv.Cache(model.config, "full")), wanted)


def test_bad_scorers_get_one_sentence(model):
    with pytest.raises(TamisTypeError, match="without score"):
        kv.press(model, object())
    for share in (1.0, -0.1, None):
        with pytest.raises(TamisValueError, match="wanted 0 up to but not 1"):
            kv.press(model, Scorer(share))
    with pytest.raises(TamisValueError, match="budget: got 0"):
        kv.press(model, Scorer(0.5), budget=0)
    assert model.config._attn_implementation == "sdpa"

    class Observed(Scorer):
        def score(self, module, hidden_states, keys, values, attentions, kwargs):
            return attentions.sum(2)

    class Wrong(Scorer):
        def score(self, *_):
            return torch.zeros(3)

    for scorer, method, kind, message in (
        (Observed(0.5), "full", TamisUnsupported, "attention weights are never formed"),
        (Wrong(0.5), "full", TamisValueError, r"got scores of shape \[3\], wanted \[1, 2, 96\]"),
        (Scorer(0.5), "kivi4", TamisUnsupported, "one that quantizes"),
    ):
        cache = kv.Cache(model.config, method)
        with kv.press(model, scorer), torch.no_grad(), pytest.raises(kind, match=message) as found:
            model(prompt(96), cache=cache)
        assert "\n" not in str(found.value)
        assert cache.stores[0].length == 96
        assert cache.stores[0].tokens == 96

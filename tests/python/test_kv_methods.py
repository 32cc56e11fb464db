"""KV methods are data with their paper; their policies obey their laws."""

import ast
import inspect
from importlib import import_module

import pytest
import torch

import tamis
from tamis.errors import TamisValueError
from tamis.kv.methods import recipe_of
from tamis.policy import kv_budget, kv_estimate, kv_score
from tamis.policy.kv_recipe import KvContext, KvRecipe

NAMES = tamis.method.names("kv")


@pytest.mark.parametrize("name", NAMES)
def test_method_is_data_with_its_paper(name):
    module = import_module(f"tamis.method.kv.{name}")
    source = inspect.getsource(module)
    assert "Paper:" in module.__doc__
    assert "Differs:" in module.__doc__
    assert len(source.splitlines()) <= 60
    code = {type(node) for node in ast.walk(ast.parse(source))}
    assert not code & {ast.FunctionDef, ast.Lambda, ast.ClassDef, ast.For, ast.While}
    assert isinstance(module.RECIPE, KvRecipe)


def test_methods_differ():
    recipes = [recipe_of(name) for name in NAMES]
    assert len(set(recipes)) == len(recipes) >= 11


def test_who_looks_at_queries():
    aware = {n for n in NAMES if recipe_of(n).query_aware}
    classed = {n for n in NAMES if recipe_of(n).classes}
    assert aware - classed == {"adakv_snapkv", "ems", "h2o", "snapkv", "tova"}
    assert classed == {"zipcache", "zipvl", "zipvl_evict", "zipvl_sparse"}


def test_attention_mass_is_the_column_sum():
    q, k = torch.randn(2, 6, 100, 16), torch.randn(2, 3, 130, 16)
    visible = torch.ones(2, 3, 130, dtype=torch.bool)
    visible[1, :, :9] = False
    mass = kv_score.attention_mass(q, k, 0.25, visible)
    scores = q.double() @ k.double().repeat_interleave(2, 1).transpose(-1, -2) * 0.25
    causal = torch.ones(100, 130, dtype=torch.bool).tril(30)
    hidden = ~(causal & visible.repeat_interleave(2, 1).unsqueeze(2))
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    wanted = weights.sum(2).view(2, 3, 2, 130).mean(2)
    torch.testing.assert_close(mass.double(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mass.sum(-1), torch.full((2, 3), 100.0))


def test_scores_rank_as_their_papers_say():
    keys = torch.randn(1, 2, 30, 16)
    positions = torch.arange(30).expand(1, 2, 30)
    mass = torch.zeros(1, 2, 30)
    mass[..., 10] = 1
    context = KvContext(keys, positions, mass)
    assert kv_score.recency(context).argmax(-1).unique().tolist() == [29]
    assert torch.equal(kv_score.key_norm(context).argmax(-1), keys.norm(dim=-1).argmin(-1))
    assert kv_score.attention(context).argmax(-1).unique().tolist() == [10]
    pooled = kv_score.PooledAttention(5)(context)
    assert (pooled[0, 0] > 0).nonzero().flatten().tolist() == [8, 9, 10, 11, 12]
    with pytest.raises(TamisValueError, match="set queries of Evict"):
        kv_score.attention(KvContext(keys, positions))


def test_top_tokens_keeps_sinks_and_recent_and_drops_padding_first():
    score = torch.randn(2, 3, 40)
    first = torch.tensor([0, 10])
    kept = kv_budget.top_tokens(score, 12, sink=2, recent=3, first=first)
    assert kept.shape == (2, 3, 12)
    assert bool((kept.diff(dim=-1) > 0).all())
    for b in range(2):
        for head in kept[b]:
            chosen = set(head.tolist())
            assert {int(first[b]), int(first[b]) + 1, 37, 38, 39} <= chosen
            assert min(chosen) >= int(first[b])
    plain = kv_budget.top_tokens(score, 5)
    assert torch.equal(plain, score.topk(5).indices.sort(-1).values)
    assert kv_budget.top_tokens(score, 99).shape[-1] == 40


def test_page_bound_is_above_every_score_of_the_page():
    q, k = torch.randn(1, 4, 1, 16), torch.randn(1, 2, 48, 16)
    pages = k.view(1, 2, 3, 16, 16)
    bound = kv_estimate.page_bound(q, pages.amin(3), pages.amax(3))
    scores = (q.view(1, 2, 2, 16) @ k.transpose(-1, -2)).amax(2).view(1, 2, 3, 16)
    assert bool((bound.unsqueeze(-1) >= scores - 1e-5).all())
    single = kv_estimate.page_bound(q, k, k)  # pages of one token: the score itself
    torch.testing.assert_close(single, scores.flatten(2))


def test_labels_of_all_channels_are_the_weights():
    q, k = torch.randn(1, 4, 1, 16), torch.randn(1, 2, 48, 16)
    channels = torch.arange(16).expand(2, 16)
    wanted = (0.25 * q.view(1, 2, 2, 16) @ k.transpose(-1, -2)).softmax(-1).amax(2)
    torch.testing.assert_close(kv_estimate.label_weights(q, k, channels, 0.25), wanted)


def test_heavy_channels_are_those_that_carry_the_product():
    q, k = 0.1 * torch.randn(1, 4, 50, 16), torch.randn(1, 2, 50, 16)
    q[:, :2, :, 3] = q[:, 2:, :, 7] = 9
    found = kv_estimate.heavy_channels(q, k, 1)
    assert found.tolist() == [[3], [7]]

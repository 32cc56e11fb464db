"""KV methods against their golden files, made by an independent NumPy transcription."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tamis import kv
from tamis.kv import classes
from tamis.kv.methods import recipe_of
from tamis.kv.plan import LayerPlan
from tamis.policy.kv_layout import LocalStride

GOLDEN = Path(__file__).parents[1] / "golden"


def golden_of(name):
    with np.load(GOLDEN / f"kv_{name}.npz") as file:
        return {key: torch.from_numpy(x) for key, x in file.items()}


@pytest.fixture(scope="module")
def problem():
    q, k, v = (x.unsqueeze(0) for x in golden_of("problem").values())
    return q[:, :, :-1], q[:, :, -1:], k, v


def check(store, golden, q_next, tolerance=1e-5):
    held = golden["held"]
    assert store.tokens == -(-int(held.sum()) // len(held))
    out = store.attend(q_next)[0, :, 0].double()
    torch.testing.assert_close(out, golden["out"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["adakv_snapkv", "ems"])
def test_heads_share_a_budget(problem, name):
    q, q_next, k, v = problem
    golden = golden_of(name)
    store = kv.KvStore(recipe_of(name), budget=64)
    store.append(k, v)
    store.settle(q)
    assert store.past.lengths[0].tolist() == golden["held"].tolist()
    check(store, golden, q_next)


@pytest.mark.parametrize("name", ["zipcache", "zipvl", "zipvl_evict"])
def test_two_classes(problem, name, monkeypatch):
    q, q_next, k, v = problem
    golden = golden_of(name)
    monkeypatch.setattr(classes, "probe_rows", lambda n, probes: golden["rows"])
    store = kv.KvStore(recipe_of(name))
    store.append(k, v)
    store.settle(q)
    # scales and minima are rounded to f16 in the pages
    check(store, golden, q_next, 1e-5 if name == "zipvl_evict" else 4e-3)


def test_low_rank_keys(problem):
    q, q_next, k, v = problem
    turns = 10000.0 ** (-torch.arange(8) / 8)
    store = kv.KvStore(recipe_of("shadowkv"), budget=64, frequencies=turns)
    store.append(k, v)
    store.settle(q)
    check(store, golden_of("shadowkv"), q_next, 1e-4)


def test_a_window_of_attention(problem):
    q, _, k, v = problem
    store = kv.KvStore(recipe_of("alisa"), budget=64)
    store.append(k[:, :, :190], v[:, :, :190])
    store.settle(q[:, :, :190])
    for t in range(190, 199):
        store.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        store.attend(q[:, :, t : t + 1])
        store.settle(q[:, :, t : t + 1])
    store.append(k[:, :, 199:], v[:, :, 199:])
    check(store, golden_of("alisa"), q[:, :, 199:])


@pytest.mark.parametrize("name", ["s2", "moa"])
def test_patterns(problem, name):
    q, q_next, k, v = problem
    golden = golden_of(name)
    recipe, plan = recipe_of(name), None
    if name == "s2":
        small = replace(recipe.pattern, layout=LocalStride(local=3, stride=4, block=16))
        recipe = replace(recipe, pattern=small)
    else:
        plan = LayerPlan("spans", [[16, 0], [0, 0.25]], options={"block": 16, "sink": 1})
    store = kv.KvStore(recipe, plan=plan)
    out = store.prefill(q, k, v, scale=None, pad=None)[0, :, [0, 50, 100, 150]]
    wanted = golden["prompt"].view(4, 4, 16).transpose(0, 1)
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=1e-5)
    store.append(k, v)
    store.settle(q)
    check(store, golden, q_next)

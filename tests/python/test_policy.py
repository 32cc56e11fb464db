"""Laws of every policy slot: shapes, exact counts, monotone, stable ties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import TamisUnsupported, TamisValueError
from tamis.policy import allocate, score, select, solve
from tamis.recipe import Goal, LinearContext, Pattern, Stats, count_dropped

SPARSITY = st.floats(0, 0.999)
SCORES = {
    "magnitude": score.magnitude,
    "wanda": score.wanda,
    "obs": score.obs,
    "random": score.random,
}


def make(seed, n, k, levels=0):
    """Scores [n, k]; with `levels`, drawn from few values, so that ties abound."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, (n, k)) if levels else rng.random((n, k))
    return torch.from_numpy(values.astype(np.float32))


def stable(values, count):
    """keep of a flat list after a stable ascending sort."""
    keep = np.ones(len(values), bool)
    keep[np.argsort(values, kind="stable")[:count]] = False
    return keep


def context(seed=0, n=6, k=20):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((50, k)))
    weight = torch.from_numpy(rng.standard_normal((n, k)).astype(np.float32))
    return LinearContext("layer", weight, Stats(50, x.square().mean(0), x.t() @ x / 50))


# score


@pytest.mark.parametrize("name", SCORES)
def test_scores_have_the_weights_shape_and_are_not_negative(name):
    ctx = context()
    values = SCORES[name](ctx)
    assert values.shape == ctx.weight.shape
    assert bool((values >= 0).all())


@pytest.mark.parametrize("name", ["magnitude", "wanda", "obs"])
def test_scores_grow_with_the_weight_and_ignore_its_sign(name):
    ctx = context()
    larger = LinearContext("layer", -2 * ctx.weight, ctx.stats)
    assert bool((SCORES[name](larger) > SCORES[name](ctx)).all())


def test_wanda_formula():
    ctx = context()
    wanted = np.abs(ctx.weight.numpy().astype(float)) * np.sqrt(ctx.stats.x_sq.numpy())
    np.testing.assert_allclose(score.wanda(ctx).numpy(), wanted, 1e-6)


@pytest.mark.parametrize(("function", "needed"), [(score.wanda, "x_sq"), (score.obs, "hessian")])
def test_scores_name_the_statistics_they_miss(function, needed):
    ctx = LinearContext("layer", torch.ones(2, 4))
    with pytest.raises(TamisValueError, match=f"layer.*'{needed}'.*needs"):
        function(ctx)


# select


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(1, 9), st.integers(1, 70), SPARSITY, st.integers(0, 4))
def test_unstructured_is_a_stable_sort(seed, n, k, sparsity, levels):
    scores = make(seed, n, k, levels)
    for group in ("row", "layer"):
        keep = select.keep_largest(scores, Goal(Pattern(), sparsity), group).numpy()
        lists = scores.numpy() if group == "row" else scores.numpy().reshape(1, -1)
        count = int(np.floor(np.round(sparsity * lists.shape[1], 6)))
        wanted = np.stack([stable(row, count) for row in lists]).reshape(n, k)
        np.testing.assert_array_equal(keep, wanted)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(1, 32), st.data(), st.integers(0, 3))
def test_n_of_m_is_a_stable_sort_of_every_group(seed, of, data, levels):
    kept = data.draw(st.integers(1, of))
    scores = make(seed, 3, of * 4, levels)
    goal = Goal(Pattern("nm", keep=kept, of=of), 0)
    keep = select.keep_largest(scores, goal, "row").numpy()
    groups = scores.numpy().reshape(-1, of)
    wanted = np.stack([stable(group, of - kept) for group in groups]).reshape(keep.shape)
    np.testing.assert_array_equal(keep, wanted)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.integers(1, 4), st.integers(1, 8), SPARSITY)
def test_blocks_go_whole_by_their_sum(seed, r, c, sparsity):
    scores = make(seed, 3 * r, 4 * c)
    goal = Goal(Pattern("block", rows=r, cols=c), sparsity)
    keep = select.keep_largest(scores, goal, "row").numpy()
    sums = scores.double().numpy().reshape(3, r, 4, c).sum((1, 3)).ravel()
    wanted = stable(sums, count_dropped(sparsity, 12)).reshape(3, 1, 4, 1)
    np.testing.assert_array_equal(keep.reshape(3, r, 4, c), np.broadcast_to(wanted, (3, r, 4, c)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), SPARSITY, st.integers(0, 5))
def test_global_is_a_stable_sort_of_all_layers(seed, sparsity, levels):
    layers = [make(seed + i, n, k, levels) for i, (n, k) in enumerate([(3, 7), (5, 4), (1, 30)])]
    flat = np.concatenate([layer.numpy().ravel() for layer in layers])
    wanted = stable(flat, count_dropped(sparsity, len(flat)))
    bound = select.global_threshold(lambda: iter(layers), sparsity)
    got = np.concatenate([bound(layer).numpy().ravel() for layer in layers])
    np.testing.assert_array_equal(got, wanted)


def test_masks_are_nested_as_sparsity_grows():
    scores = make(1, 8, 64)
    before = torch.ones(8, 64, dtype=torch.bool)
    for sparsity in (0.1, 0.3, 0.5, 0.9):
        keep = select.keep_largest(scores, Goal(Pattern(), sparsity), "layer")
        assert not bool((keep & ~before).any())
        before = keep


def test_global_selection_is_not_a_layers_business():
    with pytest.raises(TamisUnsupported, match="global_threshold"):
        select.keep_largest(make(0, 2, 4), Goal(Pattern(), 0.5), "global")


@pytest.mark.parametrize(
    ("sparsity", "count", "dropped"),
    [(0.29, 100, 29), (0.7, 10, 7), (0.5, 5, 2), (0, 9, 0), (0.999, 1, 0)],
)
def test_counts_are_immune_to_binary_fractions(sparsity, count, dropped):
    assert count_dropped(sparsity, count) == dropped


# allocate

SHAPES = {"small": (8, 16), "wide": (64, 256), "deep.0": (256, 64), "deep.1": (32, 32)}


@settings(max_examples=60, deadline=None)
@given(SPARSITY)
def test_erk_counts_exactly_and_stays_in_range(sparsity):
    shares = allocate.erk(SHAPES, sparsity)
    assert list(shares) == list(SHAPES)
    sizes = {name: n * k for name, (n, k) in SHAPES.items()}
    drops = {name: count_dropped(shares[name], sizes[name]) for name in SHAPES}
    assert sum(drops.values()) == count_dropped(sparsity, sum(sizes.values()))
    assert all(0 <= drops[name] <= sizes[name] for name in SHAPES)


def test_erk_formula_and_clipping():
    shares = allocate.erk(SHAPES, 0.9)
    densities = {name: 1 - shares[name] for name in SHAPES}
    ratio = {name: densities[name] * n * k / (n + k) for name, (n, k) in SHAPES.items()}
    free = [name for name in SHAPES if densities[name] < 1]
    assert len(free) >= 2
    for name in free:
        assert ratio[name] == pytest.approx(ratio[free[0]], rel=0.02)
    clipped = allocate.erk(SHAPES, 0.8)  # "small" is full; the others share what is left
    total = sum(n * k for n, k in SHAPES.values())
    rest = total - count_dropped(0.8, total) - 8 * 16
    scale = rest / sum(n + k for name, (n, k) in SHAPES.items() if name != "small")
    for name, (n, k) in list(SHAPES.items())[1:]:
        assert (1 - clipped[name]) * n * k == pytest.approx(scale * (n + k), abs=1)
    low = allocate.erk(SHAPES, 0.2)
    assert low["small"] == 0  # would exceed density 1


def test_given_takes_names_and_patterns_first_match_first():
    shares = allocate.given(SHAPES, 0.5, {"deep.1": 0.1, "re:deep": 0.7})
    assert shares == {"small": 0.5, "wide": 0.5, "deep.0": 0.7, "deep.1": 0.1}
    assert allocate.uniform(SHAPES, 0.3) == dict.fromkeys(SHAPES, 0.3)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"nothing": 0.5}, "got 'nothing'"),
        ({"wide": 1.0}, "got sparsity 1.0"),
        ({"re:(": 0.5}, "regular"),
    ],
)
def test_given_refuses(wanted, message):
    with pytest.raises(TamisValueError, match=message):
        allocate.given(SHAPES, 0.5, wanted)


# solve


@pytest.mark.parametrize("k", [1, 5, 300, 700])
def test_inverse_factor(k):
    rng = np.random.default_rng(k)
    x = rng.standard_normal((k + 30, k))
    x[:, 0] = 0
    hessian = x.T @ x / len(x)
    upper, dead = solve.inverse_factor(Stats(len(x), None, torch.from_numpy(hessian)), "layer")
    hessian[0, 0] = 1
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(k)
    np.testing.assert_allclose((upper.t() @ upper).numpy(), np.linalg.inv(hessian), 1e-8, 1e-9)
    assert bool((upper.tril(-1) == 0).all())
    assert dead.tolist() == [True] + [False] * (k - 1)


def test_inverse_factor_is_made_once_per_input():
    stats = context().stats
    assert solve.inverse_factor(stats, "a")[0] is solve.inverse_factor(stats, "b")[0]


def test_inverse_factor_refuses_what_is_not_definite():
    hessian = torch.tensor([[1.0, 5.0], [5.0, 1.0]], dtype=torch.float64)
    with pytest.raises(TamisValueError, match="layer.*positive definite.*calibration data"):
        solve.inverse_factor(Stats(1, None, hessian), "layer")

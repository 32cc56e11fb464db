"""Every pruning method against its golden file, made by an independent NumPy transcription."""

import ast
import inspect
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import tamis.method
from tamis.errors import TamisValueError
from tamis.policy import quantize, repair, score, select
from tamis.recipe import Goal, LinearContext, Pattern, PruneRecipe, Stats, apply

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = tamis.method.names()
GOALS = {
    "u50": Goal(Pattern(), 0.5),
    "u30": Goal(Pattern(), 0.3),
    "nm24": Goal(Pattern("nm", keep=2, of=4), 0.5),
    "nm18": Goal(Pattern("nm", keep=1, of=8), 0.875),
}


def context(golden, dtype=torch.float32):
    x = torch.from_numpy(golden["x"]).double()
    stats = Stats(len(x), x.square().mean(0), x.t() @ x / len(x))
    return LinearContext("layer", torch.from_numpy(golden["weight"]).to(dtype), stats, seed=3)


def golden_of(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


@pytest.mark.parametrize("label", GOALS)
@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in ("random", "magnitude_global", "gqsa")]
)
def test_golden(name, label):
    golden = golden_of(name)
    weight, keep = apply(tamis.method.load(name), context(golden), GOALS[label])
    np.testing.assert_array_equal(keep.numpy(), golden[f"{label}_keep"])
    wanted = golden.get(f"{label}_weight", np.where(golden[f"{label}_keep"], golden["weight"], 0))
    np.testing.assert_allclose((weight * keep).numpy(), wanted, 1e-4, 1e-5)


@pytest.mark.parametrize("label", GOALS)
def test_golden_sparsegpt_in_f64(label):
    """Without f32 rounding the sweep is the transcription, to the golden file's f32."""
    golden = golden_of("sparsegpt")
    ctx = context(golden, torch.float64)
    weight, keep = apply(tamis.method.load("sparsegpt"), ctx, GOALS[label])
    np.testing.assert_array_equal(keep.numpy(), golden[f"{label}_keep"])
    np.testing.assert_allclose((weight * keep).numpy(), golden[f"{label}_weight"], 1e-6, 1e-7)


@pytest.mark.parametrize("label", ["u50", "u30"])
def test_golden_groups_and_their_codes(label):
    golden = golden_of("gqsa")
    recipe = tamis.method.load("gqsa")
    goal = Goal(recipe.pattern, GOALS[label].sparsity)
    weight, keep = apply(recipe, context(golden, torch.float64), goal)
    np.testing.assert_array_equal(keep.numpy(), golden[f"{label}_keep"])
    kept = weight * keep
    np.testing.assert_allclose(kept.numpy(), golden[f"{label}_weight"], 1e-6, 1e-7)
    stored = quantize.min_max(kept.requires_grad_(), 4, 16)
    np.testing.assert_allclose(stored.detach().numpy(), golden[f"{label}_stored"], 1e-5, 1e-6)
    stored.sum().backward()
    assert torch.equal(kept.grad, torch.ones_like(kept))


@pytest.mark.parametrize("label", GOALS)
def test_golden_random_counts(label):
    golden = golden_of("random")
    ctx = context(golden)
    _, keep = apply(tamis.method.load("random"), ctx, GOALS[label])
    np.testing.assert_array_equal(keep.sum(1).numpy(), golden[f"{label}_kept"])
    _, again = apply(tamis.method.load("random"), ctx, GOALS[label])
    assert torch.equal(keep, again)
    for other in (
        LinearContext("layer", ctx.weight, seed=4),
        LinearContext("other", ctx.weight, seed=3),
    ):
        _, differs = apply(tamis.method.load("random"), other, GOALS[label])
        assert not torch.equal(keep, differs)


@pytest.mark.parametrize("label", ["u50", "u30"])
def test_golden_global(label):
    golden = golden_of("magnitude_global")
    layers = [torch.from_numpy(golden[f"weight{i}"]) for i in range(3)]
    bound = select.global_threshold(lambda: (w.abs() for w in layers), GOALS[label].sparsity)
    for i, layer in enumerate(layers):
        np.testing.assert_array_equal(bound(layer.abs()).numpy(), golden[f"{label}_keep{i}"])


def test_every_method_has_a_golden_file():
    found = {path.stem for path in GOLDEN.glob("*.npz")}
    assert {name for name in found if not name.startswith("kv_")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_method_is_data_with_its_paper(name):
    module = import_module(f"tamis.method.prune.{name}")
    source = inspect.getsource(module)
    assert "Paper:" in module.__doc__
    assert "Differs:" in module.__doc__
    assert len(source.splitlines()) <= 60
    code = {type(node) for node in ast.walk(ast.parse(source))}
    assert not code & {
        ast.FunctionDef,
        ast.Lambda,
        ast.ClassDef,
        ast.For,
        ast.While,
        ast.GeneratorExp,
    }
    assert isinstance(module.RECIPE, PruneRecipe)


def test_methods_differ():
    recipes = [tamis.method.load(name) for name in NAMES]
    assert len(set(recipes)) == len(recipes)


def test_unknown_method_lists_what_exists():
    with pytest.raises(TamisValueError, match=r"got 'wandaa', wanted one of .*magnitude.*wanda"):
        tamis.method.load("wandaa")


def test_given_mask_is_repaired_not_changed():
    """Wanda's mask under SparseGPT's update: the mask stays, the layer's output error falls."""
    golden = golden_of("wanda")
    recipe = PruneRecipe(
        score=score.wanda,
        select=select.keep_largest,
        group="row",
        repair=repair.obs_sweep,
        needs=frozenset({"x_sq", "hessian"}),
    )
    weight, keep = apply(recipe, context(golden), GOALS["u50"])
    np.testing.assert_array_equal(keep.numpy(), golden["u50_keep"])
    x, dense = torch.from_numpy(golden["x"]), torch.from_numpy(golden["weight"])

    def error(w):
        return float((x @ (w * keep - dense).t()).square().sum())

    assert error(weight) < 0.9 * error(dense)


def output_error(golden, weight, keep):
    """Of the layer's output on the golden inputs, over the output's own square."""
    x, dense = torch.from_numpy(golden["x"]), torch.from_numpy(golden["weight"])
    wanted = x @ dense.t()
    return float((x @ (weight * keep).t() - wanted).square().sum() / wanted.square().sum())


@pytest.mark.parametrize("label", GOALS)
def test_admm_loses_less_than_the_sweep(label):
    golden = golden_of("alps")
    found = (
        apply(tamis.method.load(n), context(golden), GOALS[label]) for n in ("alps", "sparsegpt")
    )
    alps, sparsegpt = (output_error(golden, *pair) for pair in found)
    assert alps < 0.9 * sparsegpt


def test_admm_leaves_what_is_pruned_already():
    """It is its own best mask, with the best weights."""
    golden = golden_of("alps")
    golden["weight"] = golden["weight"] * golden_of("wanda")["u50_keep"]
    golden["weight"][:, 7] = 0  # no input
    weight, keep = apply(tamis.method.load("alps"), context(golden), GOALS["u50"])
    assert int((~keep).sum()) == keep.numel() // 2
    np.testing.assert_allclose((weight * keep).numpy(), golden["weight"], 1e-5, 1e-6)


@pytest.mark.parametrize("name", ["sparsegpt", "alps"])
def test_block_pattern_under_a_repair_drops_whole_blocks(name):
    golden = golden_of(name)
    goal = Goal(Pattern("block", rows=4, cols=16), 0.5)
    weight, keep = apply(tamis.method.load(name), context(golden), goal)
    blocks = keep.reshape(3, 4, 10, 16).sum((1, 3))
    assert set(blocks.flatten().tolist()) == {0, 64}
    assert int((blocks == 0).sum()) == 15
    assert bool(weight.isfinite().all())

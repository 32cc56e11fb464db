"""sparsify_, dense_: a sentence for bad input, and nothing changed by any failure."""

import pytest
import torch
from tiny import inputs, tiny
from torch import nn

from tamis import rewrite, stored
from tamis.errors import TamisTypeError, TamisUnsupported, TamisValueError
from tamis.nn import SparseLinear
from tamis.policy import score, select
from tamis.recipe import KEEP, PruneRecipe
from tamis.rewrite import dense_, sparsify_


def snapshot(model):
    modules = [(name, id(module)) for name, module in model.named_modules()]
    return modules, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model, before):
    modules, state = before
    assert [(name, id(module)) for name, module in model.named_modules()] == modules
    now = model.state_dict()
    assert now.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(now[name], tensor), name


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "wandaa"}, TamisValueError, "got 'wandaa', wanted one of .*wanda"),
        ({"method": 3}, TamisTypeError, "method: got int"),
        ({"sparsity": 1.0}, TamisValueError, "sparsity: got 1.0, wanted 0 <= sparsity < 1"),
        ({"sparsity": -0.1}, TamisValueError, "sparsity: got -0.1"),
        ({"sparsity": float("nan")}, TamisValueError, "sparsity: got nan"),
        ({"pattern": "4:2"}, TamisValueError, "pattern: got '4:2', wanted 'unstructured'"),
        ({"pattern": "row"}, TamisValueError, "pattern: got 'row'.*'2:4' or 'block:16x16'"),
        (
            {"pattern": "2:5"},
            TamisValueError,
            r"'2:5' for model.layers.0.*32 inputs.*multiple of 5.*ignore=",
        ),
        ({"pattern": "block:5x4"}, TamisValueError, "32 outputs, wanted a multiple of 5"),
        (
            {"pattern": "1:4", "sparsity": 0.6},
            TamisValueError,
            "got 0.6 with pattern '1:4', wanted 0.75",
        ),
        ({"pattern": "2:4", "allocate": "erk"}, TamisValueError, "allocate: got 'erk'.*'uniform'"),
        ({"allocate": "best"}, TamisValueError, "allocate: got 'best'"),
        (
            {"allocate": {"nope": 0.5}},
            TamisValueError,
            "got 'nope', wanted the name of a pruned layer",
        ),
        ({"format": "coo"}, TamisValueError, "format: got 'coo', wanted 'auto', 'dense' or one of"),
        ({"dtype": "i4"}, TamisValueError, "dtype: got 'i4'.*wanted None or.*'i8'"),
        (
            {"dtype": "i8", "format": "dense"},
            TamisValueError,
            "dtype: got 'i8' with format 'dense'",
        ),
        ({"format": "nm"}, TamisValueError, "format: got 'nm' with pattern 'unstructured'"),
        ({"targets": ["q_proj"]}, TamisValueError, r"targets: got 'q_proj'.*such as .*'re:'"),
        ({"targets": "q_proj"}, TamisTypeError, "targets: got the string"),
        ({"targets": ["re:["]}, TamisValueError, "regular expression"),
        ({"targets": []}, TamisValueError, "no layer to prune"),
        ({"ignore": ["lm_heat"]}, TamisValueError, "ignore: got 'lm_heat'"),
        ({"filter_fn": lambda m, n: False}, TamisValueError, "no layer to prune"),
        ({"method": "wanda", "data": None}, TamisValueError, "data: got None.*'wanda' needs"),
        ({"method": "wanda", "data": []}, TamisValueError, "data: got no samples"),
        ({"method": "wanda", "data": ["text"]}, TamisValueError, "text without tokenizer"),
        ({"method": "wanda", "data": [[5] * 65], "max_length": 64}, TamisValueError, "65 tokens"),
    ],
)
def test_bad_arguments_get_a_sentence_and_change_nothing(options, error, message):
    model = tiny("llama")
    before = snapshot(model)
    options = {"method": "magnitude", **options}
    with pytest.raises(error, match=message) as caught:
        sparsify_(model, **options)
    assert "\n" not in str(caught.value)
    assert_unchanged(model, before)


def test_nan_weights_get_a_sentence():
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[1, 2] = float("nan")
    with pytest.raises(TamisValueError, match=r"layers\.2\.mlp\.up_proj: got weights that are NaN"):
        sparsify_(model, "magnitude")
    assert not any(isinstance(module, SparseLinear) for module in model.modules())


def test_pruning_twice_says_so():
    model = tiny("llama")
    sparsify_(model, "magnitude")
    with pytest.raises(TamisValueError, match="call dense_ first"):
        sparsify_(model, "magnitude")


def test_models_that_are_none():
    for function in (lambda m: sparsify_(m, "magnitude"), dense_):
        with pytest.raises(TamisTypeError, match="model: got str, wanted a torch.nn.Module"):
            function("model")


def test_layers_that_are_no_linears_are_named():
    class Scaled(nn.Linear):
        pass

    with pytest.raises(TamisValueError, match="its weights are in Scaled, which may do more"):
        sparsify_(nn.Sequential(Scaled(32, 32)), "magnitude")


def test_text_for_a_model_of_images_gets_a_sentence():
    with pytest.raises(TamisValueError, match="got a sample on which ViTForImageClassification"):
        sparsify_(tiny("vit"), "wanda", data=[[1, 2, 3]])


def test_unknown_statistics_are_refused():
    recipe = PruneRecipe(
        score=score.magnitude, select=select.keep_largest, needs=frozenset({"moon"})
    )
    with pytest.raises(TamisUnsupported, match="moon"):
        sparsify_(tiny("llama"), recipe, data=inputs("llama"))


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "magnitude", "magnitude_global"])
@pytest.mark.parametrize("format", ["auto", "dense"])
@pytest.mark.parametrize("at", [1, 9, 21])
def test_a_failure_at_any_layer_changes_nothing(monkeypatch, method, format, at):
    model, calls = tiny("llama").train(), 0
    before = snapshot(model)
    build = rewrite._build

    def failing(*args):
        nonlocal calls
        calls += 1
        if calls == at:
            raise MemoryError("no memory")
        return build(*args)

    monkeypatch.setattr(rewrite, "_build", failing)
    with pytest.raises(MemoryError):
        sparsify_(model, method, data=inputs("llama"), format=format)
    assert_unchanged(model, before)
    assert all(module.training for module in model.modules())


def test_a_failure_while_swapping_changes_nothing():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def __setattr__(self, name, value):
            if name == "second" and isinstance(value, SparseLinear):
                raise RuntimeError("read only")
            super().__setattr__(name, value)

    model = Stubborn()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="read only"):
        sparsify_(model, "magnitude", format="bitmap")
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("format", "place", "name"),
    [("bitmap", stored, "follow"), ("dense", nn.Module, "register_buffer")],
)
@pytest.mark.parametrize("at", [1, 2])
def test_an_interrupted_swap_changes_nothing(monkeypatch, format, place, name, at):
    """Ctrl-C while transformers is told of the sparse layers, or between two masks."""
    model, calls, call = tiny("llama"), 0, getattr(place, name)
    before = snapshot(model)

    def interrupted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return call(*args, **kwargs)

    monkeypatch.setattr(place, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        sparsify_(model, "magnitude", format=format)
    assert_unchanged(model, before)
    assert not hasattr(model, "hf_quantizer")
    assert not any(hasattr(module, KEEP) for module in model.modules())


def test_interrupted_forward_restores_the_block():
    """An exception in the second run of a block, when its pruned weights are in place."""
    model, runs = tiny("llama"), 0
    before = snapshot(model)

    def stop(module, args):
        nonlocal runs
        runs += 1
        if runs == 5:  # three samples with statistics, then the second of the pruned run
            raise KeyboardInterrupt

    handle = model.model.layers[0].mlp.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        sparsify_(model, "sparsegpt", data=inputs("llama"))
    handle.remove()
    assert_unchanged(model, before)

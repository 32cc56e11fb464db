"""Activation sparsity: operators against torch, thresholds, plans, and models with and without them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import inputs, logits, tiny

import tamis
from tamis import activation
from tamis.activation.collect import gated_mlps
from tamis.activation.layers import InputSparseLinear, SparseMLP, by_column
from tamis.errors import TamisFileError, TamisTypeError, TamisUnsupported, TamisValueError
from tamis.model import family_of
from tamis.ops.sparse_input import masked_input, sparse_input
from tamis.ops.sparse_mlp import masked_mlp, sparse_mlp
from tamis.policy import activation as policy

METHODS = tamis.method.names("activation")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


# Operators


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 40), (2, 3, 40), (4, 40), (7, 40)])
def test_sparse_input_is_the_masked_product(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, w, bias = torch.randn(shape), torch.randn(70, 40), torch.randn(70)
    x, w, bias = x.to(dtype), by_column(w.to(dtype)), bias.to(dtype)
    threshold = torch.rand(40)
    y = sparse_input(x, w, threshold, bias)
    wanted = masked_input(x.double(), w.double(), threshold.double(), bias.double())
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), wanted, rtol=torch.finfo(dtype).eps, atol=1e-4)
    assert not torch.allclose(wanted, torch.nn.functional.linear(x.double(), w.double()) + bias)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["silu", "relu", "gelu", "gelu_tanh"])
def test_sparse_mlp_is_the_masked_product(dtype: torch.dtype, name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    # Halves of small integers: no activation lies near the threshold, whatever the order of sums.
    x, gate, up = (
        torch.randint(-2, 3, s, generator=generator) / 2 for s in ((3, 32), (90, 32), (90, 32))
    )
    down = torch.randint(-2, 3, (24, 90), generator=generator) / 2
    x, gate, up, down = (t.to(dtype) for t in (x, gate, up, down))
    threshold = torch.full((90,), 0.731)
    y = sparse_mlp(x, gate, up, by_column(down), threshold, name)
    wanted = masked_mlp(*(t.double() for t in (x, gate, up, down, threshold)), name)
    torch.testing.assert_close(y.double(), wanted, rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_operators_are_seen_by_compile() -> None:
    x, w, t = torch.randn(2, 16), by_column(torch.randn(8, 16)), torch.rand(16)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.tamis.sparse_input, (x, w, t, None), test_utils=checks)
    gate, down = torch.randn(24, 16), by_column(torch.randn(16, 24))
    args = (x, gate, gate, down, torch.rand(24), 4)
    torch.library.opcheck(torch.ops.tamis.sparse_mlp, args, test_utils=checks)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": torch.zeros(2, 9)}, TamisValueError, r"x: got shape \[2, 9\], wanted \[..., 16\]"),
        ({"x": torch.zeros(2, 16, dtype=torch.int8)}, TamisTypeError, "x: got torch.int8"),
        ({"w": torch.zeros(8, 16)}, TamisValueError, "w: got rows that are contiguous"),
        ({"w": by_column(torch.zeros(8, 16)).half()}, TamisTypeError, "w: got torch.float16"),
        ({"threshold": torch.zeros(3)}, TamisValueError, r"threshold: got shape \[3\]"),
        ({"bias": torch.zeros(3)}, TamisValueError, r"bias: got shape \[3\], wanted \[8\]"),
    ],
)
def test_sparse_input_refuses(change: dict[str, Any], error: type[Exception], text: str) -> None:
    args = {
        "x": torch.zeros(2, 16),
        "w": by_column(torch.zeros(8, 16)),
        "threshold": torch.zeros(16),
        "bias": None,
    }
    with pytest.raises(error, match=text):
        sparse_input(**{**args, **change})


def test_sparse_mlp_refuses() -> None:
    x, gate, down, t = torch.zeros(1, 4), torch.zeros(6, 4), torch.zeros(4, 6), torch.zeros(6)
    with pytest.raises(TamisValueError, match="down: got rows that are contiguous"):
        sparse_mlp(x, gate, gate, down, t)
    with pytest.raises(TamisValueError, match=r"up: got shape \[5, 4\], wanted \[6, 4\]"):
        sparse_mlp(x, gate, gate[:5], by_column(down), t)
    with pytest.raises(TamisValueError, match="activation: got 'tanh', wanted 'relu'"):
        sparse_mlp(x, gate, gate, by_column(down), t, "tanh")


# Thresholds


def test_threshold_leaves_out_the_share_that_was_asked_for() -> None:
    values = torch.randn(200_000)
    counts = policy.count_magnitudes(values[:1000]) + policy.count_magnitudes(values[1000:])
    previous = 0.0
    for sparsity in (0.1, 0.5, 0.9, 0.99):
        bound, share = policy.threshold(counts, sparsity)
        real = float((values.abs() < bound).float().mean())
        assert abs(real - sparsity) < 0.01
        assert abs(share - sparsity) < 0.01
        assert bound > previous
        previous = bound
    assert policy.threshold(counts, 0.0) == (0.0, 0.0)


def test_a_recipe_needs_what_it_weighs_by() -> None:
    from tamis.recipe import ActivationStats

    with pytest.raises(TamisValueError, match="got no mean_up"):
        policy.mean_up(ActivationStats(torch.ones(3)))


# Models


def plan_of(model: torch.nn.Module, method: str, sparsity: float = 0.5) -> activation.Plan:
    return activation.calibrate(model, method, sparsity=sparsity, data=inputs("llama"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_every_method_leaves_out_its_share(family: str, method: str) -> None:
    model = tiny(family)
    plan = activation.calibrate(model, method, sparsity=0.5, data=inputs(family))
    assert plan.method == method
    assert plan.thresholds
    for name, place in plan.thresholds.items():
        assert 0.4 < place.sparsity < 0.6, name
    before = [logits(model, sample) for sample in inputs(family)]
    with activation.attach(model, plan, measure=False) as handle:
        assert all(place.sparse for place in handle.places)
        changed = [logits(model, sample) for sample in inputs(family)]
    after = [logits(model, sample) for sample in inputs(family)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(torch.allclose(a, b) for a, b in zip(before, changed, strict=True))


def test_kinds_of_methods() -> None:
    model = tiny("llama")
    kinds = {m: {t.kind for t in plan_of(model, m).thresholds.values()} for m in METHODS}
    assert kinds == {
        "cats": {"neurons"},
        "chess": {"neurons", "inputs"},
        "teal": {"inputs"},
        "wina": {"inputs"},
    }
    names = plan_of(model, "chess").thresholds
    assert {name.rpartition(".")[2] for name in names} == {"mlp", "q_proj", "o_proj"}


@pytest.mark.parametrize("method", METHODS)
def test_decoding_equals_the_masked_dense_model(method: str) -> None:
    """One token through the kernels, and the same token through torch with activations masked."""
    model = tiny("llama")
    plan = plan_of(model, method)
    sample = {"input_ids": torch.tensor([[5]])}
    with activation.attach(model, plan, measure=False):
        kernels = logits(model, sample)
        with torch.enable_grad():  # then layers multiply densely
            masked = model(**sample).logits.detach()
    torch.testing.assert_close(kernels, masked, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_no_sparsity_changes_nothing(method: str) -> None:
    model = tiny("llama")
    sample = inputs("llama")[0]
    before = logits(model, sample)
    one = {"input_ids": torch.tensor([[5]])}
    single = logits(model, one)
    with activation.attach(model, plan_of(model, method, 0.0), measure=False):
        torch.testing.assert_close(logits(model, sample), before)
        torch.testing.assert_close(logits(model, one), single)


def test_prompts_can_stay_exact() -> None:
    model = tiny("llama")
    sample, one = inputs("llama")[0], {"input_ids": torch.tensor([[5]])}
    before, single = logits(model, sample), logits(model, one)
    for method in ("cats", "teal"):
        plan = plan_of(model, method, 0.7)
        with activation.attach(model, plan, prompts=False, measure=False):
            torch.testing.assert_close(logits(model, sample), before)
            assert not torch.allclose(logits(model, one), single, atol=1e-3)


def test_state_and_layout_come_and_go() -> None:
    model = tiny("llama")
    state = copy.deepcopy(model.state_dict())
    handle = activation.attach(model, plan_of(model, "chess"), measure=False)
    assert isinstance(model.model.layers[0].mlp, SparseMLP)
    assert isinstance(model.model.layers[0].self_attn.q_proj, InputSparseLinear)
    assert model.model.layers[0].mlp.down_proj.weight.t().is_contiguous()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    other = copy.deepcopy(model)
    torch.testing.assert_close(logits(other, inputs("llama")[0]), logits(model, inputs("llama")[0]))
    handle.remove()
    handle.remove()
    assert all(p.is_contiguous() for p in model.parameters())
    assert not any(isinstance(m, SparseMLP | InputSparseLinear) for m in model.modules())


def test_a_module_that_is_not_faster_stays_dense() -> None:
    model = tiny("llama")
    handle = activation.attach(model, plan_of(model, "teal"))
    assert all(place.dense_us > 0 and place.sparse_us > 0 for place in handle.places)
    for place in handle.places:
        sparse = isinstance(model.get_submodule(place.name), InputSparseLinear)
        assert sparse == place.sparse == (place.sparse_us < place.dense_us)
    assert str(handle).count("\n") == len(handle.places)


@pytest.mark.parametrize(("method", "op"), [("teal", "sparse_input"), ("cats", "sparse_mlp")])
def test_explain_names_the_kernels(method: str, op: str) -> None:
    model = tiny("llama")
    names = [row.name for row in tamis.explain(model).layers]
    with activation.attach(model, plan_of(model, method), measure=False):
        rows = tamis.explain(model).layers
    assert [row.name for row in rows] == names
    up = next(row for row in rows if row.name.endswith("0.mlp.up_proj"))
    assert up.kernel.startswith(f"{op}_f32_")
    assert up.nbytes == up.dense_nbytes
    assert "that count" in up.reason
    assert not any("sparse_" in row.kernel for row in tamis.explain(model).layers)


def test_gradients_flow_through_the_masked_form() -> None:
    model = tiny("llama")
    with activation.attach(model, plan_of(model, "cats"), measure=False):
        model(input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([[5, 6]])).loss.backward()
        assert model.model.layers[0].mlp.down_proj.weight.grad is not None


def test_generate_and_save(tmp_path: Path) -> None:
    import transformers

    model = tiny("llama")
    ids = torch.tensor([[5, 9, 11]])
    with activation.attach(model, plan_of(model, "cats", 0.3), measure=False):
        out = model.generate(ids, max_new_tokens=5, do_sample=False)
        model.save_pretrained(tmp_path)
    assert out.shape == (1, 8)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_plans_are_saved(tmp_path: Path) -> None:
    plan = plan_of(tiny("llama"), "chess")
    plan.save(tmp_path / "plan.json")
    assert activation.Plan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    "text", ["", "[]", '{"kind": "other"}', '{"kind": "tamis activation plan"}', None]
)
def test_bad_plan_files(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TamisFileError, match=r"Plan.load: path: got .*calibrate again"):
        activation.Plan.load(path)


def test_a_plan_with_a_negative_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan_of(tiny("llama"), "cats").save(path)
    path.write_text(path.read_text().replace('"bound": ', '"bound": -', 1))
    with pytest.raises(TamisFileError, match="below 0"):
        activation.Plan.load(path)


def test_refusals() -> None:
    model = tiny("llama")
    with pytest.raises(TamisValueError, match="method: got 'dogs', wanted one of cats, chess"):
        activation.calibrate(model, "dogs", sparsity=0.5, data=inputs("llama"))
    with pytest.raises(TamisValueError, match="sparsity: got 1.0, wanted 0 to below 1"):
        activation.calibrate(model, "cats", sparsity=1.0, data=inputs("llama"))
    with pytest.raises(TamisUnsupported, match="model: got OPTForCausalLM"):
        activation.calibrate(tiny("opt"), "cats", sparsity=0.5, data=inputs("opt"))
    plan = plan_of(model, "cats")
    with pytest.raises(TamisValueError, match="plan: got one made with another model"):
        activation.attach(tiny("llama", seed=1), plan)
    handle = activation.attach(model, plan_of(model, "teal"), measure=False)
    with pytest.raises(TamisValueError, match="which is InputSparseLinear in this model"):
        activation.attach(model, plan_of(tiny("llama"), "teal"), measure=False)
    handle.remove()


def test_gated_mlps_are_found() -> None:
    model = tiny("gemma3")
    family = family_of(model)
    assert family is not None
    found = gated_mlps(model, family)
    assert len(found) == 3
    assert {m.activation for m in found.values()} == {"gelu_tanh"}
